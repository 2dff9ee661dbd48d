"""The windows of one scale: which pixels of a padded image they take, and which may meet."""

from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from nda.errors import InputError

# positions along one axis, and whether all of them meet or each only itself
Group = tuple[range, bool]


@dataclass(frozen=True)
class Windows:
    """All windows of one side of images of one size.

    A window starts (patch-1)//2 pixels before its position; there are as many positions per axis as
    pixels, one fewer for an even patch. Pooling is relative to the window's own corner, with
    weights of one half, so that pooled unit noise has unit variance (released code): a coarse
    window takes every second pixel of the image that `prepare` has pooled at all four phases.

    Args:
        height: of the images, in pixels.
        width: the same.
        patch: side of a window in pixels of the image, 1 … the image's side.
        coarse: whether a window's pixels are pooled in blocks of 2 x 2.
        borders: `"match"`: windows meet only those with the same pixels outside of the image;
            `"zero"`: all meet, and what is outside is 0.

    Raises:
        InputError: for windows that the images do not have.
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
        """Zeros around, and every 2 x 2 block pooled if the scale is coarse.

        Args:
            images: of this size.

        Returns:
            Images in which the window at position (i, j) starts at pixel (i, j).
        """
        padded = F.pad(images, [self.before] * 4)
        if not self.coarse:
            return padded
        pairs = padded[..., :-1] + padded[..., 1:]
        return (pairs[..., :-1, :] + pairs[..., 1:, :]) / 2

    def bands(self) -> tuple[list[range], list[range]]:
        """Ranges of positions whose windows meet.

        Windows meet where both bands are the same: with borders `"match"`, where they stick out of
        the image by the same amount, so that the mask on the logits is never built; else
        everywhere.

        Returns:
            The ranges along rows and along columns.
        """
        rows, cols = (
            self._bands(side, positions)
            for side, positions in zip((self.height, self.width), self.grid, strict=True)
        )
        return rows, cols

    def groups(self) -> tuple[list[Group], list[Group]]:
        """`bands`, and neighbouring bands of a single position in one group.

        Returns:
            Along rows and along columns.
        """
        rows, cols = (_grouped(bands) for bands in self.bands())
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

    def take(
        self, images: Float[Tensor, "image chan row col"]
    ) -> Float[Tensor, "image position dim"]:
        """The pixels of every window, as `prepare` gives them.

        Args:
            images: of this size.

        Returns:
            In float64 (float32 on MPS); memory of `dim` images.
        """
        return F.unfold(self.prepare(exact(images)), self.taps, dilation=self.step).mT

    def kinds(self) -> Int[Tensor, "position"]:
        """Which positions may meet.

        Returns:
            The same number where the bands are the same, counted from 0.
        """
        rows, cols = self.bands()
        numbers = torch.empty(self.grid, dtype=torch.long)
        for number, (band, across) in enumerate(product(rows, cols)):
            numbers[band.start : band.stop, across.start : across.stop] = number
        return numbers.flatten()

    def energy(
        self, images: Float[Tensor, "image chan row col"]
    ) -> Float[Tensor, "image position"]:
        """Squared norm of every window.

        Args:
            images: of this size.

        Returns:
            In float64 (float32 on MPS, which has no float64).
        """
        squares = self.prepare(exact(images)).square().sum(1, keepdim=True)
        ones = torch.ones(1, 1, self.taps, self.taps, dtype=squares.dtype, device=squares.device)
        return F.conv2d(squares, ones, dilation=self.step).flatten(1)


def _grouped(bands: list[range]) -> list[Group]:
    groups: list[Group] = []
    for band in bands:
        single = len(band) == 1
        if single and groups and not groups[-1][1]:
            band = range(groups.pop()[0].start, band.stop)
        groups.append((band, not single))
    return groups


def exact(images: Tensor) -> Tensor:
    """Images in the type in which distances are added.

    Args:
        images: of any type.

    Returns:
        In float64, except on MPS, which has none.
    """
    return images if images.device.type == "mps" else images.double()
