"""Training a DDPM: coupled randomness, resumable state, checkpoints."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from diffusers import UNet2DModel
from jaxtyping import Bool, Float
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from nda import rng
from nda.errors import InputError, check_images
from nda.model.unet import Recipe
from nda.schedule import TIMESTEPS, add_noise
from nda.store import Store


def visits(
    shape: Sequence[int], train_seed: int, epoch: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What every image of the *full* train set meets in one epoch: order, timesteps, noises, flips.

    shape: `[image, chan, row, col]` of the full train set. A subset model uses the rows of its own
    images, in the same relative order: two models of one `train_seed` that share an image show it
    the same timestep, noise and flip (coupled randomness), so that their losses differ by the data
    and not by luck.
    """
    source = rng.generator("training", train_seed, epoch)
    n = shape[0]
    order = torch.randperm(n, generator=source)
    timesteps = torch.randint(TIMESTEPS, (n,), generator=source)
    flips = torch.rand(n, generator=source) < 0.5
    return order, timesteps, torch.randn(*shape, generator=source), flips


class Training:
    """A model in training and all that is needed to go on after a kill: weights, averaged weights,
    optimiser, step, losses."""

    def __init__(self, recipe: Recipe, images: Tensor, keep: Tensor, train_seed: int):
        self.recipe, self.images, self.keep, self.train_seed = recipe, images, keep, train_seed
        self.model = recipe.build(train_seed, images.shape).to(images.device)
        self.ema = (
            AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
            if recipe.ema
            else None
        )
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
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
                clean = torch.where(
                    flips[rows].to(clean.device)[:, None, None, None], clean.flip(-1), clean
                )
            self.losses.append(
                self._step(clean, timesteps[rows].to(clean.device), noise[rows].to(clean), step)
            )
        self.epoch += 1

    def _step(self, clean: Tensor, timesteps: Tensor, noise: Tensor, step: int) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(step, self.steps)
        with (
            rng.seeded("dropout", self.train_seed, step),
            torch.autocast(clean.device.type, torch.bfloat16, self.recipe.bf16),
        ):
            predicted = self.model(add_noise(clean, timesteps, noise), timesteps).sample
            loss = (predicted.float() - noise).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        return loss.detach()

    def weights(self) -> dict[str, Tensor]:
        """The weights to evaluate: the averaged ones if the recipe asks for them."""
        return {
            k: v.clone()
            for k, v in (
                (self.ema.module if self.ema is not None else self.model).state_dict().items()
            )
        }

    def state(self) -> dict[str, Tensor]:
        """Everything as named tensors."""
        moments = {
            f"optimizer.{i}.{k}": v
            for i, s in self.optimizer.state_dict()["state"].items()
            for k, v in s.items()
        }
        ema = (
            {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
            if self.ema is not None
            else {}
        )
        model = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        return (
            moments
            | ema
            | model
            | {
                "epoch": torch.tensor(self.epoch),
                "losses": torch.stack(self.losses).cpu(),
            }
        )

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The reverse of `state`."""
        self.epoch, self.losses = int(state["epoch"]), list(state["losses"].to(self.images.device))
        self.model.load_state_dict(
            {k[len("model.") :]: v for k, v in state.items() if k.startswith("model.")}
        )
        if self.ema is not None:
            self.ema.load_state_dict(
                {k[len("ema.") :]: v for k, v in state.items() if k.startswith("ema.")}
            )
        moments: dict[int, dict[str, Tensor]] = {}
        for key in (key for key in state if key.startswith("optimizer.")):
            _, i, name = key.split(".")
            moments.setdefault(int(i), {})[name] = state[key]
        self.optimizer.load_state_dict(
            {"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]}
        )


def train(
    images: Float[Tensor, "train chan row col"],
    recipe: Recipe,
    *,
    keep: Bool[Tensor, "train"] | None = None,
    train_seed: int = 0,
    store: Store | None = None,
    name: str = "model",
) -> tuple[UNet2DModel, Float[Tensor, "step"]]:
    """Train a DDPM on `images[keep]` (pixels in [-1, 1]) with the noise-prediction loss; returns it
    and its loss curve.

    With a `store`, the state is saved as `<name>-state` at every checkpoint and a killed run goes
    on from the last one by the same call, to the same bytes; the state is removed by the caller
    when the result is saved. Weights at the checkpoints before the last are kept as `<name>-25` and
    so on when `name` is `"model"`. Source: DDPM, Algorithm 1.
    """
    check_images(images, "images")
    keep = torch.ones(len(images), dtype=torch.bool) if keep is None else keep.cpu()
    if keep.shape != (len(images),) or not keep.any():
        raise InputError(
            f"keep must be a mask of {len(images)} train images with at least one True, not"
            f" {tuple(keep.shape)}"
        )
    run = Training(recipe, images, keep, train_seed)
    data = hashlib.sha256(
        images.float().cpu().numpy().tobytes() + keep.numpy().tobytes()
    ).hexdigest()
    parameters = {"recipe": asdict(recipe), "train_seed": train_seed, "data": data}
    if store is not None and store.matches(f"{name}-state", parameters, {}):
        run.restore(store.load(f"{name}-state"))
    elif store is not None:
        store.delete(f"{name}-state")
    stops = {max(1, round(share * recipe.epochs)): share for share in recipe.checkpoints}
    with tqdm(
        total=recipe.epochs, initial=run.epoch, desc=f"training {name}", unit="epoch", leave=False
    ) as bar:
        while run.epoch < recipe.epochs:
            run.run_epoch()
            bar.update()
            bar.set_postfix(loss=f"{run.losses[-1].item():.4f}")
            if store is not None and run.epoch in stops and run.epoch < recipe.epochs:
                if name == "model":
                    store.save(
                        f"{name}-{round(100 * stops[run.epoch])}",
                        run.weights(),
                        parameters=parameters,
                    )
                store.save(
                    f"{name}-state", run.state(), parameters=parameters
                )  # last: a run goes on after this
    run.model.load_state_dict(run.weights())
    return run.model.eval(), torch.stack(run.losses).cpu()
