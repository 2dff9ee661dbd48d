"""The claims of the papers on made-up effects, and on those that are shipped, by scipy."""

import math

import pytest
import torch
from scipy.stats import spearmanr

from nda import rng
from nda.evidence.ablations.papers import EASY, FEW, claims
from nda.store import Store

SMALL = Store.shipped("small")
RUNS = {"d_trak": ("d_trak", {}), "das": ("das", {}), "das-k10": ("das", {"K": 10})}


def draw(name, *shape):
    return torch.rand(*shape, generator=rng.generator("claims", name))


@pytest.fixture
def results(tmp_path):
    """Generated queries are the reported half of the validation queries, under other names."""
    store, losses = Store(tmp_path), draw("losses", 12, 2, 8, 3)
    store.save("masks/report", draw("masks", 12, 5) > 0.5, axes="subset train")
    for kind, rows in (("val", slice(None)), ("gen", slice(1, None, 2))):
        truth = losses[:, :, rows].clone()
        store.save(f"losses/report-{kind}", truth, axes="subset seed query group")
        for run, (method, variant) in RUNS.items():
            made = {"method": method, "variant": variant}
            effects = draw(run, 12, 8)[:, rows].clone()
            store.save(f"effects/{run}-{kind}", effects, axes="subset query", parameters=made)
    return store


def row(table, claim, run, which):
    found = table[(table["claim"] == claim) & (table["run"] == run) & (table["queries"] == which)]
    assert len(found) == 1
    return found.iloc[0]


def test_the_same_queries_under_two_names_do_not_differ(results):
    """Both sides meet the same resamples of subsets and queries."""
    found = claims(results, resamples=50)
    for run in ("d_trak", "das"):
        same = row(found, EASY, run, "both")
        assert same["difference"] == same["low"] == same["high"] == 0
    few = [row(found, FEW, "das-k10", which) for which in ("val", "gen")]
    assert few[0]["low"] == few[1]["low"] < few[0]["difference"] < few[0]["high"]


def test_runs_that_are_not_there_have_no_numbers(results):
    found = claims(results, resamples=20)
    for claim, run, which in ((FEW, "das_code-k10", "val"), (EASY, "trak", "both")):
        assert all(math.isnan(row(found, claim, run, which)[c]) for c in ("difference", "low"))


def mean_lds(run, which, half):
    effects = SMALL.load(f"effects/{run}-{which}").double()[:, half]
    losses = SMALL.load(f"losses/report-{which}").double().mean((1, 3))[:, half]
    each = [spearmanr(e, -x).statistic for e, x in zip(effects.T, losses.T, strict=True)]
    return 100 * sum(each) / len(each)


def test_the_shipped_differences_are_scipys():
    found, half = claims(SMALL, resamples=100), {"val": slice(1, None, 2), "gen": slice(None)}
    for which in ("val", "gen"):
        expected = mean_lds("das-k10", which, half[which]) - mean_lds("d_trak", which, half[which])
        assert row(found, FEW, "das-k10", which)["difference"] == pytest.approx(expected)
    easy = row(found, EASY, "das", "both")
    assert easy["difference"] == pytest.approx(
        mean_lds("das", "val", half["val"]) - mean_lds("das", "gen", half["gen"])
    )
    assert easy["low"] < easy["difference"] < easy["high"]
