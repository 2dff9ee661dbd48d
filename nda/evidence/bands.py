"""How much of what scores predict comes true, for train images near a query and for those far from
it."""

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nda import rng
from nda.errors import InputError, check_positive
from nda.evidence.lds import interval
from nda.evidence.truth import Truth


def bands(distances: Float[Tensor, "query train"], count: int = 3) -> Int[Tensor, "query train"]:
    """Every query's train images by their distance, in bands of equal size.

    Args:
        distances: of every query to every train image.
        count: how many bands.

    Returns:
        The band of each train image, from 0, the nearest.

    Raises:
        InputError: for more bands than train images.
    """
    check_positive("count", count)
    n = distances.shape[1]
    if count > n:
        raise InputError(f"count must be at most the {n} train images, not {count}")
    return distances.argsort(dim=1, stable=True).argsort(1) * count // n


def slopes(
    truth: Truth,
    scores: Float[Tensor, "query train"],
    band: Int[Tensor, "query train"],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """By how much a query's loss falls where the images of a band are predicted to lower it by one.

    For every subset and query, minus the loss is regressed on the predicted effects of all bands
    together, each less its mean over the subsets. A slope of 1 is an influence that comes true, and
    one of 0 is noise. Intervals are from resampling subsets and queries.

    Args:
        truth: the losses.
        scores: of all queries of this kind.
        band: of `bands`.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        One row per band: `slope` with its `low` and `high`, and `spread`, the standard deviation of
        the band's scores.

    Raises:
        InputError: if the bands are not of these scores, or the scores cannot be used.
    """
    if band.shape != scores.shape:
        raise InputError(
            f"band must be of the scores' shape {tuple(scores.shape)}, not {tuple(band.shape)}"
        )
    of = [band == number for number in range(int(band.max()) + 1)]
    x = torch.stack([truth.effects(scores * inside) for inside in of], 2)
    x, y = x - x.mean(0), truth.mean.mean(0) - truth.mean
    weights = torch.ones(1, len(y)).double(), torch.ones(1, y.shape[1]).double()
    drawn = (
        _counts(resamples, items, seed, name)
        for name, items in zip(("subsets", "queries"), y.shape, strict=True)
    )
    (slope,), draws = _fits(x, y, *weights), _fits(x, y, *drawn)
    ends = [interval(draws[:, number]) for number in range(len(of))]
    return pd.DataFrame(
        {
            "band": range(len(of)),
            "slope": slope.tolist(),
            "low": [low for low, _ in ends],
            "high": [high for _, high in ends],
            "spread": [scores[truth.rows][inside[truth.rows]].std().item() for inside in of],
        }
    )


def _counts(resamples: int, items: int, seed: int, what: str) -> Float[Tensor, "resample item"]:
    """How often each item is drawn."""
    source = rng.generator("slopes", what, seed)
    picks = torch.randint(items, (resamples, items), generator=source)
    return torch.zeros(resamples, items).scatter_add_(1, picks, torch.ones(picks.shape)).double()


def _fits(x: Tensor, y: Tensor, subsets: Tensor, queries: Tensor) -> Float[Tensor, "resample band"]:
    """Least squares of y on x with weights, one product of subset and query for each row."""
    second, cross = x[..., None] * x[..., None, :], x * y[..., None]
    second = torch.einsum("rq,rqab->rab", queries, torch.einsum("rs,sqab->rqab", subsets, second))
    cross = torch.einsum("rq,rqa->ra", queries, torch.einsum("rs,sqa->rqa", subsets, cross))
    return (torch.linalg.pinv(second, hermitian=True) @ cross[..., None])[..., 0]
