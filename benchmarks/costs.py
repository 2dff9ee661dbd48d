"""What the page on costs shows and cannot measure while the book is built.

    python benchmarks/costs.py rates small         # each of the three goes on where it was killed
    python benchmarks/costs.py rates paper         # some minutes, and 8 GB of memory
    python benchmarks/costs.py tree                # the bookkeeping of up to 100,000 train images
    python benchmarks/costs.py ship

`rates` measures what `nda plan` measures for a profile: one step of training, one image at one
timestep forward and backward, and NDA of one query and one train image. `tree` runs
`benchmarks/fanout.py`, each size in a process of its own. What was measured is kept in the folder
`costs` of the cache; `ship` puts it beside the results of `small`.
"""

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pandas as pd

from nda.artefact import rates
from nda.artefact.notebooks import parameters
from nda.places import cache
from nda.store import Store

UNITS = ("step", "forward", "gradient", "nda")  # in the order of `nda.artefact.rates.Rates`
PROFILES = ("small", "paper")
SIZES = (1000, 10_000, 100_000)
SHOWN = {
    "train": "train images",
    "queries": "queries",
    "block": "block",
    "blocks": "blocks",
    "one block, MB": "one block, MB",
    "all blocks, MB": "all blocks, MB",
    "scores, MB": "scores, MB",
    "peak memory above the start, MB": "peak, MB",
    "largest error of a query's mass": "largest error",
}


def of_profile(profile: str) -> pd.DataFrame:
    """What units of a profile's work cost here, on one thread.

    Args:
        profile: its name.

    Returns:
        A row for each unit.
    """
    found = rates.measure(parameters(profile))
    costs = [getattr(found, unit) for unit in UNITS]
    return pd.DataFrame(
        {
            "profile": profile,
            "unit": UNITS,
            "seconds": [cost.seconds for cost in costs],
            "memory, MB": [cost.memory for cost in costs],
            "parameters": found.parameters,
        }
    )


def of_tree(count: int) -> pd.DataFrame:
    """What the bookkeeping of so many train images takes.

    Args:
        count: of train images.

    Returns:
        One row.
    """
    command = [sys.executable, str(Path(__file__).parent / "fanout.py"), "--train", str(count)]
    row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    row["all blocks, MB"] = 1000 * row["all blocks, GB"]
    return pd.DataFrame([row]).rename(columns=SHOWN)[[*SHOWN.values()]]


def main() -> None:
    """One part, or all that was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["rates", "tree", "ship"])
    parser.add_argument("profile", nargs="?", choices=PROFILES, default="small")
    asked, kept = parser.parse_args(), Store(cache() / "costs")
    trees = {f"tree-{size}": partial(of_tree, size) for size in SIZES}
    rates = {f"rates-{profile}": partial(of_profile, profile) for profile in PROFILES}
    if asked.part != "ship":
        one = f"rates-{asked.profile}"
        for name, make in ({one: rates[one]} if asked.part == "rates" else trees).items():
            kept.kept(name, make, parameters={}, inputs={})
        return
    made = {"rates": [*rates], "tree": [*trees]}
    for table, parts in made.items():
        every = pd.concat([kept.load(part) for part in parts])
        Store.shipped("small").save(f"costs/{table}", every)


if __name__ == "__main__":
    main()
