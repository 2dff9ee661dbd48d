"""The paper's acceleration: ‖x - y‖² = ‖x‖² + ‖y‖² - 2⟨x, y⟩, with the last term a convolution whose kernels are the query's patches.

The three terms nearly cancel for the patches that matter, so they are added in float64 (float32 on MPS, which has no float64); logits,
relative to the best one, then fit the input's dtype. The posterior is never stored: per query patch u and train image n only T(u, n), the
log-sum-exp of the `top_k` largest logits, and Z(u), that of all logits, are kept; the mass of image n is exp(T - Z).
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

BLOCK_BYTES = 40 * 2**20  # one block of distances; at most five arrays of its size live at a time, so ≤ 200 MB beyond inputs and outputs


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
    pad = [(patch - 1) // 2] * 4  # an even window reaches one pixel further on its far side, so its grid is one smaller
    for rows in _alike(noisy.shape[2], patch, borders):
        for cols in _alike(noisy.shape[3], patch, borders):
            # Windows at these positions stick out of the image alike. They meet each other and no others: the mask on the logits
            # is never built, since what it would remove is never computed.
            bank = F.pad(train, pad)[:, :, rows, cols]
            for q, query in enumerate(F.pad(noisy, pad)[:, :, rows, cols]):
                out[q] += _mass(query, bank, 2 * sigma**2, patch, top_k, block_bytes)
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


def _mass(query: Tensor, bank: Tensor, temperature: float, patch: int, top_k: int | None, block_bytes: int) -> Float[Tensor, "train"]:
    """Posterior mass of every image of `bank`, summed over the patches of `query`: all windows inside both are compared."""
    exact = torch.float32 if bank.device.type == "mps" else torch.float64
    kernels = F.unfold(query[None].to(exact), patch)[0].T  # [u, chan*patch*patch]
    positions = len(kernels)
    pairs = max(1, block_bytes // (positions * exact.itemsize))  # (query patch, train image) pairs in a block
    per_image = max(1, min(len(bank), int(pairs**0.5)))
    ones = torch.ones(1, bank.shape[1], patch, patch, dtype=exact, device=bank.device)
    total = torch.zeros(len(bank), dtype=exact, device=bank.device)
    for kernel in kernels.split(max(1, pairs // per_image)):
        tops, sums = [], []
        for images in bank.split(per_image):
            images = images.to(exact)
            distance = F.conv2d(images, -2 * kernel.unflatten(1, (-1, patch, patch)))  # [train, u, row, col]
            distance += F.conv2d(images.square(), ones) + kernel.square().sum(1)[:, None, None]
            distance = distance.flatten(2).clamp_min_(0)
            best = distance.amin((0, 2))  # [u]
            logits = ((best[:, None] - distance) / temperature).to(query.dtype)  # [train, u, v]
            offset = best / temperature
            sums.append(logits.logsumexp(2).to(exact) - offset)
            kept = (
                logits.topk(top_k, dim=2, sorted=False).values.logsumexp(2).to(exact) - offset if top_k and top_k < positions else sums[-1]
            )
            tops.append(kept)
        z = torch.cat(sums).logsumexp(0)  # [u]
        total += (torch.cat(tops) - z).exp().sum(1)
    return total.to(query.dtype)
