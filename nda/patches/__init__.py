"""Patch posteriors: how much of a noisy query's patches would come from each training image."""

import logging
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from nda import rng
from nda.checks import InputError, check_same_shape, check_timestep
from nda.patches import conv, naive
from nda.schedule import sigma, signal

ENGINES: dict[str, Callable[..., Tensor]] = {"naive": naive.scores, "conv": conv.scores}
log = logging.getLogger(__name__)


def shared_noise(queries: Float[Tensor, "query chan row col"], timestep: int, noise_seed: int) -> Float[Tensor, "chan row col"]:
    """The one noise image that all queries share at a timestep (methods of the released code; its values are our own draw)."""
    return torch.randn(queries.shape[1:], generator=rng.generator("patch noise", noise_seed, timestep)).to(queries)


def patch_scores(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    *,
    timestep: int,
    patch: int,
    top_k: int | None = 100,
    borders: str = "match",
    noise: Float[Tensor, "chan row col"] | None = None,
    noise_seed: int = 0,
    engine: str = "auto",
) -> Float[Tensor, "query train"]:
    """NDA at one timestep and one scale: the posterior mass of every train image's patches, summed over the query's patches.

    Each patch of x_t = √ᾱ_t x + √(1-ᾱ_t) ε is compared with all patches of all train images; their weights are a softmax of
    -‖x_t - √ᾱ_t y‖² / (2 (1-ᾱ_t)). An image's share of a query patch is the sum of its `top_k` largest weights (None: all), its score the
    sum over query patches, between 0 and their number: row·col for an odd `patch`, (row-1)(col-1) for an even one.

    queries, train: pixels in [-1, 1], one dtype and device; the scores are in it too. timestep: 0…999. patch: side of the window in
    pixels, 1 … the image's side; it starts (patch-1)//2 pixels before its position. borders: `"match"`, a window meets only windows with
    the same pixels outside the image, or `"zero"`, what is outside is 0 and all windows meet. noise: the ε that all queries share;
    default: drawn by (`noise_seed`, timestep). engine: `"conv"`, `"naive"` (the definition, slow), or `"auto"`. Raises InputError.
    Source: NDA, Eq. 10-12 and 15; the border rule is that of the released code.
    """
    check_same_shape(queries, train)
    check_timestep(timestep)
    side = min(train.shape[2:])
    if isinstance(patch, bool) or not isinstance(patch, int) or not 1 <= patch <= side:
        raise InputError(f"patch must be an integer from 1 to the image's side {side}, not {patch!r}")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise InputError(f"top_k must be a positive integer or None for all, not {top_k!r}")
    if borders not in ("match", "zero"):
        raise InputError(f"borders must be 'match' or 'zero', not {borders!r}")
    if engine != "auto" and engine not in ENGINES:
        raise InputError(f"engine must be 'auto' or one of {', '.join(ENGINES)}, not {engine!r}")
    noise = shared_noise(queries, timestep, noise_seed) if noise is None else torch.as_tensor(noise).to(queries)
    if noise.shape != queries.shape[1:] or not torch.isfinite(noise).all():
        raise InputError(f"noise must be one finite image of shape {tuple(queries.shape[1:])}, not {tuple(noise.shape)}")
    name = "conv" if engine == "auto" else engine
    log.info("patch_scores: engine %s, %d queries, %d train images, timestep %d, patch %d", name, len(queries), len(train), timestep, patch)
    noisy = signal(timestep) * queries + sigma(timestep) * noise
    scores = ENGINES[name](noisy, signal(timestep) * train, sigma=sigma(timestep), patch=patch, top_k=top_k, borders=borders)
    return scores.to(train)
