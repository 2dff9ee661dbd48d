"""The model's own pictures, and the way to them."""

from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DModel
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from nda import rng
from nda.errors import InputError
from nda.schedule import TIMESTEPS, sigma, signal


@torch.no_grad()
def sample(
    model: UNet2DModel, n: int, *, noise_seed: int = 0, steps: int = 50, batch: int = 64
) -> Float[Tensor, "query chan row col"]:
    """Draw `n` images by DDIM without added noise; image i starts from noise named (`noise_seed`,
    i), whatever the batch.

    Pixels are rounded to the 256 levels that an image file holds, in [-1, 1]. Source: DDIM, Eq. 12
    with eta = 0.
    """
    if n < 1 or not 1 <= steps <= TIMESTEPS:
        raise InputError(
            f"sampling needs at least one image and 1…{TIMESTEPS} steps, not {n} images and {steps}"
            " steps"
        )
    device = next(model.parameters()).device
    scheduler = DDIMScheduler(num_train_timesteps=TIMESTEPS, clip_sample=True)
    scheduler.set_timesteps(steps)
    shape = (model.config.in_channels, model.config.sample_size, model.config.sample_size)
    noise = torch.stack(
        [torch.randn(shape, generator=rng.generator("sample", noise_seed, i)) for i in range(n)]
    )
    images = []
    for x in tqdm(noise.to(device).split(batch), desc="sampling", unit="batch", leave=False):
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t.to(device)).sample, t, x, eta=0.0).prev_sample
        images.append(x)
    return ((torch.cat(images).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def journey(
    model: UNet2DModel, n: int, *, noise_seed: int = 0, steps: int = 50, batch: int = 64
) -> tuple[Float[Tensor, "query step chan row col"], tuple[int, ...]]:
    """Clean images that the model predicts on the way of `nda.model.sampling.sample` to its `n`
    images, clamped to [-1, 1], and their timesteps.

    The arguments are those of `sample`. For Journey-TRAK the queries' features are those of these
    images with a `Readout` of these timesteps: they are noised afresh, with the noise that all
    readouts share. Source: Journey-TRAK, as adapted by D-TRAK.
    """
    clean: list[Tensor] = []
    timesteps: list[int] = []

    def record(_: UNet2DModel, inputs: tuple[Tensor, Tensor], output: Any) -> None:
        noisy, t = inputs[0], int(inputs[1])
        clean.append(((noisy - sigma(t) * output.sample) / signal(t)).clamp(-1, 1))
        timesteps.append(t)

    hook = model.register_forward_hook(record)
    try:
        sample(model, n, noise_seed=noise_seed, steps=steps, batch=batch)
    finally:
        hook.remove()
    batches = [torch.stack(clean[i : i + steps], 1) for i in range(0, len(clean), steps)]
    return torch.cat(batches), tuple(timesteps[:steps])
