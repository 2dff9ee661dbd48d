"""Random-feature influence against its definition: loops, autograd, refits and leaving out."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nda import rng
from nda.errors import InputError
from nda.methods import METHODS
from nda.nonparametric import random_features
from nda.nonparametric.patches import shared_noise
from nda.nonparametric.random_features import (
    GATE_GRID,
    TIMESTEPS,
    RandomFeatures,
    Task,
    gate,
    gate_distances,
    influence,
    moments,
    residual_products,
    rfi_scores,
    trapezoid,
)
from nda.schedule import sigma, signal

SMALL = {"widths": (8, 16), "timesteps": (50, 200, 300)}


def draw(name, count, channels=2, rows=4, cols=4):
    source = rng.generator("random features test", name)
    shape = (count, channels, rows, cols)
    return 2 * torch.rand(shape, generator=source, dtype=torch.float64) - 1


QUERIES, TRAIN = draw("queries", 3), draw("train", 6)


def task(images, *, widths=(8,), timestep=150, draws=1, flips=True):
    noise = torch.stack([shared_noise(images, timestep, 0, draw) for draw in range(draws)])
    return Task(RandomFeatures.draw(images.shape[1], widths), timestep, noise, flips)


def close(ours, theirs, tolerance=1e-9):
    """Up to rounding, relative to the largest."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * theirs.abs().max().item())


# ---- the definition, in loops


def naive_features(image, kernels):
    """`[pixel, dim]` of one image, pixel by pixel and channel by channel."""
    _, rows, cols = image.shape

    def at(layer, c, y, x):
        return layer[c, y, x].item() if 0 <= y < rows and 0 <= x < cols else 0.0

    def window(layer, y, x):
        return [
            at(layer, c, y + i, x + j)
            for c in range(len(layer))
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
        ]

    layers, seen = [], image
    for kernel in kernels:
        made = torch.zeros(len(kernel), rows, cols, dtype=torch.float64)
        for y in range(rows):
            for x in range(cols):
                around = torch.tensor(window(seen, y, x), dtype=torch.float64)
                made[:, y, x] = kernel.double().flatten(1) @ around
        groups = []
        for group in made.chunk(8):
            normal = (group - group.mean()) / (group.var(correction=0) + 1e-5).sqrt()
            groups.append(normal / (1 + torch.exp(-normal)))
        seen = torch.cat(groups)
        layers.append(seen)
    return torch.stack(
        [
            torch.tensor(
                [*window(image, y, x), *(v for s in layers for v in s[:, y, x].tolist()), 1.0],
                dtype=torch.float64,
            )
            for y in range(rows)
            for x in range(cols)
        ]
    )


def naive_views(images, made):
    """Features `[image, view, dim]` and noise `[view, chan]`, by loops over draws and flips."""
    kernels = made.features.kernels
    features = []
    for image in images:
        views = []
        for eps in made.noise:
            for seen in [image, image.flip(-1)] if made.flips else [image]:
                noisy = signal(made.timestep) * seen + sigma(made.timestep) * eps
                views.append(naive_features(noisy, kernels))
        features.append(torch.cat(views))
    eps = [noise.flatten(1).T for noise in made.noise for _ in range(1 + made.flips)]
    return torch.stack(features), torch.cat(eps)


@settings(max_examples=6)
@given(
    channels=st.integers(1, 3),
    rows=st.integers(3, 5),
    cols=st.integers(3, 5),
    widths=st.sampled_from([(), (8,), (8, 16)]),
)
def test_features_are_those_of_loops(channels, rows, cols, widths):
    images = draw("features", 2, channels, rows, cols)
    network = RandomFeatures.draw(channels, widths)
    found = network(images)
    assert found.shape == (2, rows * cols, 9 * channels + sum(widths) + 1)
    for image, ours in zip(images, found, strict=True):
        close(ours, naive_features(image, network.kernels))


def test_the_standard_network_has_412_features():
    assert RandomFeatures.draw(3, (128, 256))(draw("colour", 1, 3)).shape[2] == 412


