"""The linear datamodelling score: how well a method predicts which retrained models do worse on a query.

Sign, stated once: `scores[query, train]` is higher when keeping the train image *lowers* the query's loss. A subset's predicted effect is
the sum of its members' scores, and the LDS is the rank correlation of effects with *minus* the losses.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nda import rng
from nda.checks import InputError
from nda.store import Store


def group_effects(scores: Float[Tensor, "query train"], masks: Bool[Tensor, "subset train"]) -> Float[Tensor, "subset query"]:
    """Predicted effect of each subset on each query: the sum of its members' scores (TRAK; datamodels)."""
    if scores.ndim != 2 or masks.ndim != 2 or scores.shape[1] != masks.shape[1]:
        hint = "; it looks transposed" if scores.ndim == masks.ndim == 2 and scores.shape[0] == masks.shape[1] else ""
        raise InputError(f"scores must be [query, train={masks.shape[-1]}], not {tuple(scores.shape)}{hint}")
    if not torch.isfinite(scores).all():
        raise InputError("scores have NaN or infinite entries; the method that made them failed on some image")
    return masks.cpu().double() @ scores.cpu().double().T


def record(
    method: str,
    queries: str,
    scores: Float[Tensor, "query train"],
    *,
    store: Store,
    results: Store,
    parameters: Mapping[str, Any],
    seconds: float,
) -> None:
    """Keep a method's scores of the `queries` called "val" or "gen": `scores/<method>-<queries>` in the working store, and
    `effects/<method>-<queries>` `[subset, query]` on the `report` masks among the results."""
    name = f"{method}-{queries}"
    made: dict[str, Any] = {"parameters": parameters, "seconds": seconds}
    effects = group_effects(scores, results.load("masks/report", "subset train"))
    store.save(f"scores/{name}", scores, axes="query train", inputs=store.sha256("train", queries), **made)
    results.save(f"effects/{name}", effects.float(), axes="subset query", inputs=results.sha256("masks/report"), **made)


def centre(values: Float[Tensor, "*model query"]) -> Float[Tensor, "*model query"]:
    """Remove each model's mean over the queries. Applied to losses and effects alike it gives the *centred* LDS."""
    return values - values.mean(-1, keepdim=True)


def _check(effects: Tensor, losses: Tensor) -> None:
    if effects.ndim != 2 or effects.shape != losses.shape:
        raise InputError(f"effects {tuple(effects.shape)} and losses {tuple(losses.shape)} must both be [subset, query]")
    if len(effects) < 3:
        raise InputError(f"a rank correlation needs at least 3 subsets, not {len(effects)}")
    if not (torch.isfinite(effects).all() and torch.isfinite(losses).all()):
        raise InputError("effects or losses have NaN or infinite entries; remove those queries or models first")


def _exact(subsets: int) -> torch.dtype:
    """The float that is exact for sums of products of ranks: integers up to subsets³, of which float32 holds those up to 2²⁴."""
    return torch.float32 if subsets <= 256 else torch.float64


class _Order:
    """How the values of each query are ordered, which is all that a rank correlation needs of them; exact for ties.

    signs[query · i, j] = 1 if value j is smaller than value i, 0 if equal, -1 if larger. equal: 1 where they are, of the queries that have
    `ties`. Everything that is computed from them is an integer.
    """

    def __init__(self, values: Float[Tensor, "subset query"]):
        columns, dtype = values.cpu().T.contiguous(), _exact(len(values))
        a, b = columns[:, :, None], columns[:, None, :]
        same = a == b
        self.shape = tuple(columns.shape)
        self.ties = same.sum((1, 2)) > columns.shape[1]
        self.signs, self.equal = ((a > b).to(dtype) - (a < b).to(dtype)).flatten(0, 1), same[self.ties].to(dtype)

    def ranks(self, weights: Float[Tensor, "resample subset"]) -> Float[Tensor, "resample query subset"]:
        """Twice the centred mid-ranks when value j occurs `weights[:, j]` times: integers of at most the number of subsets."""
        return (weights @ self.signs.T).unflatten(1, self.shape)

    def spread(self, weights: Float[Tensor, "resample subset"]) -> Float[Tensor, "resample query"]:
        """Weighted sum of the squared ranks: (n³ - Σ t³) / 3, with n values in groups of t equal ones."""
        cubes = (weights**3).sum(1, keepdim=True).repeat(1, len(self.ties))
        if len(self.equal):
            sizes = (weights @ self.equal.flatten(0, 1).T).unflatten(1, self.equal.shape[:2])
            cubes[:, self.ties] = torch.linalg.vecdot(sizes * sizes, weights[:, None])
        return (weights.sum(1, keepdim=True).double() ** 3 - cubes) / 3


class _Truth:
    """One side of many correlations: what all of them need of it, for some weights."""

    def __init__(self, order: _Order, weights: Float[Tensor, "resample subset"]):
        self.weights, self.ranks, self.spread = weights, order.ranks(weights) * weights[:, None], order.spread(weights)

    def correlation(self, order: _Order) -> Float[Tensor, "resample query"]:
        """Weighted correlation of ranks; 0 where a side is constant, since it then orders nothing."""
        cov = torch.linalg.vecdot(order.ranks(self.weights), self.ranks).double()
        return cov / (order.spread(self.weights) * self.spread).sqrt().clamp_min(1)  # constant: cov = 0; any other spread is at least 1


