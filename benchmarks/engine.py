"""How much faster is the fused engine, and how near to what a core can do? One query, one timestep,
top_k 100, one thread; all engines in one run.

    python benchmarks/engine.py [--train 512] [--data /path/to/images] [--march x86-64-v3]

Prints, per case, milliseconds per train image (of the processor, so that a busy machine does not
count) and ratios: against `conv`, our convolution engine (float64 sums; compares only windows that
may meet), and against the convolution of the released code (float32; 10 outside the image, all
windows compared, blocked softmax and top-k). Then two shares of the peak of one core, which
`peak.cpp` measures in the same run: of the multiply-adds of pixels alone, at its rate of
multiply-adds, and of all operations of `operations`, at its rate of additions, which is as much as
it does of anything. Then the gain of a second thread, what `top_k=None`, four queries and the other
instruction set change, and the memory that a run adds. `--march` builds the engine for another
processor: x86-64-v3 has AVX2 only. Without `--data` the images are smoothed noise.
"""

import argparse
import ctypes
import platform
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nda import rng
from nda.data import images
from nda.nonparametric.patches import Windows, fused, noised, patch_scores, shared_noise
from nda.schedule import sigma, signal

# side, window, coarse, timestep: the paper's windows for timestep 100, a large one at its largest
# timestep, small images
CASES = [
    (32, 5, False, 100),
    (32, 7, False, 100),
    (32, 7, False, 300),
    (32, 15, False, 500),
    (32, 14, True, 100),
    (16, 5, False, 100),
]


def pictures(count: int, size: int, data: str | None) -> Tensor:
    """Images, or noise with a spectrum like theirs.

    Args:
        count: how many.
        size: their side in pixels.
        data: a data set or folder; None: noise.

    Returns:
        Pixels in [-1, 1].
    """
    if data:
        found = images.load(data, split="train", size=size).pixels
        return found[torch.randperm(len(found), generator=rng.generator("benchmark"))[:count]]
    noise = torch.randn(count, 3, size, size, generator=rng.generator("benchmark"))
    smooth = [
        F.interpolate(F.avg_pool2d(noise, k), size=size, mode="bilinear") * k for k in (1, 2, 4, 8)
    ]
    return (torch.stack(smooth).sum(0) / 3).clamp(-1, 1)


def released(
    queries: Tensor,
    train: Tensor,
    *,
    timestep: int,
    patch: int,
    top_k: int,
    noise: Tensor,
    block: int = 32,
) -> Tensor:
    """The released code's way, written anew: one convolution per block of query patches, with 10
    outside the image on both sides.

    Args:
        queries: pixels in [-1, 1].
        train: pixels in [-1, 1].
        timestep: 0…999.
        patch: side of the window in pixels, odd.
        top_k: largest weights kept per train image.
        noise: that all queries share.
        block: train images at a time.

    Returns:
        Scores `[query, train]`.
    """
    before, scores = (patch - 1) // 2, torch.zeros(len(queries), len(train))
    bank = F.pad(signal(timestep) * train, [before] * 4, value=10.0)
    squares = F.conv2d(bank.square(), torch.ones(1, bank.shape[1], patch, patch))
    for q, query in enumerate(signal(timestep) * queries + sigma(timestep) * noise):
        for kernel in F.unfold(F.pad(query[None], [before] * 4, value=10.0), patch)[0].T.split(64):
            tops, sums = [], []
            for start in range(0, len(bank), block):
                some, kernels = slice(start, start + block), kernel.unflatten(1, (-1, patch, patch))
                product = F.conv2d(bank[some], kernels)
                norms = kernel.square().sum(1)[:, None, None]
                distance = squares[some] + norms - 2 * product
                logits = -distance.clamp_min(0).flatten(2) / (2 * sigma(timestep) ** 2)
                tops.append(logits.topk(min(top_k, logits.shape[2]), 2).values.logsumexp(2))
                sums.append(logits.logsumexp(2))
            scores[q] += (torch.cat(tops) - torch.cat(sums).logsumexp(0)).exp().sum(1)
    return scores


def seconds(
    function: Callable[[], Tensor], repeat: int = 1, clock: Callable[[], float] = process_time
) -> float:
    """The time that a function takes.

    Args:
        function: what is timed.
        repeat: how often.
        clock: of the processor, or of the wall.

    Returns:
        Seconds of the fastest run.
    """
    times = []
    for _ in range(repeat):
        started = clock()
        function()
        times.append(clock() - started)
    return min(times)


