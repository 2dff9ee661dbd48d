"""NDA with one of its two ideas left out."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from nda.errors import InputError, check_same_shape
from nda.nonparametric.patches import shared_noise
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
    `timesteps` (0…999); a query's scores sum to 1.

    Same noise as `nda.nonparametric.patches.patch_scores` draws for (`noise_seed`, timestep).
    Raises InputError. Source: Kamb & Ganguli 2024, Eq. 3-5; NDA, Eq. 9-12 with Ω the image.
    """
    check_same_shape(queries, train)
    if not timesteps:
        raise InputError("timesteps must name at least one timestep in 0…999, for example [100]")
    exact = _exact(train)
    total = torch.zeros(len(queries), len(train), dtype=exact, device=train.device)
    for timestep in timesteps:
        noisy = signal(timestep) * queries.to(exact) + sigma(timestep) * shared_noise(
            queries, timestep, noise_seed
        ).to(exact)
        logits = []  # ‖x_t‖² is common to all train images and drops out
        for part in train.flatten(1).split(1000):
            clean = signal(timestep) * part.to(exact)
            logits.append(
                (noisy.flatten(1) @ clean.T - clean.square().sum(1) / 2) / sigma(timestep) ** 2
            )
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
    At most 0.

    Patches, positions and which may meet are those of `nda.nonparametric.patches.patch_scores` with
    `borders="match"`; a kind of window with fewer than `top_k` positions uses them all. patch: side
    in pixels, 1 … the image's side. With `top_k` 1 it is the limit for small noise of NDA's
    log-weights before they are normalised over the train set: no noise, no softmax, so images do
    not compete for a patch. (They would in a vote of the nearest patches, but plain background is
    the same in many images, and then only rounding and order would decide the vote.) block_bytes
    bounds memory and changes nothing else. Raises InputError. Asked for by reviewers of NDA; the
    definition is ours.
    """
    check_same_shape(queries, train)
    side = min(train.shape[2:])
    if isinstance(patch, bool) or not isinstance(patch, int) or not 1 <= patch <= side:
        raise InputError(
            f"patch must be an integer from 1 to the image's side {side}, not {patch!r}"
        )
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise InputError(f"top_k must be a positive integer, not {top_k!r}")
    exact, kinds = _exact(train), _kinds(train, patch)
    window_bytes = train.shape[1] * patch**2 * exact.itemsize
    per_block = max(1, block_bytes // (window_bytes * sum(map(len, kinds))))
    out = torch.zeros(len(queries), len(train), dtype=exact, device=train.device)
    blocks = zip(train.split(per_block), out.split(per_block, dim=1), strict=True)
    for images, scores in tqdm(list(blocks), "patch distances", unit="block", leave=False):
        windows = _windows(images.to(exact), patch)
        for kind in kinds:
            bank = windows[:, kind]  # [train, v, dim]
            rows = max(1, block_bytes // (bank.shape[0] * bank.shape[1] * exact.itemsize))
            for q in range(len(queries)):
                for own in _windows(queries[[q]].to(exact), patch)[0, kind].split(rows):
                    scores[q] -= _nearest(own, bank, top_k)
    return out.to(train)


def _exact(images: Tensor) -> torch.dtype:
    """Squared distances are differences of large numbers; MPS has no float64."""
    return torch.float32 if images.device.type == "mps" else torch.float64


def _windows(
    images: Float[Tensor, "image chan row col"], patch: int
) -> Float[Tensor, "image position dim"]:
    """All windows, 0 outside the image; they start (patch-1)//2 pixels before their position."""
    return F.unfold(F.pad(images, [(patch - 1) // 2] * 4), patch).mT


def _kinds(images: Tensor, patch: int) -> list[Tensor]:
    """Positions grouped by which pixels of their windows are outside the image."""
    outside = F.pad(torch.zeros_like(images[:1, :1]), [(patch - 1) // 2] * 4, value=1.0)
    kind = F.unfold(outside, patch)[0].unique(dim=1, return_inverse=True)[1]
    return [torch.nonzero(kind == k)[:, 0] for k in range(int(kind.max()) + 1)]


def _nearest(
    own: Float[Tensor, "u dim"], bank: Float[Tensor, "train v dim"], top_k: int
) -> Float[Tensor, "train"]:
    """Mean squared distance to the nearest windows of every train image, summed over u."""
    flat = bank.flatten(0, 1)
    distance = torch.addmm(flat.square().sum(1), own, flat.T, alpha=-2).unflatten(
        1, bank.shape[:2]
    )  # less ‖own‖², [u, train, v]
    best = distance.topk(min(top_k, bank.shape[1]), dim=2, largest=False, sorted=False).values.mean(
        2
    )
    return (best + own.square().sum(1)[:, None]).clamp_min(0).sum(0)
