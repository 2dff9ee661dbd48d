"""Which pixels of a query are owed to one image: the posterior, read by place.

At low noise every pixel has some image that explains the window around it best, a stranger's too.
Three things tell a part that was taken from an image.

- It fits. A window of D numbers that was taken from an image differs from it by the noise alone,
  and its logit is about -D/2. So beside the images stands *nobody*, who has the logit -3D/2 at
  every window. An image has less mass than nobody if it differs by more than √2 standard deviations
  of the noise, which are 17 of 256 levels at timestep 25.
- It has something in it. A window that varies less than the noise looks like those of many images.
  It is nobody's, too.
- It holds together. The images that explain neighbouring pixels of a stranger are different ones.
  So a pixel is owed to an image if it lies in a square, a quarter of the query's side wide, of
  which this image has at least half of the mass on average.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from nda.errors import InputError
from nda.nonparametric.patches import Posterior, Windows

NOBODY = 1.5  # nats per number in a window
PART = 4  # a square's side is that of the query by it
LEAST = 0.5  # of a square's mass
# At low noise most masses are nearly 0 or 1, and half of a square's pixels have half of its mass,
# to rounding: that shall count.
SLACK = 1e-3


def nobody(windows: Windows, channels: int) -> float:
    """The logit of nobody.

    Args:
        windows: of the images.
        channels: of the images.

    Returns:
        The same at every position.
    """
    return -NOBODY * channels * windows.taps**2


def fitting(posterior: Posterior, logit: float) -> Float[Tensor, "query position train"]:
    """Masses of images beside nobody.

    Args:
        posterior: over all images, with `top_k=None`.
        logit: nobody's.

    Returns:
        Masses; what is missing to 1 is nobody's.
    """
    total = posterior.log_total
    log_images = total - torch.logaddexp(total, torch.full_like(total, logit))
    return (posterior.log_share + log_images[:, :, None].to(posterior.log_share)).exp()


def varied(
    query: Float[Tensor, "chan row col"], patch: int, least: float
) -> Bool[Tensor, "row col"]:
    """The pixels whose windows have something in them.

    Args:
        query: pixels in [-1, 1].
        patch: side of the windows, odd; outside of the query, its edge is repeated.
        least: standard deviation of a window's pixels from the window's mean colour.

    Returns:
        For every pixel.
    """
    padded = F.pad(query[None].double(), [patch // 2] * 4, mode="replicate")
    mean = F.avg_pool2d(padded, patch, stride=1)
    variance = F.avg_pool2d(padded.square(), patch, stride=1) - mean.square()
    return variance.clamp_min(0).mean((0, 1)).sqrt() >= least


def owed(
    masses: Float[Tensor, "row col image"], *, least: float = LEAST
) -> Bool[Tensor, "row col image"]:
    """The pixels that are owed to each image.

    Args:
        masses: of a query's pixels; those of an odd window are of `fitting`.
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
    squares = F.avg_pool2d(maps, side, stride=1) >= least - SLACK
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
