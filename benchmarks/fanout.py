"""The bookkeeping of scores by blocks, without the work: random masses of 100,000 train images for
1,000 queries, merged as `nda attribute` merges them. Prints the memory that it took.

    python benchmarks/fanout.py                       # minutes, on one core
    python benchmarks/fanout.py --train 2000 --queries 50
"""

import argparse
import json
import resource
from time import perf_counter

import torch

from nda import rng
from nda.nonparametric.config import NDAConfig
from nda.nonparametric.partial import Partial, merge_tree
from nda.nonparametric.patches import Posterior

CONFIG = NDAConfig.single({100: 3})  # one term; several are so many times as much


def random_partial(start: int, size: int, queries: int, side: int) -> Partial:
    """What a block of images could have found, the same whenever it is asked for.

    Args:
        start: its first image.
        size: images in the block; with 0, only its total.
        queries: number of queries.
        side: of the images; every pixel is a position.

    Returns:
        The partial result.
    """
    total, share = (rng.generator("random partial", start, what) for what in ("total", "share"))
    log_total = 20 * torch.randn(queries, side * side, generator=total)
    log_share = torch.rand(queries, side * side, size, generator=share)
    log_share = log_share.div_(log_share.sum(2, keepdim=True)).log_()
    posterior = Posterior(torch.arange(start, start + size), log_total, log_share)
    return Partial(CONFIG, (posterior,), (side, side), "00" * 32)


def main() -> None:
    """Both rounds, block after block."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"train": 100_000, "queries": 1_000, "block": 100, "side": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    starts = range(0, asked.train, asked.block)
    before, started = _peak(), perf_counter()
    size = {"queries": asked.queries, "side": asked.side}
    every = merge_tree(random_partial(start, 0, **size) for start in starts)
    totals = perf_counter() - started
    scores = torch.empty(asked.queries, asked.train)
    for start in starts:
        part = random_partial(start, asked.block, **size)
        scores[:, start : start + asked.block] = part.within(every).scores()
    # row by row: all at once would be copied, and count as memory
    error = max(abs(row.double().sum().item() - 1) for row in scores)
    assert error < 1e-4, error
    block = asked.queries * asked.side**2 * asked.block * 4
    print(
        json.dumps(
            vars(asked)
            | {
                "blocks": len(starts),
                "one block, MB": block / 1e6,
                "all blocks, GB": block * len(starts) / 1e9,
                "scores, MB": scores.nbytes / 1e6,
                "peak memory above the start, MB": _peak() - before,
                "first round, s": round(totals, 1),
                "second round, s": round(perf_counter() - started - totals, 1),
                "largest error of a query's mass": error,
            },
            indent=1,
        )
    )


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
