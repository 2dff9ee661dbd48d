"""The LDS against scipy, dattri, exactly solvable models and plain loops."""

import numpy as np
import pytest
import torch
from dattri.metric import lds as dattri_lds
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from nda import rng
from nda.data.subsets import keep_masks
from nda.errors import InputError
from nda.evidence import lds
from nda.evidence.ranks import spearman
from nda.evidence.truth import group_effects


def normal(*shape, name="lds"):
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=rng.generator(name), dtype=torch.float64)


def scipy_mean(a, b):
    """Mean over columns of scipy's Spearman correlation, 0 where a column is constant."""
    columns = zip(a.T, b.T, strict=True)
    return float(
        np.mean(
            [
                (
                    0.0
                    if min(x.unique().numel(), y.unique().numel()) == 1
                    else spearmanr(x, y).statistic
                )
                for x, y in columns
            ]
        )
    )


MASKS = keep_masks(torch.arange(40) % 2, 24, family="report")


# ---- Spearman and LDS


@given(st.integers(3, 20), st.integers(1, 4), st.integers(1, 30), st.integers(0, 999))
def test_spearman_is_scipys_with_ties(subsets, queries, levels, name):
    source = rng.generator("ties", name)
    a, b = torch.randint(levels, (2, subsets, queries), generator=source).double()
    ours = spearman(a, b)
    assert ours.shape == (queries,)
    for x, y, value in zip(a.T, b.T, ours, strict=True):
        constant = x.unique().numel() == 1 or y.unique().numel() == 1
        assert value == pytest.approx(0.0 if constant else spearmanr(x, y).statistic, abs=1e-9)


def test_constant_side_gives_zero():
    a = normal(10, 2)
    assert (spearman(a, torch.ones(10, 2)) == 0).all() and (
        spearman(torch.full((10, 2), 0.1), a) == 0
    ).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dattri(dtype):
    scores, losses = normal(5, 40).to(dtype), normal(24, 5, name="losses").to(dtype)
    indices = torch.stack([mask.nonzero()[:, 0] for mask in MASKS])
    # its ground truth is a target that train images raise
    theirs, _ = dattri_lds(scores.T, (-losses, indices))
    torch.testing.assert_close(
        lds.lds(group_effects(scores, MASKS), losses), theirs.double(), rtol=0, atol=1e-6
    )


def test_sign_in_a_model_that_can_be_solved():
    """Ridge regression, refitted in closed form on every subset: influence scores say what keeping
    an image does to a query's loss."""
    x, queries, true = normal(40, 4, name="x"), normal(12, 4, name="queries"), normal(4, name="w")
    y, target = x @ true + normal(40, name="noise"), queries @ true + normal(12, name="query noise")
    ridge = 0.1 * torch.eye(4)

    def fit(keep):
        return torch.linalg.solve(x[keep].T @ x[keep] + ridge, x[keep].T @ y[keep])

    losses = torch.stack([(queries @ fit(mask) - target) ** 2 for mask in MASKS])
    w = fit(torch.ones(40, dtype=torch.bool))
    train_gradients, query_gradients = [
        2 * (f @ w - t)[:, None] * f for f, t in ((x, y), (queries, target))
    ]
    scores = query_gradients @ torch.linalg.inv(x.T @ x + ridge) @ train_gradients.T
    kept = group_effects(scores, MASKS)
    for centre in (lambda v: v, lds.centre):
        assert lds.lds(centre(kept), centre(losses)).mean() > 0.5
        assert lds.lds(centre(-kept), centre(losses)).mean() < -0.5


def test_perfect_prediction_is_one_plain_and_centred():
    losses = normal(24, 6) + 3 * normal(24, 1, name="common")
    assert torch.allclose(lds.lds(-losses, losses), torch.ones(6, dtype=torch.float64))
    assert torch.allclose(
        lds.lds(lds.centre(-losses), lds.centre(losses)), torch.ones(6, dtype=torch.float64)
    )


