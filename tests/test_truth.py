"""What retraining says: which queries count, how predictions are held against it, and whether
results belong together."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from made_up import MADE, RECIPE, save_effects, save_losses
from scipy.stats import spearmanr

from nda import rng
from nda.data.subsets import keep_masks
from nda.errors import InputError
from nda.evidence import lds
from nda.evidence.records import check_results, record, recorded_effects
from nda.evidence.truth import (
    FAMILIES,
    Truth,
    find_results,
    gain_row,
    group_effects,
    lds_row,
    truths,
)
from nda.methods import METHODS, Result
from nda.store import Store, digest_json

SUBSETS, SEEDS, TRAIN, TIMESTEPS = 9, 2, 40, [10, 30, 200, 250, 900, 999]
COUNTS = {"val": 7, "gen": 5}
MASKS = keep_masks(torch.arange(TRAIN) % 2, 24, family="report")


def normal(*shape, name="truth"):
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=rng.generator(name), dtype=torch.float64)


def fill(results: Store) -> Store:
    """Masks and losses of random halves, and of all images but one."""
    for family in FAMILIES:
        masks = keep_masks(torch.arange(TRAIN) % 2, SUBSETS, family=family)
        results.save(f"masks/{family}", masks, axes="subset train")
    results.save("masks/single", ~torch.eye(TRAIN, dtype=torch.bool)[:4], axes="subset train")
    for family, subsets in {"select": SUBSETS, "report": SUBSETS, "single": 4}.items():
        for which, count in COUNTS.items():
            losses = normal(subsets, SEEDS, count, 3, name=f"{family} {which}").float()
            save_losses(results, family, which, losses, timesteps=TIMESTEPS)
    return results


@pytest.fixture
def results(tmp_path):
    return fill(Store(tmp_path / "results"))


# ---- which queries count

EVEN, ODD, ALL = [0, 2, 4, 6], [1, 3, 5], list(range(7))


@pytest.mark.parametrize(
    ("family", "which", "part", "rows"),
    [
        ("select", "val", None, EVEN),
        ("report", "val", None, ODD),
        ("single", "val", None, ODD),
        ("select", "gen", None, ALL[:5]),
        ("report", "gen", None, ALL[:5]),
        ("select", "val", "all", ALL),
        ("select", "val", "report", ODD),
        ("report", "val", "choose", EVEN),
        ("report", "gen", "choose", ALL[:5]),
    ],
)
def test_queries_that_choose_are_never_reported(results, family, which, part, rows):
    truth = Truth.load(results, family, which, part)
    assert (truth.family, truth.which, truth.rows.tolist()) == (family, which, rows)
    assert truth.n_queries == COUNTS[which] and truth.timesteps == tuple(TIMESTEPS)
    kept = results.load(f"losses/{family}-{which}")[:, :, rows].double()
    assert truth.losses.dtype == torch.float64 and torch.equal(truth.losses, kept)
    assert torch.equal(truth.masks, results.load(f"masks/{family}"))
    torch.testing.assert_close(truth.mean, kept.mean((1, 3)))


def test_truths_are_the_two_families(results):
    for which in COUNTS:
        found = truths(results, which)
        assert list(found) == ["select", "report"]
        for family, truth in found.items():
            assert torch.equal(truth.losses, Truth.load(results, family, which).losses)


@pytest.mark.parametrize(("which", "part"), [("train", None), ("val", "odd")])
def test_other_queries_and_parts(results, which, part):
    with pytest.raises(InputError, match="which must be one of val, gen and part one of choose"):
        Truth.load(results, "report", which, part)


def test_masks_of_another_number_of_subsets(results):
    results.delete("masks/report")
    results.save("masks/report", MASKS, axes="subset train")
    info = results.info("losses/report-val")
    results.correct("losses/report-val", inputs={}, date="", reason="")
    assert info["inputs"] and not results.info("losses/report-val")["inputs"]
    with pytest.raises(InputError, match="losses/report-val .* 9 subsets and masks/report of 24"):
        Truth.load(results, "report", "val")


def test_a_working_store_is_not_taken_for_results(tmp_path, monkeypatch):
    monkeypatch.setenv("NDA_HOME", str(tmp_path))
    fill(Store.working("p"))
    with pytest.raises(InputError, match="working store, but a results"):
        Truth.load(Store.working("p"), "report", "val")


# ---- predictions


def test_group_effects_are_sums_over_members():
    scores = normal(3, 40).float()
    effects = group_effects(scores, MASKS)
    assert effects.shape == (24, 3) and effects.dtype == torch.float64
    for subset, mask in enumerate(MASKS):
        torch.testing.assert_close(effects[subset], scores[:, mask].double().sum(1))


@pytest.mark.parametrize("family", ["report", "single"])
@pytest.mark.parametrize("which", COUNTS)
@pytest.mark.parametrize("centred", [False, True])
def test_the_lds_is_scipys_over_the_queries_that_count(results, family, which, centred):
    """Loops over queries and subsets, for halves and for single removals alike."""
    truth = Truth.load(results, family, which)
    scores = normal(COUNTS[which], TRAIN, name="scores")
    rows = ODD if which == "val" else ALL[:5]
    losses = results.load(f"losses/{family}-{which}").double()[:, :, rows].mean((1, 3))
    effects = torch.stack(
        [torch.stack([scores[q][mask].sum() for q in rows]) for mask in truth.masks]
    )
    torch.testing.assert_close(truth.effects(scores), effects)
    if centred:
        truth = truth.centred()
        effects, losses = (v - v.mean(1, keepdim=True) for v in (effects, losses))
    wanted = [spearmanr(effects[:, q], -losses[:, q]).statistic for q in range(len(rows))]
    for predicted in (scores, truth.effects(scores), truth.effects(scores).float()):
        assert truth.lds(predicted).tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("centred", [False, True])
def test_intervals_ceilings_and_summaries_are_those_of_lds(results, centred):
    truth, scores = Truth.load(results, "report", "val"), normal(7, TRAIN, name="scores")
    effects, losses = truth.effects(scores), truth.losses.mean(3)
    if centred:
        truth, effects, losses = truth.centred(), lds.centre(effects), lds.centre(losses)
    options = {"resamples": 50, "seed": 3}
    draws = lds.bootstrap({"": effects}, losses.mean(1), **options)[""]
    assert truth.interval(scores, **options) == pytest.approx(lds.interval(draws))
    assert truth.seed_ceiling() == pytest.approx(lds.seed_ceiling(losses))
    assert truth.ceiling(**options) == pytest.approx(lds.ceiling_summary(losses, **options))
    single = replace(truth, losses=truth.losses[:, :1])  # which nothing can agree with
    assert all(map(math.isnan, (*single.seed_ceiling(), *single.ceiling(**options))))
    many = {"mine": scores, "theirs": -scores}
    both = {"mine": effects, "theirs": -effects}, losses.mean(1)
    expected = lds.summary(*both, lds.bootstrap(*both, **options), reference="theirs")
    drawn = truth.bootstrap(many, **options)
    for given in (options, {"draws": drawn}):
        pd.testing.assert_frame_equal(truth.summary(many, reference="theirs", **given), expected)


def test_each_group_of_timesteps_is_a_truth(results):
    truth = Truth.load(results, "report", "gen").centred()
    groups = truth.by_timestep()
    assert list(groups) == ["10-30", "200-250", "900-999"]
    for i, group in enumerate(groups.values()):
        assert torch.equal(group.mean, truth.losses[..., i].mean(1)) and group.is_centred
        assert group.timesteps == tuple(TIMESTEPS[2 * i : 2 * i + 2])
    for timesteps in ((), tuple(TIMESTEPS[:5])):
        with pytest.raises(InputError, match=f"{len(timesteps)} timesteps"):
            replace(truth, timesteps=timesteps).by_timestep()


def test_rows_have_both_families_plain_and_centred(results):
    scores, found = normal(7, TRAIN, name="scores"), truths(results, "val")
    row = lds_row(scores, found, resamples=20)
    for family, truth in found.items():
        for kind, one in {"": truth, "_centred": truth.centred()}.items():
            assert row[family + kind] == pytest.approx(100 * one.lds(scores).mean().item())
    assert (row["low"], row["high"]) == pytest.approx(
        tuple(100 * end for end in found["report"].interval(scores, resamples=20))
    )


def test_gains_are_those_of_a_summary(results):
    tried, in_use = normal(7, TRAIN, name="tried"), normal(7, TRAIN, name="in use")
    found = truths(results, "val")
    gain = gain_row(tried, in_use, found, resamples=30)
    report = found["report"]
    draws = report.bootstrap({"tried": tried, "in use": in_use}, resamples=30)
    effects = {"in use": report.effects(in_use), "tried": report.effects(tried)}
    table = lds.summary(effects, report.mean, draws, reference="in use").set_index("method")
    assert gain == pytest.approx(table.loc["tried", list(gain)].to_dict())
    apart = 100 * (draws["tried"] - draws["in use"])
    assert gain["gain_low"] == pytest.approx(apart.quantile(0.025).item())
    assert gain["gain_high"] == pytest.approx(apart.quantile(0.975).item())
    assert list(gain_row(in_use, in_use, found, resamples=30).values()) == [0, 0, 0]
    assert all(math.isnan(value) for value in gain_row(tried, None, found).values())


# ---- bad input


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (normal(40, 3), r"\[query, train=40\].*transposed"),
        (normal(3, 39), "scores"),
        (normal(40), "scores"),
        (normal(3, 40).index_fill(1, torch.tensor(1), float("nan")), "scores .*NaN"),
    ],
)
def test_bad_scores(scores, reason):
    with pytest.raises(InputError, match=reason):
        group_effects(scores, MASKS)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (normal(3, TRAIN), "a row for each of the 7 val queries, not 3"),
        (normal(7, 39), r"\[query, train=40\]"),
        (normal(TRAIN, 7), "a row for each of the 7 val queries, not 40"),
        (normal(7), r"\[query, train=40\]"),
    ],
)
def test_scores_of_another_shape(results, scores, reason):
    truth = Truth.load(results, "report", "val")
    for use in (truth.effects, truth.lds, truth.interval):
        with pytest.raises(InputError, match=reason):
            use(scores)


def test_a_shape_that_scores_and_effects_would_both_have(results):
    truth = Truth.load(results, "report", "val")
    few = replace(truth, masks=truth.masks[:7, :3], losses=truth.losses[:7])
    with pytest.raises(InputError, match=r"both be \(7, 3\)"):
        few.lds(normal(7, 3))


# ---- records


def result(scores, *, which="val", **variant):
    inputs = {name: MADE[name] for name in ("train", which, "model", "recipe")}
    return Result(METHODS["d_trak"].varied(**variant), which, scores, {"draws": 2}, 1.5, inputs)


@pytest.mark.parametrize("variant", [{}, {"K": 10}])
def test_record_keeps_scores_and_their_effects(tmp_path, results, variant):
    store, scores = Store(tmp_path / "work"), normal(7, TRAIN)
    made, name = result(scores, **variant), "d_trak-k10-val" if variant else "d_trak-val"
    record(made, store=store, results=results)
    assert torch.equal(store.load(f"scores/{name}", "query train"), scores)
    effects, masks = results.load(f"effects/{name}", "subset query"), results.load("masks/report")
    assert torch.equal(effects, group_effects(scores, masks).float())
    assert store.info(f"scores/{name}")["inputs"] == made.inputs
    inputs = results.sha256("masks/report") | made.inputs
    assert results.info(f"effects/{name}")["inputs"] == inputs
    for place, kept in ((store, f"scores/{name}"), (results, f"effects/{name}")):
        info = place.info(kept)
        assert info["parameters"] == made.parameters and info["seconds"] == 1.5
    check_results(results)
    with pytest.raises(InputError, match="transposed"):
        record(result(normal(TRAIN, 7), which="gen"), store=store, results=results)
    assert "scores/d_trak-gen" not in store


def test_record_does_not_mistake_one_store_for_the_other(tmp_path, monkeypatch):
    monkeypatch.setenv("NDA_HOME", str(tmp_path))
    working, results = Store.working("p"), fill(Store.results("p"))
    fill(working)
    for wrong in ((results, results), (working, working), (results, working)):
        with pytest.raises(InputError, match="store, but a"):
            record(result(normal(7, TRAIN)), store=wrong[0], results=wrong[1])
    assert not [name for name in working.names() + results.names() if "d_trak" in name]


def test_effects_of_a_truth_are_those_recorded_in_the_order_of_the_catalogue(results):
    values = {name: normal(SUBSETS, 7, name=name).float() for name in ("nda", "d_trak", "random")}
    for key in ("d_trak", "nda", "random"):
        save_effects(results, key, "val", values[key])
    save_effects(results, "d_trak", "val", -values["d_trak"], variant={"K": 10})
    save_effects(results, "nda", "gen", normal(SUBSETS, 5).float())
    found = recorded_effects(results, Truth.load(results, "report", "val"))
    assert list(found) == ["random", "nda", "d_trak", "d_trak-k10"]
    for name, wanted in (values | {"d_trak-k10": -values["d_trak"]}).items():
        assert torch.equal(found[name], wanted[:, ODD].double())


# ---- results that belong together


def complete(folder) -> Store:
    """A results folder with all that a check looks at."""
    results = fill(Store(folder))
    parameters = {"recipe": RECIPE, "train_seed": 0}
    copied = {f"{name} as it was computed": MADE[name] for name in ("model", "gen")}
    inputs = {
        "train": MADE["train"],
        "model as it was computed": copied["model as it was computed"],
    }
    results.save("model", {"w": normal(3)}, parameters=parameters, inputs=inputs)
    inputs = {"model": MADE["model"], "gen as it was computed": copied["gen as it was computed"]}
    results.save("gen", normal(5, 1, 2, 2), axes="image chan row col", inputs=inputs)
    for which, count in COUNTS.items():
        for key in ("random", "nda", "d_trak"):
            save_effects(results, key, which, normal(SUBSETS, count, name=key).float())
    results.save("ablations/nda", pd.DataFrame({"lds": [1.0]}), inputs={"train": MADE["train"]})
    return results


def test_a_whole_folder_is_accepted_and_so_is_one_that_is_not_finished(tmp_path):
    results = complete(tmp_path / "whole")
    check_results(results)
    check_results(Store(tmp_path / "nothing"))
    for name in ("effects/nda-val", "model", "gen"):
        results.delete(name)
        check_results(results)
    check_results(Store.shipped("small"))


@pytest.mark.parametrize(
    "name", ["masks/report", "losses/select-gen", "effects/nda-val", "model", "gen"]
)
def test_a_flipped_byte_is_named(tmp_path, name):
    results = complete(tmp_path)
    file = tmp_path / f"{name}.safetensors"
    payload = bytearray(file.read_bytes())
    payload[-1] ^= 1
    file.write_bytes(payload)
    with pytest.raises(InputError, match=rf"{name}\.safetensors does not match the sha256"):
        check_results(results)


def test_a_changed_table_is_named(tmp_path):
    results = complete(tmp_path)
    (tmp_path / "ablations/nda.csv").write_text("lds\n2.0\n")
    with pytest.raises(InputError, match=r"ablations/nda\.csv does not match the sha256"):
        check_results(results)


@pytest.mark.parametrize(
    ("name", "changed", "what"),
    [
        ("effects/nda-val", {"masks/report": "0" * 64}, "masks/report"),  # of another profile
        ("effects/nda-val", {"train": "0" * 64}, "train"),
        ("effects/d_trak-gen", {"gen": "0" * 64}, "gen"),
        ("effects/d_trak-val", {"model": "0" * 64}, "model"),
        ("effects/d_trak-val", {"recipe": "0" * 64}, "recipe"),
        ("losses/report-val", {"recipe": "0" * 64}, "recipe"),  # of another recipe
        ("losses/select-gen", {"gen": "0" * 64}, "gen"),
        ("losses/select-val", {"train": "0" * 64}, "train"),
        ("losses/report-gen", {"masks/report": "0" * 64}, "masks/report"),
        ("model", {"model as it was computed": "0" * 64}, "model"),  # other weights
        ("model", {"train": "0" * 64}, "train"),
        ("gen", {"gen as it was computed": "0" * 64}, "gen"),
        ("ablations/nda", {"train": "0" * 64}, "train"),
    ],
)
def test_what_is_from_elsewhere_is_named(tmp_path, name, changed, what):
    results = complete(tmp_path)
    inputs = results.info(name)["inputs"] | changed
    results.correct(name, inputs=inputs, date="", reason="swapped in by the test")
    with pytest.raises(
        InputError, match=f"^{name} in .* does not belong .* another {what}; copy the whole folder"
    ):
        check_results(results)


def test_a_model_of_another_recipe_is_named(tmp_path):
    results = complete(tmp_path)
    parameters = {"recipe": RECIPE | {"epochs": 5}, "train_seed": 0}
    assert digest_json(parameters["recipe"]) != MADE["recipe"]
    results.correct("model", parameters=parameters, date="", reason="swapped in by the test")
    with pytest.raises(InputError, match="^model in .* does not belong .* another recipe"):
        check_results(results)


def test_masks_of_another_profile_are_named(tmp_path):
    results = complete(tmp_path)
    results.delete("masks/report")
    results.save("masks/report", MASKS, axes="subset train")
    with pytest.raises(InputError, match="^masks/report in .* does not belong .* masks/report;"):
        check_results(results)


@pytest.mark.parametrize(
    ("name", "lacking"),
    [("losses/report-val", "recipe"), ("effects/d_trak-val", "model"), ("effects/nda-gen", "gen")],
)
def test_inputs_that_are_not_said_are_not_believed(tmp_path, name, lacking):
    results = complete(tmp_path)
    inputs = results.info(name)["inputs"]
    del inputs[lacking]
    results.correct(name, inputs=inputs, date="", reason="")
    with pytest.raises(InputError, match=f"{name} in .* does not say from which {lacking} "):
        check_results(results)


@pytest.mark.parametrize("parameters", [{}, {"method": "nda", "variant": {}}, {"method": "mine"}])
def test_effects_of_one_method_under_the_name_of_another(tmp_path, parameters):
    results = complete(tmp_path)
    results.correct("effects/d_trak-val", parameters=parameters, date="", reason="")
    with pytest.raises(InputError, match="effects/d_trak-val holds what its sidecar does not say"):
        check_results(results)


# ---- where results are


def test_results_in_the_home_win_if_there_are_models_else_those_shipped(tmp_path, monkeypatch):
    monkeypatch.setenv("NDA_HOME", str(tmp_path))
    assert find_results("small").folder == Store.shipped("small").folder
    own = Store.results("small")
    own.save("masks/report", MASKS, axes="subset train")  # drawn, but nothing was retrained
    assert find_results("small").folder == Store.shipped("small").folder
    assert len(Truth.load("small", "report", "val").losses) == 64
    own.delete("masks/report")
    fill(own)
    assert find_results("small").folder == own.folder
    assert len(Truth.load("small", "report", "val").losses) == SUBSETS
    assert find_results("nowhere").folder == Store.results("nowhere").folder
