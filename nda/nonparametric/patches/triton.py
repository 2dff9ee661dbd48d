"""The engine for GPUs: box filters in Triton (`sweep.py`, which says how). Float32 in, float64
inside.

The distances of windows nearly cancel where it matters most, and an H100 adds float64 at half the
rate of float32. So the inner products of windows are running sums of float64, products of two
float32 pixels are exact in it, and there is one number format for all timesteps. The logits of one
query patch and one train image never leave the registers: their best one is subtracted, weights are
float32 from there on, and two numbers are written, the log-sums of all weights and of the `top_k`
largest. The largest are found by counting those above a threshold and bisecting.

One program, 4 warps, does 4 columns of query positions against all windows of one train image,
row after row. Its tile of 4 x 32 x 32 sums takes 64 of the 210 registers of a thread. Each train
pixel that it loads serves 4 products. Programs of one train image lie side by side, so that the
image (38 x 38 pixels, 3 channels, 35 kB in float64) comes from the first-level cache; the query and
what is written (16 bytes per query patch and train image) are nothing beside it. Blocks of queries,
images and columns do not change a result, since every pair of a query patch and a train image is
computed by itself.

**Cost.** Images of 32 x 32 pixels, three channels, window 7, borders "match", `top_k` 100; one
query and one train image, interior windows (26 x 26 positions, 457,000 pairs; the tile of
powers of two has 745,000). Worked out for an H100 (132 multiprocessors, 1.75 GHz):

- Arithmetic: 2 x 7 x 3 products per pair of the tile, 31 million fused multiply-adds in float64,
  64 per clock and multiprocessor: 2.1 µs.
- First-level cache: 8 bytes per 4 products, and the query's pixels, 83 MB; 128 bytes per clock and
  multiprocessor: 2.8 µs.
- HBM: 35 kB for the image at the very worst, and 16 kB written: 0.02 µs. The engine `box` moves
  160 MB, 50 µs.
- Instructions, counted in the machine code: per row and warp 2,800 for the sums, some 1,700 for
  logits, weights and reductions, and 260 for each of perhaps six rounds of bisection. With 728 rows
  of warps that is 4.6 million; 528 schedulers start 0.92 x 10¹² per second: 5 µs.

So 5 to 10 µs were expected. **Measured** on an H200, which has the same multiprocessors
(`benchmarks/gpu.py`; page 14 of the book has the numbers): 14 µs with 20 queries at a time, 19 with
one, 12 to 20 times as fast as `box`. The paper's table (2,000 x 5,000 images, five timesteps, two
scales) takes 21 minutes, from one percent of it. By Nsight Compute nothing is at its limit:
schedulers start an instruction in 27 % of their cycles, the first-level cache is at 48 %, and more
than a third of all stalled samples wait for it. The tile leaves room for 8 warps in a
multiprocessor, too few to hide that. Without the sums 4.9 of 13.9 µs are left, without the search
for the largest 12.1. Unrolling, loads ahead of their use, rows of zeros in place of masks, fewer
registers and other numbers of warps gained 5 % at best; twice the columns in as many warps saves
10 % and spills, so it was left. A card with few float64 units, such as a GeForce, is bound by them,
and should take some 50 µs.
"""

import math
from importlib.util import find_spec
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from nda.nonparametric.patches.memory import within_memory
from nda.nonparametric.patches.posterior import Posterior
from nda.nonparametric.patches.windows import Windows

IMAGES = 2048  # train images that are prepared at a time
LARGEST = 64  # pixels along a side, so that all windows fit into registers


def refusal(images: Tensor) -> str | None:
    """Why this engine does not take some images.

    Args:
        images: of which shape, dtype and device matter.

    Returns:
        One sentence, or None if it takes them.
    """
    if find_spec("triton") is None:
        return (
            "engine 'triton' needs the package triton, which comes with torch on Linux and is not"
            " installed here; choose 'box' or 'auto'"
        )
    from nda.nonparametric.patches.sweep import interpreted, trouble

    if images.device.type != "cuda" and not interpreted():
        return (
            f"engine 'triton' runs on a GPU but the images are on {images.device}; choose 'fused'"
            " or 'auto', or set TRITON_INTERPRET=1 before Python starts, which is slow"
        )
    if images.dtype != torch.float32:
        return f"engine 'triton' takes float32 images, not {images.dtype}; choose 'box' or 'auto'"
    if max(images.shape[2:]) > LARGEST:
        return (
            f"engine 'triton' takes images of up to {LARGEST} x {LARGEST} pixels, not"
            f" {images.shape[2]} x {images.shape[3]}; choose 'box' or 'auto'"
        )
    return trouble()


def posterior(
    noisy: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    *,
    sigma: float,
    windows: Windows,
    top_k: int | None,
    rows: range,
) -> Posterior:
    """See `nda.nonparametric.patches.naive.posterior`.

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
    scale = 1 / (2 * sigma**2 * math.log(2))  # logits in bits

    def run(images: int) -> tuple[Tensor, Tensor]:
        return _log_sums(noisy, train, scale, windows, top_k, rows, images)

    every, top = within_memory(run, min(IMAGES, len(train)))
    best = every.amax(2, keepdim=True)
    total = every.sub_(best).exp2_().sum(2).log2_().add_(best[:, :, 0])
    share = top.sub_(total[:, :, None]).mul_(math.log(2)).to(noisy)
    energy = windows.energy(noisy).unflatten(1, windows.grid)[:, rows.start : rows.stop]
    total -= energy.flatten(1).mul_(scale)
    return Posterior(torch.arange(len(train), device=train.device), total * math.log(2), share)


def _log_sums(
    noisy: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    scale: float,
    windows: Windows,
    top_k: int | None,
    rows: range,
    images: int,
) -> tuple[Float[Tensor, "query position train"], Float[Tensor, "query position train"]]:
    # Of all weights of an image and of the `top_k` largest, in bits, less what depends on the query
    # alone; `images` at a time.
    from nda.nonparametric.patches.sweep import sweep

    x = windows.prepare(noisy.double()).mul_(2 * scale).contiguous()
    every = x.new_empty(len(noisy), len(rows), windows.grid[1], len(train))
    top = torch.empty_like(every)
    for start in range(0, len(train), images):
        part = train[start : start + images]
        y, energy = windows.prepare(part.double()).contiguous(), windows.energy(part).mul_(scale)
        outputs = every[..., start:], top[..., start:]
        for group in product(*windows.groups()):
            sweep(x, y, energy, *outputs, group=group, windows=windows, top_k=top_k, rows=rows)
    return every.flatten(1, 2), top.flatten(1, 2)
