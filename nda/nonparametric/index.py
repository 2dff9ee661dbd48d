"""Candidates: which few of many images could explain any part of a query.

A coarse index, looked through as a whole. Images are pooled to 16 x 16 pixels. A query asks with
25 patches, each a quarter of its side, and with the whole of itself at 8 x 8 pixels. Every one of
these 26 rows has its nearest images, at any place and mirrored if wanted, and the candidates are
the images that come first in any row, then those that come second, and so on.

Pooled pixels are whole numbers and small enough that every sum is exact, so the candidates do not
depend on blocks or threads. The products of patches are plain matrix products in torch. A library
for nearest neighbours would have to hold every patch of every image, 169 a picture; here nothing is
held but the images.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from nda.errors import InputError, check_positive

SIDE, PATCH, STRIDE, WHOLE = 16, 4, 3, 8  # in pooled pixels
TOGETHER = 512  # images of which the nearest are picked at once
BLOCK_BYTES = 8 * 2**20  # of the distances of one block of images
NUMBERS = 2**32  # more than there are images


def candidates(
    queries: UInt8[Tensor, "query chan row col"],
    train: UInt8[Tensor, "train chan row col"],
    count: int,
    *,
    flips: bool = True,
    without: Sequence[Sequence[int]] | None = None,
) -> list[Int[Tensor, "candidate"]]:
    """The candidates of every query.

    Args:
        queries: in 256 levels.
        train: in 256 levels.
        count: how many are wanted of each query.
        flips: whether mirrored train images count as well.
        without: for each query, train images that may not be its candidates; default: none.

    Returns:
        Sorted numbers of train images, `count` of them, or all that a query may have.

    Raises:
        InputError: if `count` is no positive integer, or `without` is not of these queries.
    """
    check_positive("count", count)
    without = [()] * len(queries) if without is None else without
    if len(without) != len(queries):
        raise InputError(
            f"without must name images for each of {len(queries)} queries, not for {len(without)}"
        )
    most = count + max(map(len, without), default=0)
    if most >= len(train):
        nearest = torch.arange(len(train)).expand(len(queries), 1, -1)
    else:
        nearest = _nearest(queries, train, most, flips)
    return [
        _first(rows, count, banned).sort().values
        for rows, banned in zip(nearest, without, strict=True)
    ]


def _first(
    rows: Int[Tensor, "row place"], count: int, banned: Sequence[int]
) -> Int[Tensor, "candidate"]:
    """Different images in the order of their best place in any row."""
    order = dict.fromkeys(rows.T.flatten().tolist())
    for image in banned:
        order.pop(image, None)
    return torch.tensor(list(order)[:count])


def _nearest(queries: Tensor, train: Tensor, count: int, flips: bool) -> Int[Tensor, "q row place"]:
    """The nearest images of every row, nearest first; of equal ones the first."""
    asked, whole = _asked(queries)
    places = (SIDE - PATCH + 1) ** 2 * (1 + flips)
    size = max(1, BLOCK_BYTES // (4 * asked.shape[:2].numel() * places))
    best = torch.empty(len(queries), asked.shape[1] + 1, 0, dtype=torch.long)
    starts = range(0, len(train), TOGETHER)
    for start in tqdm(starts, desc="candidates", unit="block", leave=False, delay=2):
        block = pooled(train[start : start + TOGETHER])
        # filled piece by piece: small results between large ones would scatter the memory
        found = torch.empty(*best.shape[:2], len(block))
        for views, part in zip(block.split(size), found.split(size, 2), strict=True):
            part[:, :-1] = _patches(asked, views, flips)
            part[:, -1:] = _wholes(whole, _views(views, flips))
        best = _keep(best, found, start, count)
    return best % NUMBERS


def _keep(
    best: Int[Tensor, "... some"], distances: Float[Tensor, "... image"], start: int, count: int
) -> Int[Tensor, "... kept"]:
    """The nearest of the best so far and of the images from `start` on, nearest first."""
    # distance and number in one integer, so that there are no ties
    keys = distances.long() * NUMBERS + torch.arange(start, start + distances.shape[-1])
    best = torch.cat([best, keys], -1)
    return best.topk(min(count, best.shape[-1]), largest=False, sorted=True).values


def pooled(images: UInt8[Tensor, "image chan _ _"]) -> Float[Tensor, "image chan row col"]:
    """Images at 16 x 16 pixels.

    Args:
        images: in 256 levels.

    Returns:
        Whole numbers between -128 and 127.
    """
    return F.adaptive_avg_pool2d(images.float(), SIDE).round() - 128


def _asked(queries: Tensor) -> tuple[Float[Tensor, "query row dim"], Float[Tensor, "query whole"]]:
    """The patches that a query asks with, and the whole of it."""
    small = pooled(queries)
    return F.unfold(small, PATCH, stride=STRIDE).mT, _small(small)


def _small(images: Float[Tensor, "image chan row col"]) -> Float[Tensor, "image dim"]:
    return F.adaptive_avg_pool2d(images, WHOLE).round().flatten(1)


def _patches(asked: Tensor, block: Tensor, flips: bool) -> Float[Tensor, "query row image"]:
    """To the nearest patch of every image, less the squared norm of the query's patch."""
    views = [block, block.flip(-1)] if flips else [block]
    bank = torch.cat([F.unfold(view, PATCH) for view in views], 2)  # [image, dim, place]
    squares = bank.square().sum(1, keepdim=True)
    rows = asked.flatten(0, 1).expand(len(bank), -1, -1)
    found = torch.baddbmm(squares, rows, bank, alpha=-2).amin(2)  # [image, query · row]
    return found.T.unflatten(0, asked.shape[:2])


def _views(images: Float[Tensor, "image chan row col"], flips: bool) -> Float[Tensor, "v image d"]:
    """Images at 8 x 8 pixels, and their mirror images."""
    return torch.stack(
        [_small(view) for view in ([images, images.flip(-1)] if flips else [images])]
    )


def _wholes(
    whole: Float[Tensor, "query dim"], views: Float[Tensor, "view image dim"]
) -> Float[Tensor, "query one image"]:
    found = views.square().sum(2)[:, None] - 2 * whole @ views.mT  # [view, query, image]
    return found.amin(0)[:, None]


def near_copies(
    queries: UInt8[Tensor, "query chan row col"],
    train: UInt8[Tensor, "train chan row col"],
    *,
    flips: bool = True,
    within: float = 0.2,
    few: int = 8,
) -> list[list[int]]:
    """Train images that are nearly a query: their root mean square difference
    is at most a fifth of the spread of the query's pixels, which is a correlation of about 0.98.

    Args:
        queries: in 256 levels.
        train: in 256 levels.
        flips: whether their mirror images count as well.
        within: the largest difference, in spreads.
        few: train images that are looked at in full, the nearest at 8 x 8 pixels.

    Returns:
        For each query, their numbers.
    """
    whole = torch.cat([_small(pooled(some)) for some in queries.split(TOGETHER)])
    nearest = torch.empty(len(queries), 0, dtype=torch.long)
    for start in range(0, len(train), TOGETHER):
        views = _views(pooled(train[start : start + TOGETHER]), flips)
        nearest = _keep(nearest, _wholes(whole, views)[:, 0], start, few)
    found = []
    for query, row in zip(queries, nearest % NUMBERS, strict=True):
        near = train[row].double()
        views = torch.stack([near, near.flip(-1)] if flips else [near])
        gaps = (views - query).square().mean((2, 3, 4)).sqrt().amin(0)
        found.append(sorted(row[gaps <= within * query.double().std(correction=0)].tolist()))
    return found
