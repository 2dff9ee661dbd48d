"""Scores and gradients by blocks of images: those of the whole, and the same bytes whoever made the
blocks."""

import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nda_case import QUERIES, RICH, TRAIN, assert_close
from tiny import IMAGES, SETTINGS, TINY

from nda.artefact import attribute as attributing
from nda.artefact import notebooks
from nda.errors import InputError
from nda.model.unet import load_model
from nda.nonparametric.blocks import Blocks
from nda.nonparametric.partial import Partial, merge, merge_tree, partial_scores
from nda.nonparametric.scores import nda_scores
from nda.rivals.bench import Bench
from nda.rivals.blocks import Gradients
from nda.rivals.gradients import Readout, features
from nda.rivals.inner_products import Side, Source, collect
from nda.rivals.projection import Projection
from nda.store import Store

SOURCE = Source(Readout("loss", (100, 600), noise_seed=3), Projection(16))


def fill(folder: Path) -> Store:
    """A working store of images and an untrained model."""
    store = Store(folder, role="working")
    for kind, some in {"train": IMAGES[:7], "val": IMAGES[7:10], "gen": IMAGES[10:]}.items():
        store.save(kind, some, axes="image chan row col")
    weights = TINY.build(0, IMAGES.shape).state_dict()
    store.save("model", weights, parameters={"recipe": SETTINGS})
    return store


def halves() -> torch.Tensor:
    """Two masks of the seven train images."""
    return torch.arange(7)[None] % 2 == torch.arange(2)[:, None]


def nda_blocks(folder: Path) -> Blocks:
    """Three blocks of two terms."""
    store = Store(folder)
    for name, images in {"train": TRAIN, "val": QUERIES}.items():
        store.save(name, images, axes="image chan row col")
    return Blocks(folder, "val", replace(RICH, flips=False), 2, "cpu")


