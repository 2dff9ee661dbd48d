"""The two controls that take NDA apart, against loops."""

import pytest
import torch
import torch.nn.functional as F
from random_images import QUERIES, TRAIN, grey

from nda import rng
from nda.errors import InputError
from nda.nonparametric.patches import Windows, naive, shared_noise
from nda.rivals.controls import imagewise_scores, patch_distance_scores
from nda.rivals.pixels import pixel_scores
from nda.schedule import sigma, signal

# ---- without its locality


def naive_imagewise(queries, train, timesteps, noise_seed):
    out = torch.zeros(len(queries), len(train), dtype=torch.float64)
    for t in timesteps:
        for q, query in enumerate(queries):
            noisy = signal(t) * query + sigma(t) * shared_noise(queries, t, noise_seed)
            distance = torch.stack([(noisy - signal(t) * image).square().sum() for image in train])
            out[q] += (-distance / (2 * sigma(t) ** 2)).softmax(0) / len(timesteps)
    return out


@pytest.mark.parametrize("noise_seed", [0, 3])
def test_imagewise_is_the_posterior_over_train_images(noise_seed):
    queries, train = QUERIES.double(), TRAIN.double()
    scores = imagewise_scores(queries, train, timesteps=[300, 700], noise_seed=noise_seed)
    torch.testing.assert_close(scores, naive_imagewise(queries, train, [300, 700], noise_seed))
    torch.testing.assert_close(scores.sum(1), torch.ones(3, dtype=torch.float64))
    single = imagewise_scores(QUERIES, TRAIN, timesteps=[300, 700], noise_seed=noise_seed)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), scores, atol=1e-6, rtol=1e-4)


def test_imagewise_is_nda_with_a_window_that_always_covers_the_image():
    """A window of side 2n - 1 holds all n×n pixels wherever it is, and under the border rule it
    meets only windows at its own place: each of the n² query patches has the image-wise posterior.
    """
    queries, train, t = grey(2, 3, 3), grey(4, 3, 3), 400
    noisy = signal(t) * queries + sigma(t) * shared_noise(queries, t, 0)
    windows = Windows(5, 5, 5)
    for side in ("height", "width"):  # the front door refuses windows larger than the image
        object.__setattr__(windows, side, 3)
    whole = naive.posterior(
        noisy, signal(t) * train, sigma=sigma(t), windows=windows, top_k=None, rows=range(3)
    )
    torch.testing.assert_close(9 * imagewise_scores(queries, train, timesteps=[t]), whole.scores())


def test_imagewise_does_not_depend_on_the_blocks_of_train():
    queries, train = grey(2, 2, 2), grey(2003, 2, 2)
    torch.testing.assert_close(
        imagewise_scores(queries, train, timesteps=[500]), naive_imagewise(queries, train, [500], 0)
    )


def test_imagewise_needs_timesteps():
    with pytest.raises(InputError, match="timesteps"):
        imagewise_scores(QUERIES, TRAIN, timesteps=[])
    with pytest.raises(InputError, match="timestep"):
        imagewise_scores(QUERIES, TRAIN, timesteps=[1000])


# ---- without its posterior


def naive_patch_distance(queries, train, patch, top_k):
    height, width = train.shape[2:]
    before = (patch - 1) // 2
    positions = [
        (i, j) for i in range(height - (patch % 2 == 0)) for j in range(width - (patch % 2 == 0))
    ]
    pad = [before, patch - 1 - before] * 2
    queries, train = F.pad(queries, pad), F.pad(train, pad)
    outside = F.pad(torch.zeros(height, width), pad, value=1.0)
    out = torch.zeros(len(queries), len(train), dtype=torch.float64)
    for q, query in enumerate(queries):
        for n, image in enumerate(train):
            for i, j in positions:
                here = (slice(i, i + patch), slice(j, j + patch))
                distances = []
                for k, m in positions:
                    there = (slice(k, k + patch), slice(m, m + patch))
                    if torch.equal(outside[here], outside[there]):
                        distances.append((query[:, *here] - image[:, *there]).square().sum().item())
                best = sorted(distances)[:top_k]
                out[q, n] -= sum(best) / len(best)
    return out


@pytest.mark.parametrize(("patch", "top_k"), [(1, 1), (2, 1), (3, 2), (4, 3), (3, 1000)])
def test_patch_distances_are_those_of_the_definition(patch, top_k):
    queries, train = QUERIES.double()[:2], TRAIN.double()[:3]
    scores = patch_distance_scores(queries, train, patch=patch, top_k=top_k)
    torch.testing.assert_close(scores, naive_patch_distance(queries, train, patch, top_k))


@pytest.mark.parametrize("patch", [3, 4])
def test_patch_distances_do_not_depend_on_blocks(patch):
    whole = patch_distance_scores(QUERIES.double(), TRAIN.double(), patch=patch, top_k=2)
    for block_bytes in (1, 5_000, 30_000):
        scores = patch_distance_scores(
            QUERIES.double(), TRAIN.double(), patch=patch, top_k=2, block_bytes=block_bytes
        )
        torch.testing.assert_close(scores, whole, atol=1e-12, rtol=0)


def test_patch_distances_find_a_dot_that_has_moved():
    """By hand: the 9 windows that hold the dot are found at its new place, and miss it by 2² each
    in a blank image."""
    image = -torch.ones(1, 1, 9, 9)
    blank, moved = image.clone(), image.clone()
    image[..., 3, 3] = moved[..., 5, 4] = 1
    train = torch.cat([blank, moved])
    assert patch_distance_scores(image, train, patch=3).tolist() == [[-36, 0]]
    assert pixel_scores(image, train).argmax() == 0


@pytest.mark.parametrize(
    ("patch", "top_k", "reason"),
    [(0, 1, "patch"), (5, 1, "patch"), (True, 1, "patch"), (3, 0, "top_k"), (3, None, "top_k")],
)
def test_bad_patch_distances(patch, top_k, reason):
    with pytest.raises(InputError, match=reason):
        patch_distance_scores(QUERIES, TRAIN, patch=patch, top_k=top_k)


@pytest.mark.parametrize(
    "method",
    [
        lambda q, t: imagewise_scores(q, t, timesteps=[20, 100]),
        lambda q, t: patch_distance_scores(q, t, patch=3),
    ],
    ids=["imagewise", "patch distances"],
)
def test_controls_follow_the_order_of_train_and_know_their_own(method):
    order = torch.randperm(7, generator=rng.generator("order"))
    torch.testing.assert_close(method(QUERIES, TRAIN[order]), method(QUERIES, TRAIN)[:, order])
    assert torch.equal(method(TRAIN, TRAIN).argmax(1), torch.arange(7))
