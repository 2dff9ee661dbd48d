"""The shipped benchmark, profile `small`: its sizes and budget, its ceilings, its settings chosen
on `select` alone."""

import pytest
import torch

from nda import rng
from nda.artefact import notebooks
from nda.errors import InputError
from nda.evidence import lds, scorecard
from nda.evidence.ablations.nonparametric import best_windows
from nda.evidence.truth import REPORT
from nda.methods import METHODS
from nda.rivals import retrained
from nda.store import Store

SMALL = Store.shipped("small")
AXES = "subset seed query group"


def test_there_is_as_much_truth_as_promised():
    shapes = {
        name: tuple(SMALL.load(f"losses/{name}", AXES).shape)
        for name in ("report-val", "report-gen", "select-val", "select-gen")
    }
    assert shapes["report-val"] == shapes["report-gen"] == (64, 2, 200, 8)
    assert shapes["select-val"] == shapes["select-gen"] == (32, 1, 200, 8)


def test_it_was_made_within_the_budget():
    core_seconds = sum(
        SMALL.info(f"losses/{family}-val")["seconds"] for family in ("select", "report")
    )
    assert core_seconds / 2 <= 6 * 3600


@pytest.mark.parametrize(
    ("transform", "least"),
    [(lambda losses: losses, 55), (lds.centre, 60)],
    ids=["plain", "centred"],
)
def test_the_ceiling_of_validation_queries_is_high_enough(transform, least):
    losses = SMALL.load("losses/report-val", AXES)[:, :, REPORT["val"]].double().mean(3)
    _, ceiling = lds.seed_ceiling(transform(losses))
    assert 100 * ceiling >= least


@pytest.mark.parametrize("queries", REPORT)
def test_nda_is_above_the_null(queries):
    part = REPORT[queries]
    effects = {m: SMALL.load(f"effects/{m}-{queries}")[:, part].double() for m in ("nda", "random")}
    losses = SMALL.load(f"losses/report-{queries}", AXES)[:, :, part].double().mean((1, 3))
    assert (
        lds.summary(effects, losses, reference="random").set_index("method").loc["nda", "gain_low"]
        > 0
    )


def test_ndas_settings_are_those_that_are_best_on_select():
    rows, profile = SMALL.load("ablations/nda"), notebooks.profile("small")

    def best(name):
        found = rows[(rows["ablation"] == name) & (rows["queries"] == "val")]
        return found.loc[found["select"].idxmax(), "setting"]

    last = int(best("largest timestep"))
    assert profile["patches"] == {t: side for t, side in best_windows(rows).items() if t <= last}
    assert profile["coarse_patches"] == {
        t: side for t, side in best_windows(rows, coarse=True).items() if t <= last
    }
    assert (str(profile["top_k"]), profile["scale_mix"]) == (
        best("top_k"),
        float(best("scale_mix")),
    )


@pytest.mark.parametrize("queries", REPORT)
def test_a_stranger_with_random_scores_gets_zero(queries):
    scores = torch.randn(200, 200, generator=rng.generator("stranger", queries))
    for _, row in scorecard.score(scores, queries, SMALL, resamples=200).summary.iterrows():
        assert abs(row["LDS"]) < 6 and row["low"] < 0 < row["high"]


def test_transposed_scores_are_refused_although_the_matrix_is_square():
    losses = SMALL.load("losses/select-val", AXES).mean((1, 3))
    scores = retrained.datamodel(losses, SMALL.load("masks/select"))
    with pytest.raises(InputError, match="look transposed"):
        scorecard.score(scores.T, "val", SMALL)


def test_every_method_is_in_the_tables_or_could_not_run():
    missing = {
        m for m in METHODS if not any(f"effects/{m}-{queries}" in SMALL for queries in REPORT)
    }
    assert missing <= {
        "clip_dot",
        "clip_cosine",
        "empirical_influence",
        "datamodel",
    }  # no weights; fitted on the page
