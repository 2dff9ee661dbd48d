"""How strong is a ground truth? Retrain under several regimes on `select` subsets and compare the
seed ceilings.

    NDA_DATA=/path/to/cifar10 python benchmarks/regime.py [--workers 2]

The regime of the profile `small` was chosen from the first three and then fixed; `report` subsets
play no part. A killed run goes on by the same command. Writes `data/results/small/regime.csv`,
which notebook 03 shows.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from nda.data import images, subsets
from nda.evidence import lds
from nda.evidence.retrain import Plan
from nda.model import unet
from nda.store import Store

SEEDS, QUERIES = 2, 200
TIMESTEPS, NOISE_SEEDS = range(25, 1000, 50), range(4)
BANDS = (0, 200, 400, 600, 1000)  # timesteps of the per-band columns
ROOT = Store.working("regime").folder


def plain_unet(*widths: int) -> dict[str, Any]:
    """A plain U-Net with one layer per block.

    Args:
        widths: channels per level.

    Returns:
        Its settings.
    """
    return {
        "block_out_channels": list(widths),
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D"] * len(widths),
        "up_block_types": ["UpBlock2D"] * len(widths),
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
        numbers = {"epochs": epochs, "batch": self.batch, "lr": self.lr, "ema": self.ema}
        return unet.Recipe.parse({"unet": plain_unet(*self.widths), "bf16": True} | numbers)

    @property
    def seeds(self) -> dict[str, list[int]]:
        """Of each family of masks: one family if its models share their randomness, else one for
        every subset, with seeds of its own."""
        if self.coupled:
            return {"select": list(range(SEEDS))}
        return {
            f"select-{subset}": [1000 * (subset + 1) + seed for seed in range(SEEDS)]
            for subset in range(self.subsets)
        }

    def families(self, masks: Tensor) -> dict[str, Tensor]:
        """The masks of each family.

        Args:
            masks: all of them, `[subset, train]`.

        Returns:
            Its part of them, by family.
        """
        return dict(zip(self.seeds, masks.chunk(len(self.seeds)), strict=True))


REGIMES = {
    "400 images": Regime(),
    "400 images, three times as long": Regime(image_steps=60_000, batch=64, ema=0.995),
    "200 images": Regime(n_train=200),
    "200 images, uncoupled": Regime(n_train=200, coupled=False, subsets=4),
    "1,000 images": Regime(n_train=1000, subsets=4),
    "200 images, wider": Regime(n_train=200, widths=(48, 96, 96), subsets=4),
}


def prepare(label: str) -> Plan:
    """Store train images, validation queries and masks of a regime, CIFAR-2 at 16 x 16 as notebook
    01 draws them.

    Args:
        label: of the regime.

    Returns:
        The plan of its retrainings.
    """
    regime = REGIMES[label]
    store = Store(ROOT / label.replace(" ", "-").replace(",", ""))
    if "val" not in store:
        train, test = [images.load("cifar2", split=split, size=16) for split in ("train", "test")]
        rows = subsets.stratified(train.labels, regime.n_train, "train images")
        masks = subsets.keep_masks(train.labels[rows], regime.subsets, family="select")
        for family, some in regime.families(masks).items():
            store.save(f"masks/{family}", some, axes="subset train")
        store.save("train", train.pixels[rows], axes="image chan row col")
        rows = subsets.stratified(test.labels, QUERIES, "validation queries")
        store.save("val", test.pixels[rows], axes="image chan row col")
    recipe = asdict(regime.recipe)
    return Plan(store.folder, regime.seeds, TIMESTEPS, NOISE_SEEDS, which=("val",), recipe=recipe)


def ceilings(losses: Tensor) -> dict[str, float]:
    """How far one seed agrees with another, and what the mean of both reaches.

    Args:
        losses: `[subset, seed, noise, query, timestep]`.

    Returns:
        Columns of the table, in percent.
    """
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


def table(plans: Mapping[str, Plan]) -> pd.DataFrame:
    """One row per regime whose models are all trained.

    Args:
        plans: of the retrainings, by regime.

    Returns:
        The rows.
    """
    rows = []
    for label, plan in plans.items():
        members, store = plan.members(), Store(plan.folder)
        if all(map(plan.done, members)):
            losses = torch.cat([plan.measured(family, "val") for family in plan.train_seeds])
            seconds = sorted(store.info(member.name)["seconds"] for member in members)
            rows.append(
                {"regime": label, "subsets": REGIMES[label].subsets}
                | ceilings(losses)
                | {"seconds per model": seconds[len(seconds) // 2]}
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
    plans = {label: prepare(label) for label in REGIMES}
    for plan in plans.values() if workers else ():
        plan.run(workers=workers)
    results.delete("regime")
    results.save(
        "regime",
        table(plans),
        parameters={"seeds": SEEDS, "queries": QUERIES, "noise_seeds": len(NOISE_SEEDS)},
    )
    print(table(plans).T.to_string())


if __name__ == "__main__":
    main()
