"""Posterior masses in log space: what engines return, and how the results of blocks of train images
become one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nda.errors import InputError


@dataclass(frozen=True)
class Posterior:
    """The posterior of every query patch over the patches of a block of train images.

    With l = -d²/2σ² the logit of a train patch, `log_total` is the log-sum-exp of all logits of the
    block and `log_share` that of an image's `top_k` largest ones, less `log_total`; an image below
    float precision may have -inf. Shares of a block are relative to the block: `merge` blocks
    before reading them as masses. `images` are the train images' numbers, in the order of the last
    axis.
    """

    images: Int[Tensor, "train"]
    log_total: Float[Tensor, "query position"]
    log_share: Float[Tensor, "query position train"]

    @property
    def masses(self) -> Float[Tensor, "query position train"]:
        """Posterior mass of each image's patches at each position; with `top_k=None` they sum to 1
        over the images."""
        return self.log_share.exp()

    def scores(self) -> Float[Tensor, "query train"]:
        """Masses summed over the query's positions.

        Returns:
            Scores.
        """
        return self.masses.sum(1)

    def within(self, log_total: Float[Tensor, "query position"]) -> "Posterior":
        """The same images as a part of more.

        Args:
            log_total: of all images, these too.

        Returns:
            Shares of that.
        """
        shift = (self.log_total - log_total)[:, :, None].to(self.log_share)
        return replace(self, log_total=log_total, log_share=self.log_share + shift)


def merge(parts: Sequence[Posterior]) -> Posterior:
    """One posterior from those of disjoint blocks of train images, the same as computing all at
    once, to rounding.

    Args:
        parts: in any order.

    Returns:
        Their images in the order of their numbers.

    Raises:
        InputError: if an image is in two blocks or the blocks are of other queries.
    """
    if not parts:
        raise InputError("merge needs at least one posterior")
    images = torch.cat([part.images for part in parts])
    values, counts = images.unique(return_counts=True)
    if (counts > 1).any():
        raise InputError(
            f"train image {values[counts > 1][0].item()} is in more than one part; merge each block"
            " of train images once"
        )
    if len({tuple(part.log_total.shape) for part in parts}) > 1:
        raise InputError(
            "the parts are of different queries or windows; merge only parts of one run"
        )
    total = torch.stack([part.log_total for part in parts]).logsumexp(0)
    shares = [part.within(total).log_share for part in parts]
    order = images.argsort()
    return replace(
        parts[0], images=images[order], log_total=total, log_share=torch.cat(shares, 2)[:, :, order]
    )
