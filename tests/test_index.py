"""Candidates: against loops in whole numbers, and whatever the blocks."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from photographs import photographs

from nda.errors import InputError
from nda.nonparametric import index

TRAIN, QUERIES = photographs(9, 16), photographs(2, 16, "queries")


def naive(query: torch.Tensor, train: torch.Tensor, count: int, flips: bool, banned=()) -> set:
    """Images by their best place in any of 26 rows; pictures have 16 pixels."""

    q, distances = query.double() - 128, []
    views = [[y.double() - 128 for y in ([y, y.flip(-1)] if flips else [y])] for y in train]
    for row, col in product(range(0, 13, 3), repeat=2):
        patch = q[:, row : row + 4, col : col + 4]
        distances.append(
            [
                min(
                    (y[:, r : r + 4, c : c + 4] - patch).square().sum().item()
                    for y in both
                    for r, c in product(range(13), repeat=2)
                )
                for both in views
            ]
        )

    def small(image):
        return F.avg_pool2d(image[None], 2)[0].round()

    distances.append(
        [min((small(y) - small(q)).square().sum().item() for y in both) for both in views]
    )
    ranks = [sorted(range(len(train)), key=lambda n, d=d: (d[n], n)) for d in distances]
    chosen: dict[int, None] = {}
    for place in range(len(train)):
        chosen |= dict.fromkeys(rank[place] for rank in ranks if rank[place] not in banned)
    return set(list(chosen)[:count])


@pytest.mark.parametrize("flips", [True, False])
def test_against_loops(flips):
    found = index.candidates(QUERIES, TRAIN, 4, flips=flips, without=[[], [2, 5]])
    assert set(found[0].tolist()) == naive(QUERIES[0], TRAIN, 4, flips)
    assert set(found[1].tolist()) == naive(QUERIES[1], TRAIN, 4, flips, (2, 5))
    assert all(some.tolist() == sorted(some.tolist()) for some in found)


def test_neither_blocks_nor_other_queries_matter(monkeypatch):
    found = index.candidates(QUERIES, TRAIN, 4)
    monkeypatch.setattr(index, "BLOCK_BYTES", 1)  # an image at a time
    monkeypatch.setattr(index, "TOGETHER", 4)
    one_by_one = [index.candidates(query[None], TRAIN, 4)[0] for query in QUERIES]
    assert all(map(torch.equal, found, one_by_one))


def test_copies_and_parts_are_candidates():
    queries, train = QUERIES.clone(), photographs(50, 16)
    queries[0] = train[3].flip(-1)
    queries[1, :, 4:10, 5:11] = train[7, :, 8:14, 2:8]
    first, second = index.candidates(queries, train, 26)
    assert 3 in first and 7 in second


def test_as_many_as_there_are():
    (found,) = index.candidates(QUERIES[:1], TRAIN, 50, without=[[4]])
    assert found.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]


@pytest.mark.parametrize("size", [8, 12, 20, 32, 64])
def test_any_size(size):
    train = photographs(6, size)
    (found,) = index.candidates(train[[4]], train, 1)
    assert found.tolist() == [4]


def test_bad_input():
    with pytest.raises(InputError, match="count must be a positive integer"):
        index.candidates(QUERIES, TRAIN, 0)
    with pytest.raises(InputError, match="without must name images for each of 2 queries"):
        index.candidates(QUERIES, TRAIN, 1, without=[[]])


@pytest.mark.parametrize("together", [1, 4, 512])
def test_near_copies(monkeypatch, together):
    monkeypatch.setattr(index, "TOGETHER", together)
    jpeg = (TRAIN[2].int() + 3).clamp(0, 255).byte()
    asked = torch.stack([jpeg, TRAIN[5].flip(-1), QUERIES[0]])
    assert index.near_copies(asked, TRAIN) == [[2], [5], []]
    assert index.near_copies(asked, TRAIN, flips=False) == [[2], [], []]


def test_of_a_flat_picture_only_the_same_is_a_near_copy():
    flat = torch.full((2, 3, 16, 16), 7, dtype=torch.uint8)
    flat[1] = 8
    assert index.near_copies(flat[:1], flat) == [[0]]