@contextmanager
def built_for(march: str) -> Iterator[None]:
    """The engine, built for a processor.

    Args:
        march: as GCC and clang name it; "native": this one.

    Yields:
        With it in place.
    """
    flags = fused.FLAGS
    fused.FLAGS = tuple(f"-march={march}" if "-march" in flag else flag for flag in flags)
    fused.compiled.cache_clear()
    try:
        yield
    finally:
        fused.FLAGS = flags
        fused.compiled.cache_clear()


def peak(march: str) -> tuple[float, float]:
    """What one core does with numbers of 32 bits in registers, measured.

    Args:
        march: the processor to build for.

    Returns:
        Multiply-adds and additions per second.
    """
    source, rounds = Path(__file__).with_name("peak.cpp"), 3_000_000
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "peak.so"
        flags = ["-O3", f"-march={march}", "-fPIC", "-shared", "-std=c++17"]
        subprocess.run(["c++", *flags, str(source), "-o", str(library)], check=True)
        functions = ctypes.CDLL(str(library))
        rates = []
        for function in (functions.multiply_adds, functions.additions):
            function.restype, function.argtypes = ctypes.c_double, [ctypes.c_long]
            fastest = min(function(rounds) for _ in range(5))
            rates.append(rounds * functions.numbers_per_round() / fastest)
    return rates[0], rates[1]


def operations(windows: Windows, chan: int, top_k: int | None) -> tuple[float, float]:
    """What the engine does for one query and one train image if all weights count, in operations on
    single numbers: the table at the head of `fused.cpp`, for all windows.

    Along one diagonal of rows and one of columns a cell is a pair of pixels. A step down the
    diagonal takes 2 products per channel in each cell, one conversion, and three additions. Where a
    diagonal begins there are as many rows of products as the window has taps. Positions that meet
    only themselves along both axes are not counted.

    Args:
        windows: of the images.
        chan: channels.
        top_k: largest weights kept per train image; None: all.

    Returns:
        Multiply-adds of pixels, and all other operations.
    """
    multiply_adds = others = 0.0
    for (rows, rows_meet), (cols, cols_meet) in product(*windows.groups()):
        if not (rows_meet or cols_meet):
            continue
        high, wide = (len(rows), len(cols)) if cols_meet else (len(cols), len(rows))
        diagonals = high**2 if rows_meet and cols_meet else high
        begin = diagonals - (max(0, high - windows.step) ** (2 if rows_meet and cols_meet else 1))
        cells, pairs = wide**2 + (2 * wide - 1) * windows.span, diagonals * wide**2
        steps, taps = cells * (diagonals - begin), cells * begin * windows.taps
        multiply_adds += chan * (2 * steps + taps)
        chosen = top_k is not None and top_k < pairs // high
        others += 4 * steps + 2 * taps + 2 * cells * begin + pairs * (20 + 20 * chosen)
    return multiply_adds, others


def is_narrow(query: Tensor, train: Tensor, windows: Windows, timestep: int, noise: Tensor) -> bool:
    """Whether the engine works with numbers of 32 bits.

    Args:
        query: one image.
        train: pixels in [-1, 1].
        windows: of the images.
        timestep: 0…999.
        noise: that all queries share.

    Returns:
        True if so; else the operations cost twice as much.
    """
    norm = windows.energy(noised(query, timestep, noise)).max().item()
    largest = signal(timestep) * train.abs().max().item() * windows.step
    temperature = 2 * sigma(timestep) ** 2
    shape = train.shape[1], windows, temperature, train.dtype
    return fused.Format.choose(norm, largest, *shape).narrow


