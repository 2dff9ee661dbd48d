"""Ablations of the gradient methods against explicit inverses and scipy; what is kept, and what the
choice of a damping may see."""

import shutil
import weakref
from dataclasses import replace
from functools import cache

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from tiny import ONE_BLOCK, one_block

from nda import rng
from nda.errors import InputError
from nda.evidence import tuning
from nda.evidence.ablations import gradients
from nda.evidence.ablations.gradients import Grid, screened
from nda.evidence.truth import gain_row, lds_row, truths
from nda.model import outputs
from nda.model.outputs import uniform_timesteps
from nda.rivals import inner_products
from nda.rivals.bench import Bench
from nda.rivals.gradients import Readout, features
from nda.rivals.kernel import DAMPINGS, gram
from nda.rivals.projection import Projection
from nda.store import Store

READOUT = Readout("loss", uniform_timesteps(4), noise_seed=5)
SCREENS = ["pixel_cosine", "nda_two_scale"]
SETTINGS = Grid([2, 4], [16, 64], [0.25, 1.0], SCREENS, ["model-50", "model"])
FEW = Grid([2], [16], [0.25])
TRAIN, SUBSETS, DAS = 12, 10, "DAS as released"
COUNTS = {"train": TRAIN, "val": 8, "gen": 5}
HALF = {
    ("select", "val"): [0, 2, 4, 6],
    ("report", "val"): [1, 3, 5, 7],
    ("select", "gen"): range(5),
    ("report", "gen"): range(5),
}


def draw(name, *shape):
    return torch.rand(*shape, generator=rng.generator("gradient ablations", name)) * 2 - 1


def bench(store, results, model="a"):
    """A bench with the model of that name."""
    store.delete("model")
    store.save("model", one_block(model).state_dict(), parameters={"recipe": {"unet": ONE_BLOCK}})
    return Bench(store, {}, choose=tuning.chooser(results))


def table(stage, grid, results):
    return gradients.table(stage, READOUT, None, grid, results=results)


