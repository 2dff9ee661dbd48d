"""Two engines in plain torch, for any device: distances of a block of patches at once, by `conv` or
by `box`, then their log-sum-exps.

They differ in how the squared distances of all pairs of windows come about; the posterior is the
same. It is never stored: per query patch and train image only the log-sum-exp of the `top_k`
largest logits is kept, and per query patch that of all. Distances are added in float64 (float32 on
MPS); logits, relative to the best one, then fit the input's dtype.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nda.nonparametric.patches.memory import within_memory
from nda.nonparametric.patches.posterior import Posterior
from nda.nonparametric.patches.windows import Windows, exact

BLOCK_BYTES = 16 * 2**20  # of distances; some eight arrays of this size may live at a time
GPU_BLOCK_BYTES = 512 * 2**20
Distances = Callable[[Tensor, Tensor, Windows, bool, bool], Tensor]


def conv(
    query: Float[Tensor, "chan row col"],
    train: Float[Tensor, "train chan row2 col2"],
    windows: Windows,
    rows_meet: bool,
    cols_meet: bool,
) -> Float[Tensor, "train u v"]:
    """The paper's acceleration: ‖x - y‖² = ‖x‖² + ‖y‖² - 2⟨x, y⟩, the last term a convolution whose
    kernels are the query's patches.

    Args:
        query: prepared, in float64.
        train: prepared, in float64.
        windows: of these images.
        rows_meet: true: a convolution compares all with all.
        cols_meet: the same for columns.

    Returns:
        Squared distances of all windows that meet.
    """
    assert rows_meet and cols_meet  # a convolution compares all with all
    kernels = F.unfold(query[None], windows.taps, dilation=windows.step)[0].T  # [u, chan*taps*taps]
    shape = (len(query), windows.taps, windows.taps)
    distance = F.conv2d(train, -2 * kernels.unflatten(1, shape), dilation=windows.step).flatten(2)
    ones = torch.ones(1, *shape, dtype=train.dtype, device=train.device)
    squares = F.conv2d(train.square(), ones, dilation=windows.step).flatten(2)
    distance += squares + kernels.square().sum(1)[:, None]
    return distance.clamp_min_(0)


def box(
    query: Float[Tensor, "chan row col"],
    train: Float[Tensor, "train chan row2 col2"],
    windows: Windows,
    rows_meet: bool,
    cols_meet: bool,
) -> Float[Tensor, "train u v"]:
    """The distance of two windows at one displacement is a box filter of per-pixel squared
    differences.

    A sum over w pixels is made of sums over 1, 2, 4, … pixels, so the cost grows with log w; only
    non-negative numbers are added, so nothing cancels. For GPUs without Triton, bound by memory:
    about 20 passes over arrays of (rows·cols)² 8-byte numbers per query and train image, 160 MB for
    32 x 32 pixels, so 0.05 ms at 3 TB/s; top_k sorts and may double it. That is worked out, not
    measured.

    Args:
        query: prepared, in float64.
        train: prepared, in float64.
        windows: of these images.
        rows_meet: whether a window meets all rows of the train images, or only its own.
        cols_meet: the same for columns.

    Returns:
        Squared distances of all windows that meet.
    """
    x = query.unflatten(1, (-1, 1)).unflatten(3, (-1, 1))  # [chan, row, 1, col, 1]
    # [train, chan, row, row2, col, col2], an axis of length 1 per pair
    y = train.unflatten(2, (1, -1) if rows_meet else (-1, 1))
    y = y.unflatten(4, (1, -1) if cols_meet else (-1, 1))
    pairs = sum((a - b).square_() for a, b in zip(x, y.unbind(1), strict=True))
    for axis, meet in ((1, rows_meet), (3, cols_meet)):
        pairs = _box(pairs, (axis, axis + 1) if meet else (axis,), windows.taps, windows.step)
    return pairs.transpose(2, 3).flatten(3).flatten(1, 2)


def _box(pairs: Tensor, axes: tuple[int, ...], taps: int, step: int) -> Tensor:
    """Sums of `taps` numbers, `step` apart, along the diagonal of `axes`."""

    def shifted(values: Tensor, by: int, lost: int) -> Tensor:
        for axis in axes:
            values = values.narrow(axis, by, values.shape[axis] - lost)
        return values

    total: Tensor | None = None
    start, length, span = 0, 1, (taps - 1) * step
    while True:
        if taps & length:
            part = shifted(pairs, start, span - (length - 1) * step)
            total = part.clone() if total is None else total.add_(part)
            start += length * step
        if total is not None and 2 * length > taps:
            return total
        pairs = shifted(pairs, 0, length * step) + shifted(pairs, length * step, length * step)
        length *= 2


class Block(NamedTuple):
    """Positions of the query that are looked at together, and what they meet."""

    rows: range  # of positions
    cols: range
    meet: tuple[bool, bool]  # along rows, along columns: all of the region, or each only itself
    crop: slice  # rows of the prepared query ...
    region: slice  # ... and of the prepared train images
    columns: slice  # of both
    images: int  # train images at a time


def _blocks(
    windows: Windows, rows: range, distances: Distances, block_bytes: int, itemsize: int
) -> Iterator[Block]:
    """All positions in `rows`, in blocks whose distances take at most `block_bytes` if they can."""
    if distances is box:
        vertical, across = windows.groups()
    else:
        vertical, across = ([(band, True) for band in bands] for bands in windows.bands())
    for (tall, rows_meet), (wide, cols_meet) in product(vertical, across):
        per_row = (
            (len(wide) + windows.span) ** (1 + cols_meet)
            * (len(tall) + windows.span if rows_meet else 1)
            * itemsize
        )
        height = max(1, min(len(tall), block_bytes // per_row - windows.span))
        images = max(1, block_bytes // (per_row * (height + windows.span)))
        columns, everywhere = _pixels(wide, windows), _pixels(tall, windows)
        first, last = max(tall.start, rows.start), min(tall.stop, rows.stop)
        for i in range(first, last, height):
            own = range(i, min(i + height, last))
            crop = _pixels(own, windows)
            region = everywhere if rows_meet else crop
            yield Block(own, wide, (rows_meet, cols_meet), crop, region, columns, images)


def _pixels(positions: range, windows: Windows) -> slice:
    """Where the windows at these positions lie in a prepared image."""
    return slice(positions.start, positions.stop + windows.span)


def posterior(
    noisy: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    *,
    sigma: float,
    windows: Windows,
    top_k: int | None,
    rows: range,
    distances: Distances,
    block_bytes: int | None = None,
) -> Posterior:
    """See `nda.nonparametric.patches.naive.posterior`.

    Args:
        noisy: x_t.
        train: √ᾱ_t y.
        sigma: standard deviation of the noise, times the root of the temperature.
        windows: of these images.
        top_k: largest weights kept per train image; None: all.
        rows: rows of the query's positions to look at.
        distances: `conv` or `box`.
        block_bytes: of the distances of a block, which has at least one row of positions and one
            train image; changes nothing but memory.

    Returns:
        The posterior of the positions in `rows`.
    """
    block_bytes = block_bytes or (GPU_BLOCK_BYTES if noisy.device.type == "cuda" else BLOCK_BYTES)
    run = partial(_posterior, noisy, train, sigma, windows, top_k, rows, distances)
    return within_memory(run, block_bytes)


def _posterior(
    noisy: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    sigma: float,
    windows: Windows,
    top_k: int | None,
    rows: range,
    distances: Distances,
    block_bytes: int,
) -> Posterior:
    queries, shape = windows.prepare(exact(noisy)), (len(noisy), len(rows), windows.grid[1])
    total = queries.new_empty(shape)
    share = noisy.new_empty(*shape, len(train))
    for block in _blocks(windows, rows, distances, block_bytes, total.itemsize):
        at = (
            slice(block.rows.start - rows.start, block.rows.stop - rows.start),
            slice(block.cols.start, block.cols.stop),
        )
        for q, query in enumerate(queries):
            everything, tops = _block_logs(query, train, block, windows, distances, sigma, top_k)
            grid = (len(block.rows), len(block.cols))
            total[q, *at] = everything.unflatten(0, grid)
            share[q, *at] = (tops - everything).T.to(share).unflatten(0, grid)
    numbers = torch.arange(len(train), device=train.device)
    return Posterior(numbers, total.flatten(1), share.flatten(1, 2))


def _block_logs(
    query: Float[Tensor, "chan padded_row padded_col"],
    train: Float[Tensor, "train chan row col"],
    block: Block,
    windows: Windows,
    distances: Distances,
    sigma: float,
    top_k: int | None,
) -> tuple[Float[Tensor, "u"], Float[Tensor, "train u"]]:
    """Log-sum-exp of all logits of the block's patches, and of each image's `top_k` largest."""
    tops, sums = [], []
    for part in train.split(block.images):
        bank = windows.prepare(exact(part))[:, :, block.region, block.columns]
        squares = distances(query[:, block.crop, block.columns], bank, windows, *block.meet)
        top, every = _log_sums(squares, 2 * sigma**2, top_k, train.dtype)
        tops.append(top)
        sums.append(every.logsumexp(0))
    return torch.stack(sums).logsumexp(0), torch.cat(tops)


def _log_sums(
    distance: Float[Tensor, "train u v"], temperature: float, top_k: int | None, dtype: torch.dtype
) -> tuple[Float[Tensor, "train u"], Float[Tensor, "train u"]]:
    """Log-sum-exp of the `top_k` largest logits of each image, and of all of them."""
    keep = min(top_k or distance.shape[2], distance.shape[2])
    best = distance.amin((0, 2))[:, None]  # [u, 1]
    # weights below the smallest normal number are nothing, slowly
    floor = math.log(torch.finfo(dtype).tiny)
    logits = ((best - distance) / temperature).to(dtype).clamp_min_(floor)
    top = logits.topk(keep, dim=2, sorted=False).values if keep < logits.shape[2] else logits
    offset = best[:, 0] / temperature
    return top.logsumexp(2).to(distance) - offset, logits.logsumexp(2).to(distance) - offset
