"""Removals against chance: how far they are from random ones or from each other, with intervals
and permutation tests."""

import torch
from jaxtyping import Float
from torch import Tensor

from nda import rng
from nda.errors import InputError, check_positive
from nda.evidence.lds import interval

EXACT = 16  # with so many queries or fewer, all signs are tried


def against_random(
    own: Float[Tensor, "query"],
    random: Float[Tensor, "draw all"],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, float]:
    """How much more a removal changes its query than a random one does.

    The interval is a bootstrap over queries and random sets. The p-value is that of a permutation
    test: if the removal were like the random ones, it might for every query be any one of them.

    Args:
        own: the change of each query by the removal made for it.
        random: the change of all queries, of which those of `own` are the first, by each random
            removal.
        resamples: of both.
        seed: of both.

    Returns:
        `own` and `random`, the means; `more`, their difference, with `low` and `high`; `ratio`, of
        the medians; `p`, one-sided.

    Raises:
        InputError: for no resamples.
    """
    check_positive("resamples", resamples)
    own, random = own.double(), random[:, : len(own)].double()
    draws, queries = random.shape
    source = rng.generator("removals", seed)
    some = torch.randint(queries, (resamples, queries), generator=source)
    sets = torch.randint(draws, (resamples, draws), generator=source)
    shares = torch.zeros(resamples, draws, dtype=torch.float64)
    shares.scatter_add_(1, sets, torch.full(sets.shape, 1 / draws).double())
    low, high = interval((own[some] - (shares @ random).gather(1, some)).mean(1))
    together = torch.cat([own[None], random])
    picks = torch.randint(draws + 1, (resamples, queries), generator=source)
    chance = together.gather(0, picks).mean(1)
    return {
        "own": own.mean().item(),
        "random": random.mean().item(),
        "more": (own.mean() - random.mean()).item(),
        "low": low,
        "high": high,
        "ratio": (own.quantile(0.5) / random.quantile(0.5)).item(),
        "p": _share(chance, own.mean()),
    }


def against(
    own: Float[Tensor, "query"],
    other: Float[Tensor, "query"],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, float]:
    """How much more one arm changes the queries than another.

    Args:
        own: the change of each query by one arm.
        other: by the other one.
        resamples: of the bootstrap over queries, and of the signs if there are too many queries to
            try all.
        seed: of both.

    Returns:
        `more`, the mean difference, with `low` and `high`; `p`, two-sided: that of the test that
        turns the sign of each query's difference.

    Raises:
        InputError: for no resamples.
    """
    check_positive("resamples", resamples)
    apart = own.double() - other.double()
    source = rng.generator("arms", seed)
    some = torch.randint(len(apart), (resamples, len(apart)), generator=source)
    low, high = interval(apart[some].mean(1))
    if len(apart) <= EXACT:
        numbers = torch.arange(2 ** len(apart))[:, None]
        signs = 1 - 2 * (numbers >> torch.arange(len(apart)) & 1)
        chance = (signs * apart).mean(1).abs()
        p = (chance >= apart.mean().abs() - 1e-12).double().mean().item()
    else:
        signs = 1 - 2 * torch.randint(2, some.shape, generator=source)
        p = _share((signs * apart).mean(1).abs(), apart.mean().abs())
    return {"more": apart.mean().item(), "low": low, "high": high, "p": p}


def specificity(
    changes: Float[Tensor, "query query"], *, resamples: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """Whether removals change the query that they were made for more than they change others.

    Args:
        changes: row i, what the removal for query i did to all queries.
        resamples: of the bootstrap over queries, and of the permutations, which deal the removals
            out to the queries at random.
        seed: of both.

    Returns:
        `own` and `others`, the means on and off the diagonal; `more`, their difference, with `low`
        and `high`; `p`, one-sided.

    Raises:
        InputError: for no resamples, or less than two queries.
    """
    check_positive("resamples", resamples)
    queries = len(changes)
    if changes.ndim != 2 or changes.shape[1] != queries or queries < 2:
        raise InputError(
            f"changes must be [query, query] of at least 2 queries, not {tuple(changes.shape)}"
        )
    changes = changes.double()
    own = changes.diagonal()
    others = (changes.sum(0) - own) / (queries - 1)
    source = rng.generator("specificity", seed)
    some = torch.randint(queries, (resamples, queries), generator=source)
    low, high = interval((own - others)[some].mean(1))
    dealt = torch.rand(resamples, queries, generator=source).argsort(1)
    chance = changes[dealt, torch.arange(queries)].mean(1)
    return {
        "own": own.mean().item(),
        "others": others.mean().item(),
        "more": (own - others).mean().item(),
        "low": low,
        "high": high,
        "p": _share(chance, own.mean()),
    }


def _share(chance: Tensor, seen: Tensor) -> float:
    """Of chance values that reach what was seen, which counts as one of them."""
    return (1 + int((chance >= seen - 1e-12).sum())) / (1 + len(chance))


def goes_with(
    first: Float[Tensor, "model query"],
    second: Float[Tensor, "model query"],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """Pearson's correlation of two measures over all models and queries.

    Args:
        first: one measure.
        second: the other.
        resamples: of the bootstrap over models and queries.
        seed: of the bootstrap.

    Returns:
        `pearson`, with `low` and `high`; and `within`, the same after every query's mean is taken
        away, so that queries that change easily do not make it.

    Raises:
        InputError: for no resamples.
    """
    check_positive("resamples", resamples)
    source, draws = rng.generator("goes with", seed), []
    for _ in range(resamples):
        models = torch.randint(len(first), (len(first),), generator=source)
        queries = torch.randint(first.shape[1], (first.shape[1],), generator=source)
        draws.append(_pearson(first[models][:, queries], second[models][:, queries]))
    low, high = interval(torch.tensor(draws).double())
    centred = (values - values.mean(0) for values in (first, second))
    return {
        "pearson": _pearson(first, second),
        "low": low,
        "high": high,
        "within": _pearson(*centred),
    }


def _pearson(first: Tensor, second: Tensor) -> float:
    return torch.corrcoef(torch.stack([first.flatten(), second.flatten()]).double())[0, 1].item()
