"""How strong is a ground truth? Retrain under several regimes on `select` subsets and compare the
seed ceilings.

    NDA_DATA=/path/to/cifar10 python benchmarks/regime.py [--workers 2]

The regime of the profile `small` was chosen from the first three and then fixed; `report` subsets
play no part. A killed run goes on by the same command. Writes `data/results/small/regime.csv`,
which notebook 03 shows.
"""

import argparse
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from nda import fanout
from nda.data import images, subsets
from nda.evidence import lds
from nda.model import outputs, training, unet
from nda.store import Store

SEEDS, QUERIES = 2, 200
TIMESTEPS, NOISE_SEEDS = range(25, 1000, 50), range(4)
BANDS = (0, 200, 400, 600, 1000)  # timesteps of the per-band columns
STORE = Store.working("regime")


def plain_unet(*widths: int) -> dict[str, Any]:
    """Settings of a plain U-Net with these channels per level and one layer per block."""
    down, up = ["DownBlock2D"] * len(widths), ["UpBlock2D"] * len(widths)
    return {
        "block_out_channels": list(widths),
        "layers_per_block": 1,
        "down_block_types": down,
        "up_block_types": up,
    } | {
        "norm_num_groups": 8,
        "add_attention": False,
        "resnet_time_scale_shift": "scale_shift",
    }


@dataclass(frozen=True)
class Regime:
    """How the models of one ground truth are made: train images, image-steps per model, widths,
    shared randomness."""

    n_train: int = 400
    image_steps: int = 20_000
    widths: tuple[int, ...] = (32, 64, 64)
    coupled: bool = True  # subsets of one seed share initial weights, order, timesteps and noise
    batch: int = 50
    lr: float = 1e-3
    ema: float = 0.98
    subsets: int = 6

    @property
    def recipe(self) -> unet.Recipe:
        """Of every model; epochs of half the train set."""
        epochs = self.image_steps // (self.n_train // 2)
        return unet.Recipe(
            unet=plain_unet(*self.widths),
            epochs=epochs,
            batch=self.batch,
            lr=self.lr,
            ema=self.ema,
            bf16=True,
        )


REGIMES = {
    "400 images": Regime(),
    "400 images, three times as long": Regime(image_steps=60_000, batch=64, ema=0.995),
    "200 images": Regime(n_train=200),
    "200 images, uncoupled": Regime(n_train=200, coupled=False, subsets=4),
    "1,000 images": Regime(n_train=1000, subsets=4),
    "200 images, wider": Regime(n_train=200, widths=(48, 96, 96), subsets=4),
}


def data(n_train: int) -> tuple[Tensor, Tensor, Tensor]:
    """Train images, their labels and the validation queries: CIFAR-2 at 16 x 16, as notebook 01
    draws them."""
    train, test = [images.load("cifar2", split=split, size=16) for split in ("train", "test")]
    rows = subsets.stratified(train.labels, n_train, "train images")
    return (
        train.pixels[rows],
        train.labels[rows],
        test.pixels[subsets.stratified(test.labels, QUERIES, "validation queries")],
    )


def name(task: tuple[str, int, int]) -> str:
    """Of a member in the store."""
    regime, subset, seed = task
    return f"{regime.replace(' ', '-').replace(',', '')}/{subset}-{seed}"


def retrain(task: tuple[str, int, int]) -> None:
    """Train one member and keep its losses `[noise seed, query, timestep]`."""
    started, (label, subset, seed) = perf_counter(), task
    regime, inputs = REGIMES[label], STORE.load(f"data-{REGIMES[label].n_train}")
    keep = subsets.keep_masks(inputs["labels"], regime.subsets, family="select")[subset]
    train_seed = seed if regime.coupled else 1000 * (subset + 1) + seed
    train = inputs["train"]
    *_, last = training.train(train, regime.recipe, keep=keep, train_seed=train_seed)
    model = unet.load_model(last.weights, regime.recipe, train.shape, train.device)
    trained = perf_counter() - started
    losses = [
        outputs.denoising_losses(model, inputs["val"], timesteps=TIMESTEPS, noise_seeds=[n])
        for n in NOISE_SEEDS
    ]
    STORE.save(
        name(task),
        torch.stack(losses),
        axes="noise query timestep",
        parameters={"train": trained},
        seconds=perf_counter() - started,
    )


def ceilings(losses: Tensor) -> dict[str, float]:
    """In percent, of `losses[subset, seed, noise, query, timestep]`: one seed against another, and
    what the mean of both reaches."""
    mean = losses.mean((2, 4))
    rows = {"validation loss": mean.mean().item()}
    for kind, values in (("plain", mean), ("centred", lds.centre(mean))):
        rows[kind], rows[f"{kind}, mean of 2"] = lds.seed_ceiling(values)
    fewer = {
        "centred, 1 noise of 4": losses[:, :, :1],
        "centred, 10 timesteps of 20": losses[..., ::2],
    }
    rows |= {
        column: lds.seed_ceiling(lds.centre(some.mean((2, 4))))[0] for column, some in fewer.items()
    }
    times = torch.tensor(TIMESTEPS)
    for low, high in pairwise(BANDS):
        band = losses[..., (times >= low) & (times < high)].mean((2, 4))
        rows[f"centred, t {low}-{high}"] = lds.seed_ceiling(lds.centre(band))[0]
    return {column: 100 * value for column, value in rows.items()}


def tasks(label: str) -> list[tuple[str, int, int]]:
    """Every model of a regime, by seed and subset."""
    return [
        (label, subset, seed) for seed in range(SEEDS) for subset in range(REGIMES[label].subsets)
    ]


def table() -> pd.DataFrame:
    """One row per regime whose models are all trained."""
    rows = []
    for label, regime in REGIMES.items():
        names = [name(task) for task in tasks(label)]
        if all(n in STORE for n in names):
            losses = (
                torch.stack([STORE.load(n) for n in names])
                .unflatten(0, (SEEDS, regime.subsets))
                .movedim(0, 1)
            )
            seconds = sorted(STORE.info(n)["parameters"]["train"] for n in names)[len(names) // 2]
            rows.append(
                {"regime": label, "subsets": regime.subsets}
                | ceilings(losses)
                | {"seconds per model": seconds}
            )
    return pd.DataFrame(rows).round(1)


def main() -> None:
    """Train what is missing, regime by regime, and write the table of what is complete."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        help="processes, of one thread each; 0: train nothing, write the table",
    )
    workers, results = parser.parse_args().workers, Store.results("small")
    for label, regime in REGIMES.items() if workers else ():
        if f"data-{regime.n_train}" not in STORE:
            train, labels, val = data(regime.n_train)
            STORE.save(f"data-{regime.n_train}", {"train": train, "labels": labels, "val": val})
        fanout.run(
            retrain,
            tasks(label),
            done=lambda task: name(task) in STORE,
            workers=workers,
            label=label,
        )
    results.delete("regime")
    results.save(
        "regime",
        table(),
        parameters={"seeds": SEEDS, "queries": QUERIES, "noise_seeds": len(NOISE_SEEDS)},
    )
    print(table().T.to_string())


if __name__ == "__main__":
    main()