def compare(
    size: int,
    patch: int,
    coarse: bool,
    timestep: int,
    *,
    n_train: int,
    data: str | None,
    peaks: tuple[float, float],
) -> None:
    """Print one line of the table.

    Args:
        size: side of the images in pixels.
        patch: side of the window in pixels.
        coarse: whether windows are compared at half the resolution.
        timestep: 0…999.
        n_train: train images.
        data: as of `pictures`.
        peaks: of the core, as `peak` gives them.
    """
    train, query = pictures(n_train + 1, size, data).split([n_train, 1])
    options: dict[str, Any] = {"timestep": timestep, "patch": patch, "top_k": 100}
    options["noise"] = shared_noise(query, timestep, 0)
    ours = partial(patch_scores, query, train, coarse=coarse, **options)
    few = train[: max(1, n_train // 16)]  # the others take long, and the same time for every image
    fused_time = seconds(partial(ours, engine="fused"), 3) / n_train
    conv = seconds(partial(patch_scores, query, few, coarse=coarse, engine="conv", **options))
    theirs = None if coarse else seconds(partial(released, query, few, **options)) / len(few)
    one = seconds(partial(ours, engine="fused"), 3, perf_counter)
    torch.set_num_threads(2)
    two = seconds(partial(ours, engine="fused"), 3, perf_counter)
    torch.set_num_threads(1)
    windows = Windows(size, size, patch, coarse)
    slower = 1 if is_narrow(query, train, windows, timestep, options["noise"]) else 2
    products, others = (slower * n for n in operations(windows, 3, 100))
    share = f"{products / peaks[0] / fused_time:9.0%}"
    # weights that do not count are not computed, and their number is not known
    all_share = f"{(products + others) / peaks[1] / fused_time:.0%}" if timestep >= 300 else ""
    name = f"{size}x{size}, {'coarse ' if coarse else ''}window {patch}, t = {timestep}"
    ratio = "" if theirs is None else f"{theirs / fused_time:9.0f}x"
    print(
        f"{name:34s} {1e3 * fused_time:10.3f} {conv / len(few) / fused_time:9.0f}x {ratio:>10s}"
        f" {share} {all_share:>9s} {one / two:10.2f}x",
        flush=True,
    )


def variants(n_train: int, data: str | None, march: str) -> None:
    """Print what `top_k`, the number of queries and the instruction set change.

    Args:
        n_train: train images.
        data: as of `pictures`.
        march: the processor that the engine is built for.
    """
    train, queries = pictures(n_train + 4, 32, data).split([n_train, 4])
    names = ("top_k 100", "None", "4 queries", "AVX2")
    print(f"\n{'ms / image and query':34s}" + "".join(f" {name:>10s}" for name in names))
    for patch, timestep in ((7, 10), (7, 100), (7, 300), (15, 500)):
        options: dict[str, Any] = {"timestep": timestep, "patch": patch, "engine": "fused"}
        options["noise"] = shared_noise(queries, timestep, 0)
        ours = partial(patch_scores, queries[:1], train, **options)
        with built_for(march):
            times = [
                seconds(partial(ours, top_k=100), 3),
                seconds(partial(ours, top_k=None), 3),
                seconds(partial(patch_scores, queries, train, **options), 2) / len(queries),
            ]
            found = ours()
        with built_for("x86-64-v3"):
            times.append(seconds(partial(ours, top_k=100), 3))
            same = torch.equal(ours(), found)
        line = "".join(f" {1e3 * each / n_train:10.3f}" for each in times)
        name = f"32x32, window {patch}, t = {timestep}"
        print(f"{name:34s}{line}  {'the same bits' if same else 'OTHER BITS'}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=int, default=512, help="train images")
    parser.add_argument("--data", help="a data set or folder, as `nda.data.images.load` takes it")
    parser.add_argument("--march", default="native", help="the processor to build the engine for")
    options = parser.parse_args()
    torch.set_num_threads(1)
    peaks = peak(options.march)
    print(
        f"one core, {options.march}: {peaks[0] / 1e9:.1f} billion multiply-adds of floats,"
        f" {peaks[1] / 1e9:.1f} billion additions of integers per second\n"
    )
    print(
        f"{'':34s} {'ms / image':>10s} {'conv':>10s} {'released':>10s} {'products':>9s}"
        f" {'all':>9s} {'2 threads':>11s}"
    )
    with built_for(options.march):
        for case in CASES:
            compare(*case, n_train=options.train, data=options.data, peaks=peaks)
    if "x86" in platform.machine() or "AMD" in platform.machine():
        variants(options.train, options.data, options.march)
    for n_train in (options.train, 4 * options.train):
        train, query = pictures(n_train + 4, 32, None).split([n_train, 4])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        patch_scores(query, train, timestep=100, patch=7, engine="fused", noise=None)
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(f"memory beyond the images at {n_train} train images: {more:.0f} MB more")


if __name__ == "__main__":
    main()
