"""What do candidates miss, and what does a query cost among a million images?

    NDA_DATA=/path/to/cifar10 python -m nda run --profile small --only 01
    NDA_DATA=/path/to/cifar10 python benchmarks/million.py --part lds
    NDA_DATA=/path/to/cifar10 python benchmarks/million.py --part recall [--queries 8]
    NDA_DATA=/path/to/cifar10 python benchmarks/million.py --part scale [--most 1000000]
    NDA_DATA=/path/to/cifar10 python benchmarks/million.py --part faiss
    python benchmarks/million.py --ship

`lds` scores the queries of the benchmark among 5 to 50 % of its 200 train images; it needs what
notebook 01 stores. `recall` compares candidates among the 50,000 train images of CIFAR-10, or the
first `--images` of them, with NDA of all of them, for held-out images. `scale` measures one query
at five timesteps and two scales among 100 to a million images, in a process of its own. Above
50,000 the images are random crops of CIFAR's, mirrored by chance: neighbours of the same pictures,
and not a million different ones. It needs 4 GB of disk. `faiss` finds candidates by faiss-cpu,
which has to be installed, on the queries that `recall` has finished.

What was measured is kept in the folder `million` of the cache and not measured again: a killed run
goes on by the same command. Delete that folder to start anew, and to get back the disk. Seconds are
by the clock and of the processors; on a busy machine only the latter mean much. `--ship` puts the
tables beside the results of `small`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from time import perf_counter, process_time

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from nda import rng
from nda.artefact.notebooks import parameters
from nda.data import images
from nda.data.bank import floats
from nda.data.pixels import levels
from nda.evidence.lds import interval
from nda.evidence.truth import Truth
from nda.methods import METHODS
from nda.nonparametric import pooled
from nda.nonparametric.among import Among, scores_among
from nda.nonparametric.config import PAPER, NDAConfig
from nda.nonparametric.scores import nda_scores
from nda.places import cache
from nda.store import Store

SHARES = (0.05, 0.1, 0.2, 0.5)  # of the train images that are candidates
FEW = 20  # other images that are looked at for the LDS, a tenth
COUNTS = (100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)  # of candidates, on CIFAR-10
SIZES = (100, 1000, 10_000, 100_000, 1_000_000)
CANDIDATES, SAMPLE = 2000, 500  # that a query is measured with
BLOCK = 1000  # images that are read or written together
TIMESTEPS = tuple(PAPER.scales)
PLACE = cache() / "million"
TABLES = ("lds", "recall", "scale", "faiss")


# ---- the LDS


def lds(store: Store, asked: Sequence[str] = ("val", "gen")) -> pd.DataFrame:
    """Every query of the benchmark among some of its train images.

    Args:
        store: where scores are kept.
        asked: names of the queries.

    Returns:
        A row for each kind of queries and share, in percent.
    """
    working, shipped = Store.working("small"), Store.shipped("small")
    train, rows = working.load("train"), []
    config = NDAConfig.parse(METHODS["nda_two_scale"].settings(parameters("small")))
    index = pooled.kept(PLACE / "index-small", lambda: [levels(train)])
    for which in asked:
        here = working if which in working else shipped
        queries = here.load(which)
        queries = floats(queries) if queries.dtype == torch.uint8 else queries
        exact = store.kept(
            f"small-{which}",
            partial(nda_scores, queries, train, config),
            axes="query train",
            parameters={"settings": METHODS["nda_two_scale"].settings(parameters("small"))},
            inputs=working.sha256("train") | here.sha256(which),
        )
        masses = index.masses(levels(queries), tuple(config.scales))
        for share in SHARES:
            found = among(store, which, share, queries, train, masses)
            rows.append(_lds_row(which, share, exact, *found))
    return pd.DataFrame(rows)


def among(
    store: Store, which: str, share: float, queries: Tensor, train: Tensor, masses: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores of all queries among their candidates.

    Args:
        store: where they are kept.
        which: "val" or "gen".
        share: of the train images that are candidates.
        queries: pixels in [-1, 1].
        train: pixels in [-1, 1].
        masses: of the index.

    Returns:
        Scores `[query, train]`, and which images are candidates.
    """
    config = NDAConfig.parse(METHODS["nda_two_scale"].settings(parameters("small")))
    near = masses.topk(round(share * len(train)), dim=1).indices
    names = ("images", "scores", "drawn", "drawn_scores")

    def make() -> dict[str, Tensor]:
        pairs = zip(tqdm(queries), near, strict=True)
        found = [scores_among(query, train, some, config, sample=FEW) for query, some in pairs]
        return {name: torch.stack([getattr(one, name) for one in found]) for name in names}

    made = {"sample": FEW, "levels": list(pooled.LEVELS.items())}
    inputs = store.sha256(f"small-{which}")
    kept = store.kept(f"small-{which}-{share}", make, parameters=made, inputs=inputs)
    errors, outside = torch.zeros_like(kept["scores"][0]), 0.0
    scores = [
        Among(some, own, errors, outside, outside, drawn, others).everywhere(mass)
        for some, own, drawn, others, mass in zip(*map(kept.get, names), masses, strict=True)
    ]
    chosen = torch.zeros_like(masses, dtype=torch.bool).scatter_(1, near, True)
    return torch.stack(scores), chosen


