"""NDA with one of its two ideas left out."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from nda.checks import check_same_shape
from nda.errors import InputError, check_positive
from nda.nonparametric.patches import Windows, noised, shared_noise
from nda.nonparametric.patches.windows import exact
from nda.schedule import sigma, signal

BLOCK_BYTES = 20 * 2**20  # of unfolded windows, and again of distances


def imagewise_scores(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    *,
    timesteps: Sequence[int],
    noise_seed: int = 0,
) -> Float[Tensor, "query train"]:
    """NDA without its locality: one window covers the whole image. The posterior of the optimal
    denoiser over the train images, softmax of -‖x_t - √ᾱ_t y‖² / (2 (1-ᾱ_t)), averaged over
    timesteps.

    Same noise as `nda.nonparametric.patches.patch_scores` draws for (`noise_seed`, timestep).
    Source: Kamb & Ganguli 2024, Eq. 3-5; NDA, Eq. 9-12 with Ω the image.

    Args:
        queries: pixels in [-1, 1].
        train: pixels in [-1, 1], of the queries' dtype and device.
        timesteps: each in 0…999.
        noise_seed: name of the noise.

    Returns:
        Scores; those of a query sum to 1.

    Raises:
        InputError: for images that do not match, or timesteps out of range or none.
    """
    check_same_shape(queries, train)
    if not timesteps:
        raise InputError("timesteps must name at least one timestep in 0…999, for example [100]")
    total = exact(train).new_zeros(len(queries), len(train))
    for timestep in timesteps:
        noise = shared_noise(queries, timestep, noise_seed)
        noisy = noised(exact(queries), timestep, noise).flatten(1)
        logits = []  # ‖x_t‖² is common to all train images and drops out
        for part in train.flatten(1).split(1000):
            clean = signal(timestep) * exact(part)
            logits.append((noisy @ clean.T - clean.square().sum(1) / 2) / sigma(timestep) ** 2)
        total += torch.cat(logits, 1).softmax(1)
    return (total / len(timesteps)).to(train)


def patch_distance_scores(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    *,
    patch: int,
    top_k: int = 1,
    block_bytes: int = BLOCK_BYTES,
) -> Float[Tensor, "query train"]:
    """NDA without its posterior: minus the squared distance, in clean pixels, of each query patch
    to its `top_k` nearest windows in the train image (their mean), summed over the query's patches.

    Patches, positions and which may meet are those of `nda.nonparametric.patches.patch_scores` with
    `borders="match"`. With `top_k` 1 it is the limit for small noise of NDA's log-weights before
    they are normalised over the train set: no noise, no softmax, so images do not compete for a
    patch. (They would in a vote of the nearest patches, but plain background is the same in many
    images, and then only rounding and order would decide the vote.) Asked for by reviewers of NDA;
    the definition is ours.

    Args:
        queries: pixels in [-1, 1].
        train: pixels in [-1, 1], of the queries' dtype and device.
        patch: side of a window in pixels, 1 … the image's side.
        top_k: windows that count; a kind of window with fewer positions uses them all.
        block_bytes: bounds memory and changes nothing else.

    Returns:
        Scores of at most 0.

    Raises:
        InputError: for images that do not match, or a setting out of range.
    """
    check_same_shape(queries, train)
    windows = Windows(train.shape[2], train.shape[3], patch)
    check_positive("top_k", top_k)
    numbers = windows.kinds().to(train.device)
    kinds = [(numbers == kind).nonzero()[:, 0] for kind in numbers.unique()]
    out = exact(train).new_zeros(len(queries), len(train))
    dim = train.shape[1] * patch**2
    per_block = max(1, block_bytes // (dim * windows.positions * out.itemsize))
    blocks = zip(train.split(per_block), out.split(per_block, dim=1), strict=True)
    for images, scores in tqdm(list(blocks), "patch distances", unit="block", leave=False):
        taken = windows.take(images)
        for kind in kinds:
            bank = taken[:, kind]  # [train, v, dim]
            rows = max(1, block_bytes // (bank.shape[0] * bank.shape[1] * out.itemsize))
            for q in range(len(queries)):
                for own in windows.take(queries[[q]])[0, kind].split(rows):
                    scores[q] -= _nearest(own, bank, top_k)
    return out.to(train)


def _nearest(
    own: Float[Tensor, "u dim"], bank: Float[Tensor, "train v dim"], top_k: int
) -> Float[Tensor, "train"]:
    """Mean squared distance to the nearest windows of every train image, summed over u."""
    flat = bank.flatten(0, 1)
    distance = torch.addmm(flat.square().sum(1), own, flat.T, alpha=-2)  # less ‖own‖²
    distance = distance.unflatten(1, bank.shape[:2])  # [u, train, v]
    few = min(top_k, bank.shape[1])
    best = distance.topk(few, dim=2, largest=False, sorted=False).values.mean(2)
    return (best + own.square().sum(1)[:, None]).clamp_min(0).sum(0)
