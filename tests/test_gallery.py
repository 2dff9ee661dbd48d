"""The gallery: proponents and opponents against a plain sort, what is recorded, the page's rule
against loops, and the train images where they are and where they are not."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from nda import rng
from nda.data import fingerprints, images
from nda.data.fingerprints import MissingImages, find_train
from nda.data.pixels import levels
from nda.errors import InputError
from nda.evidence import gallery
from nda.methods import METHODS
from nda.nonparametric.patches import shared_noise
from nda.nonparametric.provenance import provenance
from nda.report import pictures
from nda.store import Store

TRAIN, GEN = 12, 6
SCALES = {
    t: [{"patch": 3, "weight": 0.5}, {"patch": 4, "coarse": True, "weight": 0.5}]
    for t in (100, 200, 300)
}
SETTINGS = {"scales": SCALES, "noise_seed": 3}
METHODS_HERE = ["nda_two_scale", "pixel_cosine", "clip_cosine", "ekfac"]


def draw(name, *shape):
    return torch.randn(*shape, generator=rng.generator("gallery", name))


def pixels(name, n):
    raw = torch.rand(n, 1, 8, 8, generator=rng.generator("gallery", name))
    return (255 * raw).round() / 127.5 - 1


@pytest.fixture
def stores(tmp_path):
    """A working store with scores of all but CLIP, and an empty results store."""
    store = Store(tmp_path / "work", role="working")
    results = Store(tmp_path / "results", role="results")
    axes, made = "image chan row col", {"recipe": {"epochs": 2}}
    store.save("train", pixels("train", TRAIN), axes=axes)
    store.save("model", {"weight": torch.ones(1)}, parameters=made)
    drawn = {"n_gen": GEN, "sampling_steps": 5}
    sampled = {"parameters": drawn, "inputs": store.sha256("model")}
    store.save("gen", pixels("gen", GEN), axes=axes, **sampled)
    for key in METHODS_HERE:
        if key != "clip_cosine":
            score(store, key, draw(key, GEN, TRAIN))
    return store, results


def score(store, key, values):
    settings = SETTINGS if key == "nda_two_scale" else {}
    said = {"method": key, "variant": {}, "settings": settings, "damping": None}
    inputs = store.sha256("train", "gen")
    store.save(f"scores/{key}-gen", values, axes="query train", parameters=said, inputs=inputs)


# ---- proponents, opponents, disagreement


def plain_order(row):
    """From the highest to the lowest; of equal scores the first image is the higher."""
    return sorted(range(len(row)), key=lambda i: (-row[i], i))


@given(
    queries=st.integers(1, 4),
    half=st.integers(1, 6),
    values=st.integers(1, 8),
    name=st.integers(0, 1000),
    data=st.data(),
)
def test_extremes_are_those_of_a_plain_sort(queries, half, values, name, data):
    source = rng.generator("extremes", name)
    scores = torch.randint(values, (queries, 2 * half), generator=source).float()
    n = data.draw(st.integers(1, half))
    best, last = gallery.extremes(scores, n)
    for row, high, low in zip(scores.tolist(), best.tolist(), last.tolist(), strict=True):
        order = plain_order(row)
        assert high == order[:n] and low == order[::-1][:n]
        assert not {*high} & {*low}


def test_the_order_of_queries_does_not_matter():
    scores, turn = draw("turn", 5, TRAIN), torch.tensor([3, 0, 4, 1, 2])
    for side, turned in zip(
        gallery.extremes(scores, 4), gallery.extremes(scores[turn], 4), strict=True
    ):
        assert torch.equal(side[turn], turned)


@pytest.mark.parametrize("n", [0, 7, 13])
def test_more_than_half_of_the_images_are_refused(n):
    with pytest.raises(InputError, match="n must be between 1 and 6, half of the 12"):
        gallery.extremes(draw("a", 2, TRAIN), n)


def test_shared_counts_common_proponents():
    a, b = draw("a", GEN, TRAIN), draw("b", GEN, TRAIN)
    theirs = [
        len({*plain_order(x)[:4]} & {*plain_order(y)[:4]})
        for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    assert gallery.shared(a, b, 4).tolist() == theirs and len({*theirs}) > 1
    assert gallery.shared(a, a, 4).tolist() == [4] * GEN
    assert gallery.shared(a, -a, 4).tolist() == [0] * GEN


def test_disagreements_follow_the_rule():
    a, b = draw("a", 20, TRAIN).double(), draw("b", 20, TRAIN).double()
    found = gallery.disagreements(a, b, 3)
    common = gallery.shared(a, b, 3).tolist()
    ranks = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    by_rule = sorted(range(20), key=lambda q: (common[q], ranks[q]))
    assert found["query"].tolist() == by_rule and len({*common}) < 20  # the second key decides
    assert found["shared"].tolist() == [common[q] for q in by_rule]
    assert np.allclose(found["correlation"], [ranks[q] for q in by_rule], atol=1e-9)


# ---- what is recorded


def test_rows_of_scores_and_images_are_kept(stores):
    store, results = stores
    rows = [4, 0, 5]
    assert gallery.record(store, results, rows, METHODS_HERE) == [
        m for m in METHODS_HERE if m != "clip_cosine"
    ]
    kept = results.load("gallery/queries", "query chan row col")
    assert kept.dtype == torch.uint8 and torch.equal(kept, levels(store.load("gen")[rows]))
    assert torch.equal(kept / 127.5 - 1, store.load("gen")[rows])
    made = results.info("gallery/queries")["parameters"]
    assert made["rows"] == rows and made["recipe"] == {"epochs": 2}
    assert {"gen": made["gen"], "model": made["model"]} == store.sha256("gen", "model")
    for key in ("nda_two_scale", "pixel_cosine", "ekfac"):
        values = results.load(f"gallery/{key}", "query train")
        assert torch.equal(values, store.load(f"scores/{key}-gen")[rows])
        info = results.info(f"gallery/{key}")
        assert info["parameters"]["method"] == key and info["parameters"]["rows"] == rows
        assert info["inputs"]["train"] == store.sha256("train")["train"]
    assert "gallery/clip_cosine" not in results


def test_no_train_image_is_kept(stores):
    store, results = stores
    gallery.record(store, results, [0], METHODS_HERE)
    found = {name: results.info(name)["shape"] for name in results.names()}
    assert found.pop("gallery/queries") == [1, 1, 8, 8]
    maps = found.pop("gallery/maps")
    assert maps == {n: [1, 8, 8] for n in ("entropy", "mass", "image")} | {"source": [1, 8, 8, 2]}
    assert set(map(tuple, found.values())) == {(1, TRAIN)}


def test_maps_are_the_provenance_at_the_middle_timestep(stores):
    store, results = stores
    gallery.record(store, results, [2, 1], METHODS_HERE)
    look = results.info("gallery/maps")["parameters"]
    assert look == {"timestep": 200, "patch": 3, "borders": "match", "noise_seed": 3}
    maps, train = results.load("gallery/maps"), store.load("train")
    for one, row in enumerate([2, 1]):
        query = store.load("gen")[row]
        noise = shared_noise(query[None], 200, 3)
        theirs = provenance(query, train, few=1, timestep=200, patch=3, noise=noise)
        assert torch.equal(maps["image"][one].long(), theirs.image[..., 0])
        assert torch.equal(maps["source"][one].long(), theirs.source[..., 0, :])
        assert torch.allclose(maps["mass"][one].float(), theirs.mass[..., 0], atol=1e-3)
        assert torch.allclose(maps["entropy"][one].float(), theirs.entropy, atol=2e-3)


def test_twice_gives_the_same_files_and_new_scores_replace_old_ones(stores):
    store, results = stores
    gallery.record(store, results, [0, 1], METHODS_HERE)
    before = {name: results.info(name) for name in results.names()}
    gallery.record(store, results, [0, 1], METHODS_HERE)
    assert {name: results.info(name) for name in results.names()} == before
    store.delete("scores/ekfac-gen")
    score(store, "ekfac", -draw("ekfac", GEN, TRAIN))
    gallery.record(store, results, [0, 1], METHODS_HERE)
    assert torch.equal(results.load("gallery/ekfac"), -draw("ekfac", GEN, TRAIN)[:2])


def test_a_gallery_of_another_model_goes_with_other_results(stores):
    """Its queries are its own: the shipped `gen` may be of a model that was trained before."""
    store, results = stores
    gallery.record(store, results, [0, 1], METHODS_HERE)
    results.save("gen", levels(pixels("other", GEN)), axes="image chan row col")
    for name in results.names():
        results.load(name)


@pytest.mark.parametrize("rows", [[], [GEN], [-1]])
def test_queries_that_do_not_exist_are_refused(stores, rows):
    with pytest.raises(InputError, match="rows must be numbers of the generated queries, 0 to 5"):
        gallery.record(*stores, rows, METHODS_HERE)


def test_an_unknown_method_and_missing_scores_are_refused(stores):
    with pytest.raises(InputError, match="gallery_methods"):
        gallery.record(*stores, [0], ["nda_two_scale", "ekfca"])
    with pytest.raises(InputError, match="scores/d_trak-gen is missing .* run the notebook of"):
        gallery.record(*stores, [0], ["d_trak"])
    assert not stores[1].names()


def test_the_two_stores_may_not_be_exchanged(stores):
    with pytest.raises(InputError, match="is a results store"):
        gallery.record(stores[1], stores[0], [0], METHODS_HERE)


# ---- the train images


@pytest.fixture
def digits(tmp_path):
    """A results store as the first notebook leaves it, with digits; and an empty working store."""
    pool = images.load("mnist", split="train", size=8)
    drawn = {"dataset": "mnist", "size": 8, "pool_sha256": pool.sha256, "n_train": 5}
    chosen = pool.pixels[[7, 1200, 33, 2500, 3999]]
    results = Store(tmp_path / "results", role="results")
    prints = {"train": fingerprints.fingerprints(chosen)}
    results.save("fingerprints", prints, parameters={"train": drawn, "val": {}})
    return results, Store(tmp_path / "work", role="working"), chosen, drawn


def test_digits_are_found_again(digits):
    results, store, chosen, _ = digits
    assert torch.equal(find_train(results, store), chosen)


def test_train_images_of_the_working_store_are_taken_if_they_are_the_same(digits, monkeypatch):
    results, store, chosen, drawn = digits
    store.save("train", -chosen, axes="image chan row col", parameters=drawn | {"n_train": 6})
    assert torch.equal(find_train(results, store), chosen)  # it is of others
    store.delete("train")
    store.save("train", chosen, axes="image chan row col", parameters=drawn)
    monkeypatch.setattr(images, "load", None)
    assert torch.equal(find_train(results, store), chosen)


@pytest.mark.parametrize("name", ["cifar2", "cifar10", "somewhere/faces"])
def test_photographs_that_are_not_here_are_one_sentence_and_no_download(
    digits, monkeypatch, tmp_path, name
):
    results, store, _, drawn = digits
    monkeypatch.delenv("NDA_DATA", raising=False)
    monkeypatch.setenv("NDA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(images, "load", None)  # it might download
    results.correct(
        "fingerprints", reason="", date="", parameters={"train": {**drawn, "dataset": name}}
    )
    with pytest.raises(MissingImages, match=name.split("/")[-1]) as error:
        find_train(results, store)
    assert "somewhere" not in str(error.value) and str(error.value).count("\n") == 0


def test_what_is_at_hand(monkeypatch, tmp_path):
    monkeypatch.delenv("NDA_DATA", raising=False)
    monkeypatch.setenv("NDA_CACHE", str(tmp_path))
    assert images.at_hand("mnist") and images.at_hand(str(tmp_path))
    assert not images.at_hand("cifar10") and not images.at_hand(str(tmp_path / "no"))
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert images.at_hand("cifar10") and images.at_hand("cifar2")
    monkeypatch.setenv("NDA_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("NDA_DATA", str(tmp_path))
    assert images.at_hand("cifar2")


def test_a_patchwork_has_the_pixels_that_are_named():
    train = pixels("train", TRAIN)
    image = torch.randint(TRAIN, (4, 3), generator=rng.generator("image"))
    source = torch.randint(8, (4, 3, 2), generator=rng.generator("source"))
    made = gallery.patchwork(train, image.int(), source.short())
    for r in range(4):
        for c in range(3):
            y, x = source[r, c].tolist()
            assert torch.equal(made[:, r, c], train[image[r, c], :, y, x])


def test_a_query_made_of_train_pixels_is_its_own_patchwork():
    """Wherever one train image explains a query that is that image."""
    train = pixels("train", TRAIN)
    found = gallery.maps(train[4:5], train, timestep=10, patch=3, borders="match", noise_seed=0)
    assert (found["image"] == 4).all()
    assert torch.equal(gallery.patchwork(train, found["image"][0], found["source"][0]), train[4])


# ---- pictures


def test_the_picture_has_a_row_per_method_and_frames_what_is_shared():
    shown = {"nda_two_scale": ([3, 1], [0, 2]), "ekfac": ([1, 0], [2, 5])}
    train = pixels("train", TRAIN)
    figure = pictures.gallery(pixels("gen", 1)[0], train, shown)
    panels = [axes for axes in figure.axes if axes.get_xlabel()]
    assert [axes.get_xlabel() for axes in panels] == list("31021025")
    framed = [axes.spines["left"].get_visible() for axes in panels]
    assert framed == [True] * 4 + [True, False, True, False]
    for axes in panels:
        drawn = (axes.images[0].get_array() * 2 - 1).astype(np.float32)
        assert np.allclose(drawn, train[int(axes.get_xlabel()), 0], atol=1e-6)
    rows = [axes for axes in panels if axes.get_ylabel()]
    assert [axes.get_ylabel() for axes in rows] == [METHODS[m].label for m in shown]
    assert [axes.yaxis.label.get_color() for axes in rows] == [METHODS[m].colour for m in shown]
    assert {axes.get_title() for axes in figure.axes} == {"", "query", "proponents", "opponents"}


@pytest.mark.parametrize("there", [True, False])
def test_maps_have_one_scale_and_the_patchwork_only_if_it_is_there(there):
    queries, values = pixels("gen", 3), torch.rand(2, 3, 8, 8, generator=rng.generator("maps"))
    figure = pictures.origins(queries, *values, queries if there else None)
    names = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    assert names == ["query", *["train\npixels"] * there, "entropy,\nnats", "best\nshare, %"]
    panels = [axes for axes in figure.axes if len(axes.images) == 1]
    maps = [axes.images[0] for axes in panels[-6:]]
    assert np.allclose(maps[0].get_array(), values[0, 0])
    assert np.allclose(maps[3].get_array(), 100 * values[1, 0])
    assert len({image.get_clim() for image in maps[:3]}) == 1
    assert len({image.get_clim() for image in maps[3:]}) == 1


def test_the_page_declares_what_the_tests_of_others_rely_on():
    from nda.artefact import notebooks

    given = notebooks.defaults("13_gallery")
    assert set(given["gallery_methods"]) <= set(METHODS)
    assert json.dumps(given) and notebooks.shows_results("13_gallery")
