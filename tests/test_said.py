"""Words and numbers that a notebook gives to the prose of the book."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from nda.report import said

FAMILIES = ("select", "report")
SUMMARY = pd.DataFrame(
    [["trak", 30.0, 25.0, 34.0, 12.0, 8.0, 16.0], ["das", 40.0, 35.0, 44.0, 22.0, -1.0, 26.0]],
    columns=["method", "lds", "low", "high", "gain", "gain_low", "gain_high"],
)


@pytest.fixture
def published(monkeypatch):
    """What `say` publishes in a notebook: pairs (data, metadata)."""
    found = []
    publisher = SimpleNamespace(publish=lambda data, metadata: found.append((data, metadata)))
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(display_pub=publisher))
    return found


def text(published, name):
    return next(
        data[f"{said.RECORD}text/plain"]
        for data, metadata in published
        if metadata["scrapbook"]["name"] == name
    )


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((0.1, 8.5), "ahead of"),
        ((-8.5, -0.1), "behind"),
        ((-5.0, 4.8), "not shown to differ from"),
        ((0.0, 3.0), "not shown to differ from"),
        ((-3.0, 0.0), "not shown to differ from"),
        ((np.nan, np.nan), "not shown to differ from"),
    ],
)
def test_words_follow_the_interval(interval, words):
    assert said.versus(*interval) == words


def test_intervals_and_lists():
    assert said.interval(-5.49, 4.81) == "[-5.5,\u00a04.8]"
    assert [said.listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "none",
        "a",
        "a and b",
        "a, b and c",
    ]


def test_what_is_said_is_what_glue_would_have_written(published, monkeypatch):
    from myst_nb.ext import glue

    theirs = []
    monkeypatch.setattr(
        glue, "ipy_display", lambda data, raw, metadata: theirs.append((data, metadata))
    )
    monkeypatch.setattr(
        "IPython.core.formatters.format_display_data",
        lambda value: ({"text/plain": repr(value)}, {}),
    )
    said.say(lds=38.6, words="ahead of")
    glue.glue("lds", 38.6, display=False)
    glue.glue("words", "ahead of", display=False)
    assert published == theirs


@pytest.mark.parametrize("number", [torch.tensor(2.5), np.float64(2.5), 2.5])
def test_numbers_print_as_numbers(published, number):
    said.say(number=number)
    assert text(published, "number") == "2.5"


def test_a_table_and_a_figure_travel_as_html(published):
    from nda.report.style import canvas

    said.say(table=SUMMARY, picture=said.Inline(canvas(1, 1)[0], "nothing"))
    table, picture = (data[f"{said.RECORD}text/html"] for data, _ in published)
    assert "<td>trak</td>" in table
    assert picture.startswith(
        '<div class="glued"><img alt="nothing" src="data:image/png;base64,iVBOR'
    )


def test_outside_a_notebook_nothing_happens():
    code = "from nda.report.said import say; say(number=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_all_of_a_table_can_be_said(published):
    case = {("centred", "gen"): SUMMARY}
    said.say_scores(case, {("centred", "gen"): (80.0, 75.0, 85.0)}, case, ["trak", "das", "gas"])
    assert text(published, "ceiling_gen_centred") == "80.0"
    assert text(published, "trak_gen_centred") == "30.0"
    assert text(published, "trak_gen_centred_interval") == repr("[25.0,\u00a034.0]")
    assert text(published, "trak_gen_centred_share") == "37.5"
    assert text(published, "trak_gen_centred_versus") == "'ahead of'"
    assert text(published, "das_gen_centred_versus") == "'not shown to differ from'"
    assert text(published, "das_gen_centred_difference") == "22.0"
    assert text(published, "ahead_gen_centred") == "'TRAK'"
    assert text(published, "undecided_gen_centred") == "'DAS'"
    assert text(published, "behind_gen_centred") == "'none'"
    assert text(published, "gas_gen_centred") == "nan"
    assert text(published, "gas_gen_centred_versus") == "'not run'"


def test_all_of_an_ablation_can_be_said(published):
    rows = [["K, TRAK", "1", "val", 20.0, 24.0, 2.0, 1.0, 3.5]]
    rows += [["K, TRAK", "10", "val", 30.0, 22.0, 0.0, 0.0, 0.0]]
    gains = ["gain", "gain_low", "gain_high"]
    columns = ["ablation", "setting", "queries", *FAMILIES, *gains]
    said.say_settings(pd.DataFrame(rows, columns=columns))
    assert text(published, "k_trak_val_is_1_gain") == "2.0"
    assert text(published, "k_trak_val_is_1_apart") == repr("[1.0,\u00a03.5]")
    assert text(published, "k_trak_val_is_1_versus") == "'ahead of'"
    values = {name: text(published, f"k_trak_val_{name}") for name in ("most", "chosen", "is_10")}
    assert values == {"most": "24.0", "chosen": "22.0", "is_10": "22.0"}
    assert text(published, "k_trak_val_chosen_at") == "'10'"
    assert text(published, "k_trak_val_least_at") == "'10'"
    assert text(published, "k_trak_val_span") == "2.0"


def test_changes_are_listed_by_the_intervals_with_the_gate(published):
    rows = [
        ("as it is", "-", "pixels", "val", 50.0, -1.0, -3.0, 1.0),
        ("as it is", "-", "pixels", "gen", 40.0, -2.0, -3.0, -1.0),
        ("norm", "none", "features", "val", 45.0, -5.0, -8.0, -2.0),
        ("norm", "none", "features", "gen", 45.0, 5.0, 2.0, 8.0),
        ("widths", "64", "features", "val", 52.0, 1.0, -1.0, 3.0),
        ("widths", "64", "none", "val", 42.0, -9.0, -11.0, -7.0),
        ("draws", "2", "features", "val", 55.0, 3.0, 1.0, 5.0),
        ("draws", "2", "features", "gen", 55.0, 3.0, -1.0, 5.0),
    ]
    columns = ["choice", "value", "gate", "queries", "lds", "gain", "gain_low", "gain_high"]
    said.say_changes(pd.DataFrame(rows, columns=columns))
    expected = {"worse": "norm none", "better": "draws 2", "undecided": "widths 64"}
    expected |= {"gate_pixels_val_versus": "not shown to differ from"}
    expected |= {"gate_pixels_gen_versus": "behind", "gate_pixels_gen_ends": "[-3.0,\u00a0-1.0]"}
    for name, words in expected.items():
        assert text(published, name) == repr(words), name
    assert text(published, "gate_pixels_val") == "-1.0"


def test_all_known_answers_can_be_said(published):
    row = {"method": "nda", "reading": "local", "case": "transplants", "iou": 61.5}
    said.say_known(pd.DataFrame([row | {"kind": "3/8 of the side, moved"}]), "_small")
    assert text(published, "nda_local_3_8_of_the_side_moved_iou_small") == "61.5"


def test_what_a_trace_costs_can_be_said(published):
    cost = {"images": [10, 500], "wall, s": [3.0, 40.5], "ratio": [2.0, 30.5]}
    cost = pd.DataFrame(cost | {"memory, GB": [0.5, 1.25]})
    index = pd.DataFrame({"images": [500, 500], "top": [20, 20], "found": [20, 10]})
    said.say_trace(cost, index.assign(**{"owners": [2, 1], "owners found": [2, 0]}))
    expected = {"smallest": "10", "plain_times": "2.0", "folder": "500", "times": "30.5"}
    expected |= {"folder_wall": "40.5", "folder_gb": "1.25", "asked": "2", "near": "75.0"}
    expected |= {"owners": "3", "owners_found": "2"}
    assert {name: text(published, name) for name in expected} == expected
