"""Attribution by likeness: the random null and raw pixels."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nda import rng
from nda.checks import InputError, check_same_shape


def random_scores(
    queries: Float[Tensor, "query chan row col"], train: Float[Tensor, "train chan row col"], *, seed: int = 0
) -> Float[Tensor, "query train"]:
    """The null: standard normal scores. Whatever a method scores has to be seen against it."""
    return torch.randn(len(queries), len(train), generator=rng.generator("random scores", seed)).to(train)


def pixel_scores(
    queries: Float[Tensor, "query chan row col"], train: Float[Tensor, "train chan row col"], *, kind: str = "dot"
) -> Float[Tensor, "query train"]:
    """Inner product of raw pixels in [-1, 1], not centred (`"dot"`), or of pixels scaled to unit norm (`"cosine"`). Source: D-TRAK,
    App. C."""
    check_same_shape(queries, train)
    if kind not in ("dot", "cosine"):
        raise InputError(f"kind must be 'dot' or 'cosine', not {kind!r}")
    a, b = queries.flatten(1), train.flatten(1)
    if kind == "cosine":
        a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    return a @ b.T
