"""A U-Net that trains in a second, for the tests of what is done with a model."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from nda import rng
from nda.model import training
from nda.model.lean import UNet2DModel
from nda.model.unet import Recipe, load_model

UNET = {
    "block_out_channels": [8, 8],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "add_attention": False,
    "dropout": 0.1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
}
ONE_BLOCK = {  # for tests that need gradients of a model, and no training
    "block_out_channels": [4],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "add_attention": False,
}
SETTINGS = {"unet": UNET, "epochs": 4, "batch": 5, "lr": 1e-3, "checkpoints": [0.5, 1.0]}
TINY = Recipe.parse(SETTINGS)
IMAGES = 2 * torch.rand(12, 1, 8, 8, generator=rng.generator("diffusion")) - 1


def train(images: Tensor, recipe: Recipe, **settings: Any) -> tuple[nn.Module, Tensor]:
    """The trained model and its loss curve."""
    *_, last = training.train(images, recipe, **settings)
    return load_model(last.weights, recipe, images.shape, images.device), last.losses


def one_block(name: str) -> nn.Module:
    """An untrained model of `ONE_BLOCK` for images [1, 4, 4], with the weights of that name."""
    with rng.seeded(name):
        return UNet2DModel(sample_size=4, in_channels=1, out_channels=1, **ONE_BLOCK).eval()


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two models have the same bits."""
    return all(
        torch.equal(v, w)
        for v, w in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@cache
def memorised() -> nn.Module:
    """A model that has learned its 12 images, a little."""
    return train(IMAGES, Recipe.parse(SETTINGS | {"epochs": 30, "lr": 5e-3}), train_seed=1)[0]
