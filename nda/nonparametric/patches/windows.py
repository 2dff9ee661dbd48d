"""The windows of one scale: which pixels of a padded image they take, and which may meet."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nda.errors import InputError


@dataclass(frozen=True)
class Windows:
    """All windows of side `patch` (pixels) of images of `height` x `width`; `coarse` pools their
    pixels in blocks of 2 x 2.

    A window starts (patch-1)//2 pixels before its position; there are as many positions per axis as
    pixels, one fewer for an even patch. Pooling is relative to the window's own corner, with
    weights of one half, so that pooled unit noise has unit variance (released code): a coarse
    window takes every second pixel of the image that `prepare` has pooled at all four phases.
    """

    height: int
    width: int
    patch: int
    coarse: bool = False
    borders: str = "match"

    def __post_init__(self) -> None:
        side, name = min(self.height, self.width), "coarse_patch" if self.coarse else "patch"
        if (
            isinstance(self.patch, bool)
            or not isinstance(self.patch, int)
            or not 1 <= self.patch <= side
        ):
            raise InputError(
                f"{name} must be an integer from 1 to the image's side {side}, not {self.patch!r}"
            )
        if self.coarse and self.patch % 2:
            raise InputError(
                f"coarse_patch must be even, since pixels are pooled in pairs, not {self.patch}"
            )
        if self.borders not in ("match", "zero"):
            raise InputError(f"borders must be 'match' or 'zero', not {self.borders!r}")

    @property
    def step(self) -> int:
        """Distance of the pixels that a window takes, in the prepared image."""
        return 2 if self.coarse else 1

    @property
    def taps(self) -> int:
        """How many pixels a window takes per axis."""
        return self.patch // self.step

    @property
    def span(self) -> int:
        """From the first to the last of them."""
        return (self.taps - 1) * self.step

    @property
    def before(self) -> int:
        """Pixels of a window before its position, and padding of a prepared image."""
        return (self.patch - 1) // 2

    @property
    def grid(self) -> tuple[int, int]:
        """Positions per column and per row."""
        lost = 1 - self.patch % 2
        return self.height - lost, self.width - lost

    @property
    def positions(self) -> int:
        """All positions."""
        return self.grid[0] * self.grid[1]

    def prepare(
        self, images: Float[Tensor, "image chan row col"]
    ) -> Float[Tensor, "image chan padded_row padded_col"]:
        """Zeros around, and every 2 x 2 block pooled if the scale is coarse; a window at position
        (i, j) starts at pixel (i, j) of this."""
        padded = F.pad(images, [self.before] * 4)
        if not self.coarse:
            return padded
        pairs = padded[..., :-1] + padded[..., 1:]
        return (pairs[..., :-1, :] + pairs[..., 1:, :]) / 2

    def bands(self) -> tuple[list[range], list[range]]:
        """Ranges of positions along rows and along columns. Windows meet where both bands are the
        same: with borders `"match"`, where they stick out of the image by the same amount, so that
        the mask on the logits is never built; else everywhere."""
        rows, cols = (
            self._bands(side, positions)
            for side, positions in zip((self.height, self.width), self.grid, strict=True)
        )
        return rows, cols

    def _bands(self, side: int, positions: int) -> list[range]:
        overhang = [
            (max(0, self.before - i), max(0, i - self.before + self.patch - side))
            for i in range(positions)
        ]
        starts = [
            i
            for i in range(positions)
            if i == 0 or (self.borders == "match" and overhang[i] != overhang[i - 1])
        ]
        return [
            range(start, stop) for start, stop in zip(starts, starts[1:] + [positions], strict=True)
        ]

    def energy(
        self, images: Float[Tensor, "image chan row col"]
    ) -> Float[Tensor, "image position"]:
        """Squared norm of every window, in float64 (float32 on MPS, which has no float64)."""
        squares = self.prepare(exact(images)).square().sum(1, keepdim=True)
        ones = torch.ones(1, 1, self.taps, self.taps, dtype=squares.dtype, device=squares.device)
        return F.conv2d(squares, ones, dilation=self.step).flatten(1)


def exact(images: Tensor) -> Tensor:
    """In the type in which distances are added: float64, except on MPS, which has none."""
    return images if images.device.type == "mps" else images.double()