def test_centring_removes_what_all_queries_share():
    values = normal(24, 8)
    common = (10 * normal(24, 1, name="common")).round()  # whole numbers: their mean is exact
    torch.testing.assert_close(lds.centre(values + common), lds.centre(values))
    # a common swing alone looks like a good plain LDS
    assert lds.lds(-common.expand(24, 8), values + common).mean() > 0.8
    assert (lds.lds(lds.centre(-common.expand(24, 8)), lds.centre(values + common)) == 0).all()


def test_centring_takes_the_mean_over_the_last_axis():
    losses = normal(6, 2, 5)
    torch.testing.assert_close(lds.centre(losses)[:, 1], lds.centre(losses[:, 1]))


def test_null_is_near_zero():
    scores, losses = normal(200, 40, name="null"), normal(24, 200, name="losses")
    assert abs(lds.lds(group_effects(scores, MASKS), losses).mean()) < 0.05


# ---- bootstrap


def picks(subsets, queries, resamples, seed):
    """The draws of `lds.bootstrap`: rows of subsets, then rows of queries."""
    source = rng.generator("bootstrap", seed)
    return [torch.randint(n, (resamples, n), generator=source) for n in (subsets, queries)]


@pytest.mark.parametrize("levels", [3, 10**6])
def test_bootstrap_really_resamples(levels):
    """Against a loop that copies rows and columns and calls scipy, with and without ties."""
    source = rng.generator("bootstrap test")
    a, b, losses = torch.randint(levels, (3, 9, 5), generator=source).double()
    draws = lds.bootstrap({"a": a, "b": b}, losses, resamples=30, seed=4)
    for name, effects in {"a": a, "b": b}.items():
        resamples = zip(*picks(9, 5, 30, 4), strict=True)
        loop = [
            scipy_mean(effects[rows][:, columns], -losses[rows][:, columns])
            for rows, columns in resamples
        ]
        np.testing.assert_allclose(draws[name], loop, atol=1e-9)


