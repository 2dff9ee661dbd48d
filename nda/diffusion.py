"""The model under study: a DDPM U-Net (diffusers), its training, its samples and its denoising losses."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DModel
from jaxtyping import Bool, Float
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from nda import rng
from nda.checks import InputError, check_images, check_timestep
from nda.schedule import TIMESTEPS, add_noise
from nda.store import Store

LIMITS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("epochs", "batch"), lambda v: v >= 1),
    "lr": lambda v: 0 < v < math.inf,
    "betas": lambda v: len(v) == 2 and all(isinstance(b, int | float) and 0 <= b < 1 for b in v),
    "weight_decay": lambda v: 0 <= v < math.inf,
    "warmup": lambda v: 0 <= v <= 1,
    "clip": lambda v: v > 0,
    "ema": lambda v: 0 <= v < 1,
    "checkpoints": lambda v: v[-1:] == (1,) and all(isinstance(c, int | float) for c in v) and list(v) == sorted({*v}) and v[0] > 0,
}


@dataclass(frozen=True)
class Recipe:
    """How a model is made. Defaults are the paper's for CIFAR-2 (D-TRAK's released configuration)."""

    unet: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of diffusers' UNet2DModel, less what the images say
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
    checkpoints: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)  # shares of training at which weights are kept and a killed run resumes

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> "Recipe":
        """From a profile's mapping; an unknown name or a value out of range is an InputError."""
        if unknown := sorted(settings.keys() - {f.name for f in fields(cls)}):
            raise InputError(f"recipe has an unknown setting {unknown[0]!r}; known: {', '.join(f.name for f in fields(cls))}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        for name, value in values.items():
            wanted = type(getattr(cls(), name))
            if not isinstance(value, (int, float) if wanted is float else wanted) or isinstance(value, bool) != (wanted is bool):
                raise InputError(f"recipe.{name} must be a {wanted.__name__}, not {value!r}")
        recipe = cls(**values)
        for name, fine in LIMITS.items():
            if not fine(getattr(recipe, name)):
                raise InputError(f"recipe.{name} is out of range: {getattr(recipe, name)!r}")
        return recipe

    def build(self, train_seed: int, shape: Sequence[int]) -> UNet2DModel:
        """The untrained U-Net for images `[…, chan, row, col]`; its initial weights depend on `train_seed` alone."""
        with rng.seeded("initial weights", train_seed):
            try:
                model = UNet2DModel(in_channels=shape[-3], out_channels=shape[-3], sample_size=shape[-1], **self.unet)
            except (TypeError, ValueError, LookupError, ArithmeticError) as error:
                raise InputError(f"unet {dict(self.unet)} does not make a UNet2DModel: {error}") from error
        factor = 2 ** (len(model.config.block_out_channels) - 1)
        if shape[-2] % factor or shape[-1] % factor:
            raise InputError(f"images of {shape[-2]} x {shape[-1]} pixels do not fit this unet; choose a size that {factor} divides")
        return model

    def learning_rate(self, step: int, steps: int) -> float:
        """Linear warm-up, then a cosine to zero."""
        warm = max(1, round(self.warmup * steps))
        past, left = step - warm, max(1, steps - warm)
        return self.lr * (min(1.0, (step + 1) / warm) if past < 0 else 0.5 + 0.5 * math.cos(math.pi * past / left))


def visits(shape: Sequence[int], train_seed: int, epoch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What every image of the *full* train set meets in one epoch: order, timesteps, noises, flips.

    shape: `[image, chan, row, col]` of the full train set. A subset model uses the rows of its own images, in the same relative order: two
    models of one `train_seed` that share an image show it the same timestep, noise and flip (coupled randomness), so that their losses
    differ by the data and not by luck.
    """
    source = rng.generator("training", train_seed, epoch)
    n = shape[0]
    order = torch.randperm(n, generator=source)
    timesteps = torch.randint(TIMESTEPS, (n,), generator=source)
    flips = torch.rand(n, generator=source) < 0.5
    return order, timesteps, torch.randn(*shape, generator=source), flips


class Training:
    """A model in training and all that is needed to go on after a kill: weights, averaged weights, optimiser, step, losses."""

    def __init__(self, recipe: Recipe, images: Tensor, keep: Tensor, train_seed: int):
        self.recipe, self.images, self.keep, self.train_seed = recipe, images, keep, train_seed
        self.model = recipe.build(train_seed, images.shape).to(images.device)
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema)) if recipe.ema else None
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
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
                clean = torch.where(flips[rows].to(clean.device)[:, None, None, None], clean.flip(-1), clean)
            self.losses.append(self._step(clean, timesteps[rows].to(clean.device), noise[rows].to(clean), step))
        self.epoch += 1

    def _step(self, clean: Tensor, timesteps: Tensor, noise: Tensor, step: int) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(step, self.steps)
        with rng.seeded("dropout", self.train_seed, step), torch.autocast(clean.device.type, torch.bfloat16, self.recipe.bf16):
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
        return {k: v.clone() for k, v in (self.ema.module if self.ema is not None else self.model).state_dict().items()}

    def state(self) -> dict[str, Tensor]:
        """Everything as named tensors."""
        moments = {f"optimizer.{i}.{k}": v for i, s in self.optimizer.state_dict()["state"].items() for k, v in s.items()}
        ema = {f"ema.{k}": v for k, v in self.ema.state_dict().items()} if self.ema is not None else {}
        model = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        return moments | ema | model | {"epoch": torch.tensor(self.epoch), "losses": torch.stack(self.losses).cpu()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The reverse of `state`."""
        self.epoch, self.losses = int(state["epoch"]), list(state["losses"].to(self.images.device))
        self.model.load_state_dict({k[len("model.") :]: v for k, v in state.items() if k.startswith("model.")})
        if self.ema is not None:
            self.ema.load_state_dict({k[len("ema.") :]: v for k, v in state.items() if k.startswith("ema.")})
        moments: dict[int, dict[str, Tensor]] = {}
        for key in (key for key in state if key.startswith("optimizer.")):
            _, i, name = key.split(".")
            moments.setdefault(int(i), {})[name] = state[key]
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})


