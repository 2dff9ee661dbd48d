"""Spearman's rank correlation, exact and for many resamples at once."""

import torch
from jaxtyping import Float
from torch import Tensor

from nda.errors import InputError


def check_pair(effects: Tensor, losses: Tensor) -> None:
    """Effects and losses that can be correlated over subsets.

    Args:
        effects: `[subset, query]`.
        losses: of the same shape.

    Raises:
        InputError: if they are not.
    """
    if effects.ndim != 2 or effects.shape != losses.shape:
        raise InputError(
            f"effects {tuple(effects.shape)} and losses {tuple(losses.shape)} must both be [subset,"
            " query]"
        )
    if len(effects) < 3:
        raise InputError(f"a rank correlation needs at least 3 subsets, not {len(effects)}")
    if not (torch.isfinite(effects).all() and torch.isfinite(losses).all()):
        raise InputError(
            "effects or losses have NaN or infinite entries; remove those queries or models first"
        )


def exact_dtype(subsets: int) -> torch.dtype:
    """The float that is exact for sums of products of ranks: integers up to subsets³, of which
    float32 holds those up to 2²⁴.

    Args:
        subsets: how many ranks there are.

    Returns:
        float32 or float64.
    """
    return torch.float32 if subsets <= 256 else torch.float64


class Order:
    """How the values of each query are ordered, which is all that a rank correlation needs of them;
    exact for ties.

    signs[query · i, j] = 1 if value j is smaller than value i, 0 if equal, -1 if larger. equal: 1
    where they are, of the queries that have `ties`. Everything that is computed from them is an
    integer.

    Args:
        values: what is ranked.
    """

    def __init__(self, values: Float[Tensor, "subset query"]):
        columns, dtype = values.cpu().T.contiguous(), exact_dtype(len(values))
        a, b = columns[:, :, None], columns[:, None, :]
        same = a == b
        self.shape = tuple(columns.shape)
        self.ties = same.sum((1, 2)) > columns.shape[1]
        self.signs = ((a > b).to(dtype) - (a < b).to(dtype)).flatten(0, 1)
        self.equal = same[self.ties].to(dtype)

    def ranks(
        self, weights: Float[Tensor, "resample subset"]
    ) -> Float[Tensor, "resample query subset"]:
        """Twice the centred mid-ranks when value j occurs `weights[:, j]` times: integers of at
        most the number of subsets.

        Args:
            weights: how often each value occurs.

        Returns:
            The ranks.
        """
        return (weights @ self.signs.T).unflatten(1, self.shape)

    def spread(self, weights: Float[Tensor, "resample subset"]) -> Float[Tensor, "resample query"]:
        """Weighted sum of the squared ranks: (n³ - Σ t³) / 3, with n values in groups of t equal
        ones.

        Args:
            weights: how often each value occurs.

        Returns:
            The sums.
        """
        cubes = (weights**3).sum(1, keepdim=True).repeat(1, len(self.ties))
        if len(self.equal):
            sizes = (weights @ self.equal.flatten(0, 1).T).unflatten(1, self.equal.shape[:2])
            cubes[:, self.ties] = torch.linalg.vecdot(sizes * sizes, weights[:, None])
        return (weights.sum(1, keepdim=True).double() ** 3 - cubes) / 3


class Weighted:
    """One side of many correlations: what all of them need of it, for some weights.

    Args:
        order: of its values.
        weights: how often each value occurs.
    """

    def __init__(self, order: Order, weights: Float[Tensor, "resample subset"]):
        self.weights, self.spread = weights, order.spread(weights)
        self.ranks = order.ranks(weights) * weights[:, None]

    def correlation(self, order: Order) -> Float[Tensor, "resample query"]:
        """Weighted correlation of ranks; 0 where a side is constant: it orders nothing.

        Args:
            order: of the other side.

        Returns:
            Spearman's rank correlations.
        """
        cov = torch.linalg.vecdot(order.ranks(self.weights), self.ranks).double()
        scale = (order.spread(self.weights) * self.spread).sqrt()
        return cov / scale.clamp_min(1)  # constant: cov = 0; any other spread is at least 1


def spearman(
    a: Float[Tensor, "subset query"], b: Float[Tensor, "subset query"]
) -> Float[Tensor, "query"]:
    """Spearman's rank correlation over subsets, one per query; ties share their mean rank, a
    constant side gives 0.

    Args:
        a: one side.
        b: the other side.

    Returns:
        The correlations.
    """
    check_pair(a, b)
    once = torch.ones(1, len(a), dtype=exact_dtype(len(a)))
    return Weighted(Order(b), once).correlation(Order(a))[0]
