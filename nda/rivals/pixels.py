"""Attribution by raw pixels, and the random null."""

import torch
from jaxtyping import Float
from torch import Tensor

from nda import rng
from nda.checks import check_same_shape
from nda.errors import InputError
from nda.rivals.embeddings import embedding_scores


def random_scores(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    *,
    seed: int = 0,
) -> Float[Tensor, "query train"]:
    """The null: standard normal scores. Whatever a method scores has to be seen against it.

    Args:
        queries: of which only their number matters.
        train: of which only their number, dtype and device matter.
        seed: names the draw.

    Returns:
        The scores.
    """
    return torch.randn(len(queries), len(train), generator=rng.generator("random scores", seed)).to(
        train
    )


def pixel_scores(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    *,
    kind: str = "dot",
) -> Float[Tensor, "query train"]:
    """Inner product of raw pixels in [-1, 1], not centred, or of pixels scaled to unit norm.

    Source: D-TRAK, App. C.

    Args:
        queries: pixels in [-1, 1].
        train: pixels in [-1, 1].
        kind: `"dot"` or `"cosine"`.

    Returns:
        The scores.

    Raises:
        InputError: for images of different shapes, or another kind.
    """
    check_same_shape(queries, train)
    if kind not in ("dot", "cosine"):
        raise InputError(f"kind must be 'dot' or 'cosine', not {kind!r}")
    return embedding_scores(queries.flatten(1), train.flatten(1), normalise=kind == "cosine")
