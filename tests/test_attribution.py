"""Readings, maps and scores against a bank: naive twins, what is kept, and what must not matter."""

import math
from dataclasses import replace

import pytest
import torch
from photographs import photographs

from nda.data.bank import Bank, floats
from nda.data.untrusted import Folder
from nda.errors import InputError
from nda.evidence import attribution
from nda.evidence.attribution import Attributor, How
from nda.nonparametric.owed import shares, varied
from nda.nonparametric.patches import patch_posterior, shared_noise
from nda.nonparametric.provenance import provenance
from nda.schedule import sigma
from nda.store import Store

HOW = How(size=8, timesteps=(25, 300), top=4)
PIXELS = photographs(9)
QUERY = PIXELS[2].clone()
QUERY[:, :, 4:] = photographs(1, name="other")[0, :, :, 4:]


def bank(pixels: torch.Tensor, names=None) -> Bank:
    names = names or [f"{n}.png" for n in range(len(pixels))]
    return Bank.of(Folder(tuple(names), pixels, ((8, 8),) * len(pixels), ("",) * len(pixels), ()))


@pytest.fixture
def calls(monkeypatch):
    """How many images each posterior was computed of."""
    made, run = [], attribution.partial_scores

    def counted(queries, train, config, **options):
        made.append(len(train))
        return run(queries, train, config, **options)

    monkeypatch.setattr(attribution, "partial_scores", counted)
    return made


def test_bank_takes_the_same_pictures_together():
    made = bank(PIXELS[[4, 1, 4, 0, 1]])
    assert len(made) == 3 and list(made.digests) == sorted(made.digests)
    assert {0, 1, 3} == set(made.file) and made.again.keys() == {2, 4}
    assert all(
        torch.equal(PIXELS[[4, 1, 4, 0, 1]][n], made.pixels[i]) for i, n in enumerate(made.file)
    )
    other = bank(PIXELS[[0, 4, 1]])
    assert other.sha256 == made.sha256 and torch.equal(other.pixels, made.pixels)
    assert made.numbers.tolist() == sorted(made.numbers.tolist())


def test_draws_keep_their_order_when_pictures_are_added():
    few, all_of_them = bank(PIXELS[:6]), bank(PIXELS)
    order = [all_of_them.digests[n] for n in all_of_them.draw("a")]
    assert [d for d in order if d in few.digests] == [few.digests[n] for n in few.draw("a")]
    assert all_of_them.draw("a") != all_of_them.draw("b")


@pytest.mark.parametrize("flips", [True, False])
def test_reading_is_the_share_of_the_posterior(tmp_path, flips):
    made, how = bank(PIXELS), replace(HOW, flips=flips)
    (found,) = Attributor(made, how, Store(tmp_path)).readings(QUERY[None], [[5]])
    left = [n for n in range(len(made)) if n != 5]
    train, query = floats(made.pixels[left]).double(), floats(QUERY)[None].double()
    config = how.config(25, flips=flips)
    bank_of_both = torch.cat([train, train.flip(-1)]) if flips else train
    options = config.options(query, next(config.terms())) | {"engine": "naive"}
    posterior = patch_posterior(query, bank_of_both, **options)
    sums = posterior.log_share + posterior.log_total[:, :, None]
    sums = sums[0].exp().unflatten(1, (-1, len(left))).sum(1)  # [position, image]
    window = 3 * how.patch(25) ** 2
    masses = sums / (sums.sum(1, keepdim=True) + math.exp(-1.5 * window))  # beside nobody
    masses = masses.unflatten(0, (8, 8)) * varied(query[0], how.patch(25), sigma(25))[..., None]
    expected = dict(zip(left, zip(shares(masses), masses.mean((0, 1)), strict=True), strict=True))
    for what, found_here in enumerate((found.shares, found.masses)):
        said = dict(zip(found.images, found_here, strict=True))
        assert said == pytest.approx({n: expected[n][what].item() for n in said}, abs=1e-4)
    largest = sorted((share.item() for share, _ in expected.values()), reverse=True)
    assert found.shares == pytest.approx(largest[:4], abs=1e-4)
    assert found.largest == max(found.shares) > 0