def test_weights_are_named_and_have_the_variance_of_their_inputs():
    one, again, other = (RandomFeatures.draw(3, (64, 256), n).kernels for n in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    for kernel in one:
        assert kernel.flatten(1).var() * kernel[0].numel() == pytest.approx(1, rel=0.1)


def features_and_noise(images, made):
    return torch.cat(list(made.blocks(images))), made.target().to(images)


@pytest.mark.parametrize(("draws", "flips"), [(1, True), (2, True), (2, False)])
def test_views_are_draws_and_flips(draws, flips):
    made = task(TRAIN, draws=draws, flips=flips)
    ours, theirs = features_and_noise(TRAIN, made), naive_views(TRAIN, made)
    close(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1].double())


# ---- influence of the ridge problem, by autograd and by refits


def losses(images, made, weight):
    """Of each image; the definition."""
    features, eps = features_and_noise(images, made)
    return (features @ weight - eps).square().mean((1, 2))


def penalty(fit, damping):
    return damping * fit.second.diagonal().mean() / fit.images


@pytest.mark.parametrize(("damping", "draws"), [(3e-3, 1), (0.5, 2)])
def test_scores_are_those_of_autograd(damping, draws):
    made = task(TRAIN, draws=draws)
    fit = moments(TRAIN, made)
    weight, mu = fit.readout(damping), penalty(fit, damping)

    def objective(flat):
        w = flat.view_as(weight)
        return losses(TRAIN, made, w).mean() + mu * w.square().sum() / w.shape[1]

    flat = weight.flatten()
    slope = torch.autograd.functional.jacobian(objective, flat)
    assert slope.abs().max() < 1e-9  # it is the minimum
    hessian = torch.autograd.functional.hessian(objective, flat)
    asked, kept = (
        torch.autograd.functional.jacobian(lambda f, i=i: losses(i, made, f.view_as(weight)), flat)
        for i in (QUERIES, TRAIN)
    )
    expected = asked @ torch.linalg.solve(hessian, kept.T) / len(TRAIN)
    close(influence(QUERIES, TRAIN, made, fit, damping), expected)


def refit(train, made, mu, count):
    """The readout fitted to some of `count` images with the penalty of all, by least squares."""
    features, eps = features_and_noise(train, made)
    each = features.shape[1] * count
    rows = torch.cat([features.flatten(0, 1) / each**0.5, mu**0.5 * torch.eye(features.shape[2])])
    right = torch.cat([eps.repeat(len(train), 1) / each**0.5, torch.zeros(len(rows[0]), 2)])
    return torch.linalg.lstsq(rows, right.double(), driver="gelsd").solution


def without(train, i):
    return torch.cat([train[:i], train[i + 1 :]])


def rises(train, made, fit, damping):
    """What leaving each image out does to the queries' losses, by refitting: `[query, train]`."""
    mu, before = penalty(fit, damping), losses(QUERIES, made, fit.readout(damping))
    return torch.stack(
        [
            losses(QUERIES, made, refit(without(train, i), made, mu, len(train))) - before
            for i in range(len(train))
        ],
        1,
    )


def test_leaving_out_is_exact_with_the_images_own_curvature():
    """W without image i is W + (A + μ - A_i/N)⁻¹ G_i/N. A score has A in place of A - A_i/N."""
    made, damping, count = task(TRAIN), 1e-2, len(TRAIN)
    fit = moments(TRAIN, made)
    weight, matrix = fit.readout(damping), fit.regularised(damping)
    products = residual_products(TRAIN, made, weight)
    for i in range(count):
        own = moments(TRAIN[i : i + 1], made).second
        moved = torch.linalg.solve(matrix - own / count, products[i]) / count
        expected = refit(without(TRAIN, i), made, penalty(fit, damping), count)
        close(weight + moved, expected, 1e-7)


