"""Patch posteriors: how much of a noisy query's patches would come from each training image."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nda import rng
from nda.checks import check_same_shape
from nda.errors import InputError, check_timestep
from nda.nonparametric.patches import fused, naive, tensor, triton
from nda.nonparametric.patches.memory import within_memory
from nda.nonparametric.patches.posterior import Posterior, merge
from nda.nonparametric.patches.windows import Windows
from nda.schedule import sigma, signal

__all__ = [
    "ENGINES",
    "Posterior",
    "Windows",
    "merge",
    "noised",
    "patch_posterior",
    "patch_scores",
    "shared_noise",
]
ENGINES: dict[str, Callable[..., Posterior]] = {
    "naive": naive.posterior,
    "conv": partial(tensor.posterior, distances=tensor.conv),
    "box": partial(tensor.posterior, distances=tensor.box),
    "fused": fused.posterior,
    "triton": triton.posterior,
}
# of one array over (query, position, train image), when only scores are asked for
SHARE_BYTES = 40 * 2**20
log = logging.getLogger(__name__)


def shared_noise(
    queries: Float[Tensor, "query chan row col"], timestep: int, noise_seed: int, draw: int = 0
) -> Float[Tensor, "chan row col"]:
    """The noise image that all queries share at a timestep (as in the released code; its values are
    our own draw).

    Args:
        queries: the images, of which only shape, dtype and device matter.
        timestep: part of the noise's name.
        noise_seed: part of the noise's name.
        draw: number of the noise image at this timestep and seed.

    Returns:
        Standard normal noise.
    """
    later = [draw] if draw else []
    return torch.randn(
        queries.shape[1:], generator=rng.generator("patch noise", noise_seed, timestep, *later)
    ).to(queries)


def noised(
    queries: Float[Tensor, "query chan row col"],
    timestep: int,
    noise: Float[Tensor, "chan row col"] | None,
) -> Float[Tensor, "query chan row col"]:
    """x_t = √ᾱ_t x + √(1-ᾱ_t) ε, with one ε for all queries.

    Args:
        queries: clean images in [-1, 1].
        timestep: 0…999.
        noise: ε; None: no noise, x_t = √ᾱ_t x.

    Returns:
        x_t.

    Raises:
        InputError: if `noise` is not a finite image of the queries' shape.
    """
    if noise is None:
        return signal(timestep) * queries
    noise = torch.as_tensor(noise).to(queries)
    if noise.shape != queries.shape[1:] or not torch.isfinite(noise).all():
        raise InputError(
            f"noise must be one finite image of shape {tuple(queries.shape[1:])}, not"
            f" {tuple(noise.shape)}"
        )
    return signal(timestep) * queries + sigma(timestep) * noise


def patch_posterior(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    *,
    timestep: int,
    patch: int,
    coarse: bool = False,
    top_k: int | None = 100,
    borders: str = "match",
    noise: Float[Tensor, "chan row col"] | None = None,
    temperature: float = 1.0,
    engine: str = "auto",
    rows: range | None = None,
) -> Posterior:
    """The posterior of every patch of the queries over the patches of all train images, at one
    timestep and one scale.

    Each patch of x_t = √ᾱ_t x + √(1-ᾱ_t) ε is compared with all patches of all train images; their
    weights are a softmax of -‖x_t - √ᾱ_t y‖² / (2 (1-ᾱ_t)). An image's share of a query patch is
    the sum of its `top_k` largest weights. Source: NDA, Eq. 10-12 and 15; the border rule, the
    pooling weights and the grid of even windows are those of the released code.

    Args:
        queries: pixels in [-1, 1].
        train: pixels in [-1, 1], of the queries' dtype and device.
        timestep: 0…999.
        patch: side of the window in pixels, 1 … the image's side; it starts (patch-1)//2 pixels
            before its position, and positions are pixels, less the last row and column if `patch`
            is even.
        coarse: compare windows (of even side) after pooling blocks of 2 x 2 pixels to half their
            sum, which keeps the noise at unit variance.
        top_k: how many weights of a train image count; None: all.
        borders: `"match"`, a window meets only windows with the same pixels outside the image, or
            `"zero"`, what is outside is 0 and all windows meet.
        noise: the ε that all queries share; None: no noise, x_t = √ᾱ_t x.
        temperature: factor on the variance 1-ᾱ_t in the softmax.
        engine: `"fused"` (C++, CPU), `"triton"` (CUDA, float32), `"box"` (torch, any device),
            `"conv"` (the paper's convolution), `"naive"` (the definition, slow) or `"auto"`: fused
            on the CPU if there is a compiler, else conv; triton on CUDA if it is installed and
            takes the images, else box. All give the same numbers.
        rows: only these rows of positions of the queries.

    Returns:
        The posterior; it takes query · position · train numbers of memory.

    Raises:
        InputError: for images or settings that cannot be used.
    """
    check_same_shape(queries, train)
    check_timestep(timestep)
    windows = Windows(train.shape[2], train.shape[3], patch, coarse, borders)
    check_posterior(top_k, temperature)
    run, rows = ENGINES[_pick(engine, queries)], range(windows.grid[0]) if rows is None else rows
    if rows.step != 1 or not 0 <= rows.start < rows.stop <= windows.grid[0]:
        raise InputError(f"rows must be a range of step 1 within 0…{windows.grid[0]}, not {rows}")
    return run(
        noised(queries, timestep, noise),
        signal(timestep) * train,
        sigma=sigma(timestep) * temperature**0.5,
        windows=windows,
        top_k=top_k,
        rows=rows,
    )


def patch_scores(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    *,
    timestep: int,
    patch: int,
    coarse: bool = False,
    borders: str = "match",
    noise: Float[Tensor, "chan row col"] | None = None,
    engine: str = "auto",
    **options: Any,
) -> Float[Tensor, "query train"]:
    """NDA at one timestep and one scale: `patch_posterior`'s masses summed over the positions of
    each query.

    Memory beyond the result is bounded, whatever the number of queries and train images. Errors and
    source are those of `patch_posterior`.

    Args:
        queries: as in `patch_posterior`, like all that follow.
        train: the images that scores are of.
        timestep: 0…999.
        patch: side of the window in pixels.
        coarse: whether windows are compared at half the resolution.
        borders: `"match"` or `"zero"`.
        noise: the ε that all queries share.
        engine: its name, or `"auto"`.
        options: `top_k` and `temperature`.

    Returns:
        Scores between 0 and the number of positions.
    """
    check_same_shape(queries, train)
    windows = Windows(train.shape[2], train.shape[3], patch, coarse, borders)
    name = _pick(engine, queries)
    counts = f"{len(queries)} queries, {len(train)} train images"
    log.info("engine %s: %s, timestep %d, %s", name, counts, timestep, windows)
    options |= {"timestep": timestep, "patch": patch, "coarse": coarse, "borders": borders}
    options |= {"noise": noise, "engine": name}
    per_row = windows.grid[1] * len(train) * train.itemsize

    def run(share_bytes: int) -> Tensor:
        tall = max(1, min(windows.grid[0], share_bytes // per_row))
        together = max(1, share_bytes // (per_row * tall))
        out = torch.zeros(len(queries), len(train), dtype=train.dtype, device=train.device)
        for q in range(0, len(queries), together):
            for row in range(0, windows.grid[0], tall):
                rows = range(row, min(row + tall, windows.grid[0]))
                part = patch_posterior(queries[q : q + together], train, rows=rows, **options)
                out[q : q + together] += part.scores().to(out)
        return out

    return within_memory(run, SHARE_BYTES)


def check_posterior(top_k: object, temperature: object) -> None:
    """Check what a posterior is asked for.

    Args:
        top_k: a positive integer, or None for all.
        temperature: a positive number.

    Raises:
        InputError: for anything else.
    """
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise InputError(f"top_k must be a positive integer or None for all, not {top_k!r}")
    if not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
        raise InputError(f"temperature must be a positive number, not {temperature!r}")


def _pick(engine: str, queries: Tensor) -> str:
    if engine != "auto" and engine not in ENGINES:
        raise InputError(f"engine must be 'auto' or one of {', '.join(ENGINES)}, not {engine!r}")
    if engine == "fused" and queries.device.type != "cpu":
        raise InputError(
            f"engine 'fused' runs on the CPU but the images are on {queries.device}; choose 'box'"
            " or 'auto'"
        )
    if engine == "fused" and fused.compiled() is None:
        raise InputError(
            "engine 'fused' needs a C++ compiler and none was found; install g++ or clang++, set"
            " CXX, or choose engine 'conv'"
        )
    if engine == "triton" and (reason := triton.refusal(queries)):
        raise InputError(reason)
    if engine != "auto":
        return engine
    if queries.device.type == "cuda" and triton.refusal(queries) is None:
        return "triton"
    if queries.device.type != "cpu":
        return "box"
    return "conv" if fused.compiled() is None else "fused"
