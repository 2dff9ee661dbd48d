"""Training a DDPM: coupled randomness, resumable state, checkpoints."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from nda import rng
from nda.checks import check_images
from nda.errors import InputError
from nda.model import precision
from nda.model.unet import Recipe
from nda.schedule import TIMESTEPS, add_noise


def visits(
    shape: Sequence[int], train_seed: int, epoch: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What every image of the *full* train set meets in one epoch: order, timesteps, noises, flips.

    A subset model uses the rows of its own images, in the same relative order: two models of one
    `train_seed` that share an image show it the same timestep, noise and flip (coupled randomness),
    so that their losses differ by the data and not by luck.

    Args:
        shape: `[image, chan, row, col]` of the full train set.
        train_seed: seed of the training.
        epoch: number of the epoch.

    Returns:
        The order of the images, and every image's timestep, noise and whether it is flipped.
    """
    source = rng.generator("training", train_seed, epoch)
    n = shape[0]
    order = torch.randperm(n, generator=source)
    timesteps = torch.randint(TIMESTEPS, (n,), generator=source)
    flips = torch.rand(n, generator=source) < 0.5
    return order, timesteps, torch.randn(*shape, generator=source), flips


@dataclass(frozen=True)
class Checkpoint:
    """A training at one of the shares that its recipe names, or at its end.

    share: of the training that is done; 1 at the end. weights: of a model to evaluate, averaged if
    the recipe says so, for `nda.model.unet.load_model`. losses: of every step so far. state: all
    that `train` needs to go on from here. precision: of the numbers it computed in, `"bfloat16"` or
    `"float32"` (see `nda.model.precision`).
    """

    share: float
    weights: dict[str, Tensor]
    losses: Float[Tensor, "step"]
    state: dict[str, Tensor]
    precision: str


