"""Tensors and devices that a user gives, checked. Apart from the errors, which every command needs
and torch takes seconds to import."""

import torch
from torch import Tensor

from nda.errors import InputError


def check_images(images: Tensor, name: str) -> None:
    """Check that images are a float `[image, chan, row, col]` tensor, finite and in [-1, 1].

    Args:
        images: the argument to check.
        name: what the caller calls it.

    Raises:
        InputError: if they are not.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        kind = (
            f"{tuple(images.shape)} {images.dtype}"
            if isinstance(images, Tensor)
            else type(images).__name__
        )
        raise InputError(
            f"{name} must be a float tensor [image, chan, row, col], not {kind}; see"
            " nda.data.images.load"
        )
    if images.numel() == 0:
        raise InputError(f"{name} is empty, shape {tuple(images.shape)}; pass at least one image")
    low, high = images.aminmax()
    if not torch.isfinite(low + high):
        raise InputError(f"{name} has pixels that are NaN or infinite; remove those images first")
    if low < -1.0001 or high > 1.0001:
        raise InputError(f"{name} has pixels in [{low:.3g}, {high:.3g}]; scale them to [-1, 1]")


def check_same_shape(queries: Tensor, train: Tensor) -> None:
    """Check that both are valid images of one shape `[chan, row, col]`, dtype and device.

    Args:
        queries: images.
        train: images.

    Raises:
        InputError: if they are not.
    """
    check_images(queries, "queries")
    check_images(train, "train")
    if queries.shape[1:] != train.shape[1:]:
        raise InputError(
            f"queries are {tuple(queries.shape[1:])} but train is {tuple(train.shape[1:])}; resize"
            " one of them"
        )
    if (queries.dtype, queries.device) != (train.dtype, train.device):
        raise InputError(
            f"queries are {queries.dtype} on {queries.device} but train is {train.dtype} on"
            f" {train.device}; bring both to one dtype and device"
        )


def pick_device(name: str) -> torch.device:
    """The device of a name.

    Args:
        name: `"auto"` is CUDA, else MPS, else the CPU; any other name is checked to be usable here.

    Returns:
        The device.

    Raises:
        InputError: if it cannot be used.
    """
    if name == "auto":
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        name = next((device for device, usable in there.items() if usable), "cpu")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device {name!r} cannot be used here; use 'auto', 'cpu', 'cuda' or 'mps'"
        ) from error
    return torch.device(name)
