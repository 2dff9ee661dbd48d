"""The model under study: a DDPM U-Net (diffusers), and the recipe that it is made by."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from nda import rng
from nda.errors import InputError
from nda.model.lean import UNet2DModel

LIMITS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("epochs", "batch"), lambda v: v >= 1),
    "lr": lambda v: 0 < v < math.inf,
    "betas": lambda v: len(v) == 2 and all(isinstance(b, int | float) and 0 <= b < 1 for b in v),
    "weight_decay": lambda v: 0 <= v < math.inf,
    "warmup": lambda v: 0 <= v <= 1,
    "clip": lambda v: v > 0,
    "ema": lambda v: 0 <= v < 1,
    "checkpoints": (
        lambda v: (
            v[-1:] == (1,)
            and all(isinstance(c, int | float) for c in v)
            and list(v) == sorted({*v})
            and v[0] > 0
        )
    ),
}


@dataclass(frozen=True)
class Recipe:
    """How a model is made. Defaults are the paper's for CIFAR-2 (D-TRAK's configuration)."""

    # keyword arguments of diffusers' UNet2DModel, less what the images say
    unet: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 200
    batch: int = 128
    lr: float = 1e-4
    betas: tuple[float, float] = (0.95, 0.999)
    weight_decay: float = 1e-6
    warmup: float = 0.1  # share of the steps with a rising learning rate; a cosine follows
    clip: float = 1.0  # largest gradient norm
    flips: bool = True  # random horizontal flips
    ema: float = 0.0  # decay of the averaged weights, 0 = none
    bf16: bool = False  # train under bfloat16 autocast
    # shares of training at which weights are kept and a killed run resumes
    checkpoints: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> "Recipe":
        """From a profile's mapping.

        Args:
            settings: fields of this class.

        Returns:
            The recipe.

        Raises:
            InputError: for an unknown name, or a value of another type or out of range.
        """
        if unknown := sorted(settings.keys() - {f.name for f in fields(cls)}):
            raise InputError(
                f"recipe has an unknown setting {unknown[0]!r}; known:"
                f" {', '.join(f.name for f in fields(cls))}"
            )
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()
        }
        for name, value in values.items():
            wanted = type(getattr(cls(), name))
            fits = isinstance(value, (int, float) if wanted is float else wanted)
            if not fits or isinstance(value, bool) != (wanted is bool):
                raise InputError(f"recipe.{name} must be a {wanted.__name__}, not {value!r}")
        for name, value in values.items():
            if name in LIMITS and not LIMITS[name](value):
                raise InputError(f"recipe.{name} is out of range: {value!r}")
        return cls(**values)

    def build(self, train_seed: int, shape: Sequence[int]) -> UNet2DModel:
        """The untrained U-Net.

        Args:
            train_seed: its initial weights depend on it alone.
            shape: of the images, `[…, chan, row, col]`.

        Returns:
            The model, on the CPU.

        Raises:
            InputError: if there is no such U-Net, or it does not fit the images.
        """
        with rng.seeded("initial weights", train_seed):
            try:
                model = UNet2DModel(
                    in_channels=shape[-3],
                    out_channels=shape[-3],
                    sample_size=shape[-1],
                    **self.unet,
                )
            except (TypeError, ValueError, LookupError, ArithmeticError) as error:
                raise InputError(
                    f"unet {dict(self.unet)} does not make a UNet2DModel: {error}"
                ) from error
        factor = 2 ** (len(model.config.block_out_channels) - 1)
        if shape[-2] % factor or shape[-1] % factor:
            raise InputError(
                f"images of {shape[-2]} x {shape[-1]} pixels do not fit this unet; choose a size"
                f" that {factor} divides"
            )
        return model

    def learning_rate(self, step: int, steps: int) -> float:
        """Linear warm-up, then a cosine to zero.

        Args:
            step: number of the step, from 0.
            steps: of the whole training.

        Returns:
            The rate of that step.
        """
        warm = max(1, round(self.warmup * steps))
        past, left = step - warm, max(1, steps - warm)
        return self.lr * (
            min(1.0, (step + 1) / warm) if past < 0 else 0.5 + 0.5 * math.cos(math.pi * past / left)
        )


def load_model(
    weights: Mapping[str, Tensor], recipe: Recipe, shape: Sequence[int], device: torch.device
) -> UNet2DModel:
    """A model with saved weights.

    Args:
        weights: of such a model.
        recipe: how it was made.
        shape: of the images, `[…, chan, row, col]`.
        device: where it shall be.

    Returns:
        The model, ready to evaluate.
    """
    model = recipe.build(0, shape)
    model.load_state_dict(weights)
    return model.to(device).eval()
