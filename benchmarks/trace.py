"""What does `nda trace` cost on a new folder, and what does the index miss?

    python benchmarks/trace.py [--images 1000 10000 50000] [--data cifar10] [--recall 20]
        [--profile small]

For each size it writes that many images to a folder of PNG files, runs the command on it with one
suspect and an empty cache, and notes wall time, processor time, memory, the size of the page, and
the ratio to the plain way: NDA of every query with all images, timed on two queries. The ratio is
one of processor seconds, which another process on the machine disturbs less. Then, at the largest
size, which of the 20 images with the largest shares, among all, are candidates.

What was measured is kept in the folder `benchmark` of the cache and not measured again; delete it
to start anew. Without `--data` the images are smoothed noise. The tables so far go to
`data/results/<profile>/trace/` as `cost` and `recall`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, process_time

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from nda import rng
from nda.data import images
from nda.data.bank import Bank, floats
from nda.data.folders import write_folder
from nda.data.pixels import levels
from nda.data.untrusted import Folder
from nda.evidence.attribution import How, readable
from nda.evidence.calibration import rounded
from nda.nonparametric.index import candidates
from nda.nonparametric.owed import shares
from nda.nonparametric.partial import merge, partial_scores
from nda.nonparametric.patches import Posterior
from nda.places import cache
from nda.store import Store

HOW = How()
QUERIES = 157  # of a run: held-out images, planted copies and a suspect
TOP = 20
UNITS = {"wall": "wall, s", "processor": "processors, s", "memory": "memory, GB"}
UNITS |= {"page": "page, MB", "plain": "plain way, s"}
# A process of its own starts the command: on Linux, the peak of a process counts that of the one
# that started it, and this one holds all images.
WATCH = """
import os, subprocess, sys
_, status, used = os.wait4(subprocess.Popen(sys.argv[1:]).pid, 0)
print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def pictures(count: int, data: str | None) -> Tensor:
    """Images in 256 levels.

    Args:
        count: how many.
        data: a data set or folder; None: noise with a spectrum like theirs.

    Returns:
        The images, 32 pixels wide, in an order drawn by name.
    """
    if data:
        found = levels(images.load(data, split="train", size=HOW.size).pixels)
        return found[torch.randperm(len(found), generator=rng.generator("benchmark"))[:count]]
    some = []
    for start in range(0, count, 1000):
        source = rng.generator("benchmark", start)
        total = torch.zeros(1000, 3, 32, 32)
        for side in (4, 8, 16, 32):
            coarse = torch.randn(1000, 3, side, side, generator=source)
            total += torch.nn.functional.interpolate(coarse, 32, mode="bilinear") * 4 / side
        some.append(levels((total / 3).clamp(-1, 1)))
    return torch.cat(some)[:count]


def folder(count: int, data: str | None, place: Path) -> Path:
    """A folder of image files.

    Args:
        count: how many.
        data: as of `pictures`.
        place: where to make it; one that is complete is not made again.

    Returns:
        The folder.
    """
    made = place / f"images-{data or 'noise'}-{count}"
    if not (made / ".complete").exists():
        write_folder({f"{n:06d}": one for n, one in enumerate(pictures(count, data))}, made)
        (made / ".complete").touch()
    return made


def suspects(count: int, data: str | None) -> Tensor:
    """Images that are in no folder: held-out ones, or other noise.

    Args:
        count: how many.
        data: as of `pictures`.

    Returns:
        In 256 levels.
    """
    if data:
        return levels(images.load(data, split="test", size=HOW.size).pixels[:count])
    return pictures(60_000 + count, None)[-count:]


def run(made: Path, suspect: Path, place: Path) -> dict[str, float]:
    """The command, in a process of its own, with an empty cache.

    Args:
        made: folder of images.
        suspect: an image.
        place: where cache and report go; both are removed.

    Returns:
        What it took.
    """
    empty, report = place / "empty", place / "report"
    for old in (empty, report):
        shutil.rmtree(old, ignore_errors=True)
    empty.mkdir(parents=True)
    for engine in cache().glob("fused-*.so"):
        shutil.copy(engine, empty)
    command = [sys.executable, "-m", "nda", "trace", str(made), str(suspect), "-o", str(report)]
    started = perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", WATCH, *command],
        env=os.environ | {"NDA_CACHE": str(empty)},
        stdout=subprocess.PIPE,
        check=True,
    )
    took = perf_counter() - started
    processor, memory = map(float, done.stdout.split()[-2:])
    size = (report / "index.html").stat().st_size / 1e6
    for old in (empty, report):
        shutil.rmtree(old)
    return {"wall": took, "processor": processor, "memory": memory, "page": size}


