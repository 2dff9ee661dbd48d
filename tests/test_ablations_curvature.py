"""Ablations of the curvature: every row against a fit and scores that are made for it alone, what
is kept, and what the choice of a damping may see."""

import pandas as pd
import pytest
import torch
from tiny import ONE_BLOCK, one_block

from nda import rng
from nda.evidence import tuning
from nda.evidence.ablations import curvature
from nda.evidence.truth import gain_row, lds_row, truths
from nda.rivals import influence
from nda.rivals.bench import Bench
from nda.rivals.influence import influence_scores
from nda.rivals.kfac import fit_curvature
from nda.store import Store

COUNTS = {"train": 6, "val": 6, "gen": 4}
GIVEN = {"ablate_k": 2, "noise_seed": 3, "curvature_draws": 1, "query_block": 4}
GIVEN |= {"relative_dampings": [1e-2, 1.0]}


def draw(name, *shape):
    return torch.rand(*shape, generator=rng.generator("curvature ablations", name)) * 2 - 1


def stage(store, results):
    return Bench(store, GIVEN, choose=tuning.chooser(results))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Stores with images, a model and a made-up truth, and the table."""
    folder = tmp_path_factory.mktemp("curvature")
    store, results = Store(folder / "data"), Store(folder / "results")
    for kind, count in COUNTS.items():
        store.save(kind, draw(kind, count, 1, 4, 4), axes="image chan row col")
    store.save(
        "model", one_block("curved").state_dict(), parameters={"recipe": {"unet": ONE_BLOCK}}
    )
    for family in ("select", "report"):
        masks = draw(family, 10, COUNTS["train"]) > 0
        results.save(f"masks/{family}", masks, axes="subset train")
        for kind in ("val", "gen"):
            losses = draw(f"{family} {kind}", 10, 2, COUNTS[kind], 3)
            results.save(f"losses/{family}-{kind}", losses, axes="subset seed query group")
    return store, results, curvature.table(stage(store, results), results=results)


def test_every_curvature_has_every_measurement_and_the_first_is_in_use(home):
    rows = home[2]
    fits = [f"{f}, {s}" for f in ("Monte-Carlo", "empirical") for s in ("expand", "reduce")]
    assert list(zip(rows["ablation"], rows["setting"], rows["queries"], strict=True)) == [
        (fit, measured, kind)
        for fit in fits
        for measured in ("loss", "ELBO", "square")
        for kind in ("val", "gen")
    ]
    assert not rows.loc[:1, ["gain", "gain_low", "gain_high"]].any(axis=None)
    for kind, group in rows.groupby("queries"):
        first = rows[rows["queries"] == kind]["report"].iloc[0]
        assert (group["report"] - first).to_numpy() == pytest.approx(group["gain"].to_numpy())


@pytest.mark.parametrize(
    ("row", "fisher", "sharing", "measurement"),
    [
        (0, "mc", "expand", "loss"),
        (5, "mc", "reduce", "output_norm"),
        (7, "empirical", "expand", "elbo_loss"),
    ],
)
def test_rows_are_those_of_a_fit_of_their_own(home, row, fisher, sharing, measurement):
    store, results, rows = home
    same, model = {"timesteps": (0, 500), "noise_seed": 3}, one_block("curved")
    fit = fit_curvature(model, store.load("train"), fisher=fisher, sharing=sharing, **same)

    def scores(kind, damping, measurement=measurement, fit=fit):
        asked = {"measurement": measurement, "curvature": fit, "damping": damping, **same}
        return influence_scores(model, store.load(kind), store.load("train"), **asked)

    def chosen(**changed):
        select = truths(results, "val")["select"]
        tried = {d: scores("val", d, **changed) for d in GIVEN["relative_dampings"]}
        return max(tried, key=lambda damping: select.lds(tried[damping]).mean().item())

    in_use = {"measurement": "loss", "fit": fit_curvature(model, store.load("train"), **same)}
    best, base = chosen(), chosen(**in_use)
    for at, kind in enumerate(("val", "gen")):
        known = truths(results, kind)
        expected = lds_row(scores(kind, best), known)
        expected |= gain_row(scores(kind, best), scores(kind, base, **in_use), known)
        found = rows.iloc[2 * row + at]
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-4)


def test_a_second_run_fits_and_scores_nothing(home, monkeypatch):
    store, results, rows = home
    for name in ("fit_curvature", "influence_scores"):
        monkeypatch.setattr(influence, name, lambda *a, **k: pytest.fail("made again"))
    again = curvature.table(stage(store, results), results=results)
    pd.testing.assert_frame_equal(again, rows)


def test_the_record_names_what_is_in_use_and_all_that_is_tried():
    said = curvature.record(GIVEN)
    assert said["in use"]["timesteps"] == [0, 500] and said["in use"]["fisher"] == "mc"
    assert said["dampings"] == [0.01, 1.0] and len(said["tried"]) == 12