class Training:
    """A model in training and all that is needed to go on after a kill: weights, averaged weights,
    optimiser, step, losses.

    Args:
        recipe: how the model is made.
        images: of the full train set, in [-1, 1].
        keep: which of them the model sees.
        train_seed: seed of weights, order, timesteps, noise and dropout.
    """

    def __init__(self, recipe: Recipe, images: Tensor, keep: Tensor, train_seed: int):
        self.recipe, self.images, self.keep, self.train_seed = recipe, images, keep, train_seed
        self.precision = precision.choose(recipe.bf16, images.device)
        self.model = recipe.build(train_seed, images.shape).to(images.device)
        average = get_ema_multi_avg_fn(recipe.ema)
        self.ema = AveragedModel(self.model, multi_avg_fn=average) if recipe.ema else None
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=recipe.lr,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.per_epoch = math.ceil(int(keep.sum()) / recipe.batch)
        self.steps = recipe.epochs * self.per_epoch
        self.epoch = 0
        self.losses: list[Tensor] = []

    def run_epoch(self) -> None:
        """One pass over the kept images."""
        order, timesteps, noise, flips = visits(self.images.shape, self.train_seed, self.epoch)
        order = order[self.keep[order]]
        for number, rows in enumerate(order.split(self.recipe.batch)):
            step = self.epoch * self.per_epoch + number
            clean = self.images[rows.to(self.images.device)]
            if self.recipe.flips:
                flipped = flips[rows].to(clean.device)[:, None, None, None]
                clean = torch.where(flipped, clean.flip(-1), clean)
            times = timesteps[rows].to(clean.device)
            self.losses.append(self._step(clean, times, noise[rows].to(clean), step))
        self.epoch += 1

    def _step(self, clean: Tensor, timesteps: Tensor, noise: Tensor, step: int) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(step, self.steps)
        # seeding all devices takes time, and nothing else here draws from the global state
        drops = rng.seeded("dropout", self.train_seed, step)
        with (
            drops if self.recipe.unet.get("dropout") else nullcontext(),
            torch.autocast(clean.device.type, torch.bfloat16, self.precision == "bfloat16"),
        ):
            predicted = self.model(add_noise(clean, timesteps, noise), timesteps).sample
            loss = (predicted.float() - noise).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        return loss.detach()

    def weights(self) -> dict[str, Tensor]:
        """Of the model to evaluate.

        Returns:
            A copy of the averaged weights if the recipe asks for them, else of the last ones.
        """
        model = self.model if self.ema is None else self.ema.module
        return {name: value.clone() for name, value in model.state_dict().items()}

    def state(self) -> dict[str, Tensor]:
        """Everything as named tensors.

        Returns:
            A copy, from which `restore` goes on.
        """
        moments = self.optimizer.state_dict()["state"]
        parts = {
            "model": self.model.state_dict(),
            "ema": {} if self.ema is None else self.ema.state_dict(),
            "optimizer": {f"{i}.{k}": v for i, s in moments.items() for k, v in s.items()},
        }
        named = {f"{part}.{k}": v.clone() for part in parts for k, v in parts[part].items()}
        return named | {
            "epoch": torch.tensor(self.epoch),
            "losses": torch.stack(self.losses).cpu(),
            "training": self._digest(),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state.

        Args:
            state: what `state` gave, of the same training.

        Raises:
            InputError: if it is the state of another training.
        """
        if "training" not in state or not torch.equal(state["training"], self._digest()):
            raise InputError(
                "state is that of another training: of another recipe, seed, mask or other images;"
                " delete it and start anew"
            )
        self.epoch, self.losses = int(state["epoch"]), list(state["losses"].to(self.images.device))
        self.model.load_state_dict(_under("model", state))
        if self.ema is not None:
            self.ema.load_state_dict(_under("ema", state))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _under("optimizer", state).items():
            i, name = key.split(".")
            moments.setdefault(int(i), {})[name] = value
        self.optimizer.load_state_dict(
            {"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]}
        )

    def checkpoint(self, share: float) -> Checkpoint:
        """What there is to keep at this point.

        Args:
            share: of the training that is done.

        Returns:
            Copies, which further training does not change.
        """
        losses = torch.stack(self.losses).cpu()
        return Checkpoint(share, self.weights(), losses, self.state(), self.precision)

    def _digest(self) -> Tensor:
        """The sha256 of all that decides the weights, as bytes."""
        made = hashlib.sha256(json.dumps([asdict(self.recipe), self.train_seed]).encode())
        made.update(self.images.float().cpu().numpy().tobytes() + self.keep.numpy().tobytes())
        return torch.tensor(list(made.digest()), dtype=torch.uint8)


def _under(part: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a part of a state, by their names in it."""
    return {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}


def train(
    images: Float[Tensor, "train chan row col"],
    recipe: Recipe,
    *,
    keep: Bool[Tensor, "train"] | None = None,
    train_seed: int = 0,
    state: Mapping[str, Tensor] | None = None,
) -> Iterator[Checkpoint]:
    """Train a DDPM on `images[keep]` with the noise-prediction loss, one checkpoint at a time.

    Nothing is kept here: whoever iterates saves what it wants of the checkpoints. A training that
    was killed goes on from the state of any of them, to the same bytes. Source: DDPM, Algorithm 1.

    Args:
        images: the full train set, in [-1, 1]. The model is trained on its device.
        recipe: how the model is made.
        keep: which images the model sees; default all.
        train_seed: seed of weights, order, timesteps, noise and dropout.
        state: of a former checkpoint of the same training; default: start at the beginning.

    Returns:
        An iterator over the checkpoints at `recipe.checkpoints` that are still to come. The last
        one, of share 1, is the trained model.

    Raises:
        InputError: for images or a mask that cannot be used, or the state of another training.
    """
    check_images(images, "images")
    keep = torch.ones(len(images), dtype=torch.bool) if keep is None else keep.cpu()
    if keep.shape != (len(images),) or not keep.any():
        raise InputError(
            f"keep must be a mask of {len(images)} train images with at least one True, not"
            f" {tuple(keep.shape)}"
        )
    run = Training(recipe, images, keep, train_seed)
    if state is not None:
        run.restore(state)
    return _checkpoints(run)


def _checkpoints(run: Training) -> Iterator[Checkpoint]:
    """Epoch after epoch; all stops but the last are at least one epoch from the end."""
    epochs = run.recipe.epochs
    stops = {max(1, round(share * epochs)): share for share in run.recipe.checkpoints}
    with tqdm(total=epochs, initial=run.epoch, desc="training", unit="epoch", leave=False) as bar:
        while run.epoch < epochs:
            run.run_epoch()
            bar.update()
            bar.set_postfix(loss=f"{run.losses[-1].item():.4f}")
            if run.epoch in stops and run.epoch < epochs:
                yield run.checkpoint(stops[run.epoch])
    yield run.checkpoint(1.0)