@pytest.mark.parametrize(
    "cases", [[(8, 0.3), (16, 0.3), (32, 0.3)], [(8, 0.1), (8, 1), (8, 10)]], ids=["N", "damping"]
)
def test_refits_without_an_image_approach_the_scores(cases):
    """As the train images or the damping grow, first order is all there is."""
    apart = []
    for count, damping in cases:
        train = draw("many", count)
        made = task(train)
        fit = moments(train, made)
        scores = influence(QUERIES, train, made, fit, damping)
        expected = rises(train, made, fit, damping)
        apart.append(((scores - expected).norm() / expected.norm()).item())
    assert all(later < 0.75 * earlier for earlier, later in pairwise(apart)), apart
    assert apart[-1] < 0.1


def test_damping_makes_any_second_moment_regular():
    """Two equal images of one colour give fewer different rows than there are features."""
    train = torch.full((2, 1, 4, 4), 0.25, dtype=torch.float64)
    made = task(train, widths=(8, 16))
    fit = moments(train, made)
    assert torch.linalg.matrix_rank(fit.second) < len(fit.second)
    scores = influence(train, train, made, fit, 1e-6)
    assert scores.isfinite().all()
    close(scores[:, 0], scores[:, 1])


def test_damping_below_rounding_is_refused():
    train = torch.full((2, 1, 4, 4), 0.25)
    with pytest.raises(InputError, match="damping is below the rounding"):
        rfi_scores(train, train, widths=(64,), timesteps=(100,), damping=1e-30)
    assert rfi_scores(train, train, widths=(64,), timesteps=(100,)).isfinite().all()


# ---- the sum over timesteps, and the gate


@pytest.mark.parametrize("flips", [True, False])
def test_timesteps_and_networks_are_summed(flips):
    expected = torch.zeros(3, 6, dtype=torch.float64)
    for network in (0, 1):
        features = RandomFeatures.draw(2, SMALL["widths"], network)
        for timestep, weight in zip((50, 200, 300), (75 / 250, 125 / 250, 50 / 250), strict=True):
            made = Task(features, timestep, shared_noise(TRAIN, timestep, 5)[None], flips)
            fit = moments(TRAIN, made)
            expected += weight / 2 * influence(QUERIES, TRAIN, made, fit, 0.1)
    given = SMALL | {"networks": 2, "damping": 0.1, "noise_seed": 5, "flips": flips}
    close(rfi_scores(QUERIES, TRAIN, **given), expected)


@pytest.mark.parametrize("timesteps", [(5,), (0, 999), (3, 4, 10), TIMESTEPS])
def test_weights_are_those_of_the_trapezoid_rule(timesteps):
    values = np.sin(np.array(timesteps) / 100)
    found = np.dot(trapezoid(timesteps), values)
    span = timesteps[-1] - timesteps[0]
    assert found == pytest.approx(np.trapezoid(values, timesteps) / span if span else values[0])


@pytest.mark.parametrize(("side", "flips"), [(4, True), (8, True), (8, False)])
def test_the_gate_is_that_of_loops(side, flips):
    queries, train = draw("q", 2, 2, side, side), draw("t", 3, 2, side, side)
    network, cell = RandomFeatures.draw(2, (8,)), side // GATE_GRID

    def pooled(image):
        features = naive_features(signal(62) * image, network.kernels).view(side, side, -1)
        cells = [
            features[y : y + cell, x : x + cell].mean((0, 1))
            for y in range(0, side, cell)
            for x in range(0, side, cell)
        ]
        return torch.cat(cells)

    expected = torch.stack(
        [
            torch.stack(
                [
                    min((pooled(q) - pooled(s)).norm() for s in [x, x.flip(-1)][: 1 + flips])
                    for x in train
                ]
            )
            for q in queries
        ]
    )
    found = gate_distances(queries, train, network, flips)
    close(found, expected)
    rows = [(row - row.mean()) / row.std(correction=0) for row in expected]
    close(gate(found), torch.exp(-torch.stack(rows) / 2))


