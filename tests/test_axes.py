"""That the tests check axes: see axes.py."""

import pytest
import torch
from jaxtyping import TypeCheckError

from nda.errors import InputError
from nda.evidence.truth import group_effects
from nda.schedule import add_noise


def test_call_that_succeeds_with_other_axes_is_an_error():
    images, timesteps = torch.zeros(2, 1, 4, 4), torch.tensor([1, 2])
    add_noise(images, timesteps, images)
    with pytest.raises(TypeCheckError, match="add_noise"):
        add_noise(images, timesteps, images[:1])


def test_bad_input_gets_its_own_error():
    with pytest.raises(InputError, match="transposed"):
        group_effects(torch.zeros(4, 2), torch.ones(3, 4, dtype=torch.bool))
