"""The null and raw pixels."""

import numpy as np
import pytest
import torch

from nda import rng
from nda.checks import InputError
from nda.similarity import pixel_scores, random_scores

QUERIES, TRAIN = (2 * torch.rand(n, 3, 4, 5, generator=rng.generator("similarity", n)) - 1 for n in (3, 7))


def test_null_is_standard_normal_and_seeded():
    images = torch.zeros(200, 1, 2, 2)
    scores = random_scores(images, images)
    assert scores.shape == (200, 200) and abs(scores.mean()) < 0.02 and abs(scores.std() - 1) < 0.02
    assert torch.equal(scores, random_scores(images, images, seed=0)) and not torch.allclose(scores, random_scores(images, images, seed=1))
    assert scores.dtype == images.dtype and random_scores(images.double(), images.double()).dtype == torch.float64


def test_dot_and_cosine():
    a, b = QUERIES.double().flatten(1).numpy(), TRAIN.double().flatten(1).numpy()
    dot = a @ b.T
    np.testing.assert_allclose(pixel_scores(QUERIES, TRAIN), dot, atol=1e-5)
    cosine = dot / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(pixel_scores(QUERIES, TRAIN, kind="cosine"), cosine, atol=1e-6)
    torch.testing.assert_close(pixel_scores(TRAIN, TRAIN, kind="cosine").diagonal(), torch.ones(7))


def test_grey_images_have_cosine_zero_not_nan():
    assert (pixel_scores(torch.zeros_like(QUERIES), TRAIN, kind="cosine") == 0).all()


@pytest.mark.parametrize(
    ("queries", "kind", "reason"), [(QUERIES, "l2", "kind"), (QUERIES + 3, "dot", "queries"), (QUERIES[..., :4], "dot", "train")]
)
def test_bad_input(queries, kind, reason):
    with pytest.raises(InputError, match=reason):
        pixel_scores(queries, TRAIN, kind=kind)