def test_gated_scores_are_scores_times_the_gate():
    both = rfi_scores(QUERIES, TRAIN, gated=True, networks=2, **SMALL)
    networks = [RandomFeatures.draw(2, SMALL["widths"], n) for n in (0, 1)]
    factors = gate(sum(gate_distances(QUERIES, TRAIN, network) for network in networks))
    close(both, factors * rfi_scores(QUERIES, TRAIN, networks=2, **SMALL))
    near = sum(gate_distances(QUERIES, TRAIN, network, False) for network in networks)
    alone, both = (
        rfi_scores(QUERIES, TRAIN, gated=g, networks=2, flips=False, **SMALL) for g in (False, True)
    )
    close(both, gate(near) * alone)
    assert factors.min() > 0 and factors.std() > 0.1


def test_a_gate_of_equal_distances_is_open():
    assert torch.equal(gate(torch.full((2, 3), 0.7)), torch.ones(2, 3))
    assert torch.equal(gate(torch.zeros(1, 3)), torch.ones(1, 3))


# ---- what must not matter


@pytest.fixture(params=[False, True], ids=["plain", "gated"])
def options(request):
    return SMALL | {"gated": request.param}


def test_blocks_do_not_matter(monkeypatch, options):
    whole = rfi_scores(QUERIES, TRAIN, **options)
    each = 2 * 16 * 43 * 8  # bytes of one image's features
    for block in (1, 2 * each, 4 * each):
        monkeypatch.setattr(random_features, "BLOCK_BYTES", block)
        close(rfi_scores(QUERIES, TRAIN, **options), whole)


def test_threads_do_not_matter(options):
    one = rfi_scores(QUERIES, TRAIN, **options)
    torch.set_num_threads(2)
    try:
        close(rfi_scores(QUERIES, TRAIN, **options), one)
    finally:
        torch.set_num_threads(1)


def test_orders_permute_rows_and_columns(options):
    rows, columns = [2, 0, 1], [3, 5, 0, 1, 4, 2]
    found = rfi_scores(QUERIES[rows], TRAIN[columns], **options)
    close(found, rfi_scores(QUERIES, TRAIN, **options)[rows][:, columns])
    close(rfi_scores(QUERIES[:1], TRAIN, **options), rfi_scores(QUERIES, TRAIN, **options)[:1])


def test_mirrored_images_have_the_same_scores(options):
    expected = rfi_scores(QUERIES, TRAIN, **options)
    close(rfi_scores(QUERIES, TRAIN.flip(-1), **options), expected)
    some = torch.cat([TRAIN[:2].flip(-1), TRAIN[2:]])
    close(rfi_scores(QUERIES, some, **options), expected)


def test_duplicates_have_the_same_scores(options):
    found = rfi_scores(QUERIES, torch.cat([TRAIN, TRAIN[1:2]]), **options)
    close(found[:, 1], found[:, -1])


def test_an_image_is_its_own_first_source(options):
    train = draw("wide", 12, 2, 8, 8)
    scores = rfi_scores(train[[7, 3]], train, **options)
    assert scores.argmax(1).tolist() == [7, 3]
    blurred = 0.9 * train[[7, 3]].flip(-1) + 0.02
    assert rfi_scores(blurred, train, **options).argmax(1).tolist() == [7, 3]


def test_fits_of_blocks_add_up():
    made = task(TRAIN, widths=(8, 16))
    blocks = [TRAIN[:1], TRAIN[1:4], TRAIN[4:]]
    parts = [moments(block, made) for block in blocks]
    fit = parts[2] + (parts[0] + parts[1])
    whole = moments(TRAIN, made)
    assert fit.images == whole.images == 6
    close(fit.second, whole.second)
    close(fit.cross, whole.cross)
    found = torch.cat([influence(QUERIES, block, made, fit, 3e-3) for block in blocks], 1)
    close(found, influence(QUERIES, TRAIN, made, whole, 3e-3), 1e-8)
    network = made.features
    near = torch.cat([gate_distances(QUERIES, block, network) for block in blocks], 1)
    close(near, gate_distances(QUERIES, TRAIN, network))


