"""Random projections that are never stored: hash-signed sparse Johnson-Lindenstrauss, in integer
arithmetic."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nda import rng
from nda.errors import InputError, check_positive

SLICE = 1 << 16  # coordinates that are hashed at a time


@dataclass(frozen=True)
class Projection:
    """A random projection to `dim` numbers that keeps inner products in expectation, with no
    matrix.

    Every coordinate is added, with a sign, to one place in each of `nonzeros` equal parts of the
    result, all divided by √nonzeros. Place and sign are an integer hash of (`seed`, part,
    coordinate): the same on every device and in any order. The inner product of two unit vectors is
    off by about √(1/dim). Source: Kane & Nelson, Sparser Johnson-Lindenstrauss transforms (block
    construction).
    """

    dim: int
    nonzeros: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive("dim", self.dim)
        check_positive("nonzeros", self.nonzeros)
        if self.dim % self.nonzeros:
            raise InputError(
                f"nonzeros must divide dim, but {self.nonzeros} does not divide {self.dim}"
            )

    def __call__(self, vectors: Float[Tensor, "example param"]) -> Float[Tensor, "example dim"]:
        """Project every row.

        Args:
            vectors: of any length.

        Returns:
            `dim` numbers for each.
        """
        projected = vectors.new_zeros(len(vectors), self.dim)
        for start in range(0, vectors.shape[1], SLICE):
            piece = vectors[:, start : start + SLICE]
            index = torch.arange(start, start + piece.shape[1], device=vectors.device)
            for part in range(self.nonzeros):
                place, sign = self._hash(index, part)
                for row, signed in zip(projected, piece * sign.to(piece), strict=True):
                    row.index_add_(0, place, signed)
        return projected / self.nonzeros**0.5

    def _hash(
        self, index: Int[Tensor, "param"], part: int
    ) -> tuple[Int[Tensor, "param"], Int[Tensor, "param"]]:
        """Place in the result and sign of every coordinate."""
        high, low = divmod(rng.seed("projection", self.seed, part), 1 << 32)
        bits = _mix(_mix(index ^ low) ^ high)
        width = self.dim // self.nonzeros
        return part * width + ((bits >> 1) * width >> 31), 1 - 2 * (bits & 1)


def _mix(x: Int[Tensor, "param"]) -> Int[Tensor, "param"]:
    """A bijection on 32 bits that scatters them."""
    # the construction of C. Wellons' hash-prospector; no product passes 63 bits
    x = (x ^ (x >> 16)) * 0x21F0AAAD & 0xFFFFFFFF
    x = (x ^ (x >> 15)) * 0x735A2D97 & 0xFFFFFFFF
    return x ^ (x >> 15)
