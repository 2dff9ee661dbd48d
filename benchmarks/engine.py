"""How much faster is the fused engine? One query, one timestep, top_k 100, one thread; all engines
in one run.

    python benchmarks/engine.py [--train 512] [--data /path/to/images]

Prints, per case, milliseconds per train image and ratios: against `conv`, our convolution engine
(float64 sums; compares only windows that may meet), and against the convolution of the released
code (float32; 10 outside the image, all windows compared, blocked softmax and top-k). Then the gain
of a second thread and the memory that a run adds. Without `--data` the images are smoothed noise.
"""

import argparse
import resource
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nda import rng
from nda.data import images
from nda.nonparametric.patches import patch_scores, shared_noise
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


def seconds(function: Callable[[], Tensor], repeat: int = 1) -> float:
    """The time that a function takes.

    Args:
        function: what is timed.
        repeat: how often.

    Returns:
        Seconds of the fastest run.
    """
    times = []
    for _ in range(repeat):
        started = perf_counter()
        function()
        times.append(perf_counter() - started)
    return min(times)


def compare(
    size: int, patch: int, coarse: bool, timestep: int, *, n_train: int, data: str | None
) -> None:
    """Print one line of the table.

    Args:
        size: side of the images in pixels.
        patch: side of the window in pixels.
        coarse: whether windows are compared at half the resolution.
        timestep: 0…999.
        n_train: train images.
        data: as of `pictures`.
    """
    train, query = pictures(n_train + 1, size, data).split([n_train, 1])
    options: dict[str, Any] = {"timestep": timestep, "patch": patch, "top_k": 100}
    options["noise"] = shared_noise(query, timestep, 0)
    ours = partial(patch_scores, query, train, coarse=coarse, **options)
    fused = seconds(partial(ours, engine="fused"), 3)
    conv = seconds(partial(ours, engine="conv"))
    theirs = None if coarse else seconds(partial(released, query, train, **options))
    torch.set_num_threads(2)
    double = seconds(partial(ours, engine="fused"), 3)
    torch.set_num_threads(1)
    name = f"{size}x{size}, {'coarse ' if coarse else ''}window {patch}, t = {timestep}"
    ratio = "" if theirs is None else f"{theirs / fused:9.0f}x"
    print(
        f"{name:34s} {1e3 * fused / n_train:10.3f} {conv / fused:9.0f}x {ratio:>10s}"
        f" {fused / double:10.2f}x",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=int, default=512, help="train images")
    parser.add_argument("--data", help="a data set or folder, as `nda.data.images.load` takes it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':34s} {'ms / image':>10s} {'conv':>10s} {'released':>10s} {'2 threads':>11s}")
    for case in CASES:
        compare(*case, n_train=options.train, data=options.data)
    for n_train in (options.train, 4 * options.train):
        train, query = pictures(n_train + 4, 32, None).split([n_train, 4])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        patch_scores(query, train, timestep=100, patch=7, engine="fused", noise=None)
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(f"memory beyond the images at {n_train} train images: {more:.0f} MB more")


if __name__ == "__main__":
    main()
