"""Which training images a model sees: stratified choices, and keep-masks for the LDS."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from nda import rng
from nda.errors import InputError, check_choice

FAMILIES = ("select", "report")  # those that choose, those that are reported


def stratified(labels: Int[Tensor, "image"], count: int, *names: str | int) -> Int[Tensor, "count"]:
    """Sorted indices of `count` images in which every class has its share, drawn by the random
    names.

    Shares are rounded down and what is left over goes to classes drawn at random among those that
    were rounded, so that the count is exact.

    Args:
        labels: class of every image.
        count: how many to draw.
        names: of the randomness, see `nda.rng`.

    Returns:
        The indices.

    Raises:
        InputError: if there are fewer images than asked for.
    """
    if not 0 < count <= len(labels):
        raise InputError(
            f"{count} images were asked for but the data set has {len(labels)}; choose a smaller"
            " number"
        )
    source = rng.generator(*names)
    classes, sizes = labels.unique(return_counts=True)
    shares = sizes * count // len(labels)
    for extra in torch.randperm(len(classes), generator=source).tolist():
        if sizes[extra] * count % len(labels):
            shares[extra] += min(1, count - int(shares.sum()))
    chosen = []
    for name, share in zip(classes, shares.tolist(), strict=True):
        members = (labels == name).nonzero()[:, 0]
        chosen.append(members[torch.randperm(len(members), generator=source)[:share]])
    return torch.cat(chosen).sort().values


def keep_masks(
    labels: Int[Tensor, "train"], n_subsets: int, *, family: str, keep_fraction: float = 0.5
) -> Bool[Tensor, "subset train"]:
    """Stratified random subsets, all of one size, True = kept (D-TRAK's protocol).

    Args:
        labels: class of every train image.
        n_subsets: how many; subset m is the same whatever this is.
        family: `"report"` subsets give the numbers that are reported, `"select"` subsets serve
            every choice of a setting; they are drawn apart, and sharing a mask is as unlikely as
            repeating one.
        keep_fraction: share of the train images in a subset.

    Returns:
        The masks.

    Raises:
        InputError: if a subset would be empty or masks would repeat.
    """
    check_choice("family", family, FAMILIES)
    if n_subsets < 1:
        raise InputError(f"n_subsets must be at least 1, not {n_subsets}")
    count = round(keep_fraction * len(labels)) if 0 < keep_fraction < 1 else 0
    if not 0 < count < len(labels):
        raise InputError(
            f"keep_fraction {keep_fraction} of {len(labels)} train images leaves {count} or drops"
            " none; choose another"
        )
    masks = torch.zeros(n_subsets, len(labels), dtype=torch.bool)
    for subset, mask in enumerate(masks):
        mask[stratified(labels, count, "subset", family, subset)] = True
    if len(masks.unique(dim=0)) < n_subsets:
        raise InputError(
            f"{len(labels)} train images are too few for {n_subsets} different subsets; use more"
            " images"
        )
    return masks
