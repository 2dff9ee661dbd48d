"""How often does `nda trace` attribute an image that has no source?

    python benchmarks/calibration.py [--images 1000] [--held-out 400] [--profile small]

For the digits, and for CIFAR-10 where NDA_DATA points to it. Test images have no source among the
train images, so every attribution is false. They are judged in two ways. *Set aside*: the null is
that of 100 train images, each left out in turn, as the command does it by default. *Held out*: the
test images are split at random into a half that makes the null and one that is judged. Each way is
repeated over random splits of the same readings, which are not independent. The table says in how
many of them the rate lies in the 95 % binomial interval that the page prints (`kept`), and in how
many it is above the level (`above`).

Readings are kept in the cache, so that a killed run goes on. The table goes to
`data/results/<profile>/calibration.csv`.
"""

import argparse
import os

import pandas as pd
import torch
from torch import Tensor

from nda import rng
from nda.data import images
from nda.data.bank import Bank
from nda.data.pixels import levels
from nda.data.untrusted import Folder
from nda.evidence.attribution import Attributor, How
from nda.evidence.calibration import LEVELS, threshold
from nda.evidence.verdicts import set_aside
from nda.nonparametric.index import near_copies
from nda.places import cache
from nda.store import Store

HOW = How()


def bank_of(pixels: Tensor) -> Bank:
    """Images without files.

    Args:
        pixels: in 256 levels.

    Returns:
        A bank.
    """
    if pixels.shape[1] == 1:
        pixels = pixels.expand(-1, 3, -1, -1).contiguous()
    names = tuple(map(str, range(len(pixels))))
    return Bank.of(Folder(names, pixels, ((1, 1),) * len(pixels), names, ()))


def load(data: str, split: str, count: int) -> Bank:
    """Some images of a data set.

    Args:
        data: its name.
        split: `"train"` or `"test"`.
        count: how many, drawn by name.

    Returns:
        A bank.
    """
    pixels = levels(images.load(data, split=split, size=HOW.size).pixels)
    drawn = torch.randperm(len(pixels), generator=rng.generator("calibration", data, split))
    return bank_of(pixels[drawn[:count]])


def statistics(data: str, n_train: int, n_test: int) -> tuple[list[float], list[float]]:
    """What the verdicts are made of.

    Args:
        data: name of a data set.
        n_train: images of the folder.
        n_test: images without a source.

    Returns:
        Statistics of images of the folder, each left out in turn, and of those without a source.
    """
    bank, other = load(data, "train", n_train), load(data, "test", n_test)
    twins = near_copies(other.pixels, bank.pixels)
    alone = [n for n, found in enumerate(twins) if not found]  # the command refuses the others
    attributor = Attributor(bank, HOW, Store(cache() / "trace"))
    aside = set_aside(bank, 200, flips=HOW.flips)
    inside = attributor.readings(aside.pixels, aside.without)
    outside = attributor.readings(other.pixels[alone])
    return [one.largest for one in inside], [one.largest for one in outside]


def drawn(values: list[float], *names: str | int) -> list[float]:
    """The same in a random order.

    Args:
        values: any.
        names: of the order.

    Returns:
        All of them.
    """
    order = torch.randperm(len(values), generator=rng.generator("splits", *names)).tolist()
    return [values[n] for n in order]


def rows(data: str, inside: list[float], outside: list[float], splits: int) -> list[dict]:
    """The table of one data set.

    Args:
        data: its name.
        inside: of `statistics`.
        outside: the same.
        splits: how many.

    Returns:
        A row for each way and level.
    """
    found = []
    for way in ("set aside", "held out"):
        for level in LEVELS:
            false = of = kept = above = 0
            for split in range(splits):
                test = drawn(outside, data, split)
                null = drawn(inside, data, way, split)[:100]
                if way == "held out":
                    half = len(test) // 2
                    null, test = test[:half], test[half:]
                said = threshold(null, level)
                reached = sum(said.share is not None and one >= said.share for one in test)
                kept += said.low <= reached / len(test) <= said.high
                above += reached / len(test) > level
                false, of = false + reached, of + len(test)
            row = {"data": data, "null": way, "level": level, "rate": false / of, "splits": splits}
            found.append(row | {"false": false, "of": of, "kept": kept, "above": above})
    return found


def main() -> None:
    """Write and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000, help="of the folder")
    parser.add_argument("--held-out", type=int, default=400, help="test images")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--profile", help="whose results to write to; default: none")
    options = parser.parse_args()
    sets = ["mnist"] + ["cifar10"] * bool(os.environ.get("NDA_DATA"))
    table = pd.DataFrame(
        [
            row
            for data in sets
            for row in rows(
                data, *statistics(data, options.images, options.held_out), options.splits
            )
        ]
    )
    print(table.to_string(index=False))
    if options.profile:
        made = {"images": options.images, "held_out": options.held_out, "sets": sets}
        Store.results(options.profile).save("calibration", table, parameters=made)


if __name__ == "__main__":
    main()
