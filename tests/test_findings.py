"""Verdicts at their borders, and rules on results that are there, made up or missing."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_removals import QUERIES, SETS, TRAIN, removals
from scipy import stats

from nda.errors import InputError
from nda.evidence.records import recorded_effects
from nda.evidence.truth import Truth
from nda.report import findings as v
from nda.report.findings import AHEAD, ALIKE, BEHIND, Evidence, Finding, Missing, Part
from nda.store import Store

PUBLISHED, SMALL = Store.shipped("published"), Store.shipped("small")


@pytest.mark.parametrize(
    ("low", "high", "side", "word"),
    [
        (0.1, 2, AHEAD, "agrees"),
        (0, 2, AHEAD, "not shown"),
        (-1, 2, AHEAD, "not shown"),
        (-2, 0, AHEAD, "not shown"),
        (-2, -0.1, AHEAD, "disagrees"),
        (0.1, 2, BEHIND, "disagrees"),
        (0, 2, BEHIND, "not shown"),
        (-2, 0, BEHIND, "not shown"),
        (-2, -0.1, BEHIND, "agrees"),
        (0, 0, BEHIND, "not shown"),
        (0.1, 2, ALIKE, "disagrees"),
        (-2, -0.1, ALIKE, "disagrees"),
        (-1, 1, ALIKE, "not shown"),
    ],
)
def test_a_verdict_asks_on_which_side_zero_is(low, high, side, word):
    assert v.verdict(float(low), float(high), side) == word


@pytest.mark.parametrize("ends", [(math.nan, 1), (0, math.nan)])
def test_without_numbers_there_is_no_verdict(ends):
    with pytest.raises(InputError, match="an interval needs two numbers"):
        v.verdict(*map(float, ends), AHEAD)


@pytest.mark.parametrize(
    ("cost", "other", "word"),
    [(1, 2, "agrees"), (1, 1.9, "not shown"), (1.9, 1, "not shown"), (2, 1, "disagrees")],
)
def test_costs_differ_by_a_factor(cost, other, word):
    assert v.cheaper(float(cost), float(other)) == word


# ---- the shipped results


@pytest.fixture(scope="module")
def small():
    return Evidence(SMALL, PUBLISHED, resamples=100)


def test_one_method_against_another_is_the_paired_difference(small):
    found = v.ahead("nda_two_scale", "trak-k10")(small)
    truth = Truth.load(SMALL, "report", "val")
    effects = {m: recorded_effects(SMALL, truth)[m] for m in ("nda_two_scale", "trak-k10")}
    row = truth.summary(effects, reference="trak-k10", resamples=100).iloc[0]
    assert f"{row['gain']:+.1f} points [{row['gain_low']:.1f}," in found.parts[0].found
    assert found.parts[0].verdict == v.verdict(row["gain_low"], row["gain_high"], AHEAD)
    files = [f"effects/{m}-{w}" for m in effects for w in ("val", "gen")]
    assert found.seconds == pytest.approx(sum(SMALL.info(f)["seconds"] for f in files))
    assert "24.9 against 11.4 % held-out" in found.printed


def test_the_printed_side_can_be_behind(small):
    turned = v.ahead("trak-k10", "nda_two_scale")(small).parts
    plain = v.ahead("nda_two_scale", "trak-k10")(small).parts
    assert [part.verdict for part in turned] == [part.verdict for part in plain]


def test_a_side_is_needed_where_nothing_is_printed(small):
    with pytest.raises(InputError, match="side must be given"):
        v.ahead("nda", "ekfac")(small)


def test_a_method_that_was_not_run_is_missing(small):
    with pytest.raises(Missing, match="it was not run"):
        v.ahead("nda", "clip_cosine", AHEAD)(small)


def test_orders_are_compared_by_spearman(small):
    names = [run for run in ("pixel_cosine", "trak", "d_trak", "das", "nda_two_scale")]
    here = np.array([small.lds(run, "val")[0] for run in names])
    theirs = [small.printed(run, "val") for run in names]
    found = v.scores._spearman(np.stack([here, -here], 1), theirs)
    expected = stats.spearmanr(here, theirs).statistic
    assert found == pytest.approx([expected, -expected])


def test_another_verdict_keeps_what_was_found(small):
    plain, other = v.spread(), v.not_comparable("it is another", v.spread())
    assert [p.found for p in other(small).parts] == [p.found for p in plain(small).parts]
    assert {p.verdict for p in other(small).parts} == {"not comparable: it is another"}


def test_findings_are_put_together(small):
    rules = [lambda e, s=s: Finding((Part("", "x", "agrees"),), s, "") for s in (1.0, 3.0)]
    found = v.together(*rules)(small)
    assert len(found.parts) == 2 and found.seconds == 3
    assert v.together(rules[0], v.not_done("no"))(small).seconds is None


def test_a_claim_can_be_about_another_truth(small, tmp_path):
    rule = v.ahead("nda_two_scale", "pixel_cosine", AHEAD)
    digits = Evidence(Store.shipped("digits"), PUBLISHED, resamples=small.resamples)
    assert v.elsewhere("digits", rule)(small).parts == rule(digits).parts
    with pytest.raises(Missing, match="results of digits are not shipped yet"):
        v.elsewhere("digits", rule)(Evidence(Store(tmp_path, role="results"), PUBLISHED))


# ---- results that are not there


RULES = {
    "retrainings": [
        v.removal("nda_two_scale", "image"),
        v.removal("ekfac", "loss", 20),
        v.removal_versus("nda_two_scale", "ekfac", "image", ALIKE),
        v.output_rather_than_loss(),
        v.overestimates("ekfac"),
    ],
    "gallery": [v.maps(), v.shared_proponents("nda_two_scale", "ekfac")],
    "planted queries": [v.traced("3/8 of the side")],
    "ablations/nda": [
        v.windows("window"),
        v.carries_over(),
        v.setting("nda", "top_k", "1", BEHIND),
    ],
    "ablations/curvature": [v.setting("curvature", "Monte-Carlo, reduce", "loss", BEHIND)],
}


@pytest.mark.parametrize(("what", "rule"), [(what, r) for what, rs in RULES.items() for r in rs])
def test_what_is_not_shipped_is_missing_and_says_so(what, rule, tmp_path):
    with pytest.raises(Missing, match=f"{what}.* not shipped yet"):
        rule(Evidence(Store(tmp_path, role="results"), PUBLISHED))


def test_a_table_without_paired_differences_is_missing_too(tmp_path):
    results = Store(tmp_path, role="results")
    results.save("ablations/nda", pd.DataFrame({"ablation": ["top_k"], "setting": ["1"]}))
    for rule in RULES["ablations/nda"]:
        with pytest.raises(Missing, match="no paired differences yet"):
            rule(Evidence(results, PUBLISHED))


# ---- made-up results


@pytest.fixture
def made_up(tmp_path):
    results = Store(tmp_path, role="results")
    own = {"nda_two_scale": 0.5, "d_trak": 0.1, "ekfac": 0.1, "pixel_dot": -0.2}
    removals(results, own)
    return Evidence(results, PUBLISHED, resamples=400)


def test_removals_are_held_against_random_ones(made_up):
    found = v.removal("nda_two_scale", "loss")(made_up)
    seen = made_up.outcomes
    own, random = (seen.own("removed-nda_two_scale", "loss"), seen.each("removed-random", "loss"))
    assert found.parts[0].verdict == "agrees" and found.parts[0].name.startswith("change of the")
    assert f"{100 * (own.mean() - random.mean()):+.2f} [" in found.parts[0].found
    assert found.seconds == 2.0 * (QUERIES + SETS)
    assert v.removal("pixel_dot", "loss")(made_up).parts[0].verdict == "disagrees"


def test_removals_are_held_against_each_other(made_up):
    def ask(first, second, side):
        return v.removal_versus(first, second, "loss", side)(made_up).parts[0].verdict

    assert ask("nda_two_scale", "d_trak", AHEAD) == "agrees"
    assert ask("d_trak", "nda_two_scale", AHEAD) == ask("nda_two_scale", "d_trak", ALIKE)
    assert ask("d_trak", "nda_two_scale", AHEAD) == "disagrees"
    assert ask("d_trak", "ekfac", ALIKE) == "not shown"


def test_an_arm_that_was_not_trained_is_missing(made_up):
    for rule in (v.removal("das", "image"), v.removal("ekfac", "loss", 20)):
        with pytest.raises(Missing, match="no models of the family removed-"):
            rule(made_up)


def test_two_correlations_differ_if_their_intervals_do_not_touch(made_up):
    part = v.output_rather_than_loss()(made_up).parts[0]
    assert part.found.count("with the") == 2
    assert part.verdict in ("agrees", "disagrees", "not shown")


def test_influence_may_foresee_too_many_improvements(made_up):
    results = made_up.results
    queries = torch.zeros(QUERIES, 1, 2, 2)
    made = {"parameters": {"rows": list(range(QUERIES))}}
    results.save("gallery/queries", queries, axes="query chan row col", **made)
    scores = -torch.ones(QUERIES, TRAIN)  # every removal is foreseen to lower the loss
    results.save("gallery/ekfac", scores, axes="query train")
    part = v.overestimates("ekfac")(made_up).parts[0]
    assert part.verdict == "agrees" and part.found.startswith("100 % foreseen, 0 % seen")


def test_scores_of_other_queries_are_not_used(made_up):
    made_up.results.save(
        "gallery/queries", torch.zeros(1), axes="query", parameters={"rows": [9, 8, 7, 6, 5]}
    )
    made_up.results.save("gallery/ekfac", torch.zeros(QUERIES, TRAIN), axes="query train")
    with pytest.raises(Missing, match="other queries"):
        v.overestimates("ekfac")(made_up)


def test_the_gallery_is_counted(made_up):
    mass = torch.tensor([[[0.6, 0.4], [0.5, 0.9]]])
    made_up.results.save("gallery/maps", {"mass": mass})
    assert " 50 % of the pixels" in v.maps()(made_up).parts[0].found
    first = torch.arange(20.0)[None]
    for name, scores in {"nda": first, "ekfac": first.roll(2)}.items():
        made_up.results.save(f"gallery/{name}", scores, axes="query train")
    found = v.shared_proponents("nda", "ekfac")(made_up).parts[0].found
    assert "they share 3.0" in found and "1.25 by chance" in found


def test_a_source_is_named_more_often_than_by_chance():
    columns = {"method": "nda", "reading": "local", "kind": "a", "queries": 20, "iou": 61.0}
    small = Evidence(SMALL, PUBLISHED)
    small.seconds = lambda names: None
    for recall, word in {90.0: "agrees", 0.0: "not shown"}.items():
        small.load = lambda name, recall=recall: pd.DataFrame([columns | {"recall_1": recall}])
        part = v.traced("a")(small).parts[0]
        assert part.verdict == word and "0.5 % by chance, IoU of the map 61 %" in part.found
        with pytest.raises(Missing, match="b was not planted"):
            v.traced("b")(small)


def gains(*rows):
    names = ["ablation", "setting", "timestep", "queries", "select", "report"]
    names += ["gain", "gain_low", "gain_high"]
    return pd.DataFrame(rows, columns=names).astype(dict.fromkeys(names[4:], float))


def saved(tmp_path, table, name="nda"):
    results = Store(tmp_path, role="results")
    results.save(f"ablations/{name}", table, seconds=120.0)
    return Evidence(results, PUBLISHED)


def test_a_setting_is_held_against_the_one_in_use(tmp_path):
    none = float("nan")
    evidence = saved(
        tmp_path,
        gains(
            ("top_k", "1", none, "val", 9, 10, -2, -3, -1),
            ("top_k", "1", none, "gen", 9, 10, 1, 0.04, 2),
        ),
    )
    found = v.setting("nda", "top_k", "1", BEHIND)(evidence)
    assert [part.verdict for part in found.parts] == ["agrees", "disagrees"]
    assert found.parts[0].found == "10.0 %, -2.0 points [-3.0,\u00a0-1.0]"
    assert found.parts[1].found == "10.0 %, +1.00 points [0.04,\u00a02.00]"
    assert found.seconds == 120
    with pytest.raises(Missing, match="top_k: all is not in the shipped table"):
        v.setting("nda", "top_k", "all", BEHIND)(evidence)


def test_the_printed_ablations_give_the_side(tmp_path):
    name = "length one, D-TRAK"
    rows = [(name, "yes", float("nan"), which, 9, 10, 1, 0.5, 2) for which in ("val", "gen")]
    found = v.setting("gradients", name, "yes", than=(name, "no"))(
        saved(tmp_path, gains(*rows), "gradients")
    )
    assert {part.verdict for part in found.parts} == {"agrees"}
    assert found.printed == "26.1 against 24.8 % held-out, 17.1 against 16.2 % generated"


def test_windows_grow_if_both_ends_are_behind(tmp_path):
    rows = [
        ("window", "1", 25, "val", 30, 30, 0, 0, 0),
        ("window", "7", 25, "val", 20, 20, -9, -10, -8),
        ("window", "1", 400, "val", 20, 20, -1, -3, 1),
        ("window", "7", 400, "val", 30, 30, 0, 0, 0),
        ("window", "7", 700, "val", 30, 30, *[float("nan")] * 3),
    ]
    parts = v.windows("window")(saved(tmp_path, gains(*rows))).parts
    assert [part.name for part in parts] == ["timestep 25, 7 px", "timestep 400, 1 px"]
    assert [part.verdict for part in parts] == ["agrees", "not shown"]
    assert parts[0].found.endswith("(chosen: 1 px)") and parts[1].found.endswith("(chosen: 7 px)")


@pytest.mark.parametrize(
    ("above", "below", "word"),
    [(0, 5, "agrees"), (1, 5, "agrees"), (2, 5, "disagrees"), (1, 1, "not shown")],
)
def test_settings_carry_over_if_no_more_are_ahead_than_by_luck(above, below, word, tmp_path):
    ends = [(1, 2)] * above + [(-2, -1)] * below + [(-1, 1)] * (40 - above - below) + [(0, 0)]
    rows = [("a", str(i), float("nan"), "gen", 0, 0, 0, *pair) for i, pair in enumerate(ends)]
    part = v.carries_over()(saved(tmp_path, gains(*rows))).parts[0]
    assert part.verdict == word
    assert part.found == f"of 40 other settings {above} are ahead of those in use, {below} behind"