def payloads(folder: Path) -> dict[str, bytes]:
    """The bytes of all blocks."""
    files = sorted(folder.rglob("parts/blocks/*/*.safetensors"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# ---- merging


def parts(count: int) -> list[Partial]:
    return [
        partial_scores(QUERIES, TRAIN[i % 5 : i % 5 + 1], RICH, images=[i]) for i in range(count)
    ]


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_a_tree_of_totals_makes_the_scores_of_the_whole(count):
    every = parts(count)
    total = merge_tree(part.total() for part in every)
    scores = torch.cat([part.within(total).scores() for part in every], 1)
    assert_close(scores, merge(every).scores())
    assert_close(merge_tree(every).scores(), merge(every).scores())


def test_a_tree_holds_few_at_a_time():
    whole, alive, most = parts(1)[0], [], 0

    def stream():
        nonlocal most
        for number in range(64):
            posteriors = tuple(
                replace(p, images=torch.tensor([number]), log_total=p.log_total.clone())
                for p in whole.posteriors
            )
            part = replace(whole, posteriors=posteriors).total()
            alive.append(weakref.ref(part.posteriors[0].log_total))
            most = max(most, sum(ref() is not None for ref in alive))
            yield part

    merge_tree(stream())
    assert most <= 2  # of those that were given: this one, and one that waits for it


def test_a_tree_of_nothing():
    with pytest.raises(InputError, match="at least one partial"):
        merge_tree([])


# ---- NDA


def test_blocks_make_the_scores_of_the_whole(tmp_path):
    blocks = nda_blocks(tmp_path)
    assert blocks.tasks() == [0, 2, 4]
    scores, seconds = blocks.scores(workers=1)
    assert_close(scores, nda_scores(QUERIES, TRAIN, blocks.config))
    assert seconds > 0 and all(map(blocks.done, blocks.tasks()))


def test_two_processes_and_array_tasks_make_the_same_bytes(tmp_path):
    one, two, array = (nda_blocks(tmp_path / name) for name in ("one", "two", "array"))
    for start in (4, 0, 2):
        array.look(start)
    for blocks, workers in ((one, 1), (two, 2), (array, 1)):
        blocks.scores(workers=workers)
    assert payloads(one.folder) == payloads(two.folder) == payloads(array.folder)
    assert len(payloads(one.folder)) == 3 * 3 + 1


def test_blocks_of_other_queries_or_settings_are_made_anew(tmp_path):
    blocks = nda_blocks(tmp_path)
    blocks.look(0)
    assert blocks.done(0)
    assert not replace(blocks, config=replace(blocks.config, top_k=2)).done(0)
    assert not replace(blocks, size=3).done(0)
    Store(tmp_path).save("val", -QUERIES, axes="image chan row col")
    assert not blocks.done(0)
    with pytest.raises(InputError, match="block must be a positive integer, not 0"):
        replace(blocks, size=0).tasks()


# ---- gradients


def test_gradients_by_blocks_are_those_of_the_whole(tmp_path):
    store, work = fill(tmp_path), Gradients(tmp_path, 3, "cpu")
    tasks = work.tasks([SOURCE])
    assert [(task.kind, task.start) for task in tasks] == [
        ("train", 0), ("train", 3), ("train", 6), ("val", 0), ("gen", 0)
    ]  # fmt: skip
    with pytest.raises(InputError, match="train-0 is missing in .*with nda attribute"):
        Bench(store, {}, block=3).products("val", SOURCE)
    for task in tasks:
        assert not work.done(task)
        work.look(task)
        assert work.done(task)
    model = load_model(store.load("model"), TINY, IMAGES.shape, IMAGES.device)
    found, seconds = work.features(SOURCE.readout, "model", "train", SOURCE.projection)
    whole = features(model, IMAGES[:7], SOURCE.readout, projection=SOURCE.projection)
    torch.testing.assert_close(found, whole)
    products = Bench(store, {}, block=3).products("val", SOURCE)
    assert 0 < seconds < products.seconds
    fresh = Bench(fill(tmp_path / "fresh"), {}).products("val", SOURCE)
    torch.testing.assert_close(products.cross, fresh.cross, rtol=1e-5, atol=1e-5)


def test_seconds_of_gradients_made_elsewhere_count_once(tmp_path):
    sides = {kind: Side(IMAGES[:3], SOURCE.readout) for kind in ("train", "val")}
    made = {"made": lambda kind, projection: (torch.eye(3), {"train": 1e6, "val": 2e6}[kind])}
    model = TINY.build(0, IMAGES.shape)
    (found,) = collect(model, sides, store=Store(tmp_path), name="model", **made).values()
    assert 1e6 < found["train"].seconds < 1e6 + 600
    assert 3e6 < found["val"].seconds < 3e6 + 1200


# ---- the command


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """A profile whose images, masks and model are there."""
    monkeypatch.setenv("NDA_HOME", str(tmp_path))
    fill(Store.working("tiny").folder)
    Store.results("tiny").save("masks/report", halves(), axes="subset train")
    return {"block": 3, "overrides": {"top_k": 5}, "workers": 1}


def test_nda_is_recorded_as_the_notebook_does(profile):
    assert attributing.attribute("tiny", "nda", "gen", task=1, **profile) == 1
    assert "scores/nda-gen" not in Store.working("tiny")
    assert attributing.attribute("tiny", "nda", "gen", **profile) == 2
    store, method = Store.working("tiny"), attributing.METHODS["nda"]
    given = notebooks.parameters("tiny", profile["overrides"])
    result = method.score(Bench(store, given), "gen")
    torch.testing.assert_close(store.load("scores/nda-gen"), result.scores)
    for name in (store.info("scores/nda-gen"), Store.results("tiny").info("effects/nda-gen")):
        assert name["parameters"] == result.parameters
        assert name["inputs"].items() >= result.inputs.items()


def test_gradients_are_recorded_as_the_notebook_does(profile):
    asked = profile | {"overrides": {"gradient_timesteps": 2}}
    assert attributing.attribute("tiny", "gradient_cosine", "val", **asked) == 5
    assert attributing.attribute("tiny", "gradient_dot", "val", **asked) == 0  # the same source
    store = Store.working("tiny")
    given = notebooks.parameters("tiny", asked["overrides"])
    fresh = Bench(fill(store.folder.parent / "fresh"), given)
    result = attributing.METHODS["gradient_cosine"].score(fresh, "val")
    torch.testing.assert_close(store.load("scores/gradient_cosine-val"), result.scores)
    assert store.info("scores/gradient_cosine-val")["parameters"] == result.parameters


def test_methods_that_have_no_blocks(profile):
    with pytest.raises(InputError, match="das is not scored by blocks; nda, .*trak.* are"):
        attributing.attribute("tiny", "das", "val", **profile)
    with pytest.raises(InputError, match="method must be one of .*not 'nada'"):
        attributing.attribute("tiny", "nada", "val", **profile)
