"""The page of claims: nothing is left out, nothing is out of date, links and commands are real."""

import re
import runpy
import shlex
from collections import Counter
from pathlib import Path

import pytest
from made_up_removals import removals

from nda.__main__ import parser
from nda.artefact import notebooks
from nda.report import findings
from nda.store import Store

ROOT = Path(__file__).parent.parent
SCRIPT = runpy.run_path(str(ROOT / "benchmarks/claims.py"))
ROWS, PAGE = SCRIPT["ROWS"], (ROOT / "book/claims.md").read_text()


@pytest.fixture(scope="module")
def found():
    """Today's page."""
    return SCRIPT["updated"](PAGE, SCRIPT["shipped"]())


def test_the_page_shows_the_shipped_results(found):
    assert found == PAGE, "run python benchmarks/claims.py"


def test_every_item_has_its_claims_and_no_other_has():
    count = Counter(row.item for row in ROWS)
    assert count.keys() == SCRIPT["ITEMS"].keys()
    assert not {item: n for item, n in SCRIPT["ITEMS"].items() if count[item] < n}
    order = list(SCRIPT["ITEMS"])
    assert [order.index(row.item) for row in ROWS] == sorted(order.index(r.item) for r in ROWS)
    assert len({(row.item, row.shows) for row in ROWS}) == len(ROWS)


def test_every_claim_is_a_row_of_seven_cells_with_a_verdict(found):
    lines = [line for line in found.splitlines() if re.match(r"\| [NDKT] ?", line)]
    assert len(lines) == len(ROWS)
    for row, line in zip(ROWS, lines, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == 7 and all(cells), line
        assert cells[0] == row.item and cells[1].startswith(row.shows)
        words = [
            word for part in cells[5].split("<br>") for word in findings.VERDICTS if word in part
        ]
        assert len(words) >= len(cells[5].split("<br>")), line
        reasoned = (findings.NOT_DONE, findings.NOT_COMPARABLE)
        assert all(f"{word}: " in cells[5] for word in words if word in reasoned), line


def test_pages_are_in_the_book_or_are_notebooks_to_come():
    known = SCRIPT["pages"]()
    to_come = {f"runs/{stem}" for stem in notebooks.notebooks()} | {"runs/18_known_answers"}
    for page in {row.where[0] for row in ROWS} - {""}:
        assert page in known | to_come, page
    links = set(re.findall(r"\]\(([\w/]+)\)", PAGE))
    assert links <= known


def test_commands_can_be_given():
    commands = {command for row in ROWS for command in row.where[1]}
    to_come = {"18"} - {name.split("_")[0] for name in notebooks.notebooks()}
    for command in commands:
        program, *arguments = shlex.split(command)
        options = parser().parse_args(arguments)
        assert program == "nda" and notebooks.profile(options.profile)
        for number in set(getattr(options, "only", ())) - to_come:
            assert notebooks.numbered(number), command


def test_glued_numbers_are_said():
    for stem, name in re.findall(r"runs/(\w+)\.ipynb::(\w+)", PAGE):
        assert re.search(rf"\b{name}=", (ROOT / f"notebooks/{stem}.ipynb").read_text()), name


def test_formulas_hold():
    assert SCRIPT["convolution"]() and SCRIPT["left_out"]()
    wrong = SCRIPT["formula"]("a formula", False)(None).parts[0]
    assert (wrong.found, wrong.verdict) == ("a formula: no", "disagrees")


def test_nothing_is_found_in_an_empty_folder(tmp_path):
    evidence = findings.Evidence(Store(tmp_path, role="results"), Store.shipped("published"))
    rows = [row for row in ROWS if row.where in (SCRIPT["REMOVED"], SCRIPT["GALLERY"])]
    assert len(rows) > 15
    for row in rows:
        (part,) = row.found(evidence).parts
        assert part.found == "–" and part.verdict.startswith("not done: ")
        cells = SCRIPT["cells"](row, evidence, set())
        assert cells[2].endswith("(not in this edition)") and cells[-1] == "–"


def test_removals_are_found_as_soon_as_they_are_there(tmp_path):
    results = Store(tmp_path, role="results")
    own = {"nda_two_scale": 0.5, "d_trak": 0.3, "ekfac": 0.4, "pixel_cosine": 0.1}
    removals(results, own, curve=["ekfac"])
    evidence = findings.Evidence(results, Store.shipped("published"), resamples=100)
    rows = [row for row in ROWS if row.where == SCRIPT["REMOVED"]]
    found = {row.shows: SCRIPT["cells"](row, evidence, set())[4:] for row in rows}
    arms = ("TRAK's", "DAS's", "CLIP's", "2 %", "overestimates")  # not trained, or in the gallery
    assert sum(cells[1].startswith("not done") for cells in found.values()) <= len(arms)
    done = {shows: cells for shows, cells in found.items() if not cells[1].startswith("not done")}
    assert len(done) >= 10 and all(float(cells[2]) > 0 for cells in done.values())
    assert found["NDA's removal changes about as much as D-TRAK's"][1] == "disagrees"
    assert sum(cells[1] == "agrees" for cells in done.values()) >= 5