@pytest.mark.parametrize("block", [1, 7, 10**6])
def test_bootstrap_does_not_depend_on_the_block(block):
    a, losses = normal(10, 4), normal(10, 4, name="losses")
    one, other = (
        lds.bootstrap({"a": a}, losses, resamples=50, block=size)["a"] for size in (200, block)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_bootstrap_pairs_the_methods_and_follows_its_seed():
    a, b, losses = normal(10, 4), normal(10, 4, name="b"), normal(10, 4, name="losses")
    both = lds.bootstrap({"a": a, "b": b, "twin": a.clone()}, losses, resamples=40)
    assert torch.equal(both["a"], both["twin"]) and torch.equal(
        both["b"], lds.bootstrap({"b": b}, losses, resamples=40)["b"]
    )
    assert not torch.equal(both["a"], lds.bootstrap({"a": a}, losses, resamples=40, seed=1)["a"])


def test_bootstrap_of_the_size_that_is_reported():
    """64 subsets, 200 queries, 2,000 resamples: finite, and the interval holds the estimate of a
    predictor with some skill."""
    losses = normal(64, 200)
    effects = -losses + 3 * normal(64, 200, name="effects")
    draws = lds.bootstrap({"a": effects}, losses, resamples=2000)["a"]
    low, high = lds.interval(draws)
    assert draws.shape == (2000,) and torch.isfinite(draws).all()
    assert low < lds.lds(effects, losses).mean() < high and 0.01 < high - low < 0.3


def test_interval_is_percentiles():
    draws = normal(500)
    assert lds.interval(draws, 0.9) == pytest.approx(tuple(np.percentile(draws, [5, 95])))


def test_summary_is_in_percent_with_paired_gains():
    losses = normal(16, 5)
    effects = {"good": -losses + normal(16, 5, name="a"), "null": normal(16, 5, name="b")}
    draws = lds.bootstrap(effects, losses, resamples=200, seed=3)
    table = lds.summary(effects, losses, draws, reference="null").set_index("method")
    for name, row in table.iterrows():
        assert row["lds"] == pytest.approx(100 * scipy_mean(effects[name], -losses))
        assert (row["low"], row["high"]) == pytest.approx(
            [100 * v for v in lds.interval(draws[name])]
        )
    gain = table.loc["good", ["gain", "gain_low", "gain_high"]].tolist()
    paired = [100 * v for v in lds.interval(draws["good"] - draws["null"])]
    assert gain == pytest.approx([table["lds"]["good"] - table["lds"]["null"], *paired])
    assert table.loc["null", ["gain", "gain_low", "gain_high"]].tolist() == [0, 0, 0]
    assert list(table.index) == ["good", "null"]


# ---- ceiling


def test_ceiling_of_two_seeds_is_their_correlation():
    losses = normal(20, 2, 7) + normal(20, 1, 7, name="signal")
    one, mean = lds.seed_ceiling(losses)
    c = np.mean([spearmanr(losses[:, 0, q], losses[:, 1, q]).statistic for q in range(7)])
    assert one == pytest.approx(c) and mean == pytest.approx(2 * c / (1 + c))


@pytest.mark.parametrize(("seeds", "reliability"), [(2, 0.5), (3, 0.2), (3, 0.6), (5, 0.4)])
def test_ceiling_recovers_the_reliability(seeds, reliability):
    """Signal and noise of known variances: the mean of S seeds has reliability Sρ / (1 + (S-1)ρ).
    Ranks lose a few percent of it."""
    losses = reliability**0.5 * normal(150, 1, 60) + (1 - reliability) ** 0.5 * normal(
        150, seeds, 60, name="noise"
    )
    one, mean = lds.seed_ceiling(losses)
    k = seeds - 1
    assert one == pytest.approx(reliability * (k / (1 + (k - 1) * reliability)) ** 0.5, abs=0.04)
    assert mean == pytest.approx(seeds * reliability / (1 + (seeds - 1) * reliability), abs=0.04)


def test_ceiling_of_noise_is_near_zero_and_of_equal_seeds_one():
    assert abs(lds.seed_ceiling(normal(50, 3, 40))[0]) < 0.05
    assert lds.seed_ceiling(normal(20, 1, 5).expand(20, 3, 5)) == pytest.approx((1, 1))
    opposed = normal(20, 1, 5) * torch.tensor([1.0, -1.0])[:, None]
    assert lds.seed_ceiling(opposed) == pytest.approx((-1, 0))  # less than chance is no agreement


# ---- bad input

GOOD = normal(10, 4)


@pytest.mark.parametrize(
    ("effects", "losses", "reason"),
    [
        (GOOD, GOOD.T, "subset, query"),
        (GOOD[:, 0], GOOD[:, 0], "subset, query"),
        (GOOD[:2], GOOD[:2], "at least 3 subsets"),
        (GOOD, GOOD / 0, "NaN"),
        (GOOD * float("nan"), GOOD, "NaN"),
        (GOOD, GOOD[:, None].expand(10, 2, 4), "subset, query"),
    ],
)
def test_bad_effects_or_losses(effects, losses, reason):
    for use in (lds.lds, lambda a, b: lds.bootstrap({"a": a}, b, resamples=5)):
        with pytest.raises(InputError, match=reason):
            use(effects, losses)


def test_no_resamples():
    with pytest.raises(InputError, match="resamples"):
        lds.bootstrap({"a": GOOD}, GOOD, resamples=0)


@pytest.mark.parametrize(
    "losses", [normal(10, 1, 4), normal(10, 4), normal(2, 3, 4), normal(10, 3, 4) / 0]
)
def test_ceiling_of_bad_losses(losses):
    with pytest.raises(InputError):
        lds.seed_ceiling(losses)
