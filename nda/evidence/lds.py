"""The linear datamodelling score: how well a method predicts which retrained models do worse on a
query.

Sign, stated once: `scores[query, train]` is higher when keeping the train image *lowers* the
query's loss. A subset's predicted effect is the sum of its members' scores, and the LDS is the rank
correlation of effects with *minus* the losses.
"""

from collections.abc import Mapping

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from nda import rng
from nda.errors import InputError
from nda.evidence.ranks import Order, Weighted, check_pair, exact_dtype, spearman


def centre(values: Float[Tensor, "*model query"]) -> Float[Tensor, "*model query"]:
    """Remove each model's mean over the queries. Applied to losses and effects alike it gives the
    *centred* LDS.

    Args:
        values: losses or effects.

    Returns:
        The same without their means.
    """
    return values - values.mean(-1, keepdim=True)


def lds(
    effects: Float[Tensor, "subset query"], losses: Float[Tensor, "subset query"]
) -> Float[Tensor, "query"]:
    """LDS of each query, in [-1, 1]; the LDS of a method is the mean.

    Args:
        effects: what is predicted of each subset.
        losses: means over seeds and timesteps (D-TRAK).

    Returns:
        Spearman's rank correlation of effects and minus the losses.
    """
    return spearman(effects, -losses)


def seed_ceiling(losses: Float[Tensor, "subset seed query"]) -> tuple[float, float]:
    """How far the truth agrees with itself: (one seed against the mean of the others,
    Spearman-Brown value of the mean of all).

    The first is a mean over queries and seeds. With reliability ρ of one seed its expectation is c,
    c² = kρ² / (1 + (k-1)ρ) against a mean of k others; solved for ρ, the mean of all S seeds has
    reliability Sρ / (1 + (S-1)ρ): the LDS that a fresh, equal set of retrainings would reach. A
    predictor that knew the expected losses could reach its square root.

    Args:
        losses: of at least two seeds.

    Returns:
        The two values, in [-1, 1].
    """
    each = [spearman(seed, others).mean() for seed, others in _against_others(losses)]
    c = torch.stack(each).mean()
    return c.item(), _of_all_seeds(c, losses.shape[1]).item()


def _against_others(losses: Float[Tensor, "subset seed query"]) -> list[tuple[Tensor, Tensor]]:
    """Each seed's losses `[subset, query]` with the mean of the others."""
    if losses.ndim != 3 or losses.shape[1] < 2:
        raise InputError(
            "a seed ceiling needs losses [subset, seed, query] with at least 2 seeds, not"
            f" {tuple(losses.shape)}"
        )
    others = (losses.sum(1, keepdim=True) - losses) / (losses.shape[1] - 1)
    return list(zip(losses.unbind(1), others.unbind(1), strict=True))


def _of_all_seeds(c: Tensor, seeds: int) -> Tensor:
    """Reliability of the mean of all seeds, from the correlation of one with the others' mean."""
    # below chance counts as none
    c, k = c.clamp_min(0), seeds - 1
    one = (c**2 * (k - 1) + c * (c**2 * (k - 1) ** 2 + 4 * k).sqrt()) / (2 * k)
    return seeds * one / (1 + (seeds - 1) * one)


def bootstrap(
    effects: Mapping[str, Float[Tensor, "subset query"]],
    losses: Float[Tensor, "subset query"],
    *,
    resamples: int = 2000,
    seed: int = 0,
    block: int = 200,
) -> dict[str, Float[Tensor, "resample"]]:
    """Bootstrap draws of every method's mean LDS, resampling subsets *and* queries with
    replacement.

    All methods meet the same resamples, so the difference of two methods' draws is a paired
    bootstrap of their difference. A resample is a vector of counts w over subsets, and a centred
    mid-rank is ½ Σ_j w_j sign(x_i - x_j): all resamples are one matrix product. What it does not
    cover: other train seeds and another train set.

    Args:
        effects: by method.
        losses: means over seeds and timesteps.
        resamples: how many.
        seed: names them.
        block: resamples that are computed at once.

    Returns:
        The draws by method.

    Raises:
        InputError: if effects and losses do not fit, or without resamples.
    """
    for values in effects.values():
        check_pair(values, losses)
    if resamples < 1:
        raise InputError(
            f"resamples must be at least 1, not {resamples}; intervals want 2000 or more"
        )
    source = rng.generator("bootstrap", seed)
    subsets, queries = losses.shape
    picks = torch.randint(subsets, (resamples, subsets), generator=source)
    weights = torch.zeros(resamples, subsets).scatter_add_(1, picks, torch.ones(picks.shape))
    weights = weights.to(exact_dtype(subsets))
    picks = torch.randint(queries, (resamples, queries), generator=source)
    shares = torch.zeros(resamples, queries, dtype=torch.float64).scatter_add_(
        1, picks, torch.full(picks.shape, 1 / queries).double()
    )
    orders = {name: Order(values) for name, values in effects.items()}
    true_order = Order(-losses)
    draws: dict[str, list[Tensor]] = {name: [] for name in effects}
    for w, share in zip(weights.split(block), shares.split(block), strict=True):
        truth = Weighted(true_order, w)
        for name, order in orders.items():
            draws[name].append((truth.correlation(order) * share).sum(1))
    return {name: torch.cat(parts) for name, parts in draws.items()}


def interval(draws: Float[Tensor, "resample"], level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap draws.

    Args:
        draws: of the bootstrap.
        level: share of the draws inside.

    Returns:
        Its ends.
    """
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=draws.dtype)
    low, high = torch.quantile(draws, ends).tolist()
    return low, high


def summary(
    effects: Mapping[str, Float[Tensor, "subset query"]],
    losses: Float[Tensor, "subset query"],
    draws: Mapping[str, Float[Tensor, "resample"]],
    *,
    reference: str,
) -> pd.DataFrame:
    """One row per method, in percent: `lds` with its interval `low`, `high`, and `gain`, the paired
    difference to the method called `reference`, with `gain_low`, `gain_high`.

    Args:
        effects: by method.
        losses: means over seeds and timesteps.
        draws: of `bootstrap` with the same effects and losses.
        reference: a key of `effects`.

    Returns:
        The table.
    """
    plain = {method: lds(values, losses).mean() for method, values in effects.items()}
    rows = []
    for method, value in plain.items():
        ends, apart = interval(draws[method]), interval(draws[method] - draws[reference])
        rows.append((method, value, *ends, value - plain[reference], *apart))
    columns = ["method", "lds", "low", "high", "gain", "gain_low", "gain_high"]
    table = pd.DataFrame(rows, columns=columns)
    return table.set_index("method").astype(float).mul(100).reset_index()


def ceiling_summary(
    losses: Float[Tensor, "subset seed query"], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """The seed ceiling of the mean of all seeds with its interval, in percent, from the same
    resamples as `summary`.

    Args:
        losses: of at least two seeds.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The ceiling and the ends of its interval.
    """
    pairs = _against_others(losses)
    draws = [
        bootstrap({"one": -one}, others, resamples=resamples, seed=seed)["one"]
        for one, others in pairs
    ]
    low, high = interval(_of_all_seeds(torch.stack(draws).mean(0), losses.shape[1]))
    return 100 * seed_ceiling(losses)[1], 100 * low, 100 * high
