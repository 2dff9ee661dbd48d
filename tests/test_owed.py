"""Pixels that are owed to one image: against loops over squares."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nda import rng
from nda.errors import InputError
from nda.nonparametric.owed import owed, shares


def naive(masses: torch.Tensor) -> torch.Tensor:
    rows, cols, images = masses.shape
    side = min(rows, cols) // 4
    found = torch.zeros(rows, cols, images, dtype=torch.bool)
    for image in range(images):
        for top in range(rows - side + 1):
            for left in range(cols - side + 1):
                square = (slice(top, top + side), slice(left, left + side))
                if masses[square][..., image].mean() >= 0.499:
                    found[square][..., image] = True
    return found


def some_masses(rows, cols, images, seed):
    draws = torch.rand(rows, cols, images, generator=rng.generator("owed", seed)).double()
    # neighbours alike, so that some squares are owed
    draws[: rows // 2, :, 0] += 2 * images
    return draws / draws.sum(2, keepdim=True)


@given(st.integers(4, 13), st.integers(4, 13), st.integers(1, 5), st.integers(0, 99))
def test_against_loops(rows, cols, images, seed):
    masses = some_masses(rows, cols, images, seed)
    assert torch.equal(owed(masses), naive(masses))
    expected = naive(masses).sum((0, 1)) / (rows * cols)
    torch.testing.assert_close(shares(masses), expected.double())


def test_a_part_is_owed_and_the_rest_is_not():
    masses = torch.full((8, 8, 2), 0.01)
    masses[2:6, 3:8, 1] = 0.99
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:6, 3:8] = True
    assert torch.equal(owed(masses)[..., 1] & expected, expected)
    assert shares(masses)[0] == 0


def test_single_pixels_are_nobodys():
    masses = torch.zeros(8, 8, 4)
    rows, cols = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    masses.scatter_(2, (rows % 2 * 2 + cols % 2)[..., None], 1.0)  # neighbours from four images
    assert shares(masses).tolist() == [0, 0, 0, 0]


def test_half_of_a_square_is_enough_whatever_the_rounding():
    masses = torch.zeros(8, 8, 1)
    masses[::2] = 1 - 1e-7
    assert shares(masses)[0] == 1


def test_images_may_come_in_any_order():
    masses, order = some_masses(9, 8, 4, 1), torch.tensor([2, 0, 3, 1])
    assert torch.equal(shares(masses[..., order]), shares(masses)[order])


def test_too_small():
    with pytest.raises(InputError, match="masses must be maps of at least 4 x 4 pixels"):
        owed(torch.ones(3, 8, 1))
