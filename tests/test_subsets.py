"""Stratified choices and keep-masks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nda.data.subsets import FAMILIES, keep_masks, stratified
from nda.errors import InputError

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(torch.tensor)
MANY = st.lists(st.integers(0, 4), min_size=20, max_size=60).map(torch.tensor)
HUNDRED = torch.arange(100) % 3


@given(LABELS, st.data())
def test_stratified_counts_are_exact_and_shares_within_one(labels, data):
    count = data.draw(st.integers(1, len(labels)))
    chosen = stratified(labels, count, "test", 0)
    assert len(chosen) == count == len(chosen.unique()) and torch.equal(
        chosen, chosen.sort().values
    )
    for name in labels.unique():
        share = (labels == name).sum() * count / len(labels)
        assert abs((labels[chosen] == name).sum() - share) < 1


def test_stratified_is_random_by_name():
    a, b, c = (stratified(HUNDRED, 50, "x", i) for i in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    often = (
        torch.stack([torch.isin(torch.arange(100), stratified(HUNDRED, 50, i)) for i in range(200)])
        .float()
        .mean(0)
    )
    assert often.min() > 0.3 and often.max() < 0.7  # every image has its chance


@pytest.mark.parametrize("count", [0, -1, 101])
def test_stratified_more_than_there_are(count):
    with pytest.raises(InputError, match="100"):
        stratified(HUNDRED, count, "x")


@given(MANY, st.sampled_from([0.25, 0.5, 0.8]), st.sampled_from(FAMILIES))
def test_masks_have_one_size_and_do_not_depend_on_their_number(labels, keep_fraction, family):
    masks = keep_masks(labels, 5, family=family, keep_fraction=keep_fraction)
    assert (
        masks.dtype == torch.bool
        and masks.sum(1).tolist() == [round(keep_fraction * len(labels))] * 5
    )
    assert torch.equal(keep_masks(labels, 2, family=family, keep_fraction=keep_fraction), masks[:2])
    assert torch.equal(keep_masks(labels, 5, family=family, keep_fraction=keep_fraction), masks)


def test_families_share_no_mask():
    select, report = (keep_masks(HUNDRED, 64, family=family) for family in FAMILIES)
    assert len(torch.cat([report, select]).unique(dim=0)) == 128


@pytest.mark.parametrize(
    ("labels", "n_subsets", "settings", "reason"),
    [
        (HUNDRED, 4, {"family": "test"}, "family"),
        (HUNDRED, 4, {"family": "report", "keep_fraction": 0.0}, "keep_fraction"),
        (HUNDRED, 4, {"family": "report", "keep_fraction": 1.0}, "keep_fraction"),
        (HUNDRED, 4, {"family": "report", "keep_fraction": 0.001}, "keep_fraction"),
        (HUNDRED, 4, {"family": "report", "keep_fraction": float("nan")}, "keep_fraction"),
        (HUNDRED, 0, {"family": "report"}, "n_subsets"),
        (HUNDRED, -1, {"family": "report"}, "n_subsets"),
        (HUNDRED[:1], 4, {"family": "report"}, "keep_fraction"),
        (HUNDRED[:0], 4, {"family": "report"}, "keep_fraction"),
        (torch.zeros(4, dtype=torch.long), 7, {"family": "report"}, "too few for 7"),
    ],
)
def test_bad_input(labels, n_subsets, settings, reason):
    with pytest.raises(InputError, match=reason):
        keep_masks(labels, n_subsets, **settings)


@pytest.mark.parametrize("seed", range(5))
def test_a_class_whose_share_is_whole_gets_no_more(seed):
    labels = torch.tensor([0, 0, 1, 2])
    assert (labels[stratified(labels, 2, "whole", seed)] == 0).sum() == 1