def fill(folder):
    """A working store with images, a checkpoint and the scores of NDA, and a results store with
    masks and losses of random subsets."""
    store, results = Store(folder / "data"), Store(folder / "results")
    for kind, count in COUNTS.items():
        store.save(kind, draw(kind, count, 1, 4, 4), axes="image chan row col")
        scores = draw(f"{kind} nda", count, TRAIN)
        store.save(f"scores/nda_two_scale-{kind}", scores, axes="query train")
    store.save("model-50", one_block("half").state_dict())
    for family in ("select", "report"):
        results.save(f"masks/{family}", draw(family, SUBSETS, TRAIN) > 0, axes="subset train")
        for kind in ("val", "gen"):
            losses = draw(f"{family} {kind}", SUBSETS, 2, COUNTS[kind], 3)
            results.save(f"losses/{family}-{kind}", losses, axes="subset seed query group")
    return store, results


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The table, and the folder with all that it was computed from and all that was kept."""
    folder = tmp_path_factory.mktemp("gradient ablations")
    store, results = fill(folder)
    return folder, table(bench(store, results), SETTINGS, results)


@pytest.fixture
def world(home, tmp_path):
    """A copy of that folder, to be changed."""
    shutil.copytree(home[0], tmp_path, dirs_exist_ok=True)
    return Store(tmp_path / "data"), Store(tmp_path / "results")


@pytest.fixture
def calls(monkeypatch):
    """The readouts whose features are made from now on."""
    made = []
    monkeypatch.setattr(
        inner_products, "features", lambda *a, **k: made.append(a[2]) or features(*a, **k)
    )
    return made


# ---- the same by hand


def mean_spearman(scores, kind, family, results, centred=False):
    """In percent, by scipy, one query after the other."""
    masks, part = results.load(f"masks/{family}").double(), list(HALF[family, kind])
    losses = results.load(f"losses/{family}-{kind}").double().mean((1, 3))[:, part]
    effects = masks @ scores[part].T
    if centred:
        effects, losses = (values - values.mean(1, keepdim=True) for values in (effects, losses))
    return (
        100
        * sum(spearmanr(e, -truth).statistic for e, truth in zip(effects.T, losses.T, strict=True))
        / len(part)
    )


@cache
def true_gradients(readout):
    return {
        kind: features(one_block("a"), draw(kind, n, 1, 4, 4), readout).double()
        for kind, n in COUNTS.items()
    }


def solved(readout, damping, projection=None):
    """ψᵀ (ΦᵀΦ + λI)⁻¹ φ with an explicit inverse, in the space of the features if they are
    projected, else in that of the train images."""
    made = {
        kind: projection(values) if projection else values
        for kind, values in true_gradients(readout).items()
    }
    phi = made["train"]
    space = phi.T if projection else phi
    ridge = damping * phi.square().sum(1).mean() * torch.eye(len(space), dtype=torch.float64)
    inverse = torch.linalg.inv(space @ space.T + ridge)
    return {
        kind: made[kind] @ inverse @ phi.T if projection else made[kind] @ phi.T @ inverse
        for kind in ("val", "gen")
    }


def by_hand(
    results, readout, projection=None, times=lambda scores, kind: scores, dampings=DAMPINGS
):
    """Both rows of a variant: its dampings, tried one after the other, the first that is best on
    `select`, and the LDS there."""
    tried = {}
    for damping in dampings:
        scores = solved(readout, damping, projection)
        tried[damping] = {kind: times(values, kind) for kind, values in scores.items()}
    selected = {
        damping: mean_spearman(scores["val"], "val", "select", results)
        for damping, scores in tried.items()
    }
    best = next(
        damping for damping, value in selected.items() if value > max(selected.values()) - 1e-9
    )
    columns = {"select": ("select", False), "select_centred": ("select", True)}
    columns |= {"report": ("report", False), "report_centred": ("report", True)}
    return best, {
        kind: {
            name: mean_spearman(scores, kind, family, results, c)
            for name, (family, c) in columns.items()
        }
        for kind, scores in tried[best].items()
    }


def row(table, ablation, setting, kind):
    found = table[
        (table["ablation"] == ablation) & (table["setting"] == setting) & (table["queries"] == kind)
    ]
    assert len(found) == 1
    return found.iloc[0]


def assert_rows(table, ablation, setting, expected):
    for kind, columns in expected.items():
        found = row(table, ablation, setting, kind)
        assert {name: found[name] for name in columns} == pytest.approx(columns, abs=1e-6), (
            ablation,
            setting,
            kind,
        )
        assert (
            found["low"] <= found["report"] <= found["high"]
            and found["low_centred"] <= found["high_centred"]
        )


@pytest.mark.parametrize(
    ("ablation", "setting", "output", "timesteps", "projection"),
    [
        ("K, TRAK", "2", "loss", (0, 500), None),
        ("K, D-TRAK", "2", "output_norm", (0, 500), None),
        ("projection, TRAK", "16", "loss", (0, 250, 500, 750), Projection(16)),
        ("projection, D-TRAK", "64", "output_norm", (0, 250, 500, 750), Projection(64)),
        ("projection, D-TRAK", "none", "output_norm", (0, 250, 500, 750), None),
    ],
)
def test_rows_are_those_of_an_explicit_inverse(
    home, ablation, setting, output, timesteps, projection
):
    readout = Readout(output, timesteps, noise_seed=5)
    assert_rows(
        home[1], ablation, setting, by_hand(Store(home[0] / "results"), readout, projection)[1]
    )


@pytest.mark.parametrize(("setting", "damping"), [("1e-05", 1e-5), ("0.1", 0.1), ("1000", 1e3)])
def test_a_damping_that_is_ablated_is_not_chosen(home, setting, damping):
    expected = by_hand(
        Store(home[0] / "results"), replace(READOUT, model_output="output_norm"), dampings=[damping]
    )[1]
    assert_rows(home[1], "damping, D-TRAK", setting, expected)
    shown = [row(home[1], "damping, D-TRAK", f"{d:g}", "val")["select"] for d in DAMPINGS[::2]]
    assert (
        len(set(shown)) > 3 and max(shown) <= row(home[1], "K, D-TRAK", "4", "val")["select"] + 1e-6
    )


@pytest.mark.parametrize(
    ("ablation", "setting", "changed"),
    [
        (f"K, {DAS}", "2", {"timesteps": (0, 500)}),
        (f"length one, {DAS}", "no", {"unit_norm": False}),
        (f"up-blocks only, {DAS}", "up-blocks", {"parts": ("up_blocks",)}),
    ],
)
def test_das_has_gradients_of_length_one_and_the_residual_of_its_timesteps(
    home, ablation, setting, changed
):
    readout = replace(READOUT, **{"model_output": "output_mean", "unit_norm": True} | changed)
    errors = outputs.denoising_losses(
        one_block("a"), draw("train", TRAIN, 1, 4, 4), timesteps=readout.timesteps
    ).double()
    residual = (errors.sqrt() / errors.sum(1, keepdim=True).sqrt()).mean(1)
    expected = by_hand(
        Store(home[0] / "results"), readout, times=lambda scores, kind: scores * residual
    )[1]
    assert_rows(home[1], ablation, setting, expected)


@pytest.mark.parametrize(("method", "output"), [("TRAK", "loss"), ("D-TRAK", "output_norm")])
def test_only_the_nearest_in_pixels_are_scored(home, method, output):
    train, near = draw("train", TRAIN, 1, 4, 4).flatten(1).double(), {}
    for kind in ("val", "gen"):
        near[kind] = torch.zeros(COUNTS[kind], TRAIN)
        for q, query in enumerate(draw(kind, COUNTS[kind], 1, 4, 4).flatten(1).double()):
            cosines = [(query @ image / query.norm() / image.norm()).item() for image in train]
            near[kind][q, sorted(range(TRAIN), key=lambda i: -cosines[i])[:3]] = (
                1  # a quarter of 12
            )
    readout = replace(READOUT, model_output=output)
    expected = by_hand(
        Store(home[0] / "results"), readout, times=lambda scores, kind: scores * near[kind]
    )[1]
    assert_rows(home[1], f"candidates, {method}", "0.25", expected)
    assert (
        row(home[1], f"candidates, {method}", "0.25", "val")["report"]
        != row(home[1], f"candidates, {method}", "1", "val")["report"]
    )


def test_a_candidate_set_has_at_least_one_image_and_the_first_of_equals():
    equal = torch.ones(1, 4)
    assert gradients.candidates(equal, 0.01).tolist() == [[True, False, False, False]]
    assert gradients.candidates(equal, 0.5).tolist() == [[True, True, False, False]]


# ---- the table


def test_every_setting_is_there_once_for_each_kind(home):
    three, dampings = ("TRAK", "D-TRAK", DAS), [f"{damping:g}" for damping in DAMPINGS[::2]]
    tried = {"K": (three, ("2", "4")), "damping": (three, dampings)}
    tried["projection"] = three, ("16", "64", "none")
    tried["up-blocks only"] = three, ("all", "up-blocks")
    tried["length one"] = ("D-TRAK", DAS), ("no", "yes")
    tried["candidates"] = three, ("0.25", "1")
    tried["candidates of raw pixels"] = tried["candidates of NDA"] = (DAS,), ("0.25", "1")
    tried["checkpoint"] = three, ("50 %", "100 %")
    tried["output"] = ("D-TRAK",), tuple(outputs.OUTPUTS)
    assert list(
        zip(*(home[1][column] for column in ("ablation", "setting", "queries")), strict=True)
    ) == [
        (f"{name}, {method}", setting, kind)
        for name, (methods, settings) in tried.items()
        for method in methods
        for setting in settings
        for kind in ("val", "gen")
    ]


def test_lengths_are_ablated_at_the_largest_k_as_well():
    found = list(gradients.variants(READOUT, None, replace(SETTINGS, ks=[4, 10])))
    lengths = [row for row in found if "length one at K = 10" in row[0]]
    assert [(name.rpartition(", ")[2], setting) for name, setting, *_ in lengths] == [
        (method, setting) for method in ("D-TRAK", DAS) for setting in ("no", "yes")
    ]
    for name, setting, variant, in_use in lengths:
        assert len(variant.readout.timesteps) == 10 and variant.residual == (DAS in name)
        assert variant.readout == replace(in_use.readout, unit_norm=setting == "yes")
        assert in_use.readout.unit_norm == (DAS in name)


def test_columns_are_those_of_the_other_ablations(home):
    scores, known = (
        draw("scores", COUNTS["val"], TRAIN),
        truths(Store(home[0] / "results"), "val"),
    )
    columns = [*lds_row(scores, known), *gain_row(scores, scores, known)]
    assert list(home[1]) == ["ablation", "setting", "queries", *columns]
    assert home[1][columns].notna().all(axis=None)


def test_what_is_in_use_gains_nothing_and_others_what_lies_between(home):
    in_use = {
        "K": "4",
        "projection": "none",
        "up-blocks only": "all",
        "length one": {"D-TRAK": "no", DAS: "yes"},
        "candidates": "1",
        "candidates of raw pixels": "1",
        "candidates of NDA": "1",
        "checkpoint": "100 %",
        "output": "output_norm",
    }
    for (name, kind), group in home[1].groupby(["ablation", "queries"]):
        ablation, _, method = name.rpartition(", ")
        if ablation == "damping":  # against the one that is chosen
            value = row(home[1], f"K, {method}", "4", kind)["report"]
        else:
            own = in_use[ablation]
            own = own[method] if isinstance(own, dict) else own
            same = row(home[1], name, own, kind)
            assert same["gain"] == same["gain_low"] == same["gain_high"] == 0
            value = same["report"]
        assert (group["report"] - value).to_numpy() == pytest.approx(group["gain"].to_numpy())
        assert (group["gain_low"] <= group["gain"] + 1e-9).all()
        assert (group["gain"] <= group["gain_high"] + 1e-9).all()


@pytest.mark.parametrize("screen", SCREENS)
def test_candidates_of_a_method_are_first_by_its_scores(home, screen):
    results, near = Store(home[0] / "results"), {}
    for kind in ("val", "gen"):
        theirs = draw(f"{kind} nda", COUNTS[kind], TRAIN)
        if screen == "pixel_cosine":
            flat = [draw(k, COUNTS[k], 1, 4, 4).flatten(1) for k in (kind, "train")]
            theirs = torch.cosine_similarity(flat[0][:, None], flat[1][None], dim=2)
        near[kind] = [theirs[q].topk(3).indices.tolist() for q in range(COUNTS[kind])]
    unit = replace(READOUT, model_output="output_mean", unit_norm=True)
    errors = outputs.denoising_losses(
        one_block("a"), draw("train", TRAIN, 1, 4, 4), timesteps=unit.timesteps
    ).double()
    residual = (errors.sqrt() / errors.sum(1, keepdim=True).sqrt()).mean(1)

    def floored(scores, kind):
        found = torch.zeros_like(scores)
        for q, some in enumerate(near[kind]):
            values = scores[q] * residual
            found[q, some] = values[some] - min(values[i] for i in some)
        return found

    name = f"candidates of {gradients.SCREENS[screen]}, {DAS}"
    assert_rows(home[1], name, "0.25", by_hand(results, unit, times=floored)[1])


@given(st.integers(1, 6), st.integers(0, 99))
def test_no_stranger_comes_before_a_candidate(count, seed):
    source = rng.generator("strangers", seed)
    scores, ranks = torch.randn(2, 3, 6, generator=source)
    near = gradients.candidates(ranks, count / 6)
    found = screened(scores, near, lowest=True)
    assert near.sum(1).tolist() == [count] * 3
    for query, old, candidate in zip(found, scores, near, strict=True):
        assert (query[candidate] >= 0).all() and not query[~candidate].any()
        assert torch.equal(query[candidate], old[candidate] - old[candidate].min())
    zeroed = screened(scores, near, lowest=False)
    assert torch.equal(zeroed[near], scores[near]) and not zeroed[~near].any()


def test_a_checkpoint_has_its_own_gradients_and_errors(home, tmp_path):
    shutil.copytree(home[0], tmp_path, dirs_exist_ok=True)
    store, results = Store(tmp_path / "data"), Store(tmp_path / "results")
    half = table(bench(store, results, "half"), FEW, results)
    for method in ("TRAK", "D-TRAK", DAS):
        for kind in ("val", "gen"):
            found = row(home[1], f"checkpoint, {method}", "50 %", kind)
            expected = row(half, f"checkpoint, {method}", "100 %", kind)
            for column in ("select", "report", "low", "high", "report_centred"):
                assert found[column] == pytest.approx(expected[column], abs=1e-6)


def test_outputs_are_solved_as_d_trak_does(home):
    results = Store(home[0] / "results")
    for output in outputs.OUTPUTS:
        expected = by_hand(results, replace(READOUT, model_output=output))[1]
        assert_rows(home[1], "output, D-TRAK", output, expected)


def test_candidates_of_scores_that_are_not_there_are_refused(home, tmp_path):
    shutil.copytree(home[0], tmp_path, dirs_exist_ok=True)
    store, results = Store(tmp_path / "data"), Store(tmp_path / "results")
    store.delete("scores/nda_two_scale-val")
    with pytest.raises(InputError, match="scores/nda_two_scale-val is missing"):
        table(bench(store, results), SETTINGS, results)


@pytest.mark.parametrize(
    ("method", "alike"),
    [
        (
            "TRAK",
            [("K", "4"), ("projection", "none"), ("up-blocks only", "all"), ("candidates", "1")],
        ),
        (
            "D-TRAK",
            [("K", "4"), ("projection", "none"), ("up-blocks only", "all"), ("candidates", "1")],
        ),
        (DAS, [("K", "4"), ("up-blocks only", "all"), ("length one", "yes")]),
    ],
)
def test_the_setting_that_changes_nothing_is_the_same_everywhere(home, method, alike):
    for kind in ("val", "gen"):
        rows = [
            row(home[1], f"{name}, {method}", setting, kind).drop(["ablation", "setting"])
            for name, setting in alike
        ]
        assert all(other.equals(rows[0]) for other in rows[1:])


def test_a_profiles_projection_is_in_every_variant_but_those_of_other_sizes():
    base = Projection(16)
    found = list(gradients.variants(READOUT, base, SETTINGS))
    for name, setting, variant, in_use in found:
        assert variant.projection == (Projection(64) if setting == "64" else base), name
        assert in_use.projection == base
    sizes = [setting for name, setting, *_ in found if name == "projection, TRAK"]
    assert sizes == ["16", "64"]


# ---- what the choice of a damping sees


def choices(store, results):
    """The damping of every variant."""
    found = {}
    stage = bench(store, results)
    for name, setting, variant, _ in gradients.variants(READOUT, None, SETTINGS):
        made = stage.collect(variant.readout, [variant.projection], variant.weights)
        found[name, setting] = gradients.tuned_scores(stage, made[variant.projection], variant)[0]
    return found


def replaced(results, *names):
    for name in names:
        old = results.load(name)
        results.save(name, draw(f"another {name}", *old.shape), axes=results.info(name)["axes"])


def test_the_damping_never_sees_the_report(home, world):
    store, results = world
    before = choices(store, results)
    assert len(set(before.values())) > 3
    replaced(results, "losses/report-val", "losses/report-gen")
    after = table(bench(store, results), SETTINGS, results)
    assert choices(store, results) == before
    for column in ("select", "select_centred"):
        assert after[column].equals(home[1][column])
    assert not (after["report"] == home[1]["report"]).any()


def test_the_damping_sees_the_choosing_half_of_the_queries_alone(world):
    store, results = world
    before = choices(store, results)
    losses = results.load("losses/select-val")
    losses[:, :, 1::2] = draw("another half", *losses[:, :, 1::2].shape)
    results.save("losses/select-val", losses, axes="subset seed query group")
    assert choices(store, results) == before
    replaced(results, "losses/select-val")
    assert choices(store, results) != before


def test_gen_has_the_damping_of_val(home):
    results, table, other = Store(home[0] / "results"), home[1], []
    for k, timesteps in (("2", (0, 500)), ("4", READOUT.timesteps)):
        for method, output in (("TRAK", "loss"), ("D-TRAK", "output_norm")):
            readout = replace(READOUT, model_output=output, timesteps=timesteps)
            best, _ = by_hand(results, readout)
            chosen = mean_spearman(solved(readout, best)["gen"], "gen", "select", results)
            oracle = max(
                mean_spearman(solved(readout, damping)["gen"], "gen", "select", results)
                for damping in DAMPINGS
            )
            assert row(table, f"K, {method}", k, "gen")["select"] == pytest.approx(chosen, abs=1e-6)
            other.append(oracle > chosen + 1)
    assert any(other)


# ---- what is kept


def test_a_second_run_makes_no_features(home, world, calls):
    store, results = world
    again = table(bench(store, results), SETTINGS, results)
    assert not calls
    pd.testing.assert_frame_equal(again, home[1])


def test_each_readout_is_passed_once_whatever_is_projected(tmp_path, calls):
    store, results = fill(tmp_path)
    table(bench(store, results), FEW, results)
    every = gradients.variants(READOUT, None, FEW)
    readouts = {variant.readout for _, _, *both in every for variant in both}
    assert len(calls) == 3 * len(readouts) and set(calls) == readouts


def test_only_what_is_missing_is_made(home, world, calls):
    store, results = world
    lost = [
        name
        for name in store.names()
        if name.startswith(
            ("parts/products/model-loss-k4-d16-", "parts/products/model-output_mean-k2-unit-")
        )
    ]
    assert len(lost) == 6
    for name in lost:
        store.delete(name)
    again = table(bench(store, results), SETTINGS, results)
    unit = Readout("output_mean", (0, 500), noise_seed=5, unit_norm=True)
    assert calls == [READOUT] * 3 + [unit] * 3 or calls == [unit] * 3 + [READOUT] * 3
    pd.testing.assert_frame_equal(again, home[1])


@pytest.mark.parametrize("change", [None, "weights", "train", "val", "gen", "noise"])
def test_nothing_is_reused_after_a_change(world, calls, change):
    store, results = world
    projections = [None, Projection(16)]
    before = bench(store, results).collect(READOUT, projections)
    if change in COUNTS:
        store.delete(change)
        store.save(
            change, draw(f"another {change}", COUNTS[change], 1, 4, 4), axes="image chan row col"
        )
    name = "b" if change == "weights" else "a"
    readout = replace(READOUT, noise_seed=6 if change == "noise" else 5)
    found = bench(store, results, name).collect(readout, projections)
    # other queries need the train features again, but no other kind
    made_anew = {None: 0, "val": 2, "gen": 2}.get(change, 3)
    assert len(calls) == made_anew
    for p in projections:
        made = {
            kind: features(one_block(name), store.load(kind), readout, projection=p)
            for kind in COUNTS
        }
        for kind in COUNTS:
            torch.testing.assert_close(
                found[p][kind].cross, gram(made[kind], made["train"]), rtol=1e-5, atol=1e-9
            )
            same = change is None or (change in ("val", "gen") and kind != change)
            assert torch.equal(found[p][kind].cross, before[p][kind].cross) == same
    again = bench(store, results, name).collect(readout, projections)
    assert len(calls) == made_anew
    assert all(
        torch.equal(again[p][kind].cross, found[p][kind].cross)
        for p in projections
        for kind in COUNTS
    )


def test_a_changed_model_makes_another_table(home, world, calls):
    store, results = world
    again = table(bench(store, results, "b"), FEW, results)
    both = again.merge(
        home[1],
        on=["ablation", "setting", "queries"],
        suffixes=("", "_before"),
        validate="one_to_one",
    )
    assert len(calls) == 3 * 16 and len(both) == len(again) - 8  # lengths at K = 2
    assert (both["report"] != both["report_before"]).mean() > 0.9


def test_at_most_the_train_features_are_held_when_others_are_made(tmp_path, monkeypatch):
    store, results = fill(tmp_path)
    made, held = [], []

    def watched(model, images, readout, **options):
        held.append((len(images), sum(one() is not None for one in made)))
        own = features(model, images, readout, **options)
        made.append(weakref.ref(own.untyped_storage()))
        return own

    monkeypatch.setattr(inner_products, "features", watched)
    table(bench(store, results), FEW, results)
    assert set(held) == {(TRAIN, 0), (COUNTS["val"], 1), (COUNTS["gen"], 1)}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"screens": ["likeness"]}, "screen must be one of .*'likeness'"),
        ({"shares": [0.5, 0]}, "shares of candidates must be above 0 and at most 1, not 0"),
        ({"shares": [1.5]}, "not 1.5"),
        ({"ks": [3]}, "must divide 1000"),
        ({"dims": [0]}, "dim must be a positive integer"),
    ],
)
def test_bad_settings_are_found_before_anything_is_computed(tmp_path, calls, changed, reason):
    store, results = fill(tmp_path)
    with pytest.raises(InputError, match=reason):
        table(bench(store, results), replace(SETTINGS, **changed), results)
    assert not calls


def test_missing_images_name_their_notebook(tmp_path):
    store, results = fill(tmp_path)
    store.delete("gen")
    with pytest.raises(InputError, match="run notebook 02_diffusion_model first"):
        table(bench(store, results), SETTINGS, results)
