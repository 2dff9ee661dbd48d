"""Patch posteriors: the fast engine against the definition, and both against things known otherwise."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from nda import rng
from nda.checks import InputError
from nda.patches import ENGINES, conv, patch_scores, shared_noise
from nda.schedule import sigma, signal


def random_images(*shape, name="patches", dtype=torch.float64):
    """Uniform pixels in [-1, 1]."""
    return (2 * torch.rand(*shape, generator=rng.generator(name), dtype=torch.float64) - 1).to(dtype)


def random_case(draw):
    """Queries, train images and settings of every kind."""
    chan, rows, cols = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    name = draw(st.integers(0, 99))
    queries, train = random_images(2, chan, rows, cols, name=name), random_images(draw(st.integers(1, 4)), chan, rows, cols, name=-name - 1)
    settings = {
        "patch": draw(st.integers(1, min(rows, cols))),
        "timestep": draw(st.sampled_from([50, 200, 500])),
        "borders": draw(st.sampled_from(["match", "zero"])),
        "top_k": draw(st.sampled_from([1, 2, 7, None])),
        "noise_seed": name,
    }
    return queries, train, settings


CASES = st.composite(random_case)()


# ---- the fast engine and the definition


@given(CASES)
def test_conv_is_the_definition(case):
    queries, train, settings = case
    naive, fast, auto = (patch_scores(queries, train, **settings, engine=engine) for engine in ("naive", "conv", "auto"))
    torch.testing.assert_close(fast, naive, rtol=0, atol=1e-9)
    assert torch.equal(auto, fast)


@pytest.mark.parametrize("borders", ["match", "zero"])
@pytest.mark.parametrize("patch", [1, 2, 3, 4, 5, 6])
def test_conv_is_the_definition_for_every_window(patch, borders):
    queries, train = random_images(2, 2, 6, 7), random_images(3, 2, 6, 7, name="train")
    naive, fast = (patch_scores(queries, train, timestep=200, patch=patch, top_k=3, borders=borders, engine=e) for e in ("naive", "conv"))
    torch.testing.assert_close(fast, naive, rtol=0, atol=1e-9)


@given(CASES)
def test_masses_sum_to_the_number_of_query_patches(case):
    queries, train, settings = case
    scores = patch_scores(queries, train, **settings | {"top_k": None})
    positions = [side if settings["patch"] % 2 else side - 1 for side in train.shape[2:]]
    torch.testing.assert_close(scores.sum(1), torch.full((2,), float(np.prod(positions)), dtype=torch.float64), rtol=1e-9, atol=0)
    assert (patch_scores(queries, train, **settings) <= scores + 1e-12).all()


@given(CASES, st.randoms(use_true_random=False))
def test_order_of_train_images_does_not_matter(case, shuffler):
    queries, train, settings = case
    order = shuffler.sample(range(len(train)), len(train))
    torch.testing.assert_close(patch_scores(queries, train[order], **settings), patch_scores(queries, train, **settings)[:, order])


@given(CASES)
def test_identical_train_images_have_identical_scores(case):
    queries, train, settings = case
    scores = patch_scores(queries, torch.cat([train, train]), **settings)
    torch.testing.assert_close(scores[:, : len(train)], scores[:, len(train) :], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", ["naive", "conv"])
@pytest.mark.parametrize("level", [-1.0, 0.0, 1.0])
def test_constant_images_share_equally(engine, level):
    """All windows are alike: every train image gets the same, also where the three terms of a distance cancel completely."""
    images = torch.full((3, 1, 5, 5), level, dtype=torch.float64)
    scores = patch_scores(images[:1], images, timestep=50, patch=3, top_k=None, noise=torch.zeros(1, 5, 5), engine=engine)
    torch.testing.assert_close(scores, torch.full((1, 3), 25 / 3, dtype=torch.float64))


# ---- numerics


@pytest.mark.parametrize("borders", ["match", "zero"])
@pytest.mark.parametrize("timestep", [50, 200, 500])
def test_float32_is_near_float64(timestep, borders):
    queries, train = random_images(4, 3, 12, 12), random_images(30, 3, 12, 12, name="train")
    train[:4] = (queries + 0.2 * random_images(4, 3, 12, 12, name="near")).clamp(-1, 1)
    for patch in (1, 4, 5):
        settings = {"timestep": timestep, "patch": patch, "top_k": 10, "borders": borders}
        exact, single = patch_scores(queries, train, **settings), patch_scores(queries.float(), train.float(), **settings)
        assert single.dtype == torch.float32
        assert (single - exact).abs().max() < 1e-5 * exact.max()


@pytest.mark.parametrize("block_bytes", [1, 5_000, 77_777, 10**9])
def test_block_size_does_not_matter(block_bytes):
    noisy, train = random_images(2, 2, 7, 8), random_images(9, 2, 7, 8, name="train")
    for top_k in (3, None):
        settings = {"sigma": 0.3, "patch": 4, "top_k": top_k, "borders": "match"}
        torch.testing.assert_close(
            conv.scores(noisy, train, **settings, block_bytes=block_bytes), conv.scores(noisy, train, **settings), rtol=1e-9, atol=1e-12
        )


def test_number_of_threads_does_not_matter():
    queries, train = random_images(2, 3, 16, 16), random_images(20, 3, 16, 16, name="train")
    scores, threads = [], torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            scores.append(patch_scores(queries, train, timestep=100, patch=5))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(*scores, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("timestep", [0, 999])
def test_ends_of_the_schedule_are_finite(timestep):
    queries, train = random_images(2, 1, 6, 6, dtype=torch.float32), random_images(5, 1, 6, 6, name="train", dtype=torch.float32)
    scores = patch_scores(queries, train, timestep=timestep, patch=3, top_k=None)
    torch.testing.assert_close(scores.sum(1), torch.full((2,), 36.0), rtol=1e-4, atol=0)


# ---- against what is known otherwise


@pytest.mark.parametrize("engine", ENGINES)
def test_one_pixel_windows_are_a_softmax_over_all_pixels(engine):
    queries, train, noise = random_images(2, 3, 4, 5), random_images(6, 3, 4, 5, name="train"), random_images(3, 4, 5, name="noise")
    ours = patch_scores(queries, train, timestep=300, patch=1, top_k=None, borders="zero", noise=noise, engine=engine)
    x, y = [i.movedim(1, 3).reshape(-1, 3).numpy() for i in (signal(300) * queries + sigma(300) * noise, signal(300) * train)]
    weights = np.exp(-((x[:, None] - y) ** 2).sum(2) / 2 / sigma(300) ** 2)
    np.testing.assert_allclose(ours, (weights / weights.sum(1, keepdims=True)).reshape(2, 20, 6, 20).sum((1, 3)), atol=1e-9)


def test_images_of_one_pixel_share_by_a_softmax_over_images():
    queries, train, noise = random_images(1, 2, 1, 1), random_images(6, 2, 1, 1, name="train"), torch.zeros(2, 1, 1)
    ours = patch_scores(queries, train, timestep=300, patch=1, noise=noise)
    distances = signal(300) ** 2 * (queries - train).square().sum((1, 2, 3))
    torch.testing.assert_close(ours[0], (-distances / 2 / sigma(300) ** 2).softmax(0))


def released_code(noisy, train, *, sigma, patch, top_k, value):
    """The recipe of the released code: a value outside the image on both sides, all pairs, one softmax, top-k, sum."""
    before = (patch - 1) // 2
    inside = F.pad(torch.ones_like(train[:1, :1]), [before] * 4)
    x, y = [F.unfold(F.pad(images, [before] * 4) + value * (1 - inside), patch).movedim(1, 2) for images in (noisy, train)]
    weights = (
        -torch.cdist(x.flatten(0, 1), y.flatten(0, 1), compute_mode="donot_use_mm_for_euclid_dist").square() / (2 * sigma**2)
    ).softmax(1)
    per_image = weights.unflatten(1, (len(train), -1)).unflatten(0, (len(noisy), -1))  # [query, u, train, v]
    return per_image.topk(min(top_k, per_image.shape[3])).values.sum((1, 3))


@pytest.mark.parametrize("top_k", [1, 10, 100])
@pytest.mark.parametrize("patch", [3, 4, 5, 8])
@pytest.mark.parametrize(("borders", "value"), [("match", 10.0), ("zero", 0.0)])
def test_released_code(patch, top_k, borders, value):
    queries, train = random_images(3, 3, 8, 8), random_images(12, 3, 8, 8, name="train")
    noise = torch.randn(3, 8, 8, generator=rng.generator("noise"), dtype=torch.float64)
    theirs = released_code(
        signal(100) * queries + sigma(100) * noise, signal(100) * train, sigma=sigma(100), patch=patch, top_k=top_k, value=value
    )
    ours = patch_scores(queries, train, timestep=100, patch=patch, top_k=top_k, borders=borders, noise=noise)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("patch", [3, 4])
def test_a_train_image_is_its_own_top_proponent(patch):
    train = random_images(10, 3, 8, 8)
    assert torch.equal(patch_scores(train, train, timestep=50, patch=patch).argmax(1), torch.arange(10))


def test_borders_matter():
    queries, train = random_images(1, 1, 5, 5), random_images(4, 1, 5, 5, name="train")
    match, zero = (patch_scores(queries, train, timestep=300, patch=3, borders=b) for b in ("match", "zero"))
    assert (match - zero).abs().max() > 1e-3


# ---- noise


def test_noise_is_shared_by_name_and_can_be_given():
    queries, train = random_images(2, 1, 5, 5), random_images(4, 1, 5, 5, name="train")
    settings = {"timestep": 200, "patch": 3}
    default = patch_scores(queries, train, **settings)
    assert torch.equal(default, patch_scores(queries, train, **settings, noise_seed=0))
    assert not torch.allclose(default, patch_scores(queries, train, **settings, noise_seed=1))
    assert torch.equal(default, patch_scores(queries, train, **settings, noise=shared_noise(queries, 200, 0)))
    assert not torch.allclose(default, patch_scores(queries, train, **settings, noise=torch.zeros(1, 5, 5)))
    torch.testing.assert_close(default[1:], patch_scores(queries[1:], train, **settings))  # a query does not see the others
    assert not torch.allclose(shared_noise(queries, 200, 0), shared_noise(queries, 201, 0))


# ---- bad input

GOOD = random_images(2, 1, 4, 6, dtype=torch.float32)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"queries": GOOD[0]}, "queries"),
        ({"queries": GOOD + 5}, r"queries .*\[-1, 1\]"),
        ({"queries": GOOD[:0]}, "queries"),
        ({"train": GOOD.clone().fill_(float("nan"))}, "train .*NaN"),
        ({"train": GOOD[..., :5]}, "train"),
        ({"train": GOOD.double()}, "dtype"),
        ({"timestep": 1000}, "timestep"),
        ({"timestep": -1}, "timestep"),
        ({"timestep": 10.0}, "timestep"),
        ({"patch": 0}, "patch"),
        ({"patch": 5}, "patch .* side 4"),
        ({"patch": 3.0}, "patch"),
        ({"patch": True}, "patch"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"borders": "reflect"}, "borders"),
        ({"engine": "magic"}, "engine"),
        ({"noise": torch.zeros(1, 4, 5)}, "noise"),
        ({"noise": torch.full((1, 4, 6), float("inf"))}, "noise"),
        ({"noise": 0.5}, "noise"),
    ],
)
def test_bad_input_names_the_argument(change, reason):
    good = {"queries": GOOD, "train": GOOD, "timestep": 100, "patch": 3}
    patch_scores(**good)
    with pytest.raises(InputError, match=reason) as error:
        patch_scores(**good | change)
    assert "\n" not in str(error.value)
