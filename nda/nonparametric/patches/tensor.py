"""Two engines in plain torch, for any device: distances of a block of patches at once, by `conv` or
by `box`, then their log-sum-exps.

They differ in how the squared distances of all pairs of windows come about; the posterior is the
same. It is never stored: per query patch and train image only the log-sum-exp of the `top_k`
largest logits is kept, and per query patch that of all. Distances are added in float64 (float32 on
MPS); logits, relative to the best one, then fit the input's dtype.
"""

import math
from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nda.nonparametric.patches.posterior import Posterior
from nda.nonparametric.patches.windows import Windows, exact

BLOCK_BYTES = 16 * 2**20  # of distances; some eight arrays of this size may live at a time
GPU_BLOCK_BYTES = 512 * 2**20
Group = tuple[
    range, bool
]  # positions along one axis, and whether all of them meet or each only itself
Distances = Callable[[Tensor, Tensor, Windows, bool, bool], Tensor]


def conv(
    query: Float[Tensor, "chan row col"],
    train: Float[Tensor, "train chan row2 col2"],
    windows: Windows,
    rows_meet: bool,
    cols_meet: bool,
) -> Float[Tensor, "train u v"]:
    """The paper's acceleration: ‖x - y‖² = ‖x‖² + ‖y‖² - 2⟨x, y⟩, the last term a convolution whose
    kernels are the query's patches."""
    assert rows_meet and cols_meet  # a convolution compares all with all
    kernels = F.unfold(query[None], windows.taps, dilation=windows.step)[0].T  # [u, chan*taps*taps]
    shape = (len(query), windows.taps, windows.taps)
    distance = F.conv2d(train, -2 * kernels.unflatten(1, shape), dilation=windows.step).flatten(2)
    ones = torch.ones(1, *shape, dtype=train.dtype, device=train.device)
    distance += (
        F.conv2d(train.square(), ones, dilation=windows.step).flatten(2)
        + kernels.square().sum(1)[:, None]
    )
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
    non-negative numbers are added, so nothing cancels. Made for GPUs, where it is bound by memory:
    about 20 passes over arrays of (rows·cols)² 8-byte numbers per query and train image, 160 MB for
    32 x 32 pixels, so 0.05 ms at 3 TB/s; top_k sorts and may double it. That is worked out, not
    measured.
    """
    x = query.unflatten(1, (-1, 1)).unflatten(3, (-1, 1))  # [chan, row, 1, col, 1]
    y = train.unflatten(2, (1, -1) if rows_meet else (-1, 1))
    y = y.unflatten(
        4, (1, -1) if cols_meet else (-1, 1)
    )  # [train, chan, row, row2, col, col2], an axis of length 1 per pair
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


def _groups(bands: list[range], distances: Distances) -> list[Group]:
    """Bands along one axis; for `box`, neighbouring bands of one position, which meet only
    themselves, make one group."""
    groups: list[Group] = []
    for band in bands:
        single = len(band) == 1 and distances is box
        if single and groups and not groups[-1][1]:
            band = range(groups.pop()[0].start, band.stop)
        groups.append((band, not single))
    return groups


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
    """See `nda.nonparametric.patches.naive.posterior`. At least one row of query positions and one
    train image are in a block."""
    width, temperature = windows.grid[1], 2 * sigma**2
    block_bytes = block_bytes or (GPU_BLOCK_BYTES if noisy.device.type == "cuda" else BLOCK_BYTES)
    total = torch.empty(
        len(noisy), len(rows), width, dtype=exact(noisy[:0]).dtype, device=noisy.device
    )
    share = torch.empty(
        len(noisy), len(rows), width, len(train), dtype=noisy.dtype, device=noisy.device
    )
    queries, (vertical, across) = windows.prepare(exact(noisy)), windows.bands()
    for (tall, rows_meet), (wide, cols_meet) in product(
        _groups(vertical, distances), _groups(across, distances)
    ):
        columns = slice(wide.start, wide.stop + windows.span)
        per_row = (
            (len(wide) + windows.span) ** (1 + cols_meet)
            * (len(tall) + windows.span if rows_meet else 1)
            * total.itemsize
        )
        height = max(1, min(len(tall), block_bytes // per_row - windows.span))
        images = max(1, block_bytes // (per_row * (height + windows.span)))
        first, last = max(tall.start, rows.start), min(tall.stop, rows.stop)
        for i in range(first, last, height):
            block = range(i, min(i + height, last))
            crop = slice(block.start, block.stop + windows.span)
            region = slice(tall.start, tall.stop + windows.span) if rows_meet else crop
            at = (
                slice(block.start - rows.start, block.stop - rows.start),
                slice(wide.start, wide.stop),
            )
            for q, query in enumerate(queries):
                tops, sums = [], []
                for part in train.split(images):
                    bank = windows.prepare(exact(part))[:, :, region, columns]
                    squares = distances(
                        query[:, crop, columns], bank, windows, rows_meet, cols_meet
                    )
                    top, every = _log_sums(squares, temperature, top_k, train.dtype)
                    tops.append(top)
                    sums.append(every.logsumexp(0))
                everything = torch.stack(sums).logsumexp(0)  # [u]
                shape = (len(block), len(wide))
                total[q, *at] = everything.unflatten(0, shape)
                share[q, *at] = (torch.cat(tops) - everything).T.to(share).unflatten(0, shape)
    return Posterior(
        torch.arange(len(train), device=train.device), total.flatten(1), share.flatten(1, 2)
    )


def _log_sums(
    distance: Float[Tensor, "train u v"], temperature: float, top_k: int | None, dtype: torch.dtype
) -> tuple[Float[Tensor, "train u"], Float[Tensor, "train u"]]:
    """Log-sum-exp of the `top_k` largest logits of each image, and of all of them."""
    keep = min(top_k or distance.shape[2], distance.shape[2])
    best = distance.amin((0, 2))[:, None]  # [u, 1]
    floor = math.log(
        torch.finfo(dtype).tiny
    )  # weights below the smallest normal number are nothing, slowly
    logits = ((best - distance) / temperature).to(dtype).clamp_min_(floor)
    top = logits.topk(keep, dim=2, sorted=False).values if keep < logits.shape[2] else logits
    offset = best[:, 0] / temperature
    return top.logsumexp(2).to(distance) - offset, logits.logsumexp(2).to(distance) - offset
