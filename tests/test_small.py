"""The shipped benchmark, profile `small`: its sizes and budget, its ceilings, its settings chosen on `select` alone."""

import pytest

from nda import lds, pipeline
from nda.ablations import best_windows
from nda.methods import METHODS
from nda.store import Store
from nda.subsets import REPORT

SMALL = Store.shipped("small")
AXES = "subset seed query group"


def test_there_is_as_much_truth_as_promised():
    shapes = {name: tuple(SMALL.load(f"losses/{name}", AXES).shape) for name in ("report-val", "report-gen", "select-val", "select-gen")}
    assert shapes["report-val"] == shapes["report-gen"] == (64, 2, 200, 8)
    assert shapes["select-val"] == shapes["select-gen"] == (32, 1, 200, 8)


def test_it_was_made_within_the_budget():
    core_seconds = sum(SMALL.info(f"losses/{family}-val")["seconds"] for family in ("select", "report"))
    assert core_seconds / 2 <= 6 * 3600


@pytest.mark.parametrize(("transform", "least"), [(lambda losses: losses, 55), (lds.centre, 60)], ids=["plain", "centred"])
def test_the_ceiling_of_validation_queries_is_high_enough(transform, least):
    losses = SMALL.load("losses/report-val", AXES)[:, :, REPORT["val"]].double().mean(3)
    _, ceiling = lds.seed_ceiling(transform(losses))
    assert 100 * ceiling >= least


def test_ndas_settings_are_those_that_are_best_on_select():
    rows, profile = SMALL.load("ablations/nda"), pipeline.profile("small")

    def best(name):
        found = rows[(rows["ablation"] == name) & (rows["queries"] == "val")]
        return found.loc[found["select"].idxmax(), "setting"]

    last = int(best("largest timestep"))
    assert profile["patches"] == {t: side for t, side in best_windows(rows).items() if t <= last}
    assert profile["coarse_patches"] == {t: side for t, side in best_windows(rows, coarse=True).items() if t <= last}
    assert (str(profile["top_k"]), profile["scale_mix"]) == (best("top_k"), float(best("scale_mix")))


def test_every_method_is_in_the_tables_or_could_not_run():
    missing = {m for m in METHODS if not any(f"effects/{m}-{queries}" in SMALL for queries in ("val", "gen"))}
    assert missing <= {"clip_dot", "clip_cosine", "empirical_influence", "datamodel"}  # no weights; fitted on the page
