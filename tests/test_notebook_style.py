"""What a program can check of the house rules for notebooks."""

import ast
import json
import re
from pathlib import Path

import pytest

from nda.artefact import notebooks

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FORBIDDEN = [
    "open(",
    "np.load",
    "%cd",
    "!pip",
    "manual_seed",
    "np.random.seed",
    "filterwarnings",
    '"/',
    "'/",
    "~/",
]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def cells(request):
    return json.loads(request.param.read_text())["cells"]


def sources(cells, kind):
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def code_lines(source):
    return [
        line for line in source.splitlines() if line.strip() and not line.strip().startswith("#")
    ]


def test_order_and_frame(cells):
    text = sources(cells, "markdown")
    title = text[0]
    assert title.startswith("# ") and "*Claim: " in title, (
        "the first cell is a title and a one-sentence claim"
    )
    assert "| **Reads** |" in title and "| **Writes** |" in title, (
        "the first cell has a Reads / Writes table"
    )
    assert any(part.lstrip().startswith("## Check") or "\n## Check" in part for part in text), (
        "there is a Check"
    )
    recap = text[-1]
    assert recap.startswith("## Recap") and len(re.findall(r"^- ", recap, re.M)) == 3, (
        "the last cell is a recap of three bullets"
    )
    assert cells[1]["metadata"].get("tags") == ["parameters"], (
        "the second cell holds the parameters"
    )


def test_parameters_are_typed_literals_with_help(cells):
    source = "".join(cells[1]["source"])
    for line in ast.parse(source).body:
        assert isinstance(line, ast.AnnAssign), (
            f"`name: type = value` expected: {ast.unparse(line)}"
        )
        ast.literal_eval(line.value)
        assert "#" in source.splitlines()[line.end_lineno - 1], f"{line.target.id} has no help"


def test_size_and_prose(cells):
    code, prose = sources(cells, "code"), " ".join(sources(cells, "markdown"))
    lines = [code_lines(source) for source in code]
    body = [cell for cell in lines if cell != code_lines("".join(cells[1]["source"]))]
    assert max(map(len, body)) <= 15, "a code cell has at most 15 lines"
    total = sum(map(len, lines))
    assert total <= 120, "a notebook has at most 120 lines of code"
    assert len(prose.split()) >= 2.5 * total, "at least 2.5 words of prose per line of code"
    definitions = [
        n
        for source in code
        for n in ast.walk(ast.parse(source))
        if isinstance(n, ast.FunctionDef | ast.ClassDef)
    ]
    assert len(definitions) <= 2, "notebooks use functions, they do not define them"


def test_nothing_forbidden(cells):
    for source in sources(cells, "code"):
        found = [word for word in FORBIDDEN if word in source]
        assert not found, f"{found} in:\n{source}"


def test_no_outputs_are_committed(cells):
    assert all(
        not cell["outputs"] and cell["execution_count"] is None
        for cell in cells
        if cell["cell_type"] == "code"
    )


def test_notebooks_that_compute_choose_their_device(cells):
    names = {line.target.id for line in ast.parse("".join(cells[1]["source"])).body}
    computes = any(
        any(word in source for word in ("pick_device", "Plan(", "counterfactual.plan("))
        for source in sources(cells, "code")
    )
    assert computes == ("device" in names)


def test_smoke_is_the_defaults_and_one_name_has_one_default():
    assert notebooks.profile("smoke") == {"profile": "smoke"} | {
        k: v
        for n in notebooks.notebooks()
        for k, v in notebooks.defaults(n).items()
        if k == "profile"
    }
    seen = {}
    for notebook in notebooks.notebooks():
        for name, value in notebooks.defaults(notebook).items():
            assert seen.setdefault(name, value) == value, f"{name} has two defaults"


def test_one_name_has_one_meaning():
    """Since a profile sets it in all notebooks at once."""
    seen = {}
    for path in NOTEBOOKS:
        source = "".join(json.loads(path.read_text())["cells"][1]["source"])
        for line in ast.parse(source).body:
            meaning = source.splitlines()[line.end_lineno - 1].split("#", 1)[1]
            assert (
                line.target.id == "profile" or seen.setdefault(line.target.id, meaning) == meaning
            )


@pytest.mark.parametrize("name", ["smoke", "tiny", "small", "paper"])
def test_every_profile_is_valid(name):
    notebooks.profile(name)
