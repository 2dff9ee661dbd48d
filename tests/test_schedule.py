"""The schedule is diffusers' DDPMScheduler."""

import pytest
import torch
from diffusers import DDPMScheduler

from nda import rng, schedule
from nda.errors import InputError

SCHEDULER = DDPMScheduler()
PAPER = {100: 0.895142, 200: 0.656347, 300: 0.394011, 400: 0.193572, 500: 0.077797}


@pytest.mark.parametrize(("timestep", "expected"), PAPER.items())
def test_alpha_bar_of_the_paper(timestep, expected):
    assert schedule.alpha_bar(timestep) == pytest.approx(expected, abs=1e-6)


def test_every_alpha_bar_equals_diffusers():
    ours = [schedule.alpha_bar(t) for t in range(schedule.TIMESTEPS)]
    assert ours == SCHEDULER.alphas_cumprod.tolist()


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_bad_timestep(timestep):
    for use in (schedule.alpha_bar, schedule.signal, schedule.sigma):
        with pytest.raises(InputError, match="timestep"):
            use(timestep)


@pytest.mark.parametrize("timestep", [0, 100, 999])
def test_signal_and_sigma(timestep):
    assert schedule.signal(timestep) ** 2 == pytest.approx(schedule.alpha_bar(timestep))
    assert schedule.signal(timestep) ** 2 + schedule.sigma(timestep) ** 2 == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_add_noise_equals_diffusers(dtype):
    source = rng.generator("schedule")
    clean, noise = torch.randn(2, 6, 3, 4, 5, generator=source).to(dtype)
    timesteps = torch.tensor([0, 1, 100, 500, 998, 999])
    ours = schedule.add_noise(clean, timesteps, noise)
    assert ours.dtype == dtype
    torch.testing.assert_close(
        ours, SCHEDULER.add_noise(clean, noise, timesteps), rtol=0, atol=1e-7
    )
    by_hand = schedule.signal(100) * clean[2] + schedule.sigma(100) * noise[2]
    torch.testing.assert_close(ours[2], by_hand, rtol=0, atol=1e-6)