def _lds_row(which: str, share: float, exact: Tensor, scores: Tensor, chosen: Tensor) -> dict:
    truth = Truth.load(Store.shipped("small"), "report", which)
    draws = truth.bootstrap({"exact": exact, "among": scores})
    low, high = interval(100 * (draws["exact"] - draws["among"]))
    kinds = {"exact": exact, "among": scores, "nothing outside": scores * chosen}
    found = {kind: 100 * truth.lds(some).mean().item() for kind, some in kinds.items()}
    top = exact.topk(20, dim=1).indices
    return (
        {"which": which, "candidates, %": 100 * share}
        | found
        | {"lost": found["exact"] - found["among"], "lost, low": low, "lost, high": high}
        | {"recall of 20, %": 100 * chosen.gather(1, top).double().mean().item()}
        | {"share of mass, %": 100 * ((exact * chosen).sum(1) / exact.sum(1)).mean().item()}
    )


# ---- recall


def cifar(split: str) -> Tensor:
    """CIFAR-10 in an order drawn by name.

    Args:
        split: "train" or "test".

    Returns:
        In 256 levels.
    """
    kept, name = Store(PLACE / "kept"), f"cifar-{split}"
    if name not in kept:
        found = levels(images.load("cifar10", split=split, size=32).pixels)
        order = torch.randperm(len(found), generator=rng.generator("million", split))
        kept.save(name, found[order], axes="image chan row col")
    return kept.load(name)


def recall(store: Store, queries: int, count: int) -> pd.DataFrame:
    """Candidates among CIFAR-10 and NDA of all of it.

    Args:
        store: where scores are kept.
        queries: how many held-out images are asked about; none: as many as are done.
        count: of the train images.

    Returns:
        A row for each number of train images and of candidates.
    """
    if queries:
        train, asked = cifar("train")[:count], cifar("test")[:queries]
        index = pooled.kept(PLACE / f"index-cifar10-{count}", lambda: train.split(BLOCK))
        for n in tqdm(range(queries), desc="exact"):
            if f"exact-{count}-{n}" not in store:
                query = asked[n : n + 1]
                (_, coarse), masses = _timed(partial(index.masses, query, TIMESTEPS))
                (_, plain), exact = _timed(partial(nda_scores, floats(query), floats(train), PAPER))
                took, both = {"index": coarse, "all": plain}, torch.cat([exact, masses])
                store.save(f"exact-{count}-{n}", both, axes="what image", notes=took)
    return pd.concat([pd.DataFrame(), *(_recall(store, some) for some in _counts(store))])


def _counts(store: Store) -> list[int]:
    """Numbers of train images that queries have been asked about."""
    return sorted({int(n.split("-")[1]) for n in store.names() if n.startswith("exact-")})


def _names(store: Store, count: int) -> list[str]:
    return [name for name in store.names() if name.startswith(f"exact-{count}-")]


def _recall(store: Store, count: int) -> pd.DataFrame:
    names = _names(store, count)
    took = pd.DataFrame([store.info(name)["notes"] for name in names])
    pairs = [(exact, masses.argsort(descending=True)) for exact, masses in map(store.load, names)]
    table = _recalls(pairs)
    spent = took["index"].mean() + table["candidates"] / count * took["all"].mean()
    table["query, CPU s"], table["all, CPU s"] = spent, took["all"].mean()
    return table


