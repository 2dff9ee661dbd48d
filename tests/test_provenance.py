"""Provenance is the posterior itself: compared with one that is written out in loops over all pairs
of windows."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from nda import rng
from nda.errors import InputError
from nda.nonparametric.patches import patch_scores, shared_noise
from nda.nonparametric.provenance import provenance, used_pixels
from nda.schedule import sigma, signal


def random_images(*shape, name="provenance", dtype=torch.float64):
    """Uniform pixels in [-1, 1]."""
    return (2 * torch.rand(*shape, generator=rng.generator(name), dtype=torch.float64) - 1).to(
        dtype
    )


def grid_of(images, patch):
    return [side - 1 + patch % 2 for side in images.shape[-2:]]


def distances(
    query, train, *, timestep, patch, coarse=False, borders="match", noise=None, temperature=1.0
):
    """|x - y|² of all windows, [row, col, train, row2, col2]; infinite where they may not meet.
    Outside of an image is NaN."""
    rows, cols = grid_of(query, patch)
    before = (patch - 1) // 2
    pad = [before, patch - 1 - before] * 2
    noisy = signal(timestep) * query + (0 if noise is None else sigma(timestep) * noise)
    found = torch.full((rows, cols, len(train), rows, cols), math.inf, dtype=torch.float64)
    x, bank = (
        F.pad(noisy, pad, value=math.nan),
        F.pad(signal(timestep) * train, pad, value=math.nan),
    )
    for i, j, n, k, m in product(*map(range, found.shape)):
        one, other = x[:, i : i + patch, j : j + patch], bank[n, :, k : k + patch, m : m + patch]
        if borders == "zero" or torch.equal(one.isnan(), other.isnan()):
            difference = one.nan_to_num() - other.nan_to_num()
            if coarse:
                difference = difference.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).sum((2, 4)) / 2
            found[i, j, n, k, m] = difference.square().sum()
    return found


CASES = [
    {"timestep": 200, "patch": 3},
    {"timestep": 500, "patch": 2, "borders": "zero"},
    {"timestep": 300, "patch": 4, "temperature": 0.5},
    {"timestep": 300, "patch": 4, "coarse": True, "borders": "zero"},
    {"timestep": 200, "patch": 2, "coarse": True},
    {"timestep": 50, "patch": 1},
]


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("options", CASES, ids=str)
def test_every_map_is_what_the_loops_say(options, noisy):
    query, train = random_images(2, 4, 5), random_images(3, 2, 4, 5, name="train")
    if noisy:
        options = options | {"noise": shared_noise(query[None], options["timestep"], 0)}
    squares = distances(query, train, **options)
    rows, cols = squares.shape[:2]
    logits = -squares / (2 * sigma(options["timestep"]) ** 2 * options.get("temperature", 1.0))
    posterior = logits.flatten(2).softmax(2).view_as(logits)
    masses = posterior.sum((3, 4))
    found = provenance(query, train, few=2, **options)
    torch.testing.assert_close(found.masses, masses, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.entropy, torch.special.entr(masses).sum(2), rtol=0, atol=1e-9)
    mass, image = masses.sort(dim=2, descending=True)
    assert torch.equal(found.image, image[:, :, :2])
    torch.testing.assert_close(found.mass, mass[:, :, :2], rtol=0, atol=1e-9)
    for i, j, rank in product(range(rows), range(cols), range(2)):
        nearest = squares[i, j, image[i, j, rank]].argmin().item()
        assert found.source[i, j, rank].tolist() == [nearest // cols, nearest % cols]
    for n in range(3):
        torch.testing.assert_close(
            used_pixels(query, train, n, **options),
            posterior[:, :, n].sum((0, 1)),
            rtol=0,
            atol=1e-9,
        )


@st.composite
def cases(draw):
    """A query, train images and options, larger than loops can take."""
    rows, cols, patch = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    patch = min(patch, rows, cols)
    name = draw(st.integers(0, 99))
    query, train = (
        random_images(2, rows, cols, name=name),
        random_images(draw(st.integers(1, 5)), 2, rows, cols, name=-1 - name),
    )
    options = {
        "timestep": draw(st.sampled_from([0, 100, 500, 999])),
        "patch": patch,
        "coarse": patch % 2 == 0 and draw(st.booleans()),
        "borders": draw(st.sampled_from(["match", "zero"])),
        "temperature": draw(st.sampled_from([0.3, 1.0])),
    }
    if draw(st.booleans()):
        options["noise"] = shared_noise(query[None], options["timestep"], name)
    return query, train, options


@given(cases())
def test_masses_sum_to_one_and_entropy_has_its_bounds(case):
    query, train, options = case
    found = provenance(query, train, few=1, **options)
    torch.testing.assert_close(
        found.masses.sum(2),
        torch.ones(*grid_of(query, options["patch"]), dtype=torch.float64),
        rtol=0,
        atol=1e-9,
    )
    assert (found.entropy >= -1e-9).all() and (found.entropy <= math.log(len(train)) + 1e-9).all()


@given(cases())
def test_used_pixels_sum_to_the_score(case):
    query, train, options = case
    scores = patch_scores(query[None], train, **options, top_k=None)[0]
    for n, score in enumerate(scores):
        used = used_pixels(query, train, n, **options)
        assert list(used.shape) == grid_of(query, options["patch"]) and (used >= 0).all()
        torch.testing.assert_close(used.sum(), score, rtol=1e-9, atol=1e-9)


@given(cases())
def test_with_matching_borders_no_source_has_another_border(case):
    """A window sticks out of the image where its source does, by as many pixels."""
    query, train, options = case
    patch = options["patch"]
    found = provenance(query, train, few=len(train), **options | {"borders": "match"})
    before = (patch - 1) // 2
    for axis, side in ((0, query.shape[1]), (1, query.shape[2])):
        own = (
            torch.arange(found.source.shape[axis])
            .view(-1, *[1] * (2 - axis))
            .expand(found.source.shape[:3])
        )
        source = found.source[..., axis]
        for first, last in ((own, source),):
            assert torch.equal((before - first).clamp_min(0), (before - last).clamp_min(0))
            assert torch.equal(
                (first - before + patch - side).clamp_min(0),
                (last - before + patch - side).clamp_min(0),
            )


@pytest.mark.parametrize("borders", ["match", "zero"])
@pytest.mark.parametrize(("patch", "coarse"), [(3, False), (4, False), (4, True)])
def test_a_train_image_comes_from_itself(patch, coarse, borders):
    train = random_images(4, 3, 6, 7, dtype=torch.float32)
    found = provenance(train[2], train, timestep=20, patch=patch, coarse=coarse, borders=borders)
    rows, cols = grid_of(train, patch)
    own = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij"), -1)
    assert (found.image[..., 0] == 2).all() and torch.equal(found.source[:, :, 0], own)
    assert found.mass[..., 0].min() > 0.99 and found.entropy.max() < 0.1
    used = used_pixels(train[2], train, 2, timestep=20, patch=patch, coarse=coarse, borders=borders)
    torch.testing.assert_close(used, torch.ones(rows, cols), rtol=0, atol=0.02)
    assert (
        used_pixels(
            train[2], train, 0, timestep=20, patch=patch, coarse=coarse, borders=borders
        ).max()
        < 0.02
    )


def test_entropy_reaches_its_bounds():
    one = random_images(1, 2, 5, 5)
    alike, alone = (
        provenance(one[0], one.expand(n, -1, -1, -1), few=1, timestep=300, patch=3).entropy
        for n in (4, 1)
    )
    torch.testing.assert_close(alike, torch.full((5, 5), math.log(4), dtype=torch.float64))
    assert torch.equal(alone.abs(), torch.zeros(5, 5, dtype=torch.float64))


def test_no_patch_is_cut():
    """More positions than the 100 that scores keep of an image, all of which weigh the same."""
    images = random_images(1, 1, 1, 1).expand(2, 1, 11, 12)
    assert torch.allclose(
        provenance(images[0], images, few=1, timestep=999, patch=1).masses.sum(2),
        torch.ones((), dtype=torch.float64),
    )
    assert used_pixels(images[0], images, 0, timestep=999, patch=1).sum().item() == pytest.approx(
        11 * 12 / 2
    )


def test_the_first_few():
    query, train = random_images(1, 5, 5), random_images(4, 1, 5, 5, name="train")
    every = provenance(query, train, few=4, timestep=300, patch=3)
    assert (every.mass.diff(dim=2) <= 0).all() and torch.equal(
        every.image.sort(2).values, torch.arange(4).expand(5, 5, 4)
    )
    assert torch.equal(every.mass, every.masses.gather(2, every.image))
    assert provenance(query, train, timestep=300, patch=3).image.shape == (5, 5, 3)
    two = provenance(query, train, few=2, timestep=300, patch=3)
    assert torch.equal(two.image, every.image[:, :, :2]) and torch.equal(
        two.source, every.source[:, :, :2]
    )


IMAGES = random_images(3, 1, 5, 5)


@pytest.mark.parametrize("few", [0, 4, -1, 1.5, True])
def test_bad_few(few):
    with pytest.raises(InputError, match="few"):
        provenance(IMAGES[0], IMAGES, few=few, timestep=100, patch=3)


@pytest.mark.parametrize("image", [-1, 3, 1.5, True])
def test_bad_image(image):
    with pytest.raises(InputError, match="image"):
        used_pixels(IMAGES[0], IMAGES, image, timestep=100, patch=3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"patch": 6}, "patch"), ({"borders": "torus"}, "borders"), ({"timestep": 1000}, "timestep")],
)
def test_bad_options(change, reason):
    for function, more in ((provenance, ()), (used_pixels, (0,))):
        with pytest.raises(InputError, match=reason):
            function(IMAGES[0], IMAGES, *more, **{"timestep": 100, "patch": 3} | change)
