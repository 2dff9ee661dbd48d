"""The paper: nonparametric data attribution. Patch posteriors averaged over timesteps; no model, no gradients."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from nda.checks import InputError
from nda.patches import patch_scores


def nda_scores(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    *,
    patches: Mapping[int, int],
    top_k: int | None = 100,
    borders: str = "match",
    noise_seed: int = 0,
    engine: str = "auto",
) -> Float[Tensor, "query train"]:
    """Single-scale NDA scores: `patch_scores` averaged over the timesteps in `patches`.

    patches: `{timestep: window side in pixels}`; the best window grows with the noise. The other arguments, units and errors are those of
    `nda.patches.patch_scores`. Source: NDA, Eq. 11-12 (the average over timesteps), 15 (top-k).
    """
    if not patches:
        raise InputError("patches must map at least one timestep to a window, for example {100: 5}")
    total = torch.zeros(len(queries), len(train), dtype=train.dtype, device=train.device)
    for timestep, patch in tqdm(patches.items(), desc="NDA", unit="timestep", leave=False):
        total += patch_scores(
            queries, train, timestep=timestep, patch=patch, top_k=top_k, borders=borders, noise_seed=noise_seed, engine=engine
        )
    return total / len(patches)
