"""Bad input gets one sentence that names the argument, what was wrong and what to do."""

from collections.abc import Collection, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor


class InputError(ValueError):
    """The user's input cannot be used; the message is one sentence, without a traceback."""


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


def check_timestep(timestep: int) -> None:
    """Check that a timestep is an integer in 0…999.

    Args:
        timestep: the argument to check.

    Raises:
        InputError: if it is not.
    """
    if isinstance(timestep, bool) or not isinstance(timestep, int) or not 0 <= timestep < 1000:
        raise InputError(f"timestep must be an integer in 0…999, not {timestep!r}")


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


def check_positive(name: str, value: int) -> None:
    """Check that a number is an integer of at least 1.

    Args:
        name: what the caller calls it.
        value: the argument to check.

    Raises:
        InputError: if it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a positive integer, not {value!r}")


def check_choice(name: str, choice: str, allowed: Collection[str]) -> None:
    """Check that a choice is one of those that there are.

    Args:
        name: what the caller calls it.
        choice: the argument to check.
        allowed: all that it may be.

    Raises:
        InputError: if it is none of them.
    """
    if choice not in allowed:
        raise InputError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {choice!r}")


def check_draws(timesteps: Sequence[int], **counts: int) -> None:
    """Check that there are timesteps, all in 0…999, and that every count is at least 1.

    Args:
        timesteps: the argument to check.
        counts: numbers by what the caller calls them.

    Raises:
        InputError: if not.
    """
    if not timesteps:
        raise InputError("timesteps must name at least one of 0…999")
    for timestep in timesteps:
        check_timestep(timestep)
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} must be at least 1, not {count}")


def needs(package: str, extra: str) -> None:
    """Check that a package can be imported that `pip install nda` alone does not bring.

    Args:
        package: its name in an import.
        extra: the group of optional dependencies in pyproject.toml that has it.

    Raises:
        InputError: if it is not installed, with the command that installs it.
    """
    if find_spec(package) is None:
        raise InputError(
            f"the package {package} is not installed; install it with: pip install 'nda[{extra}]'"
        )