def test_readings_do_not_depend_on_what_else_is_asked(tmp_path):
    queries = torch.stack([QUERY, PIXELS[0], photographs(1, name="third")[0]])
    together = Attributor(bank(PIXELS), HOW, Store(tmp_path / "a")).readings(queries)
    alone = Attributor(bank(PIXELS.flip(0)), HOW, Store(tmp_path / "b"))
    assert together == [alone.readings(one[None])[0] for one in queries]
    assert alone.readings(queries) == together  # from disk


def test_a_reading_is_made_once(tmp_path, calls):
    made = Attributor(bank(PIXELS), HOW, Store(tmp_path))
    made.readings(QUERY[None])
    assert calls == [9]
    Attributor(bank(PIXELS.flip(0)), HOW, Store(tmp_path)).readings(QUERY[None])
    assert calls == [9]
    made.readings(torch.stack([QUERY, PIXELS[1]]))  # a second one costs itself
    assert calls == [9, 9]


def test_added_images_cost_themselves(tmp_path, calls):
    Attributor(bank(PIXELS[:7]), HOW, Store(tmp_path)).readings(QUERY[None])
    Attributor(bank(PIXELS[:7]), HOW, Store(tmp_path)).maps(QUERY, [0])
    assert calls == [7, 14, 14]  # with mirror images in the maps
    more = Attributor(bank(PIXELS), HOW, Store(tmp_path))
    grown = more.readings(QUERY[None]), more.maps(QUERY, [0])
    assert calls[3:] == [2, 4, 4]
    fresh = Attributor(bank(PIXELS), HOW, Store(tmp_path / "fresh"))
    assert grown[0] == fresh.readings(QUERY[None])
    for one, other in zip(grown[1], fresh.maps(QUERY, [0]), strict=True):
        assert torch.equal(one.images, other.images)
        torch.testing.assert_close(one.masses, other.masses, atol=1e-5, rtol=1e-4)


def test_when_the_source_is_removed_nothing_of_it_is_left(tmp_path):
    """Beside an exact copy all other weights are below float precision, and are not kept."""
    copy = PIXELS[2]
    Attributor(bank(PIXELS), HOW, Store(tmp_path)).readings(copy[None])
    left = bank(PIXELS[[0, 1, 3, 4, 5, 6, 7, 8]])
    again = Attributor(left, HOW, Store(tmp_path)).readings(copy[None])
    assert again == Attributor(left, HOW, Store(tmp_path / "fresh")).readings(copy[None])


@pytest.mark.parametrize("flips", [True, False])
def test_maps_are_those_of_provenance(tmp_path, flips):
    made, how = bank(PIXELS), replace(HOW, flips=flips)
    for found in Attributor(made, how, Store(tmp_path)).maps(QUERY, []):
        train, query = floats(made.pixels), floats(QUERY)
        both = torch.cat([train, train.flip(-1)]) if flips else train
        noise = shared_noise(query[None], found.timestep, 0)
        options = {"timestep": found.timestep, "patch": found.patch, "noise": noise}
        naive = provenance(
            query.double(), both.double(), few=1, **options | {"noise": noise.double()}
        )
        masses = naive.masses.unflatten(2, (-1, 9)).sum(2)
        torch.testing.assert_close(
            found.masses.double(), masses.topk(5, dim=2).values, atol=1e-4, rtol=1e-3
        )
        by_image = masses.gather(2, found.images)  # each mass is that of its image
        torch.testing.assert_close(found.masses.double(), by_image, atol=1e-4, rtol=1e-3)
        entropy = -(masses * masses.clamp_min(1e-300).log()).sum(2)
        torch.testing.assert_close(found.entropy.double(), entropy, atol=1e-3, rtol=1e-3)
        assert found.outside == 0 and (flips or not found.mirrored.any())


def test_map_of_a_mirrored_copy_points_to_where_it_is_in_the_file(tmp_path):
    made = bank(PIXELS)
    first = made.digests.index(bank(PIXELS[[2]]).digests[0])
    (found, _) = Attributor(made, HOW, Store(tmp_path)).maps(PIXELS[2].flip(-1), [first])
    assert (found.images[..., 0] == first).all() and found.mirrored[..., 0].all()
    rows, cols = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    assert torch.equal(found.source[..., 0, 0], rows)
    assert torch.equal(found.source[..., 0, 1], 7 - cols)


