"""Finding images again without shipping them."""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nda import rng
from nda.data import images
from nda.errors import InputError
from nda.store import Store


class MissingImages(InputError):
    """The data set is not on this machine; a page may go on without its pictures."""


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


def find_train(results: Store, store: Store) -> Float[Tensor, "train chan row col"]:
    """The train images of a profile, from its working store or found again in their data set.
    Nothing is downloaded.

    Args:
        results: the results store of the profile, with `fingerprints`.
        store: the working store; it may be empty, or of other images.

    Returns:
        The images, in [-1, 1].

    Raises:
        MissingImages: if the data set is not on this machine.
    """
    drawn = results.used_as("results").info("fingerprints")["parameters"]["train"]
    if store.used_as("working").matches("train", drawn, {}):
        return store.load("train", "image chan row col")
    name, size = drawn["dataset"], drawn["size"]
    if not images.at_hand(name):
        where = "NDA_DATA to CIFAR-10's images" if name in images.NAMES else "dataset to its folder"
        raise MissingImages(
            f"the train images are not shown: {Path(name).name} is not on this machine; point"
            f" {where}"
        )
    pool = images.load(name, split="train", size=size).pixels
    return pool[locate(pool, results.load("fingerprints")["train"])]
