"""The paper's acceleration: ‖x - y‖² = ‖x‖² + ‖y‖² - 2⟨x, y⟩, with the last term a convolution whose kernels are the query's patches.

The three terms nearly cancel for the patches that matter, so they are added in float64 (float32 on MPS, which has no float64); logits,
relative to the best one, then fit the input's dtype. The posterior is never stored: per query patch u and train image n only T(u, n), the
log-sum-exp of the `top_k` largest logits, and Z(u), that of all logits, are kept; the mass of image n is exp(T - Z).
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

BLOCK_BYTES = 20 * 2**20  # one block of distances; five arrays of its size may live at a time, so about 200 MB in all


def scores(
    noisy: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    *,
    sigma: float,
    patch: int,
    top_k: int | None,
    borders: str,
    block_bytes: int = BLOCK_BYTES,
) -> Float[Tensor, "query train"]:
    """See `nda.patches.patch_scores`; `noisy` is x_t and `train` is √ᾱ_t y."""
    out = torch.zeros(len(noisy), len(train), dtype=noisy.dtype, device=noisy.device)
    # Windows whose overhang is alike in rows and in columns meet each other and no others: the mask on the logits is never built, since
    # what it would remove is never computed.
    for rows in _alike(noisy.shape[2], patch, borders):
        for cols in _alike(noisy.shape[3], patch, borders):
            for q in range(len(noisy)):
                out[q] += _mass(noisy[[q]], train, (rows, cols), 2 * sigma**2, patch, top_k, block_bytes)
    return out


def _alike(side: int, patch: int, borders: str) -> Iterator[slice]:
    """Pixel ranges of the padded image, one per kind of overhang, whose windows stick out of the image by the same amount."""
    before = (patch - 1) // 2
    positions = side if patch % 2 else side - 1
    starts = [0]
    if borders == "match":
        overhang = [(max(0, before - i), max(0, i - before + patch - side)) for i in range(positions)]
        starts += [i for i in range(1, positions) if overhang[i] != overhang[i - 1]]
    for start, stop in zip(starts, starts[1:] + [positions], strict=True):
        yield slice(start, stop + patch - 1)


def _region(images: Tensor, patch: int, region: tuple[slice, slice]) -> Tensor:
    """Pixels that the windows of one region cover; an even window reaches one pixel further after its position than before it."""
    return F.pad(images, [(patch - 1) // 2] * 4)[:, :, *region]


def _mass(
    query: Float[Tensor, "1 chan row col"],
    train: Float[Tensor, "train chan row col"],
    region: tuple[slice, slice],
    temperature: float,
    patch: int,
    top_k: int | None,
    block_bytes: int,
) -> Float[Tensor, "train"]:
    """Posterior mass of every train image, summed over the patches of one region of the query; they meet those of the same region."""
    exact = torch.float32 if train.device.type == "mps" else torch.float64
    kernels = F.unfold(_region(query, patch, region).to(exact), patch)[0].T  # [u, chan*patch*patch]
    positions = len(kernels)
    keep = min(top_k or positions, positions)
    pairs = max(1, block_bytes // (positions * exact.itemsize))  # (query patch, train image) pairs in a block
    unfolded = kernels.shape[1] * positions * exact.itemsize  # of one image: conv2d makes it for every image of a block
    per_image = max(1, min(len(train), int(pairs**0.5), block_bytes // unfolded))
    floor = math.log(torch.finfo(query.dtype).tiny)  # weights below the smallest normal number are nothing, slowly
    ones = torch.ones(1, train.shape[1], patch, patch, dtype=exact, device=train.device)
    total = torch.zeros(len(train), dtype=exact, device=train.device)
    for kernel in kernels.split(max(1, pairs // per_image)):
        tops, sums = torch.empty(2, len(train), len(kernel), dtype=exact, device=train.device)
        for rows in torch.arange(len(train)).split(per_image):
            images = _region(train[rows[0] : rows[-1] + 1], patch, region).to(exact)
            distance = F.conv2d(images, -2 * kernel.unflatten(1, (-1, patch, patch)))  # [train, u, row, col]
            distance += F.conv2d(images.square(), ones) + kernel.square().sum(1)[:, None, None]
            distance = distance.flatten(2).clamp_min_(0)
            best = distance.amin((0, 2))  # [u]
            offset = best / temperature
            logits = ((best[:, None] - distance) / temperature).to(query.dtype).clamp_min_(floor)  # [train, u, v]
            sums[rows] = logits.logsumexp(2).to(exact) - offset
            top = logits.topk(keep, dim=2, sorted=False).values if keep < positions else logits
            tops[rows] = top.logsumexp(2).to(exact) - offset
        total += (tops - sums.logsumexp(0)).exp().sum(1)
    return total.to(query.dtype)
