"""p-values, thresholds and intervals: by hand, against scipy, and that they keep their promise."""

import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from nda import rng
from nda.errors import InputError
from nda.evidence.calibration import interval, p_value, rounded, threshold

ROOT = Path(__file__).parent.parent


def test_p_by_hand():
    null = [0.1, 0.2, 0.2, 0.4]
    by_hand = {0.5: 1 / 5, 0.4: 2 / 5, 0.3: 2 / 5, 0.2: 4 / 5, 0.1: 1, 0.0: 1}
    assert {share: p_value(share, null) for share in by_hand} == pytest.approx(by_hand)
    assert p_value(0.3, []) == 1


def test_threshold_by_hand():
    null = [n / 100 for n in range(40)]  # 41 ranks: 5 % allows one held-out image above
    found = threshold(null, 0.05)
    assert (found.share, found.false, found.of, found.rate) == (0.3801, 1, 40, 1 / 40)
    assert p_value(found.share, null) == 2 / 41
    assert threshold(null, 0.01).share is None  # 40 images cannot give 1 %
    assert threshold([0.0] * 99, 0.01).share == 1e-4
    assert threshold([1.0] * 99, 0.01).share is None  # nothing can exceed them


@given(st.lists(st.integers(0, 10000), max_size=60), st.sampled_from([0.3, 0.05, 0.01]), st.data())
def test_a_share_reaches_the_threshold_if_its_p_does(counts, level, data):
    null = [rounded(count / 10000) for count in counts]
    share = rounded(data.draw(st.integers(0, 10000)) / 10000)
    found = threshold(null, level)
    reaches = found.share is not None and share >= found.share
    assert reaches == (p_value(share, null) <= level + 1e-12)
    assert found.false == sum(found.share is not None and other >= found.share for other in null)


@given(st.integers(0, 40), st.integers(1, 40))
def test_interval_is_that_of_scipy(count, of):
    count = min(count, of)
    exact = binomtest(count, of).proportion_ci(0.95, "exact")
    assert interval(count, of) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_interval_of_nothing():
    assert interval(0, 0) == (0.0, 1.0)
    with pytest.raises(InputError, match="count must be between 0 and 2"):
        interval(3, 2)


def test_of_exchangeable_suspects_no_more_are_attributed_than_the_level_says():
    draws = torch.rand(4000, 40, generator=rng.generator("calibration")).mul(50).round().div(50)
    p = torch.tensor([p_value(own, null) for own, *null in draws.tolist()])  # with many ties
    for level in (0.05, 0.1, 0.3):
        low, _ = interval(int((p <= level).sum()), len(p))
        assert low <= level


def test_rounding_decides_nothing():
    assert rounded(0.1 + 0.2) == rounded(0.3) == 0.3
    assert rounded(0.30004) == 0.3 and rounded(1 / 1024) == 0.001


def test_the_benchmark_counts_every_split_once():
    benchmark = runpy.run_path(str(ROOT / "benchmarks" / "calibration.py"))
    inside, outside = [0.0] * 195 + [0.1] * 5, [0.0] * 396 + [0.05, 0.1, 0.2, 0.3]
    rows = benchmark["rows"]("made up", inside, outside, 20)
    assert [row["null"] for row in rows] == ["set aside"] * 2 + ["held out"] * 2
    assert all(row["kept"] + row["below"] + row["over"] == row["splits"] == 20 for row in rows)
    assert [row["of"] for row in rows] == [20 * 400] * 2 + [20 * 200] * 2
    assert all(0 < row["false"] / row["of"] == row["rate"] <= 4 / 200 for row in rows)
    certain = benchmark["rows"]("made up", [0.0] * 200, [0.5] * 400, 1)[0]
    assert (certain["false"], certain["over"], certain["above"]) == (400, 1, 1)
