"""The DDPM noise schedule: linear betas 1e-4 … 0.02, timesteps 0…999 (Ho et al. 2020; diffusers'
default)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nda.errors import check_timestep

TIMESTEPS = 1000
BETAS = torch.linspace(1e-4, 0.02, TIMESTEPS)  # float32, as in diffusers' DDPMScheduler
ALPHA_BAR = torch.cumprod(1 - BETAS, 0)


def alpha_bar(timestep: int) -> float:
    """ᾱ_t, the share of the signal's variance that is left at a timestep.

    Args:
        timestep: 0…999; anything else is an InputError.

    Returns:
        ᾱ_t.
    """
    check_timestep(timestep)
    return ALPHA_BAR[timestep].item()


def signal(timestep: int) -> float:
    """√ᾱ_t, the factor on the clean image.

    Args:
        timestep: 0…999.

    Returns:
        √ᾱ_t.
    """
    return alpha_bar(timestep) ** 0.5


def sigma(timestep: int) -> float:
    """√(1-ᾱ_t), the standard deviation of the noise.

    Args:
        timestep: 0…999.

    Returns:
        √(1-ᾱ_t).
    """
    return (1 - alpha_bar(timestep)) ** 0.5


def add_noise(
    clean: Float[Tensor, "image chan row col"],
    timesteps: Int[Tensor, "image"],
    noise: Float[Tensor, "image chan row col"],
) -> Float[Tensor, "image chan row col"]:
    """x_t = √ᾱ_t x + √(1-ᾱ_t) ε, one timestep per image (DDPM, Eq. 4).

    Args:
        clean: x, pixels in [-1, 1].
        timesteps: each in 0…999.
        noise: ε.

    Returns:
        x_t.
    """
    left = ALPHA_BAR.to(clean)[timesteps][:, None, None, None]  # [image, 1, 1, 1]
    return left.sqrt() * clean + (1 - left).sqrt() * noise
