"""Denoising losses against loops, and the weights of the variational bound."""

from decimal import Decimal

import pytest
import torch
from diffusers import DDPMScheduler
from tiny import IMAGES, TINY, memorised

from nda import rng
from nda.errors import InputError
from nda.model.outputs import ELBO_WEIGHTS, OUTPUTS, denoising_losses
from nda.schedule import BETAS


@pytest.fixture(scope="module")
def trained():
    return memorised()


def test_losses_are_an_explicit_loop(trained):
    losses = denoising_losses(trained, IMAGES, timesteps=[100, 700], noise_seeds=[0, 3])
    assert losses.shape == (12, 2)
    scheduler, query = DDPMScheduler(), 7
    for column, timestep in enumerate((100, 700)):
        errors = []
        for noise_seed in (0, 3):
            noise = torch.randn(
                IMAGES.shape, generator=rng.generator("evaluation", noise_seed, timestep)
            )[query : query + 1]
            with torch.no_grad():
                predicted = trained(
                    scheduler.add_noise(IMAGES[query : query + 1], noise, torch.tensor([timestep])),
                    timestep,
                ).sample
            errors.append(((predicted - noise) ** 2).mean().item())
        assert losses[query, column].item() == pytest.approx(sum(errors) / 2, rel=1e-5)


@pytest.mark.parametrize("batch", [1, 5, 12])
def test_losses_do_not_depend_on_the_batch(trained, batch):
    one, other = (
        denoising_losses(trained, IMAGES, timesteps=[50, 500], noise_seeds=[0, 1], batch=size)
        for size in (256, batch)
    )
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_training_lowers_the_losses_of_train_images(trained):
    untrained = TINY.build(1, IMAGES.shape).eval()
    before, after = (
        denoising_losses(model, IMAGES, timesteps=[100, 500, 900]).mean(0)
        for model in (untrained, trained)
    )
    assert (after < before).all()


@pytest.mark.parametrize(
    ("queries", "timesteps", "noise_seeds", "reason"),
    [
        (IMAGES + 1, [5], [0], "queries"),
        (IMAGES / 0, [5], [0], "queries .*NaN"),
        (IMAGES, [1000], [0], "timestep"),
        (IMAGES, [], [0], "timesteps"),
        (IMAGES, [5], [], "noise_seeds"),
    ],
)
def test_bad_losses_input(trained, queries, timesteps, noise_seeds, reason):
    with pytest.raises(InputError, match=reason):
        denoising_losses(trained, queries, timesteps=timesteps, noise_seeds=noise_seeds)


def test_elbo_weights_are_those_of_a_product_of_decimals():
    """1 - ᾱ of the first timesteps is the difference of nearly equal numbers."""
    left = Decimal(1)
    for timestep, beta in enumerate(map(Decimal, BETAS.tolist())):
        left *= 1 - beta
        expected = beta / (2 * (1 - beta) * (1 - left))
        assert ELBO_WEIGHTS[timestep].item() == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_of_a_row_does_not_see_the_others(name):
    predicted, noise = torch.randn(2, 5, 2, 4, 4, generator=rng.generator("outputs"))
    timesteps = torch.tensor([0, 10, 500, 500, 999])
    whole = OUTPUTS[name](predicted, noise, timesteps)
    assert whole.shape == (5,) and whole.dtype == predicted.dtype
    alone = [OUTPUTS[name](*(v[[i]] for v in (predicted, noise, timesteps))) for i in range(5)]
    torch.testing.assert_close(whole, torch.cat(alone))
