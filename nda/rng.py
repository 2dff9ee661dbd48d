"""Randomness by name: every draw has a name, and the same name gives the same draw on every run and
machine."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed(*names: str | int) -> int:
    """A seed hashed from names such as `("subset", 17)`; distinct names give unrelated seeds.

    Args:
        names: strings and integers.

    Returns:
        63 bits.

    Raises:
        TypeError: for names of another type.
    """
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise TypeError(f"names must be strings and integers, not {name!r}")
    return int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:8], "little") >> 1


def generator(*names: str | int) -> torch.Generator:
    """A generator seeded by its names.

    Args:
        names: as of `seed`.

    Returns:
        A generator on the CPU; draws made with it are moved to the device afterwards, so they are
        the same everywhere.
    """
    return torch.Generator().manual_seed(seed(*names))


@contextmanager
def seeded(*names: str | int) -> Iterator[None]:
    """For libraries that only know the global random state (weight initialisation, dropout): seed
    it inside, restore it after.

    Args:
        names: as of `seed`.

    Yields:
        Nothing.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed(*names))
        yield
