"""The paper: nonparametric data attribution. Patch posteriors averaged over timesteps and scales;
no model, no gradients."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from nda.nonparametric.config import NDAConfig
from nda.nonparametric.patches import patch_scores


def nda_scores(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    config: NDAConfig,
    *,
    engine: str = "auto",
) -> Float[Tensor, "query train"]:
    """NDA scores: posterior masses of each train image's patches, averaged over positions, scales,
    noise draws and timesteps.

    Errors are those of `nda.nonparametric.patches.patch_posterior`. Source: NDA, Eq. 11-15.

    Args:
        queries: pixels in [-1, 1].
        train: pixels in [-1, 1], of the queries' dtype and device.
        config: all choices of the method.
        engine: as of `nda.nonparametric.patches.patch_posterior`.

    Returns:
        With `per_position` scores between 0 and 1; those of a query sum to 1 if `top_k` is None.
    """
    bank = torch.cat([train, train.flip(-1)]) if config.flips else train
    total = torch.zeros(len(queries), len(train), dtype=train.dtype, device=train.device)
    for term in tqdm(list(config.terms()), desc="NDA", unit="posterior", leave=False):
        scores = patch_scores(queries, bank, engine=engine, **config.options(queries, term))
        total += config.weight(term, train.shape) * sum(scores.split(len(train), dim=1))
    return total


def configured_scores(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    **settings: Any,
) -> Float[Tensor, "query train"]:
    """`nda_scores`, with the fields of the configuration as plain values.

    Args:
        queries: pixels in [-1, 1].
        train: pixels in [-1, 1].
        settings: of `NDAConfig.parse`.

    Returns:
        The scores.
    """
    return nda_scores(queries, train, NDAConfig.parse(settings))
