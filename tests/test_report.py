"""The agreement table against scipy, and that every figure shows what it is given."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from nda import rng
from nda.report.pictures import first_proponents
from nda.report.plots import damping_paths, heat, settings, slopes, spectra, stages
from nda.report.tables import agreement, gains, known_answers

QUERIES, TRAIN = 5, 12


def draw(name, *shape):
    return torch.randn(*shape, generator=rng.generator("curves", name))


def test_agreement_is_scipys_spearman_averaged_over_queries():
    scores = {
        "nda": draw("a", QUERIES, TRAIN),
        "trak": draw("b", QUERIES, TRAIN).double(),
        "a name": draw("c", QUERIES, TRAIN).round(),
    }
    table = agreement(scores)
    assert list(table) == list(table.index) == ["NDA, single scale", "TRAK", "a name"]
    pairs = [(a, b) for a in scores.values() for b in scores.values()]
    theirs = [
        np.mean([spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]) for a, b in pairs
    ]
    assert np.allclose(table.to_numpy().ravel(), theirs, atol=1e-6)


def test_constant_scores_agree_with_nothing():
    table = agreement({"nda": draw("a", QUERIES, TRAIN), "trak": torch.ones(QUERIES, TRAIN)})
    assert table.loc["TRAK"].tolist() == [0, 0]


def path(select, report):
    return pd.DataFrame({"select": select, "report": report}, index=[0.1, 1.0, 10.0])


def test_damping_paths_mark_the_choice_on_select_and_the_oracle_on_report():
    figure = damping_paths(
        {"kfac": path([1, 3, 2], [5, 4, 6]), "ekfac": path([0, 0, 7], [9, 8, 1])}, columns=2
    )
    marked = [
        {
            line.get_label(): (line.get_xdata()[0], line.get_ydata()[0])
            for line in axes.lines
            if len(line.get_xdata()) == 1
        }
        for axes in figure.axes
    ]
    assert marked == [
        {"chosen": (1.0, 3), "oracle, not used": (10.0, 6)},
        {"chosen": (10.0, 7), "oracle, not used": (0.1, 9)},
    ]
    assert [axes.get_title() for axes in figure.axes] == ["K-FAC influence", "EK-FAC influence"]


@pytest.mark.parametrize("methods", [1, 3, 4])
def test_unused_panels_are_empty(methods):
    names = ["trak", "d_trak", "kfac", "ekfac"][:methods]
    assert (
        sum(
            axes.axison
            for axes in damping_paths(dict.fromkeys(names, path([1, 2, 3], [1, 2, 3]))).axes
        )
        == methods
    )


def test_spectra_are_sorted_and_their_means_dotted():
    axes = spectra(
        {"kfac": torch.tensor([[1e-3, 1.0], [10.0, 0.1]]), "ekfac": torch.tensor([2.0, 5.0])}
    ).axes[0]
    drawn = [[float(value) for value in line.get_ydata()] for line in axes.lines]
    assert drawn == [
        pytest.approx(values) for values in ([10, 1, 0.1, 1e-3], [2.77525] * 2, [5, 2], [3.5] * 2)
    ]


def test_first_proponents_are_the_highest_and_last_the_lowest():
    train = draw("train", TRAIN, 1, 4, 4).clamp(-1, 1)
    figure = first_proponents(
        train[0],
        train,
        {"nda": torch.arange(TRAIN).float(), "other": -torch.arange(TRAIN).float()},
        top=3,
    )
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["", "11", "10", "9", "0", "", "0", "1", "2", "11"]
    assert [figure.axes[i].get_ylabel() for i in (0, 5)] == ["NDA, single scale", "other"]


def test_heat_writes_every_number_into_its_cell():
    tables = {
        "a": pd.DataFrame([[1.0, -2.4], [3.6, 0.0]], ["x", "y"], ["t1", "t2"]),
        "b": pd.DataFrame([[9.0], [-9.0]], ["x", "y"], ["t1"]),
    }
    figure = heat(tables, xlabel="timestep", unit="LDS, %", ylabel="window, px")
    first, second = figure.axes[:2]
    assert [axes.get_ylabel() for axes in (first, second)] == ["window, px", ""]
    assert [text.get_text() for text in first.texts] == [
        "1",
        "-2",
        "4",
        "0",
    ] and first.get_title() == "a"
    assert [text.get_position() for text in first.texts] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert [tick.get_text() for tick in first.get_yticklabels()] == ["x", "y"]
    assert {axes.images[0].get_clim() for axes in (first, second)} == {(-9, 9)}  # one scale


def test_settings_show_report_with_intervals_and_select():
    row = {"select": 5.0, "report": 4.0, "low": 1.0, "high": 6.0}
    row |= {"gain": 0.0, "gain_low": 0.0, "gain_high": 0.0}
    rows = [
        {"ablation": name, "setting": setting, "queries": kind, **row}
        | ({"report": 2.0} if kind == "gen" else {})
        | ({"gain": 1.0, "gain_low": -1.0, "gain_high": 2.0} if setting == "all" else {})
        for name, setting in (("top_k", "1"), ("top_k", "all"), ("borders", "zero"))
        for kind in ("val", "gen")
    ]
    figure = settings(pd.DataFrame(rows), columns=2)
    panel = figure.axes[0]
    drawn = {
        line.get_label(): [float(y) for y in line.get_ydata()]
        for line in panel.lines
        if len(line.get_ydata()) == 2
    }
    assert (
        drawn["val, report"] == [4, 4]
        and drawn["gen, report"] == [2, 2]
        and drawn["val, select"] == [5, 5]
    )
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["1", "all"]
    assert [axes.get_title() for axes in figure.axes] == ["top_k", "borders"]
    assert panel.collections[0].get_segments()[0][:, 1].tolist() == [1, 6]
    # the setting in use is bold, and what is not shown to differ from it hollow
    weights = [tick.get_fontweight() for tick in panel.get_xticklabels()]
    hollow = [line.get_xdata().tolist() for line in panel.lines if line.get_color() == "white"]
    assert weights == ["bold", "normal"] and hollow == [[0.88], [1.12]]


def test_gains_keep_the_order_of_their_rows():
    rows = pd.DataFrame(
        {"scores": ["b", "a", "b", "a"], "queries": ["val", "val", "gen", "gen"]}
        | {"gain": [0.0, 1.25, 2.0, -3.0], "gain_low": [0, 1, 1, -4.0], "gain_high": [0, 2, 3, 0.5]}
    )
    table = gains(rows, ["scores"], ["queries"])
    assert [*table.index] == ["b", "a"] and [*table.columns] == ["val", "gen"]
    assert table.loc["a", "gen"] == "-3.0 [-4.0,\u00a00.5]"
    assert gains(rows.assign(kind="x"), ["scores", "kind"], ["queries"]).shape == (2, 2)


def test_slopes_show_every_band_with_its_interval_and_the_gate():
    rows = pd.DataFrame(
        {"band": ["near", "far"] * 2, "queries": ["val", "val", "gen", "gen"]}
        | {
            "slope": [1.1, 0.4, 0.8, 0.1],
            "low": [0.9, 0.1, 0.7, -0.1],
            "high": [1.3, 0.6, 0.9, 0.3],
        }
        | {"gate": [1.8, 0.6, 1.7, 0.5]}
    )
    panels = slopes(rows).axes
    assert [panel.get_title() for panel in panels] == ["val queries", "gen queries"]
    for panel, (_, found) in zip(panels, rows.groupby("queries", sort=False), strict=True):
        *_, true, opened = panel.lines
        assert [*true.get_ydata()] == [*found["slope"]] and [*opened.get_ydata()] == [
            *found["gate"]
        ]
        ends = [segment[:, 1].tolist() for segment in panel.collections[0].get_segments()]
        assert ends == found[["low", "high"]].to_numpy().tolist()
        assert [text.get_text() for text in panel.get_xticklabels()] == ["near", "far"]


def test_known_answers_have_methods_down_and_kinds_across():
    columns = ["method", "reading", "case", "kind", "recall_1", "iou"]
    rows = [
        ["random", "as scored", "copies", "exact", 10.0, None],
        ["random", "as scored", "copies", "mirrored", 5.0, None],
        ["nda", "as scored", "copies", "exact", 100.0, 60.0],
        ["nda", "as scored", "copies", "mirrored", 90.0, 50.0],
        ["nda", "local", "copies", "exact", 99.0, 80.0],
        ["nda", "local", "mosaics", "four quadrants", 98.0, 70.0],
    ]
    tables = {"digits": pd.DataFrame(rows, columns=columns)}
    one = known_answers(tables, ["copies"], {"recall_1": "recall@1, %"})
    assert list(one) == ["exact", "mirrored"]  # in the order of the rows, methods too
    assert list(one.index) == [("digits", "Random (null)"), ("digits", "NDA, single scale")]
    assert one.to_numpy().tolist() == [["10", "5"], ["100", "90"]]
    two = {"recall_1": "recall@1, %", "iou": "IoU, %"}
    many = known_answers(tables, ["copies"], two, ("as scored", "local"))
    names = ["NDA, single scale, as scored", "NDA, single scale, local"]
    assert list(many.index) == [("digits", name) for name in names]
    assert many[("IoU, %", "exact")].tolist() == ["60", "80"]
    assert many[("IoU, %", "mirrored")].tolist() == ["50", ""]


def test_stages_are_filled_where_they_were_run():
    names = ["data", "models", "methods"]
    hours = pd.DataFrame({"small": [0, 10.0, 2], "paper": [0, 5000.0, 40]}, names)
    known = pd.DataFrame({"small": [False, True, False], "paper": False}, names)
    (axes,) = stages(hours, known).axes
    found = {line.get_label(): (line.get_fillstyle(), line.get_xydata()) for line in axes.lines}
    assert list(found) == ["small, run", "small, extrapolated", "paper, extrapolated"]
    assert [fill for fill, _ in found.values()] == ["full", "none", "none"]
    assert found["paper, extrapolated"][1].tolist() == [[5000, 1], [40, 2]]
    assert [text.get_text() for text in axes.get_yticklabels()] == names
    assert axes.get_xscale() == "log" and axes.get_ylim() == (2.5, -0.5)
