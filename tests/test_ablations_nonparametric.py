"""Ablations of NDA: kept parts add up to the scores, each configuration changes one setting, and
rows are scipy's."""

from dataclasses import asdict, replace

import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from nda import rng
from nda.evidence import lds
from nda.evidence.ablations import nonparametric
from nda.evidence.ablations.nonparametric import best_windows, kept_scores, settings, table, windows
from nda.evidence.truth import gain_row, lds_row, truths
from nda.nonparametric.config import NDAConfig, Scale
from nda.nonparametric.scores import nda_scores
from nda.store import Store

COUNTS = {"train": 6, "val": 4, "gen": 3}
SUBSETS, CPU = 9, torch.device("cpu")
SINGLE = NDAConfig.single({100: 3, 400: 4})
TWO = NDAConfig.two_scale({100: 3, 400: 4}, {100: 4, 400: 6}, 0.25)
COARSE = NDAConfig.single({100: 4, 400: 6}, coarse=True)


def draw(name, *shape):
    return (
        torch.rand(*shape, generator=rng.generator("ablations", name), dtype=torch.float64) * 2 - 1
    )


@pytest.fixture
def stores(tmp_path):
    """Images in one store; masks and losses of random subsets in another."""
    store, results = Store(tmp_path / "data"), Store(tmp_path / "results")
    for kind, count in COUNTS.items():
        store.save(kind, draw(kind, count, 1, 6, 6), axes="image chan row col")
    for family in ("select", "report"):
        results.save(
            f"masks/{family}", draw(family, SUBSETS, COUNTS["train"]) > 0, axes="subset train"
        )
        for kind in ("val", "gen"):
            results.save(
                f"losses/{family}-{kind}",
                draw(f"{family} {kind}", SUBSETS, 2, COUNTS[kind], 3),
                axes="subset seed query group",
            )
    return store, results


@pytest.fixture
def calls(monkeypatch):
    """The configurations that `nda_scores` is asked for from now on."""
    made = []
    monkeypatch.setattr(
        nonparametric,
        "nda_scores",
        lambda q, t, config: made.append(config) or nda_scores(q, t, config),
    )
    return made


# ---- kept parts

CONFIGS = {
    "single": SINGLE,
    "coarse": COARSE,
    "two scales": TWO,
    "three scales": replace(
        TWO, scales={100: (Scale(1, weight=3.0), *TWO.scales[100]), 400: (Scale(3),)}
    ),
    "one side at both scales": replace(SINGLE, scales={100: (Scale(4), Scale(4, coarse=True))}),
    "two draws": replace(TWO, draws=2, noise_seed=3),
    "no draws": replace(SINGLE, draws=0, temperature=0.3),
    "zero weight": replace(
        TWO,
        scales={
            100: (Scale(3, weight=0.0), Scale(4, True, 2.0)),
            400: (Scale(4), Scale(6, True, 0.0)),
        },
    ),
    "the rest": replace(TWO, top_k=2, borders="zero", flips=True, per_position=False),
}