def spearman(a: Float[Tensor, "subset query"], b: Float[Tensor, "subset query"]) -> Float[Tensor, "query"]:
    """Spearman's rank correlation over subsets, one per query; ties share their mean rank, a constant side gives 0."""
    _check(a, b)
    once = torch.ones(1, len(a), dtype=_exact(len(a)))
    return _Truth(_Order(b), once).correlation(_Order(a))[0]


def lds(effects: Float[Tensor, "subset query"], losses: Float[Tensor, "subset query"]) -> Float[Tensor, "query"]:
    """LDS of each query, in [-1, 1]; the LDS of a method is the mean. Losses are means over seeds and timesteps (D-TRAK)."""
    return spearman(effects, -losses)


def seed_ceiling(losses: Float[Tensor, "subset seed query"]) -> tuple[float, float]:
    """How far the truth agrees with itself: (one seed against the mean of the others, Spearman-Brown value of the mean of all).

    The first is a mean over queries and seeds. With reliability ρ of one seed its expectation is c, c² = kρ² / (1 + (k-1)ρ) against a mean
    of k others; solved for ρ, the mean of all S seeds has reliability Sρ / (1 + (S-1)ρ): the LDS that a fresh, equal set of
    retrainings would reach. A predictor that knew the expected losses could reach its square root.
    """
    c = torch.stack([spearman(seed, others).mean() for seed, others in _against_others(losses)]).mean()
    return c.item(), _of_all_seeds(c, losses.shape[1]).item()


def _against_others(losses: Float[Tensor, "subset seed query"]) -> list[tuple[Tensor, Tensor]]:
    """Each seed's losses `[subset, query]` with the mean of the others."""
    if losses.ndim != 3 or losses.shape[1] < 2:
        raise InputError(f"a seed ceiling needs losses [subset, seed, query] with at least 2 seeds, not {tuple(losses.shape)}")
    others = (losses.sum(1, keepdim=True) - losses) / (losses.shape[1] - 1)
    return list(zip(losses.unbind(1), others.unbind(1), strict=True))


def _of_all_seeds(c: Tensor, seeds: int) -> Tensor:
    """Reliability of the mean of all seeds, from the correlation of one with the mean of the others; below chance counts as none."""
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
    """Bootstrap draws of every method's mean LDS, resampling subsets *and* queries with replacement.

    All methods meet the same resamples, so the difference of two methods' draws is a paired bootstrap of their difference. A
    resample is a vector of counts w over subsets, and a centred mid-rank is ½ Σ_j w_j sign(x_i - x_j): all resamples are one matrix
    product. What it does not cover: other train seeds and another train set.
    """
    for values in effects.values():
        _check(values, losses)
    if resamples < 1:
        raise InputError(f"resamples must be at least 1, not {resamples}; intervals want 2000 or more")
    source = rng.generator("bootstrap", seed)
    subsets, queries = losses.shape
    picks = torch.randint(subsets, (resamples, subsets), generator=source)
    weights = torch.zeros(resamples, subsets).scatter_add_(1, picks, torch.ones(picks.shape)).to(_exact(subsets))
    picks = torch.randint(queries, (resamples, queries), generator=source)
    shares = torch.zeros(resamples, queries, dtype=torch.float64).scatter_add_(1, picks, torch.full(picks.shape, 1 / queries).double())
    orders = {name: _Order(values) for name, values in effects.items()}
    true_order = _Order(-losses)
    draws: dict[str, list[Tensor]] = {name: [] for name in effects}
    for w, share in zip(weights.split(block), shares.split(block), strict=True):
        truth = _Truth(true_order, w)
        for name, order in orders.items():
            draws[name].append((truth.correlation(order) * share).sum(1))
    return {name: torch.cat(parts) for name, parts in draws.items()}


def interval(draws: Float[Tensor, "resample"], level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap draws."""
    low, high = torch.quantile(draws, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=draws.dtype)).tolist()
    return low, high


def summary(
    effects: Mapping[str, Float[Tensor, "subset query"]],
    losses: Float[Tensor, "subset query"],
    *,
    reference: str,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per method, in percent: `lds` with its interval `low`, `high`, and `gain`, the paired difference to the method called
    `reference`, with `gain_low`, `gain_high`."""
    draws = bootstrap(effects, losses, resamples=resamples, seed=seed)
    plain = {method: lds(values, losses).mean() for method, values in effects.items()}
    rows = [
        (method, plain[method], *interval(draws[method]), plain[method] - plain[reference], *interval(draws[method] - draws[reference]))
        for method in effects
    ]
    table = pd.DataFrame(rows, columns=["method", "lds", "low", "high", "gain", "gain_low", "gain_high"])
    return table.set_index("method").astype(float).mul(100).reset_index()


def ceiling_summary(losses: Float[Tensor, "subset seed query"], *, resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """The seed ceiling of the mean of all seeds with its interval (value, low, high), in percent, from the same resamples as `summary`."""
    pairs = _against_others(losses)
    draws = [bootstrap({"one": -one}, others, resamples=resamples, seed=seed)["one"] for one, others in pairs]
    low, high = interval(_of_all_seeds(torch.stack(draws).mean(0), losses.shape[1]))
    return 100 * seed_ceiling(losses)[1], 100 * low, 100 * high
