"""Images as tensors: what a data set is, and how pictures of any size become square ones."""

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor


class Images(NamedTuple):
    """A data set: pixels in [-1, 1], integer labels, class names, the sha256 of the pixels and
    where they came from."""

    pixels: Float[Tensor, "image chan row col"]
    labels: Int[Tensor, "image"]
    classes: tuple[str, ...]
    sha256: str
    origin: str
    skipped: tuple[str, ...] = ()  # files that could not be read


def _finish(
    pixels: Tensor,
    labels: Tensor,
    classes: tuple[str, ...],
    origin: str,
    skipped: tuple[str, ...] = (),
) -> Images:
    sha256 = hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()
    return Images(pixels, labels, classes, sha256, origin, skipped)


def resize(image: np.ndarray, size: int) -> Float[Tensor, "chan size size"]:
    """Centre-crop 8-bit pixels `[row, col, chan]` to a square and bring them to `size`, in [-1, 1].

    A whole factor is exact average pooling; any other is Pillow's antialiased bilinear filter,
    whose integer arithmetic gives the same pixels on every machine.
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
    pooled = image.reshape(size, factor, size, factor, -1).mean(
        (1, 3), dtype=np.float32
    )  # exact: sums are whole numbers
    return torch.from_numpy(np.moveaxis(pooled, 2, 0)) / 127.5 - 1
