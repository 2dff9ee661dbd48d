"""Scores of blocks of train images, merged, are those of the whole."""

from dataclasses import asdict, replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nda_case import QUERIES, RICH, TRAIN, assert_close

from nda.errors import InputError
from nda.nonparametric.config import NDAConfig
from nda.nonparametric.partial import Partial, merge, partial_scores
from nda.nonparametric.scores import nda_scores
from nda.store import Store


@pytest.mark.parametrize(
    "config",
    [RICH, replace(RICH, top_k=None, flips=False, per_position=False)],
    ids=["rich", "plain"],
)
@settings(max_examples=8)
@given(shuffler=st.builds(Random, st.integers(0, 9999)))
def test_any_split_in_any_order_and_nesting_is_the_whole(shuffler, config):
    order = shuffler.sample(range(5), 5)
    cuts = [0, *sorted(shuffler.sample(range(1, 5), shuffler.randint(1, 4))), 5]
    blocks = [order[start:stop] for start, stop in zip(cuts, cuts[1:], strict=False)]
    parts = [partial_scores(QUERIES, TRAIN[block], config, images=block) for block in blocks]
    while len(parts) > 1:  # merge some, until one is left
        shuffler.shuffle(parts)
        some = shuffler.randint(1, len(parts))
        parts = [merge(parts[:some]), *parts[some:]]
    assert_close(parts[0].scores(), nda_scores(QUERIES, TRAIN, config))
    assert all(posterior.images.tolist() == [0, 1, 2, 3, 4] for posterior in parts[0].posteriors)


def test_images_are_appended():
    finished = partial_scores(QUERIES, TRAIN[:3], RICH)
    assert_close(finished.scores(), nda_scores(QUERIES, TRAIN[:3], RICH))
    assert_close(
        merge([finished, partial_scores(QUERIES, TRAIN[3:], RICH, images=range(3, 5))]).scores(),
        nda_scores(QUERIES, TRAIN, RICH),
    )


def test_numbers_need_not_be_without_gaps():
    parts = [
        partial_scores(QUERIES, TRAIN[n : n + 1], RICH, images=[number])
        for n, number in enumerate((900, 3, 77, 5, 12))
    ]
    merged = merge(parts)
    assert merged.posteriors[0].images.tolist() == [3, 5, 12, 77, 900]
    assert_close(merged.scores(), nda_scores(QUERIES, TRAIN, RICH)[:, [1, 3, 4, 2, 0]])


def test_scores_are_in_the_order_of_the_numbers():
    block = [2, 0, 1]
    part = partial_scores(QUERIES, TRAIN[block], RICH, images=block)
    whole = nda_scores(QUERIES, TRAIN[:3], RICH)
    assert_close(merge([part]).scores(), whole)
    assert_close(part.scores(), whole)


def test_configurations_that_are_equal_merge_into_the_same():
    """Two machines may read the timesteps of one configuration in different orders."""
    one, other = NDAConfig.single({100: 3, 400: 5}), NDAConfig.single({400: 5, 100: 3})
    parts = [
        partial_scores(QUERIES, TRAIN[:2], one),
        partial_scores(QUERIES, TRAIN[2:], other, images=range(2, 5)),
    ]
    if one == other:
        assert_close(merge(parts).scores(), nda_scores(QUERIES, TRAIN, one))
    else:
        with pytest.raises(InputError, match="configurations"):
            merge(parts)


def test_parts_of_different_engines_merge():
    parts = [
        partial_scores(QUERIES, TRAIN[n : n + 1], RICH, images=[n], engine=e)
        for n, e in enumerate(("fused", "conv", "box", "fused"))
    ]
    assert_close(merge(parts).scores(), nda_scores(QUERIES, TRAIN[:4], RICH))


def test_parts_travel_through_a_store(tmp_path):
    parts = [
        partial_scores(QUERIES, TRAIN[:2], RICH),
        partial_scores(QUERIES, TRAIN[2:], RICH, images=[2, 3, 4]),
    ]
    for n, part in enumerate(parts):
        Store(tmp_path).save(f"part{n}", part.tensors(), parameters={"config": asdict(RICH)})
    store = Store(tmp_path)  # another process
    found = [
        Partial.from_tensors(
            NDAConfig.parse(store.info(f"part{n}")["parameters"]["config"]), store.load(f"part{n}")
        )
        for n in range(2)
    ]
    for ours, theirs in zip(found, parts, strict=True):
        assert ours.config == theirs.config and ours.shape == theirs.shape
        assert torch.equal(ours.scores(), theirs.scores())
        assert all(
            torch.equal(a.log_total, b.log_total)
            for a, b in zip(ours.posteriors, theirs.posteriors, strict=True)
        )
    assert_close(merge(found).scores(), nda_scores(QUERIES, TRAIN, RICH))


@pytest.mark.parametrize("flips", [False, True])
def test_shares_of_nothing_survive(flips, tmp_path):
    """At the first timestep images other than the query have no mass that a float can hold: -inf,
    which must not become NaN."""
    config = NDAConfig.single({0: 6}, draws=0, flips=flips)
    query, train = TRAIN[:1].float(), TRAIN.float()
    parts = [
        partial_scores(query, train[[0, 1]], config, images=[0, 1]),
        partial_scores(query, train[2:], config, images=[2, 3, 4]),
    ]
    minus = [
        replace(p, log_share=p.log_share.masked_fill(p.log_share < -80, -torch.inf))
        for p in parts[0].posteriors
    ]
    assert any(p.log_share.isneginf().any() for p in minus)
    Store(tmp_path).save("part", replace(parts[0], posteriors=tuple(minus)).tensors())
    merged = merge([Partial.from_tensors(config, Store(tmp_path).load("part")), parts[1]])
    assert_close(merged.scores(), torch.tensor([[1.0, 0, 0, 0, 0]]), 1e-6)
    assert_close(merged.scores(), nda_scores(query, train, config), 1e-6)


def test_merge_refuses():
    config = NDAConfig.single({100: 3})
    part = partial_scores(QUERIES, TRAIN[:2], config)
    other = {
        "image 1 is in more than one": partial_scores(QUERIES, TRAIN[:2], config, images=[1, 2]),
        "configurations": partial_scores(
            QUERIES, TRAIN[2:], replace(config, top_k=3), images=[2, 3, 4]
        ),
        "image sizes": partial_scores(QUERIES.mT, TRAIN[2:].mT, config, images=[2, 3, 4]),
        "different queries": partial_scores(QUERIES[:1], TRAIN[2:], config, images=[2, 3, 4]),
    }
    for reason, second in other.items():
        with pytest.raises(InputError, match=reason) as error:
            merge([part, second])
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="at least one"):
        merge([])


@pytest.mark.parametrize(
    "images", [[0, 1], [[0, 1, 2, 3, 4]], [0, 1, 2, 3, 3], [0.5, 1.0, 2.0, 3.0, 4.0]], ids=str
)
def test_bad_numbers(images):
    with pytest.raises(InputError, match="image"):
        merge([partial_scores(QUERIES, TRAIN, NDAConfig.single({100: 3}), images=images)])


def test_parts_of_other_queries_do_not_merge():
    parts = [
        partial_scores(QUERIES, TRAIN[:2], RICH),
        partial_scores(QUERIES.flip(0), TRAIN[2:], RICH, images=[2, 3, 4]),
    ]
    with pytest.raises(InputError, match="queries"):
        merge(parts)
