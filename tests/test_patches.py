"""Patch posteriors: the fast engines against the definition, and all of them against things known
otherwise."""

import logging
from itertools import product
from math import inf
from random import Random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nda import rng
from nda.errors import InputError
from nda.nonparametric import patches
from nda.nonparametric.patches import (
    ENGINES,
    Posterior,
    Windows,
    merge,
    patch_posterior,
    patch_scores,
    shared_noise,
    tensor,
)
from nda.schedule import sigma, signal

FAST = ["conv", "box", "fused"]  # the engine for GPUs: test_triton.py
ALL = ["naive", *FAST]


def random_images(*shape, name="patches", dtype=torch.float64):
    """Uniform pixels in [-1, 1]."""
    return (2 * torch.rand(*shape, generator=rng.generator(name), dtype=torch.float64) - 1).to(
        dtype
    )


@st.composite
def cases(draw, dtypes=(torch.float64,)):
    """Queries, train images and settings of every kind; small, since the definition is slow."""
    chan, rows, cols = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    name, dtype = draw(st.integers(0, 99)), draw(st.sampled_from(dtypes))
    queries, train = (
        random_images(1, chan, rows, cols, name=name),
        random_images(draw(st.integers(1, 4)), chan, rows, cols, name=-name - 1),
    )
    kind = draw(st.sampled_from(["random", "constant", "identical", "levels", "near", "dark"]))
    if kind == "constant":  # all windows are alike
        queries, train = (
            queries[:, :, :1, :1].expand_as(queries),
            train[:, :, :1, :1].expand_as(train),
        )
    elif kind == "identical":  # images tie
        train = train[:1].expand_as(train)
    elif kind == "levels":
        # windows tie exactly, also at the border of the top k; distances as large as they can be
        queries, train = queries.sign(), train.sign()
    elif kind == "near":  # a window far better than the others
        train = torch.cat([(queries + 0.01 * train[:1]).clamp(-1, 1), train[1:]])
    elif kind == "dark":
        queries, train = queries - queries, train - train
    patch = draw(st.integers(1, min(rows, cols)))
    grid = rows - 1 + patch % 2
    start = draw(st.integers(0, max(0, grid - 1)))
    options = {
        "patch": patch,
        "coarse": draw(st.booleans()) and patch % 2 == 0,
        "borders": draw(st.sampled_from(["match", "zero"])),
        "timestep": draw(st.sampled_from([0, 1, 50, 200, 500, 999])),
        "top_k": draw(st.sampled_from([1, 2, 7, 25, None])),
        "temperature": draw(st.sampled_from([0.5, 1, 3.0])),
        "noise": None,
        "rows": draw(
            st.none()
            | st.integers(start + 1, max(start + 1, grid)).map(lambda stop: range(start, stop))
        ),
    }
    if draws := draw(st.integers(0, 3)):
        options["noise"] = shared_noise(queries, options["timestep"], name, draws - 1)
    return queries.to(dtype).contiguous(), train.to(dtype).contiguous(), options


def assert_same(ours, theirs, tolerance, about=""):
    """Every field. Masses of a query patch sum to 1, so the tolerance is relative to that. Logits
    have no bound, so that their sums are compared relative to their size; in float32 all of them
    may be off together, which no mass sees."""
    assert torch.equal(ours.images, theirs.images), about
    assert (ours.masses.shape, ours.log_total.shape) == (
        theirs.masses.shape,
        theirs.log_total.shape,
    ), about
    masses, total = ours.masses.double() - theirs.masses.double(), ours.log_total - theirs.log_total
    assert masses.abs().max() <= tolerance, f"{about}: masses differ by {masses.abs().max():.1e}"
    tolerance *= 10 if ours.log_share.dtype == torch.float32 else 1
    assert (total.abs() <= tolerance * (1 + theirs.log_total.abs())).all(), (
        f"{about}: log_total differs by {total.abs().max():.1e}"
    )


# ---- the fast engines and the definition


@settings(max_examples=80)
@given(cases())
def test_engines_are_the_definition(case):
    queries, train, options = case
    naive = patch_posterior(queries, train, **options, engine="naive")
    for engine in FAST:
        ours = patch_posterior(queries, train, **options, engine=engine)
        assert ours.log_share.dtype == torch.float64
        assert_same(ours, naive, 1e-9, engine)


