"""Planted queries are what they say, pixel for pixel; an oracle has them all right, and chance is
chance."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from nda import rng
from nda.errors import InputError
from nda.evidence import planted, plants
from nda.evidence.plants import NOBODY, plant
from nda.methods import METHODS
from nda.nonparametric.config import NDAConfig, Scale
from nda.nonparametric.patches import Windows, patch_posterior
from nda.nonparametric.provenance import local_scores, pixel_masses
from nda.nonparametric.scores import nda_scores

N, COUNT = 12, 5
PARAMETERS = {
    "null_seed": 0,
    "patch": 3,
    "timesteps_nda": [100],
    "noise_seed": 0,
    "flips": False,
    "patches": {50: 3},
    "coarse_patches": {50: 4},
    "scale_mix": 0.5,
    "top_k": 5,
    "borders": "match",
    "draws": 1,
    "bank_flips": False,
}


def blobs(n, name, chan=1, rows=8, cols=8):
    """Smooth random images in [-1, 1]."""
    coarse = torch.rand(n, chan, 4, 4, generator=rng.generator("blobs", name, n)) * 2 - 1
    return F.interpolate(coarse, (rows, cols), mode="bilinear")


TRAIN, HELD_OUT = blobs(N, "train", 3), blobs(7, "held out", 3)
ALL = plant(TRAIN, HELD_OUT, COUNT)
BY_KIND = {one.kind: one for one in ALL}


def oracle(asked, train=TRAIN):
    """Scores and maps of a method that knows: the share of the pixels that an image owns."""
    owned = F.one_hot(asked.owner + 1, len(train) + 1)[..., 1:].double()
    return owned.mean((1, 2)), owned


# ---- queries are what they say


@pytest.mark.parametrize("chan", [1, 3])
def test_copies_are_what_they_are_called(chan):
    train = blobs(N, "copies", chan)
    made = {kind: plants.copies(train, COUNT, kind) for kind in plants.CHANGES}
    source = train[made["exact"].answers[:, 0]]
    for one in made.values():
        assert torch.equal(one.answers, made["exact"].answers)  # the same images in every kind
        assert one.queries.shape == source.shape and one.queries.abs().max() <= 1
    assert torch.equal(made["exact"].queries, source)
    assert torch.equal(made["mirrored"].queries.flip(3), source)
    for by in (1, 2):
        shifted = made[f"shifted by {by} px"]
        assert torch.equal(shifted.queries[..., by:], source[..., :-by])
        assert (shifted.queries[..., :by] == source[..., :1]).all()
        assert (shifted.owner[..., :by] == NOBODY).all()
        assert torch.equal(
            shifted.owner[..., by:], shifted.answers[:, :, None].expand(-1, 8, 8 - by)
        )
    assert torch.equal(made["brighter"].queries, (source + 0.2).clamp(-1, 1))
    noise = (made["noisy"].queries - source)[source.abs() < 0.5]
    assert 0.08 < noise.std() < 0.12
    assert 0 < (made["JPEG"].queries - source).abs().mean() < 0.1 * chan
    levels = (made["JPEG"].queries + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    inner = F.interpolate(source[..., 1:-1, 1:-1], (8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(made["cropped, resized"].queries, inner)


@pytest.mark.parametrize(("part", "side"), [("1/4", 2), ("3/8", 3), ("1/2", 4)])
@pytest.mark.parametrize("moved", [False, True])
def test_transplants_have_the_square_and_the_host(part, side, moved):
    one = plants.transplants(TRAIN, HELD_OUT, COUNT, part, moved)
    for query, owner, (n,) in zip(one.queries, one.owner, one.answers.tolist(), strict=True):
        mine = owner == n
        assert mine.sum() == side**2 and (owner[~mine] == NOBODY).all()
        rows, cols = mine.nonzero().T
        assert rows.max() - rows.min() == cols.max() - cols.min() == side - 1
        square = query[:, mine]
        found = [
            (r, c)
            for r in range(9 - side)
            for c in range(9 - side)
            if torch.equal(TRAIN[n][:, r : r + side, c : c + side].flatten(1), square)
        ]
        assert found and (moved or (rows.min(), cols.min()) in found)
        assert any(torch.equal(host[:, ~mine], query[:, ~mine]) for host in HELD_OUT)


def test_a_moved_square_is_the_same_square():
    here, there = (
        plants.transplants(TRAIN, HELD_OUT, COUNT, "3/8", moved) for moved in (False, True)
    )
    pairs = [one.queries.movedim(1, 3)[one.owner != NOBODY] for one in (here, there)]
    assert torch.equal(*pairs) and not torch.equal(here.owner, there.owner)


def test_a_square_is_not_cut_from_where_nothing_is_drawn():
    train = torch.full((4, 1, 16, 16), -1.0)
    train[:, :, 4:12, 4:12] = blobs(4, "inner")
    one = plants.transplants(train, train, 20, "1/4", True)
    squares = one.queries.movedim(1, 3)[one.owner != NOBODY].view(20, -1)
    assert (squares.std(1) > 0).all()


def test_mosaics_are_four_quadrants_of_four_images():
    one = BY_KIND["four quadrants"]
    for query, answers in zip(one.queries, one.answers.tolist(), strict=True):
        assert len(set(answers)) == 4
        for n, (r, c) in zip(answers, [(0, 0), (0, 4), (4, 0), (4, 4)], strict=True):
            assert torch.equal(query[:, r : r + 4, c : c + 4], TRAIN[n][:, r : r + 4, c : c + 4])


def test_every_pixel_of_an_ideal_sample_is_a_pixel_of_its_owner():
    one = BY_KIND["drawn by pixel"]
    for query, owner, answer in zip(one.queries, one.owner, one.answers[:, 0], strict=True):
        assert owner.min() >= 0 and (owner == answer).sum() == owner.flatten().bincount().max()
        for i in range(8):
            for j in range(8):
                pixels = TRAIN[owner[i, j]].flatten(1).T
                assert (pixels == query[:, i, j]).all(1).any()
    assert (one.known > 0).all() and (one.known <= 1.0001).all()


def test_strangers_are_held_out_and_nobodys():
    one = BY_KIND["held out"]
    assert torch.equal(one.queries, HELD_OUT) and (one.owner == NOBODY).all()
    assert one.answers.shape == (len(HELD_OUT), 0)


def test_queries_do_not_depend_on_how_many_there_are_but_on_the_seed():
    for few, many in zip(plant(TRAIN, HELD_OUT, 2), ALL, strict=True):
        n = len(few.queries)
        for name in ("queries", "owner", "answers", "known"):
            assert torch.equal(getattr(few, name), getattr(many, name)[:n])
    other = plant(TRAIN, HELD_OUT, COUNT, seed=1)
    assert not torch.equal(other[0].answers, ALL[0].answers)


# ---- figures


def test_an_oracle_is_always_right():
    copies = planted.twins(TRAIN)
    for one in ALL[:-1]:
        row = planted.figures(one, oracle(one)[0], copies, oracle(one)[1], 0.0)
        assert row["recall_1"] == row["caught"] == row["recall_4"] == 100
        assert row["rank"] == 1 and row["share"] == pytest.approx(100)
        assert row.get("iou", 100) == pytest.approx(100)


def test_random_scores_are_right_as_often_as_chance():
    train = blobs(40, "chance")
    one = plants.copies(train, 2000, "exact")
    scores = torch.rand(2000, 40, generator=rng.generator("chance"), dtype=torch.float64)
    row = planted.figures(one, scores, planted.twins(train), None, 1.0)
    assert row["recall_1"] == pytest.approx(100 / 40, abs=1.2)
    assert row["recall_4"] == pytest.approx(100 * 4 / 40, abs=2.5)
    assert row["rank"] == pytest.approx(20.5, abs=1) and row["caught"] == 0


def test_equal_scores_help_nobody():
    one, copies = BY_KIND["exact"], planted.twins(TRAIN)
    row = planted.figures(one, torch.ones(COUNT, N).double(), copies, None, 0.0)
    assert row["recall_1"] == row["recall_4"] == row["largest"] == 0
    assert row["rank"] == (N + 1) / 2


@pytest.mark.parametrize("kind", ["3/8 of the side, moved", "four quadrants"])
def test_iou_is_what_counting_says(kind):
    one = BY_KIND[kind]
    masses = torch.rand(COUNT, 8, 8, N, generator=rng.generator("iou"), dtype=torch.float64)
    row = planted.figures(one, masses.mean((1, 2)), planted.twins(TRAIN), masses, 0.0)
    best = 0.0
    for threshold in planted.THRESHOLDS:
        found = []
        for q in range(COUNT):
            for n in one.answers[q].tolist():
                both = either = 0
                for i in range(8):
                    for j in range(8):
                        said, true = masses[q, i, j, n] > threshold, one.owner[q, i, j] == n
                        both, either = both + bool(said & true), either + bool(said | true)
                found.append(both / either)
        best = max(best, sum(found) / len(found))
    assert row["iou"] == pytest.approx(100 * best)


def test_either_copy_of_a_duplicate_is_a_hit():
    one = BY_KIND["exact"]
    train = torch.cat([TRAIN, TRAIN])  # every image twice
    copies = planted.twins(train)
    assert torch.equal(copies[:N], copies[N:]) and len(copies.unique()) == N
    scores, masses = oracle(one)
    none, nowhere = torch.zeros_like(scores), torch.zeros_like(masses)
    for halves, maps in (
        ([scores, none], [masses, nowhere]),
        ([none, scores], [nowhere, masses]),
        ([scores, scores], [masses / 2, masses / 2]),
    ):
        row = planted.figures(one, torch.cat(halves, 1), copies, torch.cat(maps, 3), 0.0)
        assert row["recall_1"] == row["recall_4"] == 100 and row["rank"] == 1
        assert row["share"] == pytest.approx(100)


def test_the_order_of_the_train_images_does_not_matter():
    order = torch.randperm(N, generator=rng.generator("order"))
    place = torch.cat([order.argsort(), torch.tensor([NOBODY])])  # the last is nobody's
    scores = partial(nda_scores, config=NDAConfig.single({50: 3}))
    before = planted.suite(scores, TRAIN, HELD_OUT, planted=ALL)
    moved = [replace(one, owner=place[one.owner], answers=place[one.answers]) for one in ALL]
    after = planted.suite(scores, TRAIN[order], HELD_OUT, planted=moved)
    for column in before.columns.drop(["case", "kind"]):
        values = before[column].tolist(), after[column].tolist()
        assert values[0] == pytest.approx(values[1], rel=1e-4, nan_ok=True)


def test_by_place_counts_windows():
    one = plants.transplants(TRAIN, HELD_OUT, COUNT, "1/2", False)
    masses = oracle(one)[1]
    sure = planted.by_place(one, masses, 3)
    assert sure["inside"] == sure["edge"] == 100
    half = pixel_masses(one.queries, TRAIN, NDAConfig.single({5: 3}))
    found = planted.by_place(one, half, 3)
    assert found["inside"] > 80 > found["edge"]  # a window across the edge is of nobody


def test_what_is_explained_is_what_its_parts_say():
    one, config = BY_KIND["1/2 of the side"], NDAConfig.single({25: 3}, top_k=None)
    found = planted.explain(one, TRAIN, config, side=2)
    masses = pixel_masses(one.queries, TRAIN, config)
    parts = planted.by_place(one, masses, 3)
    assert {name: found[name] for name in parts} == pytest.approx(parts, nan_ok=True)
    best = local_scores(one.queries, TRAIN, config, side=2)
    for name, scores in {"mean": masses.mean((1, 2)), "best": best}.items():
        right = sum(
            all(row[n] > value for i, value in enumerate(row) if i != n)  # a tie is not right
            for row, n in zip(scores.tolist(), one.answers[:, 0].tolist(), strict=True)
        )
        assert found[name] == pytest.approx(100 * right / COUNT)


# ---- methods


@pytest.mark.parametrize("key", [m.key for m in METHODS.values() if m.needs in planted.DATA_ONLY])
def test_every_method_that_sees_only_images_can_be_asked(key):
    if key.startswith("clip"):
        pytest.skip("needs a folder of weights")
    rows = planted.suite(METHODS[key], TRAIN, HELD_OUT, parameters=PARAMETERS, count=2)
    assert rows["case"].nunique() == 5 and (rows["largest"] <= 100).all()
    assert ("iou" in rows) == (METHODS[key].family == "nda")
    exact = rows.set_index("kind").loc["exact"]
    if key not in ("random", "pixel_dot", "efficientnet_dot"):
        assert exact["recall_1"] == 100


def test_a_mirrored_copy_needs_a_mirrored_bank():
    one = plants.copies(TRAIN, COUNT, "mirrored")
    for flips, least, most in ((True, 100, 100), (False, 0, 80)):
        given = PARAMETERS | {"bank_flips": flips}
        scores = planted.scorer(METHODS["nda"], given)(one.queries, TRAIN).double()
        row = planted.figures(one, scores, planted.twins(TRAIN), None, 0.0)
        assert least <= row["recall_1"] <= most


# ---- maps


def test_the_mean_of_a_map_is_the_score():
    config = NDAConfig({50: (Scale(3), Scale(5, weight=2.0)), 200: (Scale(3),)}, top_k=None)
    masses = pixel_masses(HELD_OUT[:2], TRAIN, config)
    torch.testing.assert_close(masses.mean((1, 2)), nda_scores(HELD_OUT[:2], TRAIN, config))
    even = NDAConfig.two_scale({50: 4}, {50: 4}, 0.5, flips=True)
    for one in (config, even):
        total = pixel_masses(HELD_OUT[:2], TRAIN, one).sum(3)
        torch.testing.assert_close(total, torch.ones(2, 8, 8))


@pytest.mark.parametrize("patch", [3, 4])
def test_covered_is_the_largest_mass_of_all_windows_that_have_a_pixel(patch):
    config = NDAConfig.single({100: patch})
    found = pixel_masses(HELD_OUT[:2], TRAIN, config, covered=True)
    (term,) = config.terms()
    options = config.options(HELD_OUT, term) | {"top_k": None}
    windows = Windows(8, 8, patch)
    masses = patch_posterior(HELD_OUT[:2], TRAIN, **options).masses.unflatten(1, windows.grid)
    for i in range(8):
        for j in range(8):
            rows, cols = (
                [u for u in range(windows.grid[0]) if 0 <= x - u + windows.before < patch]
                for x in (i, j)
            )
            naive = masses[:, rows][:, :, cols].amax((1, 2))
            torch.testing.assert_close(found[:, i, j], naive)


def test_local_scores_are_the_best_square():
    config = NDAConfig.single({100: 3})
    masses = pixel_masses(HELD_OUT[:2], TRAIN, config)
    squares = [masses[:, r : r + 2, c : c + 2].mean((1, 2)) for r in range(7) for c in range(7)]
    found = local_scores(HELD_OUT[:2], TRAIN, config, side=2)
    torch.testing.assert_close(found, torch.stack(squares).amax(0))
    with pytest.raises(InputError, match="side"):
        local_scores(HELD_OUT, TRAIN, config, side=9)


# ---- bad input


@pytest.mark.parametrize(
    ("train", "held_out", "count", "reason"),
    [
        (TRAIN, blobs(3, "wide", 3, cols=9), 2, "held_out are"),
        (TRAIN[:3], HELD_OUT, 2, "train must have at least 4 images"),
        (TRAIN[..., :7, :7], HELD_OUT[..., :7, :7], 2, "at least 8 px"),
        (TRAIN * 3, HELD_OUT, 2, "train has pixels"),
        (TRAIN, HELD_OUT[:0], 2, "held_out is empty"),
        (TRAIN, HELD_OUT, 0, "count"),
    ],
)
def test_images_that_cannot_be_planted(train, held_out, count, reason):
    with pytest.raises(InputError, match=reason) as error:
        plant(train, held_out, count)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["d_trak", "ekfac", "tracincp", "datamodel"])
def test_a_method_that_needs_more_than_images_is_refused(key):
    with pytest.raises(InputError, match=f"method {key} needs"):
        planted.suite(METHODS[key], TRAIN, HELD_OUT, parameters=PARAMETERS)


@pytest.mark.parametrize(
    "bad",
    [
        lambda queries, train: torch.zeros(len(train), len(queries)),
        lambda queries, train: torch.full((len(queries), len(train)), torch.nan),
    ],
)
def test_scores_that_cannot_be_used(bad):
    with pytest.raises(InputError, match="method must return finite scores"):
        planted.suite(bad, TRAIN, HELD_OUT, planted=ALL)
