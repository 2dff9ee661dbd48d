"""Collected products against features that are made and multiplied by hand."""

import pytest
import torch

from nda import rng
from nda.errors import InputError
from nda.model.lean import UNet2DModel
from nda.rivals.gradients import Readout, features
from nda.rivals.inner_products import Products
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


@pytest.mark.parametrize("projection", [None, Projection(16)])
def test_products_are_those_of_the_features(model, projection):
    products = Products(IMAGES, projection=projection)
    products.collect("a", model, READOUT)
    made = {
        kind: features(model, images, READOUT, projection=projection)
        for kind, images in IMAGES.items()
    }
    for kind, values in made.items():
        assert torch.allclose(products.cross["a", kind], gram(values, made["train"]), rtol=1e-5)
        assert torch.allclose(products.norms["a", kind], norms(values), rtol=1e-5)
    assert products.kernels["a"].gram is products.cross["a", "train"] and "eigen" in vars(
        products.kernels["a"]
    )
    dims = made["train"].shape[1]
    assert products.memory(["a"], "gen") == {
        "features, MB": round(4e-6 * 8 * dims, 1),
        "products, MB": round(8e-6 * 8 * 5, 1),
    }


def test_queries_against_kept_train_features(model):
    products, journeys = Products(IMAGES), draw("journeys", 3, 2, 1, 4, 4)
    products.collect("a", model, READOUT, keep=True)
    products.collect("b", model, READOUT)
    products.collect_queries("journey", model, READOUT, {"gen": journeys}, train="a")
    expected = gram(features(model, journeys, READOUT), features(model, IMAGES["train"], READOUT))
    assert torch.allclose(products.cross["journey", "gen"], expected, rtol=1e-5)
    assert (
        products.kernels["journey"] is products.kernels["a"]
        and ("journey", "val") not in products.cross
    )
    with pytest.raises(InputError, match="'b' were not kept"):
        products.collect_queries("journey", model, READOUT, {"gen": journeys}, train="b")


def test_a_killed_run_goes_on_with_the_same_products_and_clocks(model, tmp_path, monkeypatch):
    journeys, asked, real = draw("journeys", 3, 2, 1, 4, 4), [], features

    def run(readout):
        asked.clear()
        products = Products(IMAGES, store=Store(tmp_path))
        products.collect("a", model, readout, keep=True)
        products.collect_queries("journey", model, readout, {"gen": journeys}, train="a")
        return products, len(asked)

    monkeypatch.setattr(
        "nda.rivals.inner_products.features", lambda *a, **k: asked.append(1) or real(*a, **k)
    )
    first, made = run(READOUT)
    again, none = run(READOUT)
    assert (made, none) == (4, 0)
    for pair, values in first.cross.items():
        assert torch.equal(values, again.cross[pair]) and torch.equal(
            first.norms[pair], again.norms[pair]
        )
    assert first.seconds == again.seconds and first.memory(["a", "journey"], "gen") == again.memory(
        ["a", "journey"], "gen"
    )
    assert (
        torch.equal(first.kernels["a"].gram, again.kernels["a"].gram)
        and again.kernels["journey"] is again.kernels["a"]
    )
    for path in tmp_path.glob("parts/products/journey*"):
        path.unlink()
    resumed, made = run(READOUT)
    assert made == 2 and torch.equal(
        resumed.cross["journey", "gen"], first.cross["journey", "gen"]
    )  # train features and journeys
    other, made = run(Readout("loss", (100, 800)))
    assert made == 4 and not torch.equal(other.cross["a", "val"], first.cross["a", "val"])


def test_cost_is_what_a_method_would_take_by_itself(model):
    products = Products(IMAGES)
    products.collect("a", model, READOUT, keep=True)
    products.collect_queries(
        "journey", model, READOUT, {"gen": draw("journeys", 3, 2, 1, 4, 4)}, train="a"
    )
    products.seconds |= {
        ("a", "train"): 1.0,
        ("a", "val"): 2.0,
        ("journey", "train"): 1.0,
        ("journey", "gen"): 4.0,
        ("errors", "train"): 8.0,
    }
    assert (
        products.cost(["a"], "val") == 3
        and products.cost(["journey"], "gen") == 5
        and products.cost(["a", "errors"], "val") == 11
    )


def test_images_need_a_train_set():
    with pytest.raises(InputError, match="called 'train'"):
        Products({"val": IMAGES["val"]})