def test_neither_blocks_nor_threads_matter(tmp_path, monkeypatch):
    expected = Attributor(bank(PIXELS), HOW, Store(tmp_path / "a")).maps(QUERY, [1])
    monkeypatch.setattr(attribution, "BLOCK", 2)
    torch.set_num_threads(2)
    try:
        found = Attributor(bank(PIXELS), HOW, Store(tmp_path / "b")).maps(QUERY, [1])
    finally:
        torch.set_num_threads(1)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.images, other.images)
        torch.testing.assert_close(one.masses, other.masses, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.entropy, other.entropy, atol=1e-4, rtol=1e-3)


def test_maps_among_candidates_say_what_is_outside(tmp_path, monkeypatch):
    """With all others as the sample, the estimate is exact."""
    made, how = bank(PIXELS), replace(HOW, exact_above=8, candidates=3)
    exact = Attributor(made, HOW, Store(tmp_path / "a")).maps(QUERY, [])
    for one, other in zip(
        Attributor(made, how, Store(tmp_path / "b")).maps(QUERY, []), exact, strict=True
    ):
        assert 0 < one.outside < 1
        for image in one.images.unique().tolist():
            here, there = one.images == image, other.images == image
            both = here.any(2) & there.any(2)
            a, b = (m.masses.where(w, 0).sum(2)[both] for m, w in ((one, here), (other, there)))
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    most = math.log(len(made)) + 1e-3
    assert all((one.entropy <= most).all() for one in exact)


def test_scores_are_those_of_the_catalogue(tmp_path, monkeypatch):
    made = Attributor(bank(PIXELS[:4]), HOW, Store(tmp_path))
    asked = []

    def score(queries, train, **settings):
        asked.append((queries, train, settings))
        return torch.arange(float(len(train)))[None]

    monkeypatch.setattr("nda.nonparametric.random_features.rfi_scores", score)
    assert made.scores(QUERY, [2, 0]) == [2.0, 0.0] and made.scores(QUERY, [0, 2]) == [0.0, 2.0]
    ((query, train, settings),) = asked
    assert torch.equal(query[0], floats(QUERY)) and torch.equal(train, floats(made.bank.pixels))
    assert settings["gated"] and settings["widths"] == [128, 256]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 30}, "size must be a multiple of 4 pixels of at least 8, not 30; 32 is good"),
        ({"size": 4}, "size must be a multiple of 4"),
        ({"size": 8.0}, "size must be an integer"),
        ({"timesteps": ()}, "timesteps must name at least one"),
        ({"timesteps": (25, 25)}, "timesteps must be ascending"),
        ({"timesteps": (1000,)}, "timestep must be an integer in 0…999"),
        ({"top": 0}, "top must be a positive integer"),
        ({"candidates": 0}, "candidates must be a positive integer"),
        ({"exact_above": -1}, "exact_above must be a positive integer"),
    ],
)
def test_bad_settings(changed, message):
    with pytest.raises(InputError, match=message):
        How(**changed)


def test_windows_grow_with_noise_and_size():
    assert [How().patch(t) for t in (25, 100, 300)] == [5, 5, 9]
    assert all(How(size=s).patch(t) % 2 == 1 for s in (8, 12, 32, 64) for t in range(0, 1000, 50))
    assert all(3 <= How(size=8).patch(t) <= 8 for t in range(0, 1000, 50))


def test_posterior_of_a_part_is_that_of_its_images_alone():
    config = HOW.config(900, flips=True)  # so noisy that no image has everything
    train, query = floats(PIXELS), floats(QUERY)[None]
    whole = attribution.partial_scores(query, train, config)
    part = whole.only(torch.tensor([1, 2, 4, 99]))
    (found,) = part.posteriors
    options = config.options(query, next(config.terms()))
    doubled = torch.cat([train[[1, 2, 4]], train[[1, 2, 4]].flip(-1)])
    expected = patch_posterior(query, doubled, **options).masses.unflatten(2, (2, 3)).sum(2)
    torch.testing.assert_close(found.masses, expected, atol=1e-4, rtol=1e-3)
    assert found.images.tolist() == [1, 2, 4]
    config = HOW.config(25, flips=True)
    copy = attribution.partial_scores(train[[3]], train, config)
    assert copy.only(torch.tensor([0, 1])) is None  # the copy had everything
    assert whole.only(torch.tensor([77])) is None
