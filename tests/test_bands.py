"""Bands of distance, and how much of what scores predict comes true in each."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nda import rng
from nda.errors import InputError
from nda.evidence.bands import bands, slopes
from nda.evidence.truth import Truth


def draw(name, *shape):
    source = rng.generator("bands test", name)
    return torch.randn(*shape, generator=source, dtype=torch.float64)


def made(scores, true, *, noise=0.0):
    """A truth of random halves in which what scores predict comes true `true` times, all queries
    counting."""
    masks = draw("masks", 24, scores.shape[1]) > 0
    losses = 5 - masks.double() @ (scores * true).T + noise * draw("luck", 24, len(scores))
    rows = torch.arange(len(scores))
    return Truth("select", "gen", masks, losses[:, None, :, None], rows, len(scores), (100,))


SCORES, BAND = draw("scores", 7, 30), bands(draw("distances", 7, 30).abs())


@settings(max_examples=10)
@given(train=st.integers(1, 12), count=st.integers(1, 5))
def test_bands_are_equal_parts_in_the_order_of_the_distance(train, count):
    distances = draw("some", 3, train)
    if count > train:
        with pytest.raises(InputError, match="count must be at most"):
            bands(distances, count)
        return
    found = bands(distances, count)
    for row, band in zip(distances, found, strict=True):
        assert band[row.argsort()].diff().ge(0).all() and band.min() == 0
        sizes = torch.bincount(band, minlength=count)
        assert len(sizes) == count and sizes.max() - sizes.min() <= 1


def test_slopes_are_what_the_truth_was_made_with():
    true = torch.tensor([1.25, 0.5, 0.0]).double()
    found = slopes(made(SCORES, true[BAND]), SCORES, BAND, resamples=20)
    assert found["slope"].tolist() == pytest.approx(true.tolist(), abs=1e-9)
    assert found["high"].tolist() == pytest.approx(found["low"].tolist(), abs=1e-6)
    spread = [SCORES[band == BAND].std().item() for band in range(3)]
    assert found["spread"].tolist() == pytest.approx(spread)


def test_slopes_are_those_of_least_squares_in_a_loop():
    truth = made(SCORES, torch.ones(()), noise=3.0)
    found = slopes(truth, SCORES, BAND, resamples=300)
    rows, right = [], []
    for query in range(len(SCORES)):
        x = torch.stack(
            [truth.masks.double() @ (SCORES[query] * (BAND[query] == b)) for b in range(3)], 1
        )
        rows.append(x - x.mean(0))
        right.append(truth.mean[:, query].mean() - truth.mean[:, query])
    expected = torch.linalg.lstsq(torch.cat(rows), torch.cat(right)[:, None]).solution[:, 0]
    assert found["slope"].tolist() == pytest.approx(expected.tolist())
    assert (found["low"] < found["slope"]).all() and (found["slope"] < found["high"]).all()


def test_only_queries_that_count_do():
    truth = made(SCORES, torch.ones(()), noise=3.0)
    part = torch.tensor([1, 4, 5])
    few = Truth("select", "gen", truth.masks, truth.losses[:, :, part], part, 7, (100,))
    other = SCORES.clone()
    other[[0, 2, 3, 6]] = 0
    ours, theirs = (slopes(few, s, BAND, resamples=5) for s in (SCORES, other))
    assert ours.equals(theirs)


def test_bands_of_other_scores_are_refused():
    with pytest.raises(InputError, match="band must be of the scores' shape"):
        slopes(made(SCORES, torch.ones(())), SCORES, BAND[:, 1:])
