"""The model's own pictures, and the way to them."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from nda import rng
from nda.errors import InputError
from nda.model.lean import DDIMScheduler, UNet2DModel
from nda.schedule import TIMESTEPS, sigma, signal


def sample(
    model: UNet2DModel,
    numbers: Sequence[int],
    *,
    noise_seed: int = 0,
    steps: int = 50,
    batch: int = 64,
) -> Float[Tensor, "query chan row col"]:
    """Draw images by DDIM without added noise.

    Pixels are rounded to the 256 levels that an image file holds, in [-1, 1]. Source: DDIM, Eq. 12
    with eta = 0.

    Args:
        model: in eval mode, else dropout is on.
        numbers: of the images, for example `range(200)`.
        noise_seed: image i starts from noise named (`noise_seed`, i), whatever the batch.
        steps: of the sampler, 1…1000.
        batch: images in one pass.

    Returns:
        The images, on the model's device.

    Raises:
        InputError: for less than one image, or a number of steps out of range.
    """
    ends = []
    for noise in _starts(model, numbers, noise_seed, steps, batch):
        for _, _, images in _way(model, noise, steps):
            end = images
        ends.append(end)
    return ((torch.cat(ends).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def journey(
    model: UNet2DModel,
    numbers: Sequence[int],
    *,
    noise_seed: int = 0,
    steps: int = 50,
    batch: int = 64,
) -> tuple[Float[Tensor, "query step chan row col"], tuple[int, ...]]:
    """Clean images that the model predicts on the way of `nda.model.sampling.sample` to its images,
    clamped to [-1, 1], and their timesteps.

    For Journey-TRAK the queries' features are those of these images with a `Readout` of these
    timesteps: they are noised afresh, with the noise that all readouts share. Source: Journey-TRAK,
    as adapted by D-TRAK.

    Args:
        model: as in `sample`.
        numbers: as in `sample`.
        noise_seed: as in `sample`.
        steps: as in `sample`.
        batch: as in `sample`.

    Returns:
        The images and the timesteps, in the order of sampling: 999 and less, to 0.

    Raises:
        InputError: for less than one image, or a number of steps out of range.
    """
    ways = [list(_way(model, x, steps)) for x in _starts(model, numbers, noise_seed, steps, batch)]
    clean = [torch.stack([clean for _, clean, _ in way], 1) for way in ways]
    return torch.cat(clean), tuple(t for t, _, _ in ways[0])


def _starts(
    model: UNet2DModel, numbers: Sequence[int], noise_seed: int, steps: int, batch: int
) -> Iterator[Float[Tensor, "image chan row col"]]:
    """Noise, in batches, with a progress bar."""
    if not numbers or not 1 <= steps <= TIMESTEPS:
        raise InputError(
            f"sampling needs at least one image and 1…{TIMESTEPS} steps, not {len(numbers)} images"
            f" and {steps} steps"
        )
    shape = (model.config.in_channels, model.config.sample_size, model.config.sample_size)
    noise = torch.stack(
        [torch.randn(shape, generator=rng.generator("sample", noise_seed, i)) for i in numbers]
    )
    device = next(model.parameters()).device
    yield from tqdm(noise.to(device).split(batch), desc="sampling", unit="batch", leave=False)


@torch.no_grad()
def _way(
    model: UNet2DModel, x: Float[Tensor, "image chan row col"], steps: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The timestep, the clean images that the model predicts, and the images after each step."""
    scheduler = DDIMScheduler(num_train_timesteps=TIMESTEPS, clip_sample=True)
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        t = int(timestep)
        predicted = model(x, timestep.to(x.device)).sample
        clean = ((x - sigma(t) * predicted) / signal(t)).clamp(-1, 1)
        x = scheduler.step(predicted, timestep, x, eta=0.0).prev_sample
        yield t, clean, x
