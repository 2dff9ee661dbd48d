"""Scores among candidates: those of all images where nothing is left out, else honest."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from photographs import photographs

from nda.data.bank import floats
from nda.errors import InputError
from nda.nonparametric.among import scores_among
from nda.nonparametric.config import NDAConfig, Scale
from nda.nonparametric.scores import nda_scores

TRAIN = photographs(40, 8)
QUERY = floats(photographs(1, 8, "queries")).double()[0]
CONFIG = NDAConfig({100: (Scale(3), Scale(4, coarse=True)), 400: (Scale(5),)}, top_k=3)


def exact(config=CONFIG):
    return nda_scores(QUERY[None], floats(TRAIN).double(), config)[0]


@given(count=st.integers(1, 40), flips=st.booleans(), everything=st.booleans())
def test_exact_where_nothing_is_left_out(count, flips, everything):
    """All images are candidates, or all others are in the sample."""
    config = NDAConfig({100: (Scale(3),)}, top_k=None, flips=flips)
    some = torch.arange(40) if everything else torch.randperm(40)[:count]
    found = scores_among(QUERY, TRAIN, some, config, sample=40)
    expected = exact(config)
    torch.testing.assert_close(found.scores, expected[found.images], rtol=0, atol=1e-9)
    assert found.outside_error == 0 and (found.errors == 0).all()
    assert abs(found.outside - (1 - expected[found.images].sum().item())) < 1e-9
    every = found.everywhere(torch.ones(40))
    assert torch.equal(every[found.images], found.scores) and abs(every.sum().item() - 1) < 1e-6
    assert found.drawn.tolist() == sorted({*range(40)} - {*some.tolist()})
    torch.testing.assert_close(found.drawn_scores, expected[found.drawn], rtol=0, atol=1e-9)
    assert found.images.tolist() == sorted(some.tolist())


def test_estimates_are_right_on_average_and_know_their_error():
    some = torch.arange(10)
    whole = exact()
    found = [scores_among(QUERY, TRAIN, some, CONFIG, sample=16, seed=seed) for seed in range(40)]
    scores = torch.stack([one.scores for one in found])
    expected = whole[:10]
    said = torch.stack([one.errors for one in found]).square().mean(0).sqrt()
    real = (scores - expected).square().mean(0).sqrt()
    assert ((scores.mean(0) - expected).abs() < 4 * real / 40**0.5 + 0.1 * expected).all()
    assert (0.5 * real < said).all() and (said < 2 * real).all()
    assert all(0 < one.outside < 1 and one.outside_error > 0 for one in found)
    others = torch.stack([one.drawn_scores.mean() for one in found]).mean()
    assert abs(others - whole[10:].mean()) < 0.1 * whole[10:].mean()


def test_scores_outside_follow_the_root_of_the_coarse_mass():
    some, masses = torch.tensor([4, 9]), torch.arange(40.0).square()
    found = scores_among(QUERY, TRAIN, some, CONFIG, sample=16)
    every = found.everywhere(masses)
    outside = torch.ones(40, dtype=torch.bool)
    outside[some] = False
    torch.testing.assert_close(every[outside] / every[1], torch.arange(40.0).double()[outside])
    torch.testing.assert_close(every[found.drawn].sum(), found.drawn_scores.sum())
    assert torch.equal(every[some], found.scores)
    assert (found.everywhere(torch.zeros(40))[outside] == 0).all()


def test_order_and_precision():
    some = torch.tensor([7, 3, 20])
    one = scores_among(QUERY, TRAIN, some, CONFIG, sample=16)
    other = scores_among(QUERY, TRAIN, some.flip(0), CONFIG, sample=16)
    assert one.images.tolist() == [3, 7, 20] and torch.equal(one.scores, other.scores)
    single = scores_among(QUERY.float(), TRAIN, some, CONFIG, sample=16)
    assert single.scores.dtype == torch.float32
    torch.testing.assert_close(single.scores.double(), one.scores, rtol=1e-3, atol=1e-6)


def test_bad_input():
    for wrong in ([1, 1], [], [40], [-1, 2]):
        with pytest.raises(InputError, match="candidates must be different numbers of the 40"):
            scores_among(QUERY, TRAIN, torch.tensor(wrong, dtype=torch.long), CONFIG)
    with pytest.raises(InputError, match="sample must be at least 16, so that its error"):
        scores_among(QUERY, TRAIN, torch.arange(3), CONFIG, sample=5)
    with pytest.raises(InputError, match="sample must be a positive integer"):
        scores_among(QUERY, TRAIN, torch.arange(3), CONFIG, sample=0)
