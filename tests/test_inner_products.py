"""Collected products against features that are made and multiplied by hand."""

import copy
from dataclasses import replace

import pytest
import torch

from nda import rng
from nda.errors import InputError
from nda.model.lean import UNet2DModel
from nda.rivals import inner_products
from nda.rivals.gradients import Readout, features
from nda.rivals.inner_products import Side, Source, collect
from nda.rivals.kernel import gram, norms
from nda.rivals.projection import Projection
from nda.store import Store

READOUT = Readout("loss", (100, 700))


def draw(name, *shape):
    return torch.rand(*shape, generator=rng.generator("products", name)) * 2 - 1


@pytest.fixture(scope="module")
def model():
    with rng.seeded("products"):
        return UNet2DModel(
            sample_size=4,
            in_channels=1,
            out_channels=1,
            block_out_channels=(4,),
            layers_per_block=1,
            norm_num_groups=2,
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            add_attention=False,
        )


IMAGES = {
    "val": draw("val", 2, 1, 4, 4),
    "train": draw("train", 5, 1, 4, 4),
    "gen": draw("gen", 3, 1, 4, 4),
}


def sides(readout=READOUT):
    return {kind: Side(images, readout) for kind, images in IMAGES.items()}


def journeys(readout=READOUT):
    """Other images and timesteps for generated queries, against the same train images."""
    along = Side(draw("journeys", 3, 2, 1, 4, 4), replace(readout, timesteps=(50, 900)))
    return {"train": Side(IMAGES["train"], readout), "journey": along}


@pytest.fixture
def calls(monkeypatch):
    """The readouts whose features are made from now on."""
    made, real = [], features
    monkeypatch.setattr(
        inner_products, "features", lambda *a, **k: made.append(a[2]) or real(*a, **k)
    )
    return made


def test_products_are_those_of_the_features(model, tmp_path):
    projections = [None, Projection(16)]
    found = collect(model, sides(), projections, store=Store(tmp_path), name="a")
    for p in projections:
        made = {
            kind: features(model, images, READOUT, projection=p) for kind, images in IMAGES.items()
        }
        for kind, values in made.items():
            assert torch.allclose(found[p][kind].cross, gram(values, made["train"]), rtol=1e-5)
            assert torch.allclose(found[p][kind].norms, norms(values), rtol=1e-5)
            assert torch.allclose(found[p][kind].train_norms, norms(made["train"]), rtol=1e-5)
            assert found[p][kind].kernel is found[p]["train"].kernel
        assert "eigen" in vars(found[p]["train"].kernel)
        dims = made["train"].shape[1]
        assert found[p]["gen"].held == 4 * 8 * dims and found[p]["train"].held == 4 * 5 * dims


def test_one_pass_serves_every_projection(model, tmp_path, calls):
    collect(model, sides(), [None, Projection(16), Projection(8)], store=Store(tmp_path), name="a")
    assert calls == [READOUT] * 3


def test_other_images_at_each_timestep_for_the_queries(model, tmp_path):
    found = collect(model, journeys(), store=Store(tmp_path), name="a")[None]
    images, readout = journeys()["journey"]
    expected = gram(features(model, images, readout), features(model, IMAGES["train"], READOUT))
    assert torch.allclose(found["journey"].cross, expected, rtol=1e-5)
    plain = collect(model, sides(), store=Store(tmp_path), name="a")[None]
    assert torch.equal(found["journey"].kernel.gram, plain["gen"].kernel.gram)


def test_a_killed_run_goes_on_with_the_same_products_and_clocks(model, tmp_path, calls):
    def run(readout):
        calls.clear()
        found = collect(model, sides(readout), store=Store(tmp_path), name="a")[None]
        found |= collect(model, journeys(readout), store=Store(tmp_path), name="a")[None]
        return found, len(calls)

    first, made = run(READOUT)
    again, none = run(READOUT)
    assert (made, none) == (5, 0)  # three kinds; for journeys the train features again
    for kind, products in first.items():
        assert torch.equal(products.cross, again[kind].cross)
        assert torch.equal(products.norms, again[kind].norms)
        assert torch.equal(products.kernel.gram, again[kind].kernel.gram)
        assert (products.seconds, products.held) == (again[kind].seconds, again[kind].held)
    for path in tmp_path.glob("parts/products/*/journey*"):
        path.unlink()
    resumed, made = run(READOUT)
    assert made == 2 and torch.equal(resumed["journey"].cross, first["journey"].cross)
    other, made = run(Readout("loss", (100, 800)))
    assert made == 5 and not torch.equal(other["val"].cross, first["val"].cross)


@pytest.mark.parametrize("change", ["weights", "images", "projection"])
def test_what_was_made_of_something_else_is_made_anew(model, tmp_path, calls, change):
    store, p = Store(tmp_path), Projection(16)
    before = collect(model, sides(), [p], store=store, name="a")[p]
    other, images = copy.deepcopy(model), dict(sides())
    if change == "weights":
        other.conv_in.bias.data += 1
    if change == "images":
        images["train"] = Side(-IMAGES["train"], READOUT)
    p = Projection(16, seed=1) if change == "projection" else p
    calls.clear()
    found = collect(other, images, [p], store=store, name="a")[p]
    assert len(calls) == 3 and not torch.equal(found["gen"].cross, before["gen"].cross)


def test_clocks_are_those_of_train_images_and_queries(model, tmp_path):
    store = Store(tmp_path)
    found = collect(model, sides(), store=store, name="a")[None]
    own = {name.split("/")[-1]: store.load(name)["seconds"].item() for name in store.names()}
    assert found["train"].seconds == own["train"] > 0
    assert found["gen"].seconds == own["train"] + own["gen"]


def test_images_need_a_train_set(model, tmp_path):
    with pytest.raises(InputError, match="called 'train'"):
        collect(model, {"val": sides()["val"]}, store=Store(tmp_path), name="a")


def test_a_source_is_parsed_from_the_settings_of_a_method():
    assert Source.parse(0, model_output="loss", timesteps=[100, 700]) == Source(READOUT)
    assert Source.parse(16, timesteps=[100, 700]).projection == Projection(16)
    assert len({Source(READOUT), Source.parse(0, timesteps=[100, 700])}) == 1
