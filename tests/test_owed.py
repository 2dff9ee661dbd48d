"""Pixels that are owed to one image: against loops over squares."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nda import rng
from nda.errors import InputError
from nda.nonparametric.owed import fitting, nobody, owed, shares, varied
from nda.nonparametric.patches import Posterior, Windows


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


@given(st.integers(0, 99), st.sampled_from([3, 5]))
def test_windows_that_vary(seed, patch):
    query = torch.rand(3, 6, 7, generator=rng.generator("varied", seed)).double()
    query[:, :3] /= 10
    found, half = varied(query, patch, 0.2), patch // 2
    for row in range(6):
        for col in range(7):
            rows = [min(max(r, 0), 5) for r in range(row - half, row + half + 1)]
            cols = [min(max(c, 0), 6) for c in range(col - half, col + half + 1)]
            window = query[:, rows][:, :, cols].flatten(1)
            spread = (window - window.mean(1, keepdim=True)).square().mean().sqrt()
            assert found[row, col] == (spread >= 0.2)


def test_a_flat_picture_does_not_vary():
    assert not varied(torch.full((3, 8, 8), 0.3), 3, 0.01).any()


def test_nobody_has_what_no_image_fits():
    logit = nobody(Windows(8, 8, 3), 3)
    assert logit == -1.5 * 27
    totals = torch.tensor([[-13.5, -40.5, -400.0]]).double()  # a source, like nobody, a stranger
    shares_of_all = torch.tensor([[[0.75, 0.25]] * 3]).log()
    masses = fitting(Posterior(torch.arange(2), totals, shares_of_all), logit)
    expected = torch.tensor([[[0.75, 0.25], [0.375, 0.125], [0.0, 0.0]]])
    torch.testing.assert_close(masses, expected, atol=1e-6, rtol=1e-5)


def test_images_may_come_in_any_order():
    masses, order = some_masses(9, 8, 4, 1), torch.tensor([2, 0, 3, 1])
    assert torch.equal(shares(masses[..., order]), shares(masses)[order])


def test_too_small():
    with pytest.raises(InputError, match="masses must be maps of at least 4 x 4 pixels"):
        owed(torch.ones(3, 8, 1))
