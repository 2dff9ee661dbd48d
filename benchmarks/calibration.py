"""How often does `nda trace` attribute an image that has no source, and what does it find?

    python benchmarks/calibration.py [--images 1000] [--held-out 400] [--profile small]

For the digits, and for CIFAR-10 where NDA_DATA points to it. Test images have no source among the
train images, so every attribution is false. They are judged in two ways. *Set aside*: the null is
that of 100 train images, each left out in turn, as the command does it by default. *Held out*: the
test images are split at random into a half that makes the null and one that is judged. Each way is
repeated over random splits of the same readings, which are not independent. The table says in how
many of them the rate lies in the 95 % binomial interval that the page prints (`kept`), in how many
it is below (`below`) or above that interval (`over`), and in how many it is above the level
(`above`).

The second table has the planted copies of the same folders that are found, as the command plants
them, when readings are made among the candidates of the index, and when they are made among all.
The latter takes long at 32 pixels, so it is done at 16 first.

Readings are kept in the cache, so that a killed run goes on. The tables go to
`data/results/<profile>/trace/` as `calibration` and `power`.
"""

import argparse
import os
from dataclasses import asdict
from itertools import product

import pandas as pd
import torch
from torch import Tensor

from nda import rng
from nda.data import images
from nda.data.bank import Bank
from nda.data.pixels import levels
from nda.data.untrusted import Folder
from nda.evidence import verdicts
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


def load(data: str, split: str, count: int, size: int = HOW.size) -> Bank:
    """Some images of a data set.

    Args:
        data: its name.
        split: `"train"` or `"test"`.
        count: how many, drawn by name.
        size: side in pixels.

    Returns:
        A bank.
    """
    pixels = levels(images.load(data, split=split, size=size).pixels)
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
            false = of = 0
            splits_where = dict.fromkeys(("kept", "below", "over", "above"), 0)
            for split in range(splits):
                test = drawn(outside, data, split)
                null = drawn(inside, data, way, split)[:100]
                if way == "held out":
                    half = len(test) // 2
                    null, test = test[:half], test[half:]
                said = threshold(null, level)
                reached = sum(said.share is not None and one >= said.share for one in test)
                rate = reached / len(test)
                where = "below" if rate < said.low else "over" if rate > said.high else "kept"
                splits_where[where] += 1
                splits_where["above"] += rate > level
                false, of = false + reached, of + len(test)
            row = {"data": data, "null": way, "level": level, "rate": false / of, "splits": splits}
            found.append(row | {"false": false, "of": of} | splits_where)
    return found


def power(data: str, n_train: int, size: int, strangers: int = 100) -> list[dict]:
    """Planted copies that are found among candidates and among all.

    Args:
        data: its name.
        n_train: images of the folder.
        size: side in pixels.
        strangers: left out in turn for the null.

    Returns:
        A row for each case, of eight copies; `false` strangers reach the first threshold, the least
        share of which is `share`.
    """
    found: list[dict] = []
    bank = load(data, "train", n_train, size)
    for among in (HOW.candidates, len(bank)):
        how = How(size=size, candidates=among)
        attributor = Attributor(bank, how, Store(cache() / "trace"))
        aside = set_aside(bank, strangers, flips=how.flips)
        null = verdicts.null(attributor, aside)
        first = null.thresholds[0]
        about = {"data": data, "size": size, "among": "all" if found else "candidates"}
        about |= {"images": among, "share": first.share, "false": first.false}
        cases, _ = verdicts.power(attributor, aside, null, 8)
        found += [about | asdict(case) for case in cases]
    return found


def main() -> None:
    """Print and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000, help="of the folder")
    parser.add_argument("--held-out", type=int, default=400, help="test images")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--profile", help="whose results to write to; default: none")
    options = parser.parse_args()
    sets = ["mnist"] + ["cifar10"] * bool(os.environ.get("NDA_DATA"))
    made = {"images": options.images, "sets": sets}
    judged = {"held_out": options.held_out, "splits": options.splits}
    rates = [
        row
        for data in sets
        for row in rows(data, *statistics(data, options.images, options.held_out), options.splits)
    ]
    note("calibration", rates, made | judged, options.profile)
    planted = []
    for size, data in product((16, HOW.size), reversed(sets)):
        planted += power(data, options.images, size)
        note("power", planted, made | {"rows": len(planted)}, options.profile)


def note(name: str, found: list[dict], made: dict, profile: str | None) -> None:
    """Print a table as far as it is, and write it if that is wanted.

    Args:
        name: of the table.
        found: its rows.
        made: what it was made with.
        profile: whose results it goes to, if any.
    """
    table = pd.DataFrame(found)
    print(table.to_string(index=False), flush=True)
    if profile:
        results = Store.results(profile)
        if f"trace/{name}" in results:
            results.delete(f"trace/{name}")
        results.save(f"trace/{name}", table, parameters=made)


if __name__ == "__main__":
    main()
