"""Images as tensors: what a data set is, and how pictures of any size become square ones."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from nda.errors import InputError


@dataclass(frozen=True)
class Images:
    """A data set: pixels in [-1, 1], integer labels that count in `classes`, and the origin, where
    they came from. `skipped` are files that could not be read."""

    pixels: Float[Tensor, "image chan row col"]
    labels: Int[Tensor, "image"]
    classes: tuple[str, ...]
    origin: str
    skipped: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Of the pixels."""
        return hashlib.sha256(self.pixels.contiguous().numpy().tobytes()).hexdigest()

    def only(self, *classes: str) -> "Images":
        """The images of some classes.

        Args:
            classes: their names; labels count in the order given.

        Returns:
            Those images, in the order that they have here.

        Raises:
            InputError: if there is no such class.
        """
        if not set(classes) <= set(self.classes):
            raise InputError(
                f"{self.origin} has no classes called {' and '.join(classes)}; point NDA_DATA to"
                " CIFAR-10's images"
            )
        old = [self.classes.index(name) for name in classes]
        keep = torch.isin(self.labels, torch.tensor(old))
        labels = torch.tensor([old.index(label) for label in self.labels[keep].tolist()])
        return replace(self, pixels=self.pixels[keep], labels=labels, classes=classes)


def resize(image: np.ndarray, size: int) -> Float[Tensor, "chan size size"]:
    """Centre-crop 8-bit pixels `[row, col, chan]` to a square and bring them to `size`, in [-1, 1].

    A whole factor is exact average pooling; any other is Pillow's antialiased bilinear filter,
    whose integer arithmetic gives the same pixels on every machine.

    Args:
        image: 8-bit pixels.
        size: side of the result in pixels.

    Returns:
        A square image.
    """
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    image = image[top : top + side, left : left + side]
    if side % size:
        channels = [
            Image.fromarray(channel).resize((size, size), Image.Resampling.BILINEAR)
            for channel in np.moveaxis(image, 2, 0)
        ]
        image = np.stack([np.asarray(channel) for channel in channels], axis=2)
    factor = image.shape[0] // size
    blocks = image.reshape(size, factor, size, factor, -1)
    pooled = blocks.mean((1, 3), dtype=np.float32)  # exact: sums are whole numbers
    return torch.from_numpy(np.moveaxis(pooled, 2, 0)) / 127.5 - 1


def levels(images: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """The 256 levels of an image file, of which `levels / 127.5 - 1` gives the pixels back.

    Args:
        images: pixels in [-1, 1].

    Returns:
        Levels, uint8.
    """
    return ((images + 1) * 127.5).round().to(torch.uint8)
