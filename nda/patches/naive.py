"""The definition of the patch posterior, in loops and float64: slow, obvious, and what every engine is tested against."""

import torch
from jaxtyping import Float
from torch import Tensor


def scores(
    noisy: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    *,
    sigma: float,
    patch: int,
    top_k: int | None,
    borders: str,
) -> Float[Tensor, "query train"]:
    """See `nda.patches.patch_scores`; `noisy` is x_t and `train` is √ᾱ_t y."""
    height, width = train.shape[2:]
    before = (patch - 1) // 2  # pixels of the window before its position
    rows, cols = [range(side if patch % 2 else side - 1) for side in (height, width)]
    positions = [(i, j) for i in rows for j in cols]
    # 0 outside the image; a second tensor says what is outside.
    pad = [before, patch - 1 - before] * 2
    queries, bank = [torch.nn.functional.pad(images.double().cpu(), pad) for images in (noisy, train)]
    outside = torch.nn.functional.pad(torch.zeros(height, width), pad, value=1.0).bool()
    out = torch.zeros(len(queries), len(bank), dtype=torch.float64)
    for q, query in enumerate(queries):
        for i, j in positions:
            logits = torch.full((len(bank), len(positions)), -torch.inf, dtype=torch.float64)
            for n, image in enumerate(bank):
                for v, (k, m) in enumerate(positions):
                    here, there = (slice(i, i + patch), slice(j, j + patch)), (slice(k, k + patch), slice(m, m + patch))
                    if borders == "match" and not torch.equal(outside[here], outside[there]):
                        continue
                    distance = (query[:, *here] - image[:, *there]).square().sum()
                    logits[n, v] = -distance / (2 * sigma**2)
            posterior = logits.flatten().softmax(0).reshape(logits.shape)  # over all patches of all images
            kept = posterior.topk(min(top_k or len(positions), len(positions)), dim=1).values
            out[q] += kept.sum(1)
    return out
