"""Which pixels of a query are owed to one image: the posterior, read by place.

At low noise every pixel has some image that explains the window around it best, a stranger's too.
But the images that explain neighbouring pixels of a stranger are different ones, and a part that
was taken from an image is explained by that image all over. So a pixel is owed to an image if it
lies in a square, a quarter of the query's side wide, of which this image has at least half of the
mass on average.
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from nda.errors import InputError

PART = 4  # a square's side is that of the query by it
LEAST = 0.5  # of a square's mass


def owed(
    masses: Float[Tensor, "row col image"], *, least: float = LEAST
) -> Bool[Tensor, "row col image"]:
    """The pixels that are owed to each image.

    Args:
        masses: of a query's pixels, as `nda.nonparametric.provenance.pixel_masses` gives them.
        least: mean mass of a square that is the image's.

    Returns:
        For every pixel and image. With `least` of a half or more, a pixel can be owed to two images
        only where their squares overlap.

    Raises:
        InputError: for maps that are too small to have a square.
    """
    side = min(masses.shape[:2]) // PART
    if side < 1:
        raise InputError(
            f"masses must be maps of at least {PART} x {PART} pixels, not {tuple(masses.shape[:2])}"
        )
    maps = masses.movedim(2, 0)[:, None]
    squares = F.avg_pool2d(maps, side, stride=1) >= least
    around = F.pad(squares.to(masses), [side - 1] * 4)
    return (F.max_pool2d(around, side, stride=1)[:, 0] > 0).movedim(0, 2)


def shares(masses: Float[Tensor, "row col image"]) -> Float[Tensor, "image"]:
    """Of all pixels, the share that is owed to each image.

    Args:
        masses: as of `owed`.

    Returns:
        Between 0 and 1.
    """
    return owed(masses).double().mean((0, 1))
