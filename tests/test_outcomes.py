"""The statistics of removals, against numpy, scipy and enumeration."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nda import rng
from nda.errors import InputError
from nda.evidence import chance, outcomes
from nda.store import Store


def draw(*shape):
    return torch.rand(shape, generator=rng.generator("outcomes", *shape), dtype=torch.float64)


def test_rms_is_of_pixels_from_minus_one_to_one():
    images = torch.zeros(2, 3, 1, 4, 4, dtype=torch.uint8)
    images[1] = 255
    assert outcomes.rms(images, images[0]).tolist() == [[0.0] * 3, [2.0] * 3]
    changed = images[0].clone()
    changed[0, 0, 0, 0] = 51
    l2 = outcomes.rms(changed, images[0]) * 16**0.5
    assert l2.tolist() == pytest.approx([0.4, 0, 0])


def test_against_random_is_a_permutation_test():
    """With few queries and sets, all choices can be enumerated."""
    own, random = draw(3) + 0.3, draw(4, 3)
    found = chance.against_random(own, random, resamples=40_000)
    together = torch.cat([own[None], random]).numpy()
    every = [
        np.mean([together[i, q] for q, i in enumerate(picks)])
        for picks in itertools.product(range(5), repeat=3)
    ]
    assert found["p"] == pytest.approx(np.mean(np.array(every) >= own.mean().item()), abs=0.01)
    assert found["more"] == pytest.approx((own.mean() - random.mean()).item())
    assert found["ratio"] == pytest.approx(float(np.median(own) / np.median(random)))
    source = np.random.default_rng(0)
    draws = []
    for _ in range(20_000):
        q, d = source.integers(3, size=3), source.integers(4, size=4)
        draws.append((own.numpy()[q] - random.numpy()[d].mean(0)[q]).mean())
    assert [found["low"], found["high"]] == pytest.approx(
        np.quantile(draws, [0.025, 0.975]), abs=0.02
    )


@given(queries=st.integers(2, 9))
@settings(max_examples=8, deadline=None)
def test_against_tries_all_signs(queries):
    own, other = draw(queries, 1)[:, 0] + 0.2, draw(queries, 2)[:, 0]
    found = chance.against(own, other)
    theirs = stats.permutation_test(
        (own.numpy(), other.numpy()),
        lambda a, b: (a - b).mean(),
        permutation_type="samples",
        n_resamples=np.inf,
    )
    assert found["p"] == pytest.approx(theirs.pvalue)
    assert found["more"] == pytest.approx(theirs.statistic)


def test_with_many_queries_signs_are_drawn():
    own, other = draw(20) + 0.05, draw(20, 1)[:, 0]
    many = chance.against(own, other, resamples=20_000)["p"]
    apart = (own - other).numpy()
    signs = np.random.default_rng(0).choice([-1, 1], (20_000, 20))
    assert many == pytest.approx(np.mean(abs(signs @ apart) >= abs(apart.sum())), abs=0.02)


def test_specificity_deals_out_the_removals():
    changes = draw(5, 5) + 0.4 * torch.eye(5)
    found = chance.specificity(changes, resamples=40_000)
    every = [
        np.mean([changes[i, q] for q, i in enumerate(dealt)])
        for dealt in itertools.permutations(range(5))
    ]
    assert found["p"] == pytest.approx(
        np.mean(np.array(every) >= changes.diagonal().mean().item() - 1e-12), abs=0.01
    )
    off = ~np.eye(5, dtype=bool)
    assert found["others"] == pytest.approx(changes.numpy()[off].mean())


def test_a_removal_that_changes_all_alike_is_not_specific():
    changes = draw(6)[:, None].expand(6, 6) + draw(1, 6)
    assert chance.specificity(changes)["more"] == pytest.approx(0)


def test_goes_with_is_pearson():
    first, second = draw(7, 4), draw(7, 4) + draw(4, 7).T
    found = chance.goes_with(first, second, resamples=300)
    flat = (first.flatten().numpy(), second.flatten().numpy())
    assert found["pearson"] == pytest.approx(stats.pearsonr(*flat).statistic)
    centred = [values - values.mean(0) for values in (first, second)]
    within = stats.pearsonr(*(values.flatten().numpy() for values in centred)).statistic
    assert found["within"] == pytest.approx(within)
    assert found["low"] < found["pearson"] < found["high"]


@pytest.mark.parametrize("resamples", [0, 1.5])
def test_resamples_are_positive(resamples):
    for call in (
        lambda: chance.against_random(draw(2), draw(2, 2), resamples=resamples),
        lambda: chance.against(draw(2), draw(2), resamples=resamples),
        lambda: chance.specificity(draw(2, 2), resamples=resamples),
        lambda: chance.goes_with(draw(2, 2), draw(2, 2), resamples=resamples),
    ):
        with pytest.raises(InputError, match="resamples must be a positive integer"):
            call()


def test_specificity_needs_two_queries():
    with pytest.raises(InputError, match=r"changes must be \[query, query\] of at least 2"):
        chance.specificity(draw(1, 1))


FAMILIES = (
    [("full", "none", 0, -1)]
    + [("kept", "none", 0, -1)] * 2
    + [("removed-random", "random", 4, -1)] * 3
    + [("removed-nda", "nda", 4, q) for q in range(3)]
    + [("removed-pixel_dot", "pixel_dot", 4, q) for q in range(3)]
    + [("removed-random-2", "random", 2, -1)] * 2
    + [("removed-nda-2", "nda", 2, q) for q in range(2)]
)


def saved(folder):
    """Outcomes of three queries by fifteen models, in a results store."""
    results, count = Store(folder), len(FAMILIES)
    models = pd.DataFrame(FAMILIES, columns=["family", "arm", "k", "target"])
    source = rng.generator("saved outcomes")
    parts = {
        "masks": torch.rand(count, 8, generator=source) < 0.5,
        "images": torch.randint(256, (count, 3, 1, 4, 4), generator=source, dtype=torch.uint8),
        "losses": torch.rand(count, 3, generator=source),
        "outputs": torch.rand(count, 3, generator=source),
        "features": torch.rand(count, 3, generator=source),
        "classes": torch.randint(2, (count, 3), generator=source),
    }
    inputs = {"train": "t"}
    results.save("counterfactual/models", models.assign(seed=0, seconds=1.0), inputs=inputs)
    for name, values in parts.items():
        axes = " ".join("abcde"[: values.ndim])
        results.save(f"counterfactual/{name}", values, axes=axes, inputs=inputs)
    return results, parts


def test_loaded_outcomes(tmp_path):
    results, parts = saved(tmp_path)
    found = outcomes.Outcomes.load(results)
    assert found.arms == ["nda", "pixel_dot"] and found.k == 4
    assert found.rows("removed-nda") == [6, 7, 8] and found.rows("kept") == [1, 2]
    losses = parts["losses"].double().numpy()
    assert found.own("removed-nda", "loss").tolist() == pytest.approx(
        [losses[6 + q, q] - losses[0, q] for q in range(3)]
    )
    images = parts["images"].double().numpy() / 127.5
    theirs = np.sqrt(((images - images[0]) ** 2).mean((2, 3, 4)))
    assert np.allclose(found.changes["image"], theirs)
    assert np.allclose(found.changes["features"], 1 - parts["features"].double())
    assert (found.changes["output"] == parts["outputs"]).all()


def test_tables_compare_every_arm(tmp_path):
    found = outcomes.Outcomes.load(saved(tmp_path)[0])
    tables = outcomes.tables(found, "image", reference="nda", resamples=50)
    assert list(tables["random"].index) == list(tables["specific"].index) == found.arms
    assert list(tables["reference"].index) == ["pixel_dot"]
    change = found.changes["image"].numpy()
    own = np.array([change[6 + q, q] for q in range(3)])
    assert tables["random"].loc["nda", "more"] == pytest.approx(own.mean() - change[3:6].mean())
    pixels = np.array([change[9 + q, q] for q in range(3)])
    assert tables["reference"].loc["pixel_dot", "more"] == pytest.approx((pixels - own).mean())


def test_the_curve_is_of_the_queries_that_have_one(tmp_path):
    found = outcomes.Outcomes.load(saved(tmp_path)[0])
    line = outcomes.curve(found, "image").set_index(["arm", "k"])["change"]
    change = found.changes["image"].numpy()
    assert line["nda", 4] == pytest.approx((change[6, 0] + change[7, 1]) / 2)
    assert line["nda", 2] == pytest.approx((change[14, 0] + change[15, 1]) / 2)
    assert line["random", 4] == pytest.approx(change[3:6, :2].mean())
    assert line["random", 2] == pytest.approx(change[12:14, :2].mean()) and len(line) == 4


def test_without_other_numbers_there_is_no_curve(tmp_path):
    found = outcomes.Outcomes.load(saved(tmp_path)[0])
    main = found.models[found.models["k"].isin([0, 4])]
    changes = {name: values[: len(main)] for name, values in found.changes.items()}
    rest = (values[: len(main)] for values in (found.masks, found.images))
    without = outcomes.Outcomes(main, *rest, changes, found.classes[: len(main)])
    assert outcomes.curve(without, "image").empty


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o: o.own("removed-magic", "image"), "family must be one of 'full', 'kept'"),
        (lambda o: o.own("removed-nda", "taste"), "measure must be one of 'image', 'features'"),
        (lambda o: outcomes.tables(o, "image", reference="das"), "reference must be one of 'nda'"),
    ],
)
def test_bad_questions(tmp_path, call, message):
    found = outcomes.Outcomes.load(saved(tmp_path)[0])
    with pytest.raises(InputError, match=message):
        call(found)


def test_parts_of_another_truth_are_refused(tmp_path):
    results, parts = saved(tmp_path)
    results.delete("counterfactual/losses")
    results.save("counterfactual/losses", parts["losses"], axes="a b", inputs={"train": "other"})
    with pytest.raises(InputError, match="counterfactual/losses in .* is of another model, truth"):
        outcomes.Outcomes.load(results)
    results.delete("counterfactual/losses")
    few = parts["losses"][1:]
    results.save("counterfactual/losses", few, axes="a b", inputs={"train": "t"})
    with pytest.raises(InputError, match="counterfactual/losses in .* is of another model, truth"):
        outcomes.Outcomes.load(results)
