"""Finding images again without shipping them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nda import rng
from nda.errors import InputError


def fingerprints(pixels: Float[Tensor, "image chan row col"]) -> Float[Tensor, "image 32"]:
    """32 random projections of every image, the same on every machine: enough to find an image
    again, too few to see it.

    Args:
        pixels: the images.

    Returns:
        The projections.
    """
    flat = pixels.flatten(1).double()
    source = rng.generator("fingerprints", flat.shape[1])
    directions = torch.randn(flat.shape[1], 32, generator=source, dtype=torch.float64)
    return (flat @ directions / flat.shape[1] ** 0.5).float().to(pixels.device)


def locate(
    pixels: Float[Tensor, "image chan row col"], prints: Float[Tensor, "wanted 32"]
) -> Int[Tensor, "wanted"]:
    """Positions in `pixels` of the images with these fingerprints, though stored with small errors,
    such as those of JPEG.

    Args:
        pixels: the images to look through.
        prints: fingerprints of the wanted ones.

    Returns:
        A position for each fingerprint.

    Raises:
        InputError: if an image is not there: nothing in `pixels` is nearer to it than a quarter of
            the usual distance of two images.
    """
    distances = torch.cdist(prints.double(), fingerprints(pixels).double())
    nearest, found = distances.min(1)
    missing = (nearest > distances.median() / 4).nonzero()[:, 0].tolist()
    if missing:
        raise InputError(
            f"{len(missing)} of {len(prints)} images are not among the pixels, number {missing[0]}"
            " first; load the same data set"
        )
    return found