def _recalls(pairs: list[tuple[Tensor, Tensor]]) -> pd.DataFrame:
    rows = []
    images = len(pairs[0][0])
    for count in (some for some in COUNTS if some < images):
        found = []
        for exact, order in pairs:
            near = torch.zeros(len(exact), dtype=torch.bool)
            near[order[:count]] = True
            best = exact.topk(count).values.sum()
            found.append(
                [near[exact.topk(n).indices].double().mean().item() for n in (20, 100)]
                + [(exact[near].sum() / exact.sum()).item(), (best / exact.sum()).item()]
            )
        mean = 100 * torch.tensor(found).mean(0)
        names = ("recall of 20, %", "recall of 100, %", "share of mass, %", "share at best, %")
        about = {"train images": images, "candidates": count}
        rows.append(about | dict(zip(names, mean.tolist(), strict=True)))
    return pd.DataFrame(rows).assign(queries=len(pairs))


# ---- faiss


def faiss_recall(store: Store, count: int) -> pd.DataFrame:
    """The same with faiss: every other patch of all images in IVF-PQ, and whole images in HNSW.

    Args:
        store: where scores are kept.
        count: of the train images.

    Returns:
        A row for each index and number of candidates.
    """
    import faiss

    train, asked = cifar("train")[:count], cifar("test")
    exact = [store.load(name)[0] for name in _names(store, count)]
    done = [int(name.split("-")[2]) for name in _names(store, count)]
    lists = min(4096, count // 8)
    tables = []
    for name, (made, side, stride) in {
        "IVF-PQ of patches": (lambda dim: faiss.index_factory(dim, f"IVF{lists},PQ24"), 16, 2),
        "HNSW of whole images": (lambda dim: faiss.IndexHNSWFlat(dim, 32), 4, 1),
    }.items():
        started, index = process_time(), made(48)
        vectors = torch.cat([_vectors(some, side, stride) for some in train.split(BLOCK)])
        each = len(vectors) // len(train)
        if not index.is_trained:
            order = torch.randperm(len(vectors), generator=rng.generator("faiss"))
            index.train(vectors[order[:200_000]].numpy())
            index.nprobe = 32
        else:
            index.hnsw.efSearch = 2 * max(COUNTS)
        index.add(vectors.numpy())
        built, size = process_time() - started, len(faiss.serialize_index(index))
        started, orders = process_time(), []
        for n in done:
            rows = _vectors(asked[n : n + 1], side, 3 if each > 1 else 1)
            _, near = index.search(rows.numpy(), max(COUNTS))
            found = dict.fromkeys((torch.from_numpy(near).T.flatten() // each).tolist())
            found.pop(-1, None)
            orders.append(torch.tensor(list(found)))
        spent = (process_time() - started) / len(done)
        table = _recalls(list(zip(exact, orders, strict=True)))
        about = {"built, s": built, "query, s": spent, "disk, MB": size / 1e6}
        tables.append(table.assign(index=name, **about))
    return pd.concat(tables)


def _vectors(some: Tensor, side: int, stride: int) -> Tensor:
    small = F.adaptive_avg_pool2d(pooled.pooled(some), side)
    return F.unfold(small, 4, stride=stride).mT.flatten(0, 1).contiguous()


# ---- a million


def million(count: int) -> Iterator[Tensor]:
    """CIFAR-10, then crops of it: shifted by up to 4 pixels each way, mirrored by chance.

    Args:
        count: images.

    Yields:
        A thousand of them at a time, the same whatever the count.
    """
    train = cifar("train")
    for start in range(0, count, BLOCK):
        some = train[torch.arange(start, start + BLOCK) % len(train)]
        if start >= len(train):
            source = rng.generator("million", start)
            row, col = torch.randint(0, 9, (2, BLOCK), generator=source)
            flip = torch.rand(BLOCK, generator=source) < 0.5
            wide = F.pad(some.float(), (4, 4, 4, 4), mode="reflect").byte()
            rows, cols = (x[:, None] + torch.arange(32) for x in (row, col))
            cols = torch.where(flip[:, None], cols.flip(1), cols)
            number = torch.arange(BLOCK)[:, None, None]
            some = wide[number, :, rows[:, :, None], cols[:, None, :]].movedim(3, 1)
        yield some[: count - start]


def written(count: int) -> Tensor:
    """The images in a file, mapped.

    Args:
        count: images.

    Returns:
        In 256 levels.
    """
    file, size = PLACE / f"pixels-{count}.uint8", count * 3072
    if not file.exists() or file.stat().st_size != size:
        PLACE.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        with part.open("wb") as out:
            for block in tqdm(million(count), total=-(-count // BLOCK), desc="images"):
                out.write(block.contiguous().numpy().data)
        os.replace(part, file)
    return torch.from_file(str(file), size=size, dtype=torch.uint8).view(count, 3, 32, 32)


def measure(count: int) -> dict[str, float]:
    """One query among so many images.

    Args:
        count: images.

    Returns:
        What it took.
    """
    train, place = written(count), PLACE / f"index-{count}"
    for old in place.glob("*"):
        old.unlink()
    (built, index), query = (
        _timed(lambda: pooled.build(place, train.split(BLOCK))),
        cifar("test")[:1],
    )
    peak = _peak()
    chosen, some = _timed(lambda: index.candidates(query, CANDIDATES, TIMESTEPS)[0])
    exact, found = _timed(lambda: scores_among(floats(query[0]), train, some, PAPER, sample=SAMPLE))
    each, _ = _timed(lambda: nda_scores(floats(query), floats(train[:100]), PAPER))
    took = {"built": built, "candidates": chosen, "exact among them": exact, "each": each}
    clocks = {
        f"{name}, {clock}": seconds[n]
        for name, seconds in took.items()
        for n, clock in enumerate(("s", "CPU s"))
    }
    return clocks | {
        "threads": torch.get_num_threads(),
        "disk, MB": sum(file.stat().st_size for file in place.iterdir()) / 1e6,
        "memory while built, MB": peak,
        "memory, MB": _peak(),
        "outside, %": 100 * found.outside,
        "outside, error": 100 * found.outside_error,
        "largest score, error in %": 100
        * (found.errors / found.scores)[found.scores.argmax()].item(),
    }


def _timed(work):
    wall, cpu = perf_counter(), process_time()
    made = work()
    return (perf_counter() - wall, process_time() - cpu), made


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def scale(store: Store, most: int) -> pd.DataFrame:
    """Every size in a process of its own.

    Args:
        store: where measurements are kept.
        most: images of the largest size that is measured.

    Returns:
        A row for each size that has been measured.
    """
    for count in SIZES:
        name = f"scale-{count}"
        if count <= most and name not in store:
            written(count)  # here, so that the memory of it is not measured
            command = [sys.executable, __file__, "--measure", str(count)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            store.save(name, pd.DataFrame([json.loads(said.splitlines()[-1])]))
            if count != max(SIZES):
                (PLACE / f"pixels-{count}.uint8").unlink()
    rows = {n: store.load(f"scale-{n}").iloc[0] for n in SIZES if f"scale-{n}" in store}
    table = pd.DataFrame(rows).T.rename_axis("train images").reset_index()
    if not table.empty:
        for clock in ("s", "CPU s"):
            each = table.pop(f"each, {clock}") / 100
            table[f"all, extrapolated, {clock}"] = each * table["train images"]
            table[f"query, {clock}"] = table[
                [f"candidates, {clock}", f"exact among them, {clock}"]
            ].sum(axis=1)
    return table


# ---- what is asked for


def tables(
    store: Store, part: str | None, queries: int, images: int, most: int
) -> dict[str, pd.DataFrame]:
    """What has been measured, after one part of it was.

    Args:
        store: where all is kept.
        part: to be measured; None: nothing.
        queries: of `recall`.
        images: of `recall` and `faiss`.
        most: of `scale`.

    Returns:
        Tables by name; those of `lds` and `faiss` are kept when they are made.
    """
    if part in ("lds", "faiss"):
        store.delete(part)
        store.save(part, lds(store) if part == "lds" else faiss_recall(store, images))
    found = {name: store.load(name) for name in ("lds", "faiss") if name in store}
    found["recall"] = recall(store, queries if part == "recall" else 0, images)
    found["scale"] = scale(store, most if part == "scale" else 0)
    return {name: table for name, table in found.items() if not table.empty}


def main() -> None:
    """Measure a part, print all tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=TABLES)
    parser.add_argument("--queries", type=int, default=8, metavar="N", help="of recall")
    parser.add_argument("--images", type=int, default=50_000, metavar="N", help="of recall, faiss")
    parser.add_argument("--most", type=int, default=max(SIZES), metavar="N", help="of scale")
    parser.add_argument("--measure", type=int, metavar="N", help="one size, as JSON")
    parser.add_argument("--ship", action="store_true")
    options, store = parser.parse_args(), Store(PLACE / "kept")
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    found = tables(store, options.part, options.queries, options.images, options.most)
    for name, table in found.items():
        print(f"\n{name}\n{table.round(2).to_string(index=False)}")
        if options.ship:
            results, made = Store.results("small"), f"million/{name}"
            results.delete(made)
            about = {"candidates": CANDIDATES, "sample": SAMPLE, "timesteps": list(TIMESTEPS)}
            about = {"sample": FEW} if name == "lds" else about if name == "scale" else {}
            results.save(made, table, parameters=about)


if __name__ == "__main__":
    main()
