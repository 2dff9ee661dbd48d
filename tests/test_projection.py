"""The matrix-free projection: its hash, what it keeps, and that it does not depend on how it is
run."""

import numpy as np
import pytest
import torch

import nda.rivals.projection
from nda import rng
from nda.errors import InputError
from nda.rivals.projection import Projection, _mix


def vectors(n: int, dim: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(n, dim, generator=rng.generator("projection test", n, dim), dtype=dtype)


def unit(n: int, dim: int) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors(n, dim), dim=1)


def twin_mix(x: np.ndarray) -> np.ndarray:
    """The same hash in 32-bit arithmetic that wraps."""
    x = x.astype(np.uint32)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x21F0AAAD)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x735A2D97)
    return x ^ (x >> np.uint32(15))


def test_hash_is_the_32_bit_one():
    numbers = np.concatenate([np.arange(1000), 2**32 - 1 - np.arange(1000)])
    assert _mix(torch.from_numpy(numbers)).numpy().tolist() == twin_mix(numbers).tolist()
    assert len(set(_mix(torch.arange(100_000)).tolist())) == 100_000  # a bijection


@pytest.mark.parametrize(("dim", "nonzeros", "seed"), [(12, 1, 0), (12, 3, 5)])
def test_dense_twin(dim, nonzeros, seed):
    """The matrix, entry by entry from the hash."""
    matrix = np.zeros((50, dim))
    for part in range(nonzeros):
        high, low = divmod(rng.seed("projection", seed, part), 2**32)
        bits = twin_mix(twin_mix(np.arange(50) ^ low) ^ np.uint32(high)).astype(np.int64)
        place = part * (dim // nonzeros) + (bits // 2 * (dim // nonzeros)) // 2**31
        matrix[np.arange(50), place] = (1 - 2 * (bits % 2)) / nonzeros**0.5
    x = vectors(4, 50)
    np.testing.assert_allclose(Projection(dim, nonzeros, seed)(x), x.numpy() @ matrix, atol=1e-12)


def test_values_are_pinned():
    """The same on every machine and device, for ever: features on disk depend on it."""
    place, sign = Projection(4096)._hash(torch.tensor([0, 1, 2, 1_000_000, 40_000_000]), 0)
    assert (place * sign).tolist() == [873, -99, -3523, -557, 2058]


@pytest.mark.parametrize("nonzeros", [1, 4])
def test_inner_products_are_kept(nonzeros):
    """Every pair within 5 standard deviations, and their spread that of a dense Gaussian
    projection, √((1 + cosine²)/dim)."""
    x = unit(40, 5000)
    # 40 pairs of cosine about 0.7
    x = torch.cat([x, torch.nn.functional.normalize(x + unit(41, 5000)[1:], dim=1)])
    projected = Projection(1024, nonzeros)(x)
    error = projected @ projected.T - x @ x.T
    off = error[~torch.eye(80, dtype=torch.bool)]
    assert off.abs().max() < 5 * (2 / 1024) ** 0.5 and 0.5 < off.std() * 1024**0.5 < 1.5
    assert error.diagonal().abs().max() < 5 * (2 / 1024) ** 0.5


@pytest.mark.parametrize("nonzeros", [1, 2])
def test_inner_products_are_right_in_expectation(nonzeros):
    x, y = vectors(2, 30)
    found = torch.stack(
        [torch.dot(*Projection(8, nonzeros, seed)(torch.stack([x, y]))) for seed in range(600)]
    )
    assert abs(found.mean() - x @ y) < 4 * found.std() / 600**0.5
    assert found.std() > 1  # else the line above says nothing


@pytest.mark.parametrize("nonzeros", [1, 3])
def test_a_single_coordinate_keeps_its_norm_exactly(nonzeros):
    projected = Projection(30, nonzeros)(torch.eye(100, dtype=torch.float64))
    torch.testing.assert_close(projected.norm(dim=1), torch.ones(100, dtype=torch.float64))
    assert ((projected != 0).sum(1) == nonzeros).all()
    assert (projected.unflatten(1, (nonzeros, -1)) != 0).any(2).all()  # one in each part


def test_places_and_signs_are_even():
    place, sign = Projection(64)._hash(torch.arange(64_000), 0)
    counts = torch.bincount(place, minlength=64).double()
    assert ((counts - 1000) ** 2 / 1000).sum() < 63 + 5 * (
        2 * 63
    ) ** 0.5  # chi-square with 63 degrees of freedom
    assert (
        abs(sign.sum()) < 5 * 64_000**0.5
        and abs((sign * (place % 2 * 2 - 1)).sum()) < 5 * 64_000**0.5
    )


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
@pytest.mark.parametrize("nonzeros", [1, 2])
def test_same_bits_for_any_block_and_slice_and_order(monkeypatch, size, nonzeros):
    x, project = vectors(6, 300, torch.float32), Projection(16, nonzeros)
    whole = project(x)
    monkeypatch.setattr(nda.rivals.projection, "SLICE", size)
    assert torch.equal(project(x), whole)
    assert torch.equal(torch.cat([project(part) for part in x.split(min(size, 4))]), whole)
    order = torch.randperm(6, generator=rng.generator("order"))
    assert torch.equal(project(x[order]), whole[order])


def test_seeds_differ():
    x = unit(1, 500)
    a, b = (Projection(64, seed=seed)(x)[0] for seed in (0, 1))
    assert abs(torch.nn.functional.cosine_similarity(a, b, dim=0)) < 0.6


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [((0,), "dim"), ((4, 0), "nonzeros"), ((4, 3), "nonzeros must divide"), ((2.5,), "dim")],
)
def test_bad_input(arguments, reason):
    with pytest.raises(InputError, match=reason):
        Projection(*arguments)
