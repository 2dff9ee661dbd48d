"""What a program can check of the voice: no result is typed, no sentence is too long, every part of
the book opens and closes, every page of evidence ends with a question."""

import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PAGES = [path for path in sorted((ROOT / "book").glob("*.md")) if path.stem != "api"]  # docstrings
PAGES += [ROOT / "README.md", ROOT / "data/README.md"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EVIDENCE = ["notebooks/03_subset_models.ipynb", "notebooks/10_lds.ipynb"]
EVIDENCE += ["notebooks/11a_nda_ablations.ipynb", "notebooks/11b_gradient_ablations.ipynb"]
EVIDENCE += ["notebooks/12_counterfactuals.ipynb", "notebooks/13_gallery.ipynb"]
EVIDENCE += ["notebooks/14_performance.ipynb", "notebooks/14b_costs.ipynb", "book/shows.md"]

# Numbers that look like results and are none: for each file, what may be typed there, and why.
ANYWHERE = {
    "95 %": "the level of all intervals",
    "100 %": "the LDS of a perfect prediction",
    "0 %": "the LDS of chance",
    "2.5 %": "an end of the interval, as a quantile",
    "97.5 %": "the other end",
}
ALLOWED = {
    "book/reproduce.md": {"3.11": "a version of Python", "655 MB": "a product of sizes"},
    "book/protocol.md": dict.fromkeys(
        ["0.03", "0.10", "0.12", "0.13", "0.15", "0.5"], "an example made for the page"
    ),
    "README.md": {"2510.14269": "number of the paper", "3.11": "a version of Python"},
    "notebooks/04_optimal_denoiser.ipynb": {"1 px": "what the unit means"},
    "notebooks/08_influence.ipynb": {"8 bits": "a format of numbers"},
    "notebooks/14_performance.ipynb": dict.fromkeys(
        ["twice as", "16 times as"], "the sizes in the question"
    )
    | dict.fromkeys(["4.5", "4.5 points", "6.3"], "of the DAS paper"),
}
NUMBER = r"(?<![\w.])[-+−]?\d[\d,]*(?:\.\d+)?"
UNIT = r"(?:%|per cent|points?|px|ms|s|seconds?|minutes?|hours?|[KMG]B|nats|bits)"
SCORE = r"(?:LDS|ceiling|correlation|entropy|gain|score|share|loss)"
FRACTION = r"(?:half|third|quarter|fifth|sixth|seventh|eighth|ninth|tenth)"
TYPED = [
    rf"{NUMBER}[ \u00a0]?{UNIT}(?!\w)",  # 38.6 %, 3 points
    rf"{SCORE} (?:of|is|are|was|reaches|at|to|by)(?: about| only)? {NUMBER}",  # an LDS of 38
    rf"{NUMBER} times (?:as|more|less|better|faster|slower|larger|smaller|longer)",
    r"(?:twice|half|thrice) as(?= \w+)",
    rf"(?:two|three|four|five|seven) {FRACTION}s",
    rf"(?:by|costs?|loses?|gains?) (?:about )?an? {FRACTION}",
    r"(?<![\w.])\d+\.\d+(?![\w.]*\d)(?![ \u00a0]?%)",  # any other decimal
]
BANNED = ["whoever", "that is the favour", "of course", "obviously", "clearly", "needless to say"]
BANNED += ["it is easy to see", "trivially", "note that", "an anecdote", "as is well known"]
LONGEST = 40  # words


def text_of(path):
    """The Markdown of a page or of a notebook."""
    if path.suffix != ".ipynb":
        return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def prose(markdown):
    """What a reader reads as sentences: no code, formulas, tables, roles, links' targets; a glued
    number or word is `#`."""
    text = re.sub(r"<!-- generated.*?<!-- end -->", "", markdown, flags=re.S)
    text = re.sub(r"^(`{3,})\{math\}.*?^\1", "", text, flags=re.S | re.M)
    text = re.sub(r"^```(?:\w+\n|\n|\{bibliography\}).*?^```", "", text, flags=re.S | re.M)
    text = re.sub(r"\{glue:text\}`[^`]*`", "#", text)
    text = re.sub(
        r"^(?:`{3,}|:{3,})\{[^}]*\}.*$|^(?:`{3,}|:{3,})$|^:[\w-]+:.*$", "", text, flags=re.M
    )
    text = re.sub(r"^\|.*$|^\s*\(.*\)=$", "", text, flags=re.M)
    text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$", "x", text, flags=re.S)
    text = re.sub(r"\{[\w:]+\}`[^`]*`", "x", text)
    text = re.sub(r"`[^`]*`", "x", text)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    return text.replace("*", "")


def typed(markdown, allowed=()):
    """Results that somebody has typed."""
    text = prose(markdown)
    found = {m.group().replace("\u00a0", " ") for p in TYPED for m in re.finditer(p, text)}
    return found - set(ANYWHERE) - set(allowed)


def sentences(markdown):
    """One by one, across line breaks but not across paragraphs or items of a list."""
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )|\n(?=#)", prose(markdown)):
        flat = " ".join(block.split())
        yield from re.split(r"(?<=[.!?:])\s+(?=[A-Z#x“\"])", flat)


def heavy(markdown):
    """Sentences that want to be two."""
    return [
        s
        for s in sentences(markdown)
        if len(re.findall(r"[\w#’'-]+", s)) > LONGEST or s.count(";") > 1
    ]


def name(path):
    return path.relative_to(ROOT).as_posix()


every_page = pytest.mark.parametrize("path", PAGES + NOTEBOOKS, ids=name)


@every_page
def test_no_result_is_typed(path):
    """It is computed, and glued into its sentence by `nda.report.said.say`."""
    assert not typed(text_of(path), ALLOWED.get(name(path), ()))


@every_page
def test_sentences_can_be_read_once(path):
    assert not heavy(text_of(path))


@every_page
def test_no_empty_phrases(path):
    text = " ".join(prose(text_of(path)).lower().split())
    assert not [phrase for phrase in BANNED if phrase in text]


@pytest.mark.parametrize(
    "sentence",
    [
        "NDA reaches 38.6 % there.",
        "It scores 38.6\u00a0%.",
        "It is three points better, or 3 points.",
        "It has an LDS of 38 on them.",
        "The ceiling is about 73 there.",
        "It is 2.5 times as fast.",
        "NDA is twice as good as raw pixels.",
        "They agree by two thirds.",
        "Ten timesteps cost a fifth.",
        "The error is 0.17 of it.",
        "It took 65 minutes.",
    ],
)
def test_a_typed_result_is_found(sentence):
    assert typed(f"# A page\n\n{sentence}\n")


@pytest.mark.parametrize(
    "sentence",
    [
        "NDA reaches {glue:text}`nda_val:.1f` % there.",
        "We draw 200 photographs of 16 × 16 pixels.",
        "The 95 % interval is that of the bootstrap.",
        "Set `ema=0.97` for it, and $c = 0.5$.",
        "```python\nx = 38.6  # %\n```",
        "| a | 38.6 % |",
        "```{math}\n:label: a\n0.5 x\n```",
    ],
)
def test_what_is_not_a_typed_result_is_not_found(sentence):
    assert not typed(f"# A page\n\n{sentence}\n")


def test_a_heavy_sentence_is_found():
    assert heavy("We " + "go on and " * 14 + "stop.")
    assert heavy("We come; we see; we leave.")
    assert not heavy("We come. " * 30 + "We see; we leave.")


def test_what_is_allowed_is_still_needed():
    for file, allowed in ALLOWED.items():
        assert set(allowed) <= typed(text_of(ROOT / file)), f"{file}: take it off the list"


@pytest.mark.parametrize("file", EVIDENCE)
def test_a_page_of_evidence_asks_the_reader(file):
    text = text_of(ROOT / file)
    assert text.count("{admonition} A question for you") == 1
    assert re.search(r"^:::\{dropdown\} Answer\n.+?^:::$", text, re.S | re.M)


def test_every_part_opens_and_closes():
    for part in yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]:
        files = [chapter["file"] for chapter in part["chapters"]]
        assert "## What " in text_of(ROOT / f"{files[0]}.md"), part["caption"]
        if not part["caption"].startswith("VI "):  # the last part has no results to look back on
            last = files[-1].replace("book/runs/", "notebooks/")
            path = next(p for p in (ROOT / f"{last}.ipynb", ROOT / f"{last}.md") if p.exists())
            assert "What we found" in text_of(path), part["caption"]
