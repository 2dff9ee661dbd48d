"""The one table that matters, and the README that shows it."""

import runpy
from pathlib import Path

import pandas as pd
import pytest

from nda.report import headline

COLUMNS = ["method", "lds", "low", "high", "gain", "gain_low", "gain_high"]
ROWS = [["das", 40.0, 35.0, 44.0, 22.0, -1.0, 26.0], ["trak", 30.0, 25.0, 34.0, 12.0, 8.0, 16.0]]


@pytest.fixture
def table():
    more = [["gas", *ROWS[0][1:]], ["random", *ROWS[0][1:]]]
    summary = pd.DataFrame(ROWS + more, columns=COLUMNS)
    return headline.headline({"val": summary}, {"val": (80.0, 75.0, 85.0)})


def test_its_methods_are_in_order_and_the_ceiling_is_last(table):
    assert list(table.index) == ["Random (null)", "TRAK", "DAS", "Ceiling"]
    assert table.loc["TRAK"].tolist() == ["30.0 [25.0,\u00a034.0]", "38", "train images, model"]
    assert table.loc["Ceiling"].tolist() == ["80.0 [75.0,\u00a085.0]", "", ""]


def test_it_can_be_written_in_markdown(table):
    lines = headline.markdown(table).splitlines()
    assert lines[0] == "|  | held-out: LDS, % | held-out: of ceiling, % | looks at |"
    assert lines[1] == "| --- | ---: | ---: | --- |"
    assert lines[3] == "| TRAK | 30.0 [25.0,\u00a034.0] | 38 | train images, model |"


def test_the_readme_shows_the_shipped_results():
    root = Path(__file__).parent.parent
    script = runpy.run_path(str(root / "benchmarks/readme.py"))
    text = (root / "README.md").read_text()
    assert script["updated"](text) == text, "run python benchmarks/readme.py"
