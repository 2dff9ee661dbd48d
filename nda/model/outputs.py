"""Every measured output of a denoiser: what losses, gradients and influence are taken of."""

from collections.abc import Callable, Sequence

import torch
from diffusers import UNet2DModel
from jaxtyping import Float, Int
from torch import Tensor

from nda import rng
from nda.errors import InputError, check_images, check_positive, check_timestep
from nda.schedule import ALPHA_BAR, BETAS, TIMESTEPS, add_noise


@torch.no_grad()
def denoising_losses(
    model: UNet2DModel,
    queries: Float[Tensor, "query chan row col"],
    *,
    timesteps: Sequence[int],
    noise_seeds: Sequence[int] = (0,),
    batch: int = 256,
) -> Float[Tensor, "query timestep"]:
    """Mean squared error of the predicted noise per query and timestep, averaged over pixels and
    noise seeds.

    The noise is named (noise seed, timestep) and has one image per query, so it is common to all
    models and does not depend on the batch: differences between models are differences between
    models. This is the model output whose changes the LDS predicts.
    """
    check_images(queries, "queries")
    for timestep in timesteps:
        check_timestep(timestep)
    if not timesteps or not noise_seeds:
        raise InputError("timesteps and noise_seeds need at least one value each")
    losses = torch.zeros(len(queries), len(timesteps), device=queries.device)
    for column, timestep in enumerate(timesteps):
        for noise_seed in noise_seeds:
            noise = torch.randn(
                queries.shape, generator=rng.generator("evaluation", noise_seed, timestep)
            ).to(queries)
            for rows in torch.arange(len(queries)).split(batch):
                times = torch.full((len(rows),), timestep, device=queries.device)
                predicted = model(add_noise(queries[rows], times, noise[rows]), times).sample
                losses[rows, column] += (predicted - noise[rows]).square().mean((1, 2, 3)) / len(
                    noise_seeds
                )
    return losses


Output = Callable[
    ..., Tensor
]  # predicted noise, noise, timesteps, one per row -> one number per row


def elbo_weights(timesteps: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
    """β_t / (2 α_t (1-ᾱ_t)), the weights with which the losses of all timesteps make the
    variational bound (DDPM, Eq. 12; α = 1-β)."""
    beta, alpha_bar = (
        BETAS.double().to(timesteps.device)[timesteps],
        ALPHA_BAR.double().to(timesteps.device)[timesteps],
    )
    return beta / (2 * (1 - beta) * (1 - alpha_bar))


OUTPUTS: dict[str, Output] = {
    "loss": lambda predicted, noise, t: (predicted - noise).square().mean((1, 2, 3)),
    "weighted_loss": (
        lambda predicted, noise, t: (
            elbo_weights(t).to(predicted) * (predicted - noise).square().mean((1, 2, 3))
        )
    ),
    "output_norm": lambda predicted, noise, t: predicted.square().mean((1, 2, 3)),
    "output_mean": lambda predicted, noise, t: predicted.mean((1, 2, 3)),
    "l1": lambda predicted, noise, t: predicted.abs().sum((1, 2, 3)),
    "l2": lambda predicted, noise, t: predicted.square().sum((1, 2, 3)).sqrt(),
}


def uniform_timesteps(k: int) -> tuple[int, ...]:
    """`k` timesteps 0, 1000/k, 2·1000/k … (D-TRAK's "uniform"); `k` must divide 1000."""
    check_positive("the number of timesteps", k)
    if TIMESTEPS % k:
        raise InputError(
            f"the number of uniform timesteps must divide {TIMESTEPS}, and {k} does not"
        )
    return tuple(range(0, TIMESTEPS, TIMESTEPS // k))


_BETA = BETAS.double()  # 1 - ᾱ of the first timesteps needs more digits than float32 has
ELBO_WEIGHTS = (_BETA / (2 * (1 - _BETA) * (1 - torch.cumprod(1 - _BETA, 0)))).float()  # [timestep]
MEASUREMENTS: dict[
    str, Callable[[Tensor, Tensor, Tensor], Tensor]
] = {  # (model output, noise, timesteps) -> [draw]
    "loss": lambda output, noise, timesteps: (output - noise).square().mean((1, 2, 3)),
    "elbo_loss": (
        lambda output, noise, timesteps: (
            ELBO_WEIGHTS.to(output)[timesteps] * (output - noise).square().mean((1, 2, 3))
        )
    ),
    "output_norm": lambda output, noise, timesteps: output.square().mean((1, 2, 3)),
}