@pytest.mark.parametrize("kind", ["val", "gen"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_kept_scores_are_nda_scores(stores, config, kind):
    expected = nda_scores(draw(kind, COUNTS[kind], 1, 6, 6), draw("train", 6, 1, 6, 6), config)
    for _ in range(2):  # made, then put together from what is kept
        torch.testing.assert_close(
            kept_scores(config, kind, stores[0], CPU), expected, rtol=0, atol=1e-12
        )


def test_parts_are_computed_once_for_all_configurations(stores, calls):
    store, _ = stores
    kept_scores(TWO, "val", store, CPU)
    assert [list(config.scales.items()) for config in calls] == [
        [(t, (replace(scale, weight=1.0),))] for t, scales in TWO.scales.items() for scale in scales
    ]
    for config in (TWO, SINGLE, COARSE, CONFIGS["zero weight"]):
        kept_scores(config, "val", store, CPU)
    assert len(calls) == 4
    for kind in ("gen", "val"):
        kept_scores(TWO, kind, store, CPU)
    assert len(calls) == 8
    kept_scores(replace(SINGLE, top_k=2), "val", store, CPU)
    assert len(calls) == 10 and all(config.top_k == 2 for config in calls[8:])
    kept_scores(replace(CONFIGS["zero weight"], top_k=3), "val", store, CPU)
    assert len(calls) == 12  # what has no weight is not computed


@pytest.mark.parametrize("changed", ["train", "val"])
def test_parts_of_other_images_are_made_anew(stores, calls, changed):
    store, _ = stores
    before = kept_scores(SINGLE, "val", store, CPU)
    store.save(changed, draw("another", COUNTS[changed], 1, 6, 6), axes="image chan row col")
    after = kept_scores(SINGLE, "val", store, CPU)
    assert len(calls) == 4 and not torch.allclose(before, after)
    torch.testing.assert_close(
        after, nda_scores(store.load("val"), store.load("train"), SINGLE), rtol=0, atol=1e-12
    )


# ---- which configurations


@pytest.mark.parametrize("coarse", [False, True])
def test_windows_are_every_side_at_every_timestep_alone(coarse):
    base = replace(SINGLE, top_k=7, borders="zero")
    found = list(windows(base, [50, 300], [2, 4, 6], coarse=coarse))
    assert [(a.timestep, a.setting) for a in found] == [
        (t, s) for t in (50, 300) for s in ("2", "4", "6")
    ]
    for a in found:
        assert a.name == ("coarse window" if coarse else "window")
        assert a.config == replace(
            base, scales={a.timestep: (Scale(int(a.setting), coarse),)}, top_k=100
        )


@pytest.mark.parametrize("base", [SINGLE, COARSE])
def test_a_window_is_compared_with_that_of_the_base_at_its_timestep(base):
    coarse = base is COARSE
    timestep = next(iter(base.scales))
    found = list(windows(base, [timestep, 999], [2], coarse=coarse))
    scales = {timestep: base.scales[timestep]}
    assert found[0].in_use == replace(base, scales=scales, top_k=100)
    assert found[1].in_use is None


def test_each_setting_is_compared_with_the_configuration_in_use():
    in_use = {"largest timestep": replace(SINGLE, top_k=100), "scale_mix": TWO, "scales": TWO}
    for a in settings(SINGLE, TWO, COARSE, mixes=MIXES, windows=WINDOWS):
        assert a.in_use == in_use.get(a.name, SINGLE)


@pytest.mark.parametrize("coarse", [False, True])
def test_the_best_window_is_that_on_select_for_validation_queries(coarse):
    name, other = ("coarse window", "window")[:: 1 if coarse else -1]
    rows = [
        (name, 300, "7", "val", 5, 9),
        (name, 300, "3", "val", 8, 1),
        (name, 300, "5", "gen", 99, 99),
        (name, 50, "5", "val", 2, 2),
    ]
    rows += [
        (name, 50, "11", "val", 2, 9),
        (other, 50, "9", "val", 99, 9),
        ("top_k", None, "1", "val", 99, 9),
    ]
    found = pd.DataFrame(
        rows, columns=["ablation", "timestep", "setting", "queries", "select", "report"]
    )
    # of equals, the first
    assert list(best_windows(found, coarse=coarse).items()) == [(50, 5), (300, 3)]


MIXES = (0.0, 0.25, 1.0)
WINDOWS = {50: 2, 100: 3}  # also of timesteps that the profile has not
# what each ablation changes, from which configuration, and to what
CHANGES = {
    "top_k": (SINGLE, "top_k", {"1": 1, "3": 3, "10": 10, "30": 30, "100": 100, "all": None}),
    "noise draws": (SINGLE, "draws", {"none": 0, "1": 1, "2": 2, "4": 4}),
    "another noise": (SINGLE, "noise_seed", {"1": 1, "2": 2, "3": 3}),
    "borders": (SINGLE, "borders", {"match": "match", "zero": "zero"}),
    "flips in the bank": (SINGLE, "flips", {"no": False, "yes": True}),
    "temperature": (
        SINGLE,
        "temperature",
        {"0.1": 0.1, "0.3": 0.3, "1": 1.0, "3": 3.0, "10": 10.0},
    ),
    "largest timestep": (
        SINGLE,
        "scales",
        {"50": {50: (Scale(2),)}, "100": {50: (Scale(2),), 100: (Scale(3),)}},
    ),
    "scale_mix": (
        TWO,
        "scales",
        {
            f"{m:g}": {
                100: (Scale(3, False, m), Scale(4, True, 1 - m)),
                400: (Scale(4, False, m), Scale(6, True, 1 - m)),
            }
            for m in MIXES
        },
    ),
    "scales": (
        TWO,
        "scales",
        {
            "full": SINGLE.scales,
            "coarse": COARSE.scales,
            "both": TWO.scales,
            "+ pixels": {t: (Scale(1, weight=0.5), *scales) for t, scales in TWO.scales.items()},
            "+ larger": {
                t: (*scales, Scale(scales[0].patch + 4, weight=0.5))
                for t, scales in TWO.scales.items()
            },
        },
    ),
}


def test_each_setting_differs_from_its_base_in_what_its_name_says():
    found: dict[str, dict[str, NDAConfig]] = {}
    for a in settings(SINGLE, TWO, COARSE, mixes=MIXES, windows=WINDOWS):
        assert a.timestep is None and a.setting not in found.setdefault(a.name, {})
        found[a.name][a.setting] = a.config
    assert found.keys() == CHANGES.keys()
    for name, (base, field, values) in CHANGES.items():
        assert list(found[name]) == list(values), name
        for setting, value in values.items():
            changed = asdict(found[name][setting]), asdict(base)
            assert {k: v for k, v in changed[0].items() if k != field} == {
                k: v for k, v in changed[1].items() if k != field
            }
            assert getattr(found[name][setting], field) == value, (name, setting)


@pytest.mark.parametrize("mix", [0.5, 0.25])
def test_a_third_scale_has_a_third_and_the_others_keep_their_mix(mix):
    both = NDAConfig.two_scale({100: 3}, {100: 4}, mix)
    configs = {
        a.setting: a.config
        for a in settings(SINGLE, both, COARSE, mixes=(), windows={})
        if a.name == "scales"
    }
    for name in ("+ pixels", "+ larger"):
        weights = {term.scale.patch: term.weight for term in configs[name].terms()}
        added = 1 if "pixels" in name else 7
        assert weights == pytest.approx({added: 1 / 3, 3: 2 / 3 * mix, 4: 2 / 3 * (1 - mix)})


def test_the_largest_timestep_is_tried_at_the_papers_top_k():
    found = settings(replace(SINGLE, top_k=7), TWO, COARSE, mixes=(), windows=WINDOWS)
    assert {a.name: a.config.top_k for a in found if a.name in ("largest timestep", "borders")} == {
        "largest timestep": 100,
        "borders": 7,
    }


def test_other_noises_start_from_the_profiles():
    seeds = [
        a.config.noise_seed
        for a in settings(replace(SINGLE, noise_seed=5), TWO, COARSE, mixes=(), windows={})
        if a.name == "another noise"
    ]
    assert seeds == [6, 7, 8]


# ---- rows

HALF = {
    ("select", "val"): [0, 2],
    ("report", "val"): [1, 3],
    ("select", "gen"): [0, 1, 2],
    ("report", "gen"): [0, 1, 2],
}


def by_hand(scores, kind, family, results, centred):
    """Effects and losses of the family's queries, and scipy's mean correlation in percent."""
    part, masks = HALF[family, kind], results.load(f"masks/{family}").double()
    losses = torch.stack(
        [results.load(f"losses/{family}-{kind}")[:, :, q].mean((1, 2)) for q in part], 1
    )
    effects = torch.stack([(masks * scores[q]).sum(1) for q in part], 1)
    if centred:
        effects, losses = (values - values.mean(1, keepdim=True) for values in (effects, losses))
    each = [spearmanr(effects[:, i], -losses[:, i]).statistic for i in range(len(part))]
    return effects, losses, 100 * sum(each) / len(each)


@pytest.mark.parametrize("kind", ["val", "gen"])
def test_rows_are_scipys_on_the_right_half_of_the_queries(stores, kind):
    _, results = stores
    scores = draw(f"scores {kind}", COUNTS[kind], COUNTS["train"])
    row = lds_row(scores, truths(results, kind), resamples=300)
    expected = {}
    for family in ("select", "report"):
        for suffix, centred in (("", False), ("_centred", True)):
            effects, losses, expected[family + suffix] = by_hand(
                scores, kind, family, results, centred
            )
            if family == "report":
                interval = lds.interval(lds.bootstrap({"": effects}, losses, resamples=300)[""])
                expected |= {f"low{suffix}": 100 * interval[0], f"high{suffix}": 100 * interval[1]}
    assert row == pytest.approx(expected)
    assert row["low"] < row["report"] < row["high"]


def test_the_table_has_a_row_for_every_ablation_and_kind(stores):
    store, results = stores
    tried = [
        *windows(SINGLE, [100], [3], coarse=False),
        *(a for a in settings(SINGLE, TWO, COARSE, mixes=(), windows={}) if a.name == "borders"),
    ]
    rows = table(tried, store=store, results=results, device=CPU)
    assert rows[["ablation", "setting", "queries"]].to_numpy().tolist() == [
        [a.name, a.setting, kind] for a in tried for kind in ("val", "gen")
    ]
    assert rows["timestep"].tolist()[:2] == [100, 100] and rows["timestep"][2:].isna().all()
    for (a, kind), row in zip(
        [(a, kind) for a in tried for kind in ("val", "gen")], rows.to_dict("records"), strict=True
    ):
        scores, in_use = (
            nda_scores(store.load(kind), store.load("train"), config) if config else None
            for config in (a.config, a.in_use)
        )
        expected = lds_row(scores, truths(results, kind))
        expected |= gain_row(scores, in_use, truths(results, kind))
        found = {name: row[name] for name in expected}
        assert found == pytest.approx(expected, nan_ok=True, abs=1e-9)
