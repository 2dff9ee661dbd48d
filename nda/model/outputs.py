"""Every measured output of a denoiser: what losses, gradients and influence are taken of."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nda import rng
from nda.checks import check_images
from nda.errors import InputError, check_positive, check_timestep
from nda.schedule import BETAS, TIMESTEPS, add_noise


@torch.no_grad()
def denoising_losses(
    model: nn.Module,
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

    Args:
        model: called as `model(noisy, timesteps).sample`; in eval mode, else dropout is on.
        queries: clean images in [-1, 1].
        timesteps: each in 0…999; the columns of the result.
        noise_seeds: names of the noise images that each loss is averaged over.
        batch: noisy images in one pass; changes nothing else.

    Returns:
        Losses per pixel.

    Raises:
        InputError: for images or timesteps out of range, or none of them.
    """
    losses = torch.zeros(len(queries), len(timesteps), device=queries.device)
    for place, noisy, noise, times in _noisy(queries, timesteps, noise_seeds, batch):
        losses[place] += _error(model(noisy, times).sample, noise, times) / len(noise_seeds)
    return losses


@torch.no_grad()
def output_changes(
    model: nn.Module,
    reference: nn.Module,
    queries: Float[Tensor, "query chan row col"],
    *,
    timesteps: Sequence[int],
    noise_seeds: Sequence[int] = (0,),
    batch: int = 256,
) -> Float[Tensor, "query timestep"]:
    """Mean squared difference of the noises that two models predict, ‖ε_S − ε_full‖² per pixel, at
    the noisy images of `denoising_losses`.

    Unlike the loss it does not ask whether the change is for the better. Source: DAS, Eq. 9 and
    App. H.

    Args:
        model: as in `denoising_losses`.
        reference: the model that it is compared with, likewise.
        queries: as in `denoising_losses`.
        timesteps: as in `denoising_losses`.
        noise_seeds: as in `denoising_losses`.
        batch: as in `denoising_losses`.

    Returns:
        Squared differences per pixel; zero for one and the same model.

    Raises:
        InputError: as `denoising_losses`.
    """
    changes = torch.zeros(len(queries), len(timesteps), device=queries.device)
    for place, noisy, _, times in _noisy(queries, timesteps, noise_seeds, batch):
        before = reference(noisy, times).sample
        changes[place] += _error(model(noisy, times).sample, before, times) / len(noise_seeds)
    return changes


def _noisy(
    queries: Tensor, timesteps: Sequence[int], noise_seeds: Sequence[int], batch: int
) -> Iterator[tuple[tuple[Tensor, int], Tensor, Tensor, Tensor]]:
    # batches of noisy images: their place in [query, timestep], they, their noise, their timesteps
    check_images(queries, "queries")
    for timestep in timesteps:
        check_timestep(timestep)
    if not timesteps or not noise_seeds:
        raise InputError("timesteps and noise_seeds need at least one value each")
    for column, timestep in enumerate(timesteps):
        for noise_seed in noise_seeds:
            source = rng.generator("evaluation", noise_seed, timestep)
            noise = torch.randn(queries.shape, generator=source).to(queries)
            for rows in torch.arange(len(queries)).split(batch):
                times = torch.full((len(rows),), timestep, device=queries.device)
                noisy = add_noise(queries[rows], times, noise[rows])
                yield (rows, column), noisy, noise[rows], times


Output = Callable[..., Tensor]
"""Predicted noise, noise and timesteps, one per row -> one number per row."""

_BETA = BETAS.double()  # 1 - ᾱ of the first timesteps needs more digits than float32 has
ELBO_WEIGHTS = _BETA / (2 * (1 - _BETA) * (1 - torch.cumprod(1 - _BETA, 0)))  # [timestep]
"""β_t / (2 α_t (1-ᾱ_t)), the weights with which the losses of all timesteps make the variational
bound (DDPM, Eq. 12; α = 1-β), in float64."""


def _error(predicted: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    return (predicted - noise).square().mean((1, 2, 3))


def _elbo(predicted: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    return ELBO_WEIGHTS.to(predicted)[timesteps] * _error(predicted, noise, timesteps)


OUTPUTS: dict[str, Output] = {
    "loss": _error,
    "elbo_loss": _elbo,
    "output_norm": lambda predicted, noise, t: predicted.square().mean((1, 2, 3)),
    "output_mean": lambda predicted, noise, t: predicted.mean((1, 2, 3)),
    "l1": lambda predicted, noise, t: predicted.abs().sum((1, 2, 3)),
    "l2": lambda predicted, noise, t: predicted.square().sum((1, 2, 3)).sqrt(),
}
"""Every scalar that a gradient is taken of: mean squared error of the predicted noise; the same
times the ELBO weight; mean square and mean of the prediction over pixels; and its norms, sums over
pixels."""


def uniform_timesteps(k: int) -> tuple[int, ...]:
    """`k` timesteps 0, 1000/k, 2·1000/k … (D-TRAK's "uniform").

    Args:
        k: how many; must divide 1000.

    Returns:
        The timesteps, rising.

    Raises:
        InputError: if `k` is not positive or does not divide 1000.
    """
    check_positive("the number of timesteps", k)
    if TIMESTEPS % k:
        raise InputError(
            f"the number of uniform timesteps must divide {TIMESTEPS}, and {k} does not"
        )
    return tuple(range(0, TIMESTEPS, TIMESTEPS // k))
