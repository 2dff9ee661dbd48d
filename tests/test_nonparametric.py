"""NDA is the mean of patch scores over timesteps."""

import pytest
import torch

from nda import rng
from nda.checks import InputError
from nda.nonparametric import nda_scores
from nda.patches import patch_scores

QUERIES, TRAIN = (2 * torch.rand(n, 1, 6, 6, generator=rng.generator("nda", n)) - 1 for n in (2, 5))


@pytest.mark.parametrize("settings", [{}, {"top_k": 2, "borders": "zero", "noise_seed": 3, "engine": "naive"}])
def test_mean_over_timesteps_each_with_its_window(settings):
    ours = nda_scores(QUERIES, TRAIN, patches={100: 3, 400: 4}, **settings)
    parts = [patch_scores(QUERIES, TRAIN, timestep=t, patch=p, **settings) for t, p in ((100, 3), (400, 4))]
    torch.testing.assert_close(ours, torch.stack(parts).mean(0))
    assert ours.shape == (2, 5) and ours.dtype == torch.float32


def test_settings_reach_the_patches():
    default = nda_scores(QUERIES, TRAIN, patches={300: 3})
    for other in ({"top_k": 1}, {"borders": "zero"}, {"noise_seed": 1}):
        assert not torch.allclose(default, nda_scores(QUERIES, TRAIN, patches={300: 3}, **other))


@pytest.mark.parametrize(
    ("patches", "reason"),
    [({}, "patches"), ({1000: 3}, "timestep"), ({100: 7}, "patch"), ({100: 3, 200: 0}, "patch"), ({"100": 3}, "timestep")],
)
def test_bad_input(patches, reason):
    with pytest.raises(InputError, match=reason):
        nda_scores(QUERIES, TRAIN, patches=patches)