def plain(made: Tensor, asked: Tensor) -> float:
    """The plain way, NDA with all images.

    Args:
        made: images.
        asked: queries, timed one by one.

    Returns:
        Processor seconds for all queries of a run, from two of them and at most 500 images.
    """
    some = floats(made[:500])
    started = process_time()
    for query in asked[:2]:
        partial_scores(floats(query)[None], some, HOW.config(25, flips=True))
    return (process_time() - started) / 2 * len(made) / len(some) * QUERIES


def exact_top(query: Tensor, bank: Bank) -> Tensor:
    """The images with the largest shares, with nothing left out.

    Args:
        query: in 256 levels.
        bank: all images.

    Returns:
        Places of 20 images, those of a larger mean mass first where shares are equal; then their
        shares in ten-thousandths.
    """
    config, everything = HOW.config(HOW.timesteps[0], flips=True), torch.arange(len(bank))
    parts = [
        partial_scores(floats(query)[None], bank.floats(some), config, images=some.tolist())
        for some in everything.split(1000)
    ]
    (whole,) = merge(parts).posteriors
    del parts
    mean = whole.log_share[0].exp().mean(0, dtype=torch.float64)
    likely = mean.topk(min(2000, len(bank))).indices  # who owns a square has 1/32 of all mass
    part = Posterior(likely, whole.log_total, whole.log_share[:, :, likely])
    masses = readable(floats(query), part, HOW)
    share = torch.tensor([rounded(one) for one in shares(masses).tolist()])
    order = share.argsort(descending=True, stable=True)[:TOP]
    return torch.stack([likely[order], (share[order] * 10_000).round().long()])


def recall(made: Tensor, asked: Tensor, store: Store, name: str) -> Iterator[dict[str, int]]:
    """How many of the exact top 20 the index names.

    Args:
        made: images.
        asked: suspects.
        store: where exact results are kept.
        name: of the data.

    Yields:
        For each suspect, how many of the top are candidates, and of those that own any pixel.
    """
    blank = ((1, 1),) * len(made)
    names = tuple(map(str, range(len(made))))
    bank = Bank.of(Folder(names, made, blank, names, ()))
    found = candidates(asked, bank.pixels, HOW.candidates)
    for n, query in enumerate(tqdm(asked, desc="exact")):
        kept = f"exact/{name}-{len(made)}-{n}"
        if kept not in store:
            store.save(kept, exact_top(query, bank), axes="what image")
        top, share = store.load(kept)
        there, owns = torch.isin(top, found[n]), share > 0
        row = {"images": len(bank), "suspect": n, "top": len(top), "found": int(there.sum())}
        yield row | {"owners": int(owns.sum()), "owners found": int((there & owns).sum())}


def main() -> None:
    """Print and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 50_000])
    parser.add_argument("--data", help="a data set or folder, as `nda.data.images.load` takes it")
    parser.add_argument("--recall", type=int, default=20, help="suspects; 0 for none")
    parser.add_argument("--profile", help="whose results to write to; default: none")
    options = parser.parse_args()
    name, place = Path(options.data or "noise").name, cache() / "benchmark"
    suspect = place / "suspect.png"
    place.mkdir(parents=True, exist_ok=True)
    asked = suspects(max(2, options.recall), options.data)
    write_folder({suspect.stem: asked[0]}, place)
    made = {"data": name, "candidates": HOW.candidates, "threads": torch.get_num_threads()}

    def note(table: str, rows: list[dict]) -> None:
        """What there is so far."""
        shown = pd.DataFrame(rows).rename(columns=UNITS)
        print(shown.to_string(index=False), flush=True)
        if options.profile:
            to = Store.results(options.profile)
            if f"trace/{table}" in to:
                to.delete(f"trace/{table}")
            to.save(f"trace/{table}", shown, parameters=made | {"rows": len(rows)})

    costs, recalls = [], []
    for count in options.images:
        result = place / f"{name}-{count}.json"
        if not result.exists():
            took = run(folder(count, options.data, place), suspect, place)
            took |= {"plain": plain(pictures(count, options.data), asked)}
            result.write_text(json.dumps(took))
        took = json.loads(result.read_text())
        costs.append({"images": count} | took | {"ratio": took["plain"] / took["processor"]})
        note("cost", costs)
    every = pictures(max(options.images), options.data) if options.recall else asked[:0]
    for row in recall(every, asked[: options.recall], Store(place), name):
        recalls.append(row)
        note("recall", recalls)


if __name__ == "__main__":
    main()
