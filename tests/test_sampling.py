"""Samples are diffusers' DDIM, and the journey is the way to them."""

import pytest
import torch
from diffusers import DDPMScheduler
from tiny import memorised

from nda import rng
from nda.errors import InputError
from nda.model.sampling import journey, sample


@pytest.fixture(scope="module")
def trained():
    return memorised()


def levels(images):
    """Pixels as 0…255."""
    return (images + 1) * 127.5


def test_samples_are_images(trained):
    images = sample(trained, range(5), steps=4)
    assert (
        images.shape == (5, 1, 8, 8)
        and images.min() >= -1
        and images.max() <= 1
        and images.std() > 0.1
    )
    torch.testing.assert_close(levels(images), levels(images).round(), rtol=0, atol=1e-3)
    assert len(images.flatten(1).unique(dim=0)) == 5


@pytest.mark.parametrize(("n", "batch"), [(5, 1), (5, 2), (3, 64), (9, 64)])
def test_sample_does_not_depend_on_the_others(trained, n, batch):
    """Up to one of the 256 levels, where rounding may fall on either side."""
    one, other = (
        levels(sample(trained, range(5), steps=4)),
        levels(sample(trained, range(n), steps=4, batch=batch)),
    )
    difference = (one[: min(n, 5)] - other[:5]).abs()
    assert difference.max() < 1.01 and (difference > 0.01).float().mean() < 0.01


@pytest.mark.parametrize(
    "settings", [{"numbers": []}, {"numbers": [3], "steps": 0}, {"numbers": [3], "steps": 1001}]
)
def test_bad_sample_input(trained, settings):
    with pytest.raises(InputError, match="at least one image and 1…1000 steps"):
        sample(trained, **settings)
    with pytest.raises(InputError, match="at least one image and 1…1000 steps"):
        journey(trained, **settings)


def test_an_image_is_a_function_of_its_number(trained):
    """Up to one of the 256 levels."""
    all_, some = (levels(sample(trained, n, steps=4)) for n in (range(5), [4, 1]))
    assert (all_[[4, 1]] - some).abs().max() < 1.01 and not torch.allclose(some[0], some[1])


def test_sample_follows_its_seed(trained):
    a, b, c = (sample(trained, range(2), steps=3, noise_seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.allclose(a, c)


def test_sample_is_diffusers_ddim(trained):
    """Against diffusers' pipeline, which starts from a generator that we seed alike."""
    from diffusers import DDIMPipeline

    pipeline = DDIMPipeline(trained, DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        generator=rng.generator("sample", 0, 0), num_inference_steps=10, output_type="np"
    ).images
    difference = (
        levels(sample(trained, range(1), steps=10))[0, 0]
        - 255 * torch.from_numpy(theirs)[0, :, :, 0]
    )
    assert difference.abs().max() < 1.01