def train(
    images: Float[Tensor, "train chan row col"],
    recipe: Recipe,
    *,
    keep: Bool[Tensor, "train"] | None = None,
    train_seed: int = 0,
    store: Store | None = None,
    name: str = "model",
) -> tuple[UNet2DModel, Float[Tensor, "step"]]:
    """Train a DDPM on `images[keep]` (pixels in [-1, 1]) with the noise-prediction loss; returns it and its loss curve.

    With a `store`, the state is saved as `<name>-state` at every checkpoint and a killed run goes on from the last one by the same
    call, to the same bytes; the state is removed by the caller when the result is saved. Weights at the checkpoints
    before the last are kept as `<name>-25` and so on when `name` is `"model"`. Source: DDPM, Algorithm 1.
    """
    check_images(images, "images")
    keep = torch.ones(len(images), dtype=torch.bool) if keep is None else keep.cpu()
    if keep.shape != (len(images),) or not keep.any():
        raise InputError(f"keep must be a mask of {len(images)} train images with at least one True, not {tuple(keep.shape)}")
    run = Training(recipe, images, keep, train_seed)
    data = hashlib.sha256(images.float().cpu().numpy().tobytes() + keep.numpy().tobytes()).hexdigest()
    parameters = {"recipe": asdict(recipe), "train_seed": train_seed, "data": data}
    if store is not None and store.matches(f"{name}-state", parameters, {}):
        run.restore(store.load(f"{name}-state"))
    elif store is not None:
        store.delete(f"{name}-state")
    stops = {max(1, round(share * recipe.epochs)): share for share in recipe.checkpoints}
    with tqdm(total=recipe.epochs, initial=run.epoch, desc=f"training {name}", unit="epoch", leave=False) as bar:
        while run.epoch < recipe.epochs:
            run.run_epoch()
            bar.update()
            bar.set_postfix(loss=f"{run.losses[-1].item():.4f}")
            if store is not None and run.epoch in stops and run.epoch < recipe.epochs:
                if name == "model":
                    store.save(f"{name}-{round(100 * stops[run.epoch])}", run.weights(), parameters=parameters)
                store.save(f"{name}-state", run.state(), parameters=parameters)  # last: a run goes on after this
    run.model.load_state_dict(run.weights())
    return run.model.eval(), torch.stack(run.losses).cpu()


def load_model(weights: Mapping[str, Tensor], recipe: Recipe, shape: Sequence[int], device: torch.device) -> UNet2DModel:
    """A model for images `[…, chan, row, col]` with saved weights, ready to evaluate."""
    model = recipe.build(0, shape)
    model.load_state_dict(weights)
    return model.to(device).eval()


@torch.no_grad()
def sample(model: UNet2DModel, n: int, *, noise_seed: int = 0, steps: int = 50, batch: int = 64) -> Float[Tensor, "query chan row col"]:
    """Draw `n` images by DDIM without added noise; image i starts from noise named (`noise_seed`, i), whatever the batch.

    Pixels are rounded to the 256 levels that an image file holds, in [-1, 1]. Source: DDIM, Eq. 12 with eta = 0.
    """
    if n < 1 or not 1 <= steps <= TIMESTEPS:
        raise InputError(f"sampling needs at least one image and 1…{TIMESTEPS} steps, not {n} images and {steps} steps")
    device = next(model.parameters()).device
    scheduler = DDIMScheduler(num_train_timesteps=TIMESTEPS, clip_sample=True)
    scheduler.set_timesteps(steps)
    shape = (model.config.in_channels, model.config.sample_size, model.config.sample_size)
    noise = torch.stack([torch.randn(shape, generator=rng.generator("sample", noise_seed, i)) for i in range(n)])
    images = []
    for x in tqdm(noise.to(device).split(batch), desc="sampling", unit="batch", leave=False):
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t.to(device)).sample, t, x, eta=0.0).prev_sample
        images.append(x)
    return ((torch.cat(images).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


@torch.no_grad()
def denoising_losses(
    model: UNet2DModel,
    queries: Float[Tensor, "query chan row col"],
    *,
    timesteps: Sequence[int],
    noise_seeds: Sequence[int] = (0,),
    batch: int = 256,
) -> Float[Tensor, "query timestep"]:
    """Mean squared error of the predicted noise per query and timestep, averaged over pixels and noise seeds.

    The noise is named (noise seed, timestep) and has one image per query, so it is common to all models and does not depend on the
    batch: differences between models are differences between models. This is the model output whose changes the LDS predicts.
    """
    check_images(queries, "queries")
    for timestep in timesteps:
        check_timestep(timestep)
    if not timesteps or not noise_seeds:
        raise InputError("timesteps and noise_seeds need at least one value each")
    losses = torch.zeros(len(queries), len(timesteps), device=queries.device)
    for column, timestep in enumerate(timesteps):
        for noise_seed in noise_seeds:
            noise = torch.randn(queries.shape, generator=rng.generator("evaluation", noise_seed, timestep)).to(queries)
            for rows in torch.arange(len(queries)).split(batch):
                times = torch.full((len(rows),), timestep, device=queries.device)
                predicted = model(add_noise(queries[rows], times, noise[rows]), times).sample
                losses[rows, column] += (predicted - noise[rows]).square().mean((1, 2, 3)) / len(noise_seeds)
    return losses
