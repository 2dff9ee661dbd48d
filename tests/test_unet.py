"""The recipe of a model, and building one."""

from dataclasses import replace

import pytest
import torch
from tiny import IMAGES, TINY, UNET, memorised, same

from nda.errors import InputError
from nda.model.unet import Recipe, load_model
from nda.store import Store


def test_defaults_are_the_papers():
    recipe = Recipe()
    assert (recipe.epochs, recipe.batch, recipe.lr, recipe.betas, recipe.weight_decay) == (
        200,
        128,
        1e-4,
        (0.95, 0.999),
        1e-6,
    )
    assert (recipe.warmup, recipe.clip, recipe.flips, recipe.ema, recipe.bf16) == (
        0.1,
        1.0,
        True,
        0.0,
        False,
    )


def test_learning_rate_rises_then_falls_to_zero():
    rates = [Recipe(lr=2.0, warmup=0.1).learning_rate(step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0 and rates[55] == pytest.approx(1.0) and rates[100] == pytest.approx(0)
    assert all(a >= b for a, b in zip(rates[9:-1], rates[10:], strict=True))
    assert Recipe(lr=2.0, warmup=0.0).learning_rate(0, 1) == 2.0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"epoch": 3}, "unknown setting 'epoch'; known: unet, epochs"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": 1.5}, "epochs"),
        ({"epochs": True}, "epochs"),
        ({"batch": 0}, "batch"),
        ({"lr": "1e-4"}, "lr must be a float, not '1e-4'"),  # how YAML reads 1e-4
        ({"lr": 0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"betas": [0.9]}, "betas"),
        ({"betas": [0.9, 1.0]}, "betas"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"warmup": 1.1}, "warmup"),
        ({"clip": 0}, "clip"),
        ({"flips": 1}, "flips"),
        ({"ema": 1.0}, "ema"),
        ({"checkpoints": []}, "checkpoints"),
        ({"checkpoints": [0.5]}, "checkpoints"),
        ({"checkpoints": [0.5, 0.5, 1.0]}, "checkpoints"),
        ({"checkpoints": [0.0, 1.0]}, "checkpoints"),
        ({"checkpoints": ["a", 1.0]}, "checkpoints"),
        ({"unet": 3}, "unet"),
    ],
)
def test_bad_recipe(settings, reason):
    with pytest.raises(InputError, match=reason):
        Recipe.parse(settings)


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        ({"layers": 1}, (1, 8, 8)),
        ({"norm_num_groups": 3}, (1, 8, 8)),
        ({"down_block_types": ["DownBlock2D"]}, (1, 8, 8)),
        ({"down_block_types": ["Down", "Down"]}, (1, 8, 8)),
        ({"in_channels": 3}, (1, 8, 8)),
        ({}, (1, 9, 8)),
        ({}, (1, 8, 9)),
    ],
)
def test_unet_that_cannot_be_built(change, shape):
    with pytest.raises(InputError, match="unet"):
        replace(TINY, unet=UNET | change).build(0, shape)


def test_saved_weights_make_the_same_model(tmp_path):
    store, trained = Store(tmp_path), memorised()
    store.save("model", trained.state_dict())
    again = load_model(store.load("model"), TINY, IMAGES.shape, torch.device("cpu"))
    assert same(again, trained) and not again.training
