"""The definition of the patch posterior, in loops and float64: slow, obvious, and what every engine
is tested against."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nda.nonparametric.patches.posterior import Posterior
from nda.nonparametric.patches.windows import Windows


def posterior(
    noisy: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    *,
    sigma: float,
    windows: Windows,
    top_k: int | None,
    rows: range,
) -> Posterior:
    """See `nda.nonparametric.patches.patch_posterior`.

    Args:
        noisy: x_t.
        train: √ᾱ_t y.
        sigma: standard deviation of the noise, times the root of the temperature.
        windows: of these images.
        top_k: largest weights kept per train image; None: all.
        rows: rows of the query's positions to look at.

    Returns:
        The posterior of the positions in `rows`.
    """
    patch, before = windows.patch, windows.before
    positions = [(i, j) for i in range(windows.grid[0]) for j in range(windows.grid[1])]
    # 0 outside the image; a second tensor says what is outside.
    pad = [before, patch - 1 - before] * 2
    queries, bank = [F.pad(images.double().cpu(), pad) for images in (noisy, train)]
    outside = F.pad(torch.zeros(train.shape[2:]), pad, value=1.0).bool()

    def pixels(image: Tensor, i: int, j: int) -> Tensor:
        window = image[:, i : i + patch, j : j + patch]
        return 2 * F.avg_pool2d(window, 2) if windows.coarse else window

    def meet(i: int, j: int, k: int, m: int) -> bool:
        same = torch.equal(
            outside[i : i + patch, j : j + patch], outside[k : k + patch, m : m + patch]
        )
        return same or windows.borders == "zero"

    total, share = [], []
    for query in queries:
        for i, j in [position for position in positions if position[0] in rows]:
            logits = torch.full((len(bank), len(positions)), -torch.inf, dtype=torch.float64)
            for n, image in enumerate(bank):
                for v, (k, m) in enumerate(positions):
                    if meet(i, j, k, m):
                        logits[n, v] = -(
                            pixels(query, i, j) - pixels(image, k, m)
                        ).square().sum() / (2 * sigma**2)
            total.append(logits.flatten().logsumexp(0))  # over all patches of all images
            kept = logits.topk(min(top_k or len(positions), len(positions)), dim=1).values
            share.append(kept.logsumexp(1) - total[-1])
    shape = (len(queries), -1)
    return Posterior(
        torch.arange(len(bank)),
        torch.stack(total).unflatten(0, shape),
        torch.stack(share).unflatten(0, shape),
    )