@settings(max_examples=80)
@given(cases(dtypes=[torch.float32]))
def test_engines_are_the_definition_in_float32(case):
    """The definition computes in float64, with the same float32 pixels."""
    queries, train, options = case
    naive = patch_posterior(queries, train, **options, engine="naive")
    for engine in FAST:
        ours = patch_posterior(queries, train, **options, engine=engine)
        assert (ours.log_share.dtype, ours.log_total.dtype) == (torch.float32, torch.float64)
        assert_same(ours, naive, 1e-5, engine)


@pytest.mark.parametrize("borders", ["match", "zero"])
@pytest.mark.parametrize(
    ("patch", "coarse"),
    [(1, False), (2, False), (3, False), (4, False), (5, False), (2, True), (4, True)],
)
def test_engines_are_the_definition_for_every_window(patch, coarse, borders):
    queries, train = random_images(1, 2, 5, 6), random_images(3, 2, 5, 6, name="train")
    options = {"timestep": 200, "patch": patch, "coarse": coarse, "top_k": 3, "borders": borders}
    naive = patch_posterior(queries, train, **options, engine="naive")
    for engine in FAST:
        assert_same(patch_posterior(queries, train, **options, engine=engine), naive, 1e-9, engine)


def released_code(noisy, train, *, sigma, patch, coarse, top_k, value):
    """The recipe of the released code: a value outside the image on both sides, all pairs, one
    softmax, top-k, sum."""
    before = (patch - 1) // 2
    inside = F.pad(torch.ones_like(train[:1, :1]), [before] * 4)
    windows = [
        F.unfold(F.pad(images, [before] * 4) + value * (1 - inside), patch).movedim(1, 2)
        for images in (noisy, train)
    ]
    # the recipe's matrix B: 2 x 2 blocks relative to the window's corner, weights of one half
    if coarse:
        windows = [
            w.unflatten(2, (-1, patch // 2, 2, patch // 2, 2)).sum((4, 6)).flatten(2) / 2
            for w in windows
        ]
    x, y = (w.flatten(0, 1).double() for w in windows)
    weights = (
        -torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square() / (2 * sigma**2)
    ).softmax(1)
    # [query, u, train, v]
    per_image = weights.unflatten(1, (len(train), -1)).unflatten(0, (len(noisy), -1))
    return per_image.topk(min(top_k, per_image.shape[3])).values.sum((1, 3))


@pytest.mark.parametrize("top_k", [1, 10, 100])
@pytest.mark.parametrize(
    ("patch", "coarse"), [(3, False), (4, False), (5, False), (8, False), (4, True), (8, True)]
)
@pytest.mark.parametrize(("borders", "value"), [("match", 10.0), ("zero", 0.0)])
def test_released_code(patch, coarse, top_k, borders, value):
    queries, train = random_images(3, 3, 8, 8), random_images(12, 3, 8, 8, name="train")
    noise = shared_noise(queries, 100, 0)
    recipe = {"sigma": sigma(100), "patch": patch, "coarse": coarse, "top_k": top_k, "value": value}
    theirs = released_code(
        signal(100) * queries + sigma(100) * noise, signal(100) * train, **recipe
    )
    options = {
        "timestep": 100,
        "patch": patch,
        "coarse": coarse,
        "top_k": top_k,
        "borders": borders,
        "noise": noise,
    }
    for engine in FAST:
        torch.testing.assert_close(
            patch_scores(queries, train, **options, engine=engine), theirs, rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("timestep", [0, 200, 999])
def test_scores_in_float32(timestep):
    """Noise-free queries near a train image: at small timesteps the terms of a distance nearly
    cancel."""
    queries, train = (
        random_images(2, 3, 11, 10, dtype=torch.float32),
        random_images(9, 3, 11, 10, name="train", dtype=torch.float32),
    )
    train[:2] = (
        queries + 0.2 * random_images(2, 3, 11, 10, name="near", dtype=torch.float32)
    ).clamp(-1, 1)
    noisy, bank = signal(timestep) * queries, signal(timestep) * train
    for patch, coarse in ((1, False), (4, False), (7, False), (2, True), (6, True)):
        exact = released_code(
            noisy, bank, sigma=sigma(timestep), patch=patch, coarse=coarse, top_k=10, value=0
        )
        for engine in FAST:
            ours = patch_scores(
                queries,
                train,
                timestep=timestep,
                patch=patch,
                coarse=coarse,
                top_k=10,
                borders="zero",
                engine=engine,
            )
            assert ours.dtype == torch.float32
            assert (ours - exact).abs().max() < 1e-5 * exact.max(), (engine, patch, coarse)


# ---- what must hold whatever the images


@given(cases())
def test_masses_sum_to_one_at_every_position(case):
    queries, train, options = case
    everything, few = (
        patch_posterior(queries, train, **options | {"top_k": k}).masses for k in (None, 2)
    )
    torch.testing.assert_close(
        everything.sum(2), torch.ones(everything.shape[:2], dtype=torch.float64), rtol=0, atol=1e-9
    )
    assert (few <= everything + 1e-12).all()


@given(cases(), st.builds(Random, st.integers(0, 9999)))
def test_order_of_train_images_does_not_matter(case, shuffler):
    queries, train, options = case
    order = shuffler.sample(range(len(train)), len(train))
    ours, moved = (patch_posterior(queries, images, **options) for images in (train, train[order]))
    torch.testing.assert_close(moved.masses, ours.masses[:, :, order], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(moved.log_total, ours.log_total)


@given(cases())
def test_identical_train_images_have_identical_shares(case):
    queries, train, options = case
    one, other = patch_posterior(queries, torch.cat([train, train]), **options).masses.split(
        len(train), dim=2
    )
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@given(cases(), st.sampled_from(FAST))
def test_rows_are_rows_of_the_whole(case, engine):
    queries, train, options = case
    part, whole = (
        patch_posterior(queries, train, **options | {"rows": rows}, engine=engine)
        for rows in (options["rows"], None)
    )
    rows, width = (
        options["rows"] or range(10**6),
        Windows(*train.shape[2:], options["patch"]).grid[1],
    )
    inside = slice(rows.start * width, rows.stop * width)
    assert_same(
        part, Posterior(whole.images, whole.log_total[:, inside], whole.log_share[:, inside]), 1e-9
    )


@given(cases())
def test_a_query_does_not_see_the_others(case):
    queries, train, options = case
    many = patch_posterior(torch.cat([train, queries]), train, **options)
    alone = patch_posterior(queries, train, **options)
    torch.testing.assert_close(many.masses[-1:], alone.masses, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(many.log_total[-1:], alone.log_total)


def test_no_noise_is_noise_of_zero():
    queries, train = random_images(2, 1, 5, 5), random_images(4, 1, 5, 5, name="train")
    none, zero = (
        patch_posterior(queries, train, timestep=200, patch=3, noise=noise)
        for noise in (None, torch.zeros(1, 5, 5))
    )
    assert torch.equal(none.masses, zero.masses)
    some = patch_posterior(
        queries, train, timestep=200, patch=3, noise=shared_noise(queries, 200, 0)
    )
    assert not torch.allclose(none.masses, some.masses)


# ---- against what is known otherwise


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("top_k", [1, 3, 9, None])
@pytest.mark.parametrize("level", [-1.0, 0.0])
def test_constant_images_share_equally(engine, top_k, level):
    """All windows that meet tie, also at the border of the top k, and also where the terms of a
    distance cancel completely."""
    images = torch.full((3, 1, 5, 5), level, dtype=torch.float64)
    masses = patch_posterior(
        images[:1], images, timestep=50, patch=3, top_k=top_k, engine=engine
    ).masses[0]
    interior, edge, corner = 9, 3, 1  # windows that stick out in the same way
    for position, meeting in ((12, interior), (2, edge), (0, corner)):
        share = min(top_k or meeting, meeting) / (3 * meeting)
        torch.testing.assert_close(masses[position], torch.full((3,), share, dtype=torch.float64))


@pytest.mark.parametrize("engine", ALL)
def test_ties_at_the_border_of_the_top_k(engine):
    """Five black and four white pixels, the query white: of the top 6, all four white and two of
    the black, whichever."""
    image = torch.tensor([1.0, -1, 1, -1, -1, 1, -1, 1, -1], dtype=torch.float64).reshape(
        1, 1, 3, 3
    )
    options = {"timestep": 400, "patch": 1, "engine": engine}
    mass = patch_posterior(image, image, **options, top_k=6).masses[0, 0, 0].item()
    black = (
        torch.tensor(-((2 * signal(400)) ** 2) / 2 / sigma(400) ** 2, dtype=torch.float64)
        .exp()
        .item()
    )
    assert mass == pytest.approx((4 + 2 * black) / (4 + 5 * black), rel=1e-9)


@pytest.mark.parametrize("engine", ALL)
def test_one_pixel_windows_are_a_softmax_over_all_pixels(engine):
    queries, train, noise = (
        random_images(2, 3, 4, 5),
        random_images(6, 3, 4, 5, name="train"),
        random_images(3, 4, 5, name="noise"),
    )
    ours = patch_scores(
        queries,
        train,
        timestep=300,
        patch=1,
        top_k=None,
        borders="zero",
        noise=noise,
        engine=engine,
    )
    x, y = [
        i.movedim(1, 3).flatten(0, 2)
        for i in (signal(300) * queries + sigma(300) * noise, signal(300) * train)
    ]
    weights = (-torch.cdist(x, y).square() / 2 / sigma(300) ** 2).softmax(1)
    torch.testing.assert_close(ours, weights.reshape(2, 20, 6, 20).sum((1, 3)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize(("side", "coarse"), [(1, False), (4, False), (5, False), (4, True)])
def test_whole_image_window_is_the_optimal_denoiser(engine, side, coarse):
    """With borders "match" a window as large as the image meets only the one at its own position;
    one position sees the whole image, and there the masses are p(y | x_t) over the train set, with
    x_t | y normal: the weights of the closed-form denoiser."""
    queries, train = random_images(2, 2, side, side), random_images(6, 2, side, side, name="train")
    noise = shared_noise(queries, 700, 0)
    ours = patch_posterior(
        queries, train, timestep=700, patch=side, coarse=coarse, noise=noise, engine=engine
    )
    x, y = signal(700) * queries + sigma(700) * noise, signal(700) * train
    if coarse:  # what is known of x_t is then its pooled pixels
        x, y = 2 * F.avg_pool2d(x, 2), 2 * F.avg_pool2d(y, 2)
    likelihood = torch.distributions.Normal(y, sigma(700)).log_prob(x[:, None]).sum((2, 3, 4))
    before, grid = (side - 1) // 2, side - 1 + side % 2
    torch.testing.assert_close(
        ours.masses[:, before * grid + before], likelihood.softmax(1), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("borders", ["match", "zero"])
def test_coarse_windows_are_windows_of_pooled_images(engine, borders):
    """The smallest coarse window is one pixel of the image whose every 2 x 2 block is pooled."""
    queries, train = random_images(2, 3, 5, 4) / 2, random_images(3, 3, 5, 4, name="train") / 2
    pooled = [
        sum(i[:, :, a : a + 4, b : b + 3] for a in (0, 1) for b in (0, 1)) / 2
        for i in (queries, train)
    ]
    options = {"timestep": 300, "top_k": 4, "borders": borders, "engine": engine}
    coarse, single = (
        patch_posterior(queries, train, patch=2, coarse=True, **options),
        patch_posterior(*pooled, patch=1, **options),
    )
    assert_same(coarse, single, 1e-9)


def test_unit_noise_keeps_unit_variance_under_pooling():
    noise = torch.randn(1, 1, 400, 400, generator=rng.generator("pooled"), dtype=torch.float64)
    windows = Windows(400, 400, 6, coarse=True)
    pooled = windows.prepare(noise)[..., 2:-2, 2:-2]  # less the border, where zeros are pooled in
    assert pooled.var().item() == pytest.approx(1, abs=0.02)
    # the pixels of one window share none of the image's: independent
    window = pooled[..., :: windows.step, :: windows.step]
    assert (window[..., 1:] * window[..., :-1]).mean().item() == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize(("patch", "coarse"), [(3, False), (4, False), (4, True), (8, True)])
def test_a_train_image_is_its_own_first_proponent(engine, patch, coarse):
    train = random_images(10, 3, 8, 8)
    options = {
        "timestep": 50,
        "patch": patch,
        "coarse": coarse,
        "noise": shared_noise(train, 50, 0),
    }
    assert torch.equal(
        patch_scores(train, train, **options, engine=engine).argmax(1), torch.arange(10)
    )


def test_temperature_is_a_factor_on_the_variance():
    """Pixels of 0 and ±1: halving the distances squared and the variance changes nothing."""
    queries, train = random_images(2, 1, 5, 5), random_images(4, 1, 5, 5, name="train")
    half, double = (
        patch_posterior(q, y, timestep=200, patch=3, temperature=t).masses
        for q, y, t in ((queries / 2**0.5, train / 2**0.5, 1.0), (queries, train, 2.0))
    )
    torch.testing.assert_close(half, double)


def test_borders_matter():
    queries, train = random_images(1, 1, 5, 5), random_images(4, 1, 5, 5, name="train")
    match, zero = (
        patch_scores(queries, train, timestep=300, patch=3, borders=b) for b in ("match", "zero")
    )
    assert (match - zero).abs().max() > 1e-3


def test_masses_are_between_zero_and_the_grid():
    for side, patch in product((1, 2, 5), (1, 2, 4)):
        if patch <= side:
            windows = Windows(side, side + 1, patch)
            scores = patch_scores(
                *[random_images(2, 1, side, side + 1)] * 2, timestep=300, patch=patch, top_k=None
            )
            torch.testing.assert_close(
                scores.sum(1), torch.full((2,), float(windows.positions), dtype=torch.float64)
            )
            assert windows.positions == (side - 1 + patch % 2) * (side + patch % 2)


# ---- memory


@pytest.mark.parametrize("engine", [tensor.conv, tensor.box])
@pytest.mark.parametrize("block_bytes", [1, 7_777, 10**9])
def test_block_size_does_not_matter(engine, block_bytes):
    noisy, train = random_images(1, 2, 6, 7), random_images(5, 2, 6, 7, name="train")
    for windows, top_k in (
        (Windows(6, 7, 4), 3),
        (Windows(6, 7, 3, borders="zero"), None),
        (Windows(6, 7, 4, coarse=True), 2),
    ):
        settings = {
            "sigma": 0.3,
            "windows": windows,
            "top_k": top_k,
            "rows": range(1, windows.grid[0]),
            "distances": engine,
        }
        small, default = (
            tensor.posterior(noisy, train, **settings, block_bytes=size)
            for size in (block_bytes, None)
        )
        assert_same(small, default, 1e-12)


@pytest.mark.parametrize("engine", ["auto", "conv"])
@pytest.mark.parametrize("share_bytes", [1, 2_000, 20_000])
def test_scores_in_parts_are_the_scores(engine, share_bytes, monkeypatch):
    """Of the array over (query, position, train image) only a part lives at a time, of the size
    asked for or of one row."""
    queries, train = random_images(5, 1, 6, 7), random_images(9, 1, 6, 7, name="train")
    options = {"timestep": 100, "patch": 4, "noise": shared_noise(queries, 100, 0)}
    whole, sizes = patch_posterior(queries, train, **options, engine=engine).scores(), []
    run = {name: ENGINES[name] for name in ENGINES}

    def watched(name):
        def posterior(*args, **kwargs):
            found = run[name](*args, **kwargs)
            sizes.append(found.log_share.nbytes)
            return found

        return posterior

    monkeypatch.setattr(patches, "SHARE_BYTES", share_bytes)
    monkeypatch.setattr(patches, "ENGINES", {name: watched(name) for name in run})
    torch.testing.assert_close(
        patch_scores(queries, train, **options, engine=engine), whole, rtol=1e-12, atol=0
    )
    one_row = 6 * 9 * 8  # positions, train images, bytes
    assert max(sizes) <= max(share_bytes, one_row) and sum(sizes) == 5 * 5 * one_row


# ---- merging


@given(cases(), st.builds(Random, st.integers(0, 9999)))
def test_merged_blocks_are_the_whole(case, shuffler):
    queries, train, options = case
    bank = torch.cat([train, train.flip(-1), -train])
    whole = patch_posterior(queries, bank, **options)
    order = shuffler.sample(range(len(bank)), len(bank))
    cuts = [0, *sorted(shuffler.sample(range(1, len(bank)), shuffler.randint(0, 2))), len(bank)]
    parts = []
    for start, stop in zip(cuts, cuts[1:], strict=False):
        part = patch_posterior(queries, bank[order[start:stop]], **options)
        parts.append(Posterior(torch.tensor(order[start:stop]), part.log_total, part.log_share))
    shuffler.shuffle(parts)
    nested = merge([parts[0], merge(parts[1:])]) if len(parts) > 1 else merge(parts)
    for merged in (merge(parts), nested):
        assert_same(merged, whole, 1e-9)


def test_shares_of_nothing_survive_a_merge():
    share = torch.tensor([[[0.0, -inf]]])
    near, far = (
        Posterior(torch.tensor([n, n + 1]), torch.tensor([[total]]), share)
        for n, total in ((4, 0.0), (0, -1e6))
    )
    merged = merge([near, far])
    assert merged.images.tolist() == [0, 1, 4, 5]
    assert merged.masses.flatten().tolist() == [0, 0, 1, 0] and merged.log_share[0, 0, 1] == -inf


def test_merge_refuses():
    part = patch_posterior(
        random_images(2, 1, 4, 4), random_images(2, 1, 4, 4), timestep=100, patch=3
    )
    with pytest.raises(InputError, match="image 0 is in more than one"):
        merge([part, part])
    with pytest.raises(InputError, match="at least one"):
        merge([])
    other = Posterior(torch.tensor([7, 8]), part.log_total[:1], part.log_share[:1])
    with pytest.raises(InputError, match="different queries"):
        merge([part, other])


# ---- noise


def test_noise_has_a_name():
    one = torch.zeros(1, 3, 5, 5)
    noise = shared_noise(one, 200, 0)
    # one image for all queries; the first draw
    assert torch.equal(noise, shared_noise(one.expand(4, 3, 5, 5), 200, 0, 0))
    assert torch.equal(noise, shared_noise(one.double(), 200, 0).float())
    others = [
        shared_noise(one, 201, 0),
        shared_noise(one, 200, 1),
        shared_noise(one, 200, 0, 1),
        shared_noise(one, 200, 0, 2),
    ]
    assert len({tuple(values.flatten().tolist()) for values in [noise, *others]}) == 5
    many = shared_noise(torch.zeros(1, 1, 200, 200), 200, 0)
    assert many.mean().item() == pytest.approx(0, abs=0.02) and many.std().item() == pytest.approx(
        1, abs=0.02
    )


# ---- the front door


def test_the_log_says_which_engine_ran(caplog):
    images = random_images(2, 1, 4, 4)
    with caplog.at_level(logging.INFO, logger="nda.nonparametric.patches"):
        for engine in ("conv", "auto"):
            patch_scores(images, images, timestep=100, patch=3, engine=engine)
    expected = "fused"
    assert [message.split(":")[0] for message in caplog.messages] == [
        "engine conv",
        f"engine {expected}",
    ]


GOOD = random_images(2, 1, 4, 6, dtype=torch.float32)


@pytest.mark.parametrize("function", [patch_posterior, patch_scores])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"queries": GOOD[0]}, "queries"),
        ({"queries": GOOD + 5}, r"queries .*\[-1, 1\]"),
        ({"queries": GOOD[:0]}, "queries"),
        ({"queries": GOOD.index_fill(3, torch.tensor([2]), float("nan"))}, "queries .*NaN"),
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
        ({"coarse": True}, "coarse_patch .* even"),
        ({"coarse": True, "patch": 6}, "coarse_patch .* side 4"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"borders": "reflect"}, "borders"),
        ({"engine": "magic"}, "engine"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": inf}, "temperature"),
        ({"noise": torch.zeros(1, 4, 5)}, "noise"),
        ({"noise": torch.full((1, 4, 6), inf)}, "noise"),
        ({"noise": 0.5}, "noise"),
    ],
)
def test_bad_input_names_the_argument(function, change, reason):
    good = {"queries": GOOD, "train": GOOD, "timestep": 100, "patch": 3}
    function(**good)
    with pytest.raises(InputError, match=reason) as error:
        function(**good | change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rows", [range(0), range(3, 3), range(-1, 2), range(0, 5), range(0, 4, 2)])
def test_bad_rows(rows):
    with pytest.raises(InputError, match="rows"):
        patch_posterior(GOOD, GOOD, timestep=100, patch=3, rows=rows)