def test_noise_is_named_by_seed_and_timestep():
    first, second = (rfi_scores(QUERIES, TRAIN, noise_seed=n, **SMALL) for n in (0, 1))
    assert not torch.allclose(first, second, rtol=1e-3)
    assert torch.equal(first, rfi_scores(QUERIES, TRAIN, **SMALL))


def test_float32_is_close_to_its_twin(options):
    """With more rows than features: a fit without slack would be decided by rounding."""
    queries, train = draw("q32", 3, 3, 8, 8), draw("t32", 20, 3, 8, 8)
    exact = rfi_scores(queries, train, **options)
    found = rfi_scores(queries.float(), train.float(), **options)
    assert found.dtype == torch.float32 and exact.dtype == torch.float64
    assert found.device == train.device
    close(found.double(), exact, 1e-3)


# ---- the catalogue


@pytest.mark.parametrize("key", ["rfi", "rfi_gated"])
def test_the_catalogue_runs_it(key):
    given = METHODS[key].settings({"noise_seed": 4, "flips": False})
    assert given["timesteps"] == [*TIMESTEPS] and given["gated"] is (key == "rfi_gated")
    expected = rfi_scores(QUERIES, TRAIN, noise_seed=4, flips=False, gated=key == "rfi_gated")
    assert torch.equal(METHODS[key].function(QUERIES, TRAIN, **given), expected)


# ---- bad input


NAN = TRAIN.clone()
NAN[2, 0, 1, 1] = torch.nan


@pytest.mark.parametrize(
    ("queries", "train", "options", "message"),
    [
        (draw("grey", 3, 1), TRAIN, {}, r"queries are \(1, 4, 4\) but train is \(2, 4, 4\)"),
        (QUERIES.float(), TRAIN, {}, "bring both to one dtype"),
        (QUERIES, TRAIN[:1], {}, "train must have at least 2 images to be compared, not 1"),
        (QUERIES, NAN, {}, "train has pixels that are NaN"),
        (QUERIES, TRAIN, {"damping": 0}, "damping must be a positive number.*not 0"),
        (QUERIES, TRAIN, {"damping": -1.0}, "damping must be a positive number"),
        (QUERIES, TRAIN, {"damping": float("nan")}, "damping must be a positive number"),
        (QUERIES, TRAIN, {"damping": float("inf")}, "damping must be a positive number"),
        (QUERIES, TRAIN, {"timesteps": ()}, "timesteps must name at least one"),
        (QUERIES, TRAIN, {"timesteps": (10, 1000)}, "timestep must be an integer in 0…999"),
        (QUERIES, TRAIN, {"timesteps": (-1, 10)}, "timestep must be an integer in 0…999"),
        (QUERIES, TRAIN, {"timesteps": (20, 10)}, "timesteps must be ascending"),
        (QUERIES, TRAIN, {"timesteps": (10, 10)}, "timesteps must be ascending"),
        (QUERIES, TRAIN, {"widths": (12,)}, "widths must be positive multiples of 8"),
        (QUERIES, TRAIN, {"widths": (8, 0)}, "widths must be positive multiples of 8"),
        (QUERIES, TRAIN, {"networks": 0}, "networks must be at least 1"),
        (QUERIES, TRAIN, {"draws": 0}, "draws must be at least 1"),
        (draw("q", 2, 2, 2, 4), draw("t", 2, 2, 2, 4), {}, "at least 3 x 3 pixels"),
        (draw("q", 2, 2, 5, 4), draw("t", 2, 2, 5, 4), {"gated": True}, "multiples of 4 pixels"),
    ],
)
def test_bad_input_gets_one_sentence(queries, train, options, message):
    with pytest.raises(InputError, match=message) as error:
        rfi_scores(queries, train, **options)
    assert "\n" not in str(error.value)


def test_sides_that_no_gate_fits_have_scores_without():
    found = rfi_scores(draw("q", 2, 2, 3, 5), draw("t", 3, 2, 3, 5), **SMALL)
    assert found.isfinite().all()
