"""The different pictures of a folder, in an order and with numbers that are their pixels' own."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from nda import rng
from nda.data.untrusted import Folder


@dataclass(frozen=True)
class Bank:
    """Pictures that are all different, in the order of their hashes, so that what is computed from
    them does not depend on what their files are called.

    pixels: in 256 levels. digests: sha256 of each. file: the number in the folder of the first file
    with these pixels. again: of every other such file, its number, and the picture's here.
    """

    pixels: UInt8[Tensor, "image chan row col"]
    digests: tuple[str, ...]
    file: tuple[int, ...]
    again: dict[int, int]

    @classmethod
    def of(cls, folder: Folder) -> Self:
        """Those of a folder.

        Args:
            folder: as it was read.

        Returns:
            One picture for all files with the same pixels.
        """
        digests = [digest(picture) for picture in folder.pixels]
        first: dict[str, int] = {}
        for number, made in enumerate(digests):
            first.setdefault(made, number)
        order = sorted(first)
        place = {made: number for number, made in enumerate(order)}
        files = tuple(first[made] for made in order)
        again = {n: place[made] for n, made in enumerate(digests) if first[made] != n}
        return cls(folder.pixels[list(files)], tuple(order), files, again)

    def __len__(self) -> int:
        return len(self.digests)

    @cached_property
    def numbers(self) -> Int[Tensor, "image"]:
        """Ascending numbers of the pictures, the first 60 bits of their hashes."""
        return torch.tensor([int(made[:15], 16) for made in self.digests])

    @cached_property
    def sha256(self) -> str:
        """Of all pictures."""
        return hashlib.sha256("".join(self.digests).encode()).hexdigest()

    def draw(self, name: str) -> list[int]:
        """All pictures in an order drawn by name. New pictures come in between, and do not change
        the order of the others.

        Args:
            name: of the draw.

        Returns:
            Their places here.
        """
        return sorted(range(len(self)), key=lambda n: rng.seed(name, self.digests[n]))

    def floats(self, places: Sequence[int] | Tensor) -> Float[Tensor, "some chan row col"]:
        """Pixels in [-1, 1].

        Args:
            places: of the pictures that are wanted.

        Returns:
            Those pictures.
        """
        return floats(self.pixels[torch.as_tensor(places, dtype=torch.long)])


def digest(pixels: UInt8[Tensor, "..."]) -> str:
    """Of pixels.

    Args:
        pixels: in 256 levels.

    Returns:
        Their sha256.
    """
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()


def floats(pictures: UInt8[Tensor, "*image chan row col"]) -> Float[Tensor, "*image chan row col"]:
    """Levels as pixels in [-1, 1].

    Args:
        pictures: in 256 levels.

    Returns:
        In float32.
    """
    return pictures.float() / 127.5 - 1
