"""The fast engine: box filters in C++ (`fused.cpp`, which says how), compiled once per machine, run
by as many threads as torch has.

Why C++ and not numba: prototypes of the same loops were slower by a factor of two and more in
numba, whose use of vector registers depends on what its compiler guesses, while GCC's and clang's
vector types say it. No header of torch is needed, so building takes seconds; without a compiler the
engines in torch do the work.
"""

import ctypes
import hashlib
import logging
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from nda.nonparametric.patches.posterior import Posterior
from nda.nonparametric.patches.windows import Windows
from nda.places import cache as cache_folder

SOURCE = Path(__file__).with_name("fused.cpp")
# Not -ffast-math: a library built with it makes the whole process flush small numbers to zero.
FLAGS: tuple[str, ...] = (
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
    "-std=c++17",
)
SHARD = 128  # train images per task: fixed, so that no result depends on the number of threads
# largest rounding error of a logit (root mean square, in nats) at which 32-bit numbers are used
NARROW_ERROR = 1e-5
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Format:
    """Fixed-point logits in bits: `bits` binary digits after the point, in 32-bit (narrow) or
    64-bit numbers."""

    bits: int
    narrow: bool

    @classmethod
    def choose(
        cls,
        norm: float,
        largest: float,
        chan: int,
        windows: Windows,
        temperature: float,
        dtype: torch.dtype,
    ) -> "Format":
        """As many digits as the largest distance leaves, and 32-bit numbers if those are enough for
        float32.

        A logit is a sum of taps² products of floats, rounded to fixed point, and every step of the
        vertical box filter adds the rounding of `taps` more.

        Args:
            norm: largest squared norm of a query window.
            largest: largest absolute pixel of the prepared train images.
            chan: channels.
            windows: of these images.
            temperature: 2σ².
            dtype: of the images.

        Returns:
            The format.
        """
        other = windows.taps**2 * chan * largest**2
        furthest = max(norm, other + 2 * math.sqrt(norm * other))
        bound = 1.01 * furthest / (temperature * math.log(2)) + 1e-9
        # One product of a window is at most `bound`; with a single tap the filter also rounds the
        # difference of two at once.
        digits = (31 if windows.taps > 1 else 30) - math.ceil(math.log2(bound))
        roundings = windows.taps * (windows.taps + windows.height)
        fixed = 0.3 * math.sqrt(roundings) * math.log(2) * 2.0**-digits
        # Σ(xy)² is at most largest² norm
        floats = 2.0**-24 * 2 * largest * math.sqrt(norm) / temperature
        if dtype == torch.float32 and math.hypot(fixed, floats) <= NARROW_ERROR:
            return cls(min(digits, 23), True)
        return cls(min(digits + 31, 52), False)

    def value(self, whole: Tensor) -> Tensor:
        """Bits from fixed-point numbers; differences of nearby numbers are exact.

        Args:
            whole: the fixed-point numbers.

        Returns:
            In float64.
        """
        return whole.double() * 2.0**-self.bits

    @property
    def real(self) -> torch.dtype:
        """Of pixels and weights."""
        return torch.float32 if self.narrow else torch.float64

    @property
    def whole(self) -> torch.dtype:
        """Of fixed-point numbers."""
        return torch.int32 if self.narrow else torch.int64

    @property
    def lanes(self) -> int:
        """Train images side by side."""
        return 16 if self.narrow else 8

    def cut(self, patches: int, dtype: torch.dtype) -> int:
        """How far below the best one a weight no longer counts.

        Args:
            patches: all patches of all train images.
            dtype: of the input; all that is left out is below its precision.

        Returns:
            The distance in fixed point.
        """
        negligible = math.log(patches) - 2 * math.log(torch.finfo(dtype).eps)  # nats
        return min(int(negligible / math.log(2) * 2.0**self.bits), 2 ** (30 if self.narrow else 62))

    def polynomial(self) -> Tensor:
        """Coefficients of 2^-f, for f counted in last bits: interpolation at Chebyshev nodes.

        Returns:
            6 of them, to 1e-7, or 14, to 1e-15.
        """
        terms = 6 if self.narrow else 14
        k = np.arange(terms)
        nodes = (1 - np.cos((2 * k + 1) * np.pi / (2 * terms))) / 2
        return torch.from_numpy(
            np.linalg.solve(np.vander(nodes, increasing=True), np.exp2(-nodes))
            * np.exp2(-float(self.bits) * k)
        )


@cache
def compiled() -> ctypes.CDLL | None:
    """The compiled functions; kept in the cache folder (`NDA_CACHE`), one per source and CPU.

    Returns:
        The library, or None, after a warning, if there is no C++ compiler or it fails.
    """
    names = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        log.warning(
            "no C++ compiler was found, so the fused engine is not available; install g++ or"
            " clang++, or set CXX"
        )
        return None
    try:
        target = subprocess.run(
            [compiler, *FLAGS[1:2], "-dM", "-E", "-x", "c++", os.devnull],
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        key = hashlib.sha256(
            SOURCE.read_bytes() + repr(FLAGS).encode() + target.encode()
        ).hexdigest()[:16]
        folder = cache_folder()
        path = folder / f"fused-{key}.so"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as building:
                made = Path(building) / path.name
                subprocess.run(
                    [compiler, *FLAGS, str(SOURCE), "-o", str(made)],
                    capture_output=True,
                    check=True,
                    text=True,
                )
                made.replace(path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[:1]
        log.warning(
            "%s could not build the fused engine, so it is not available: %s",
            compiler,
            "".join(map(str, reason)),
        )
        return None


class Output(NamedTuple):
    """What the compiled function writes for one query and one shard: `Output` of fused.cpp."""

    best: Shaped[Tensor, "position"]  # least distance, in fixed point
    total: Float[Tensor, "position"]  # sum of the weights, relative to the best
    top: Float[Tensor, "position block lane"]  # log-sum of each image's largest weights ...
    reference: Shaped[Tensor, "position block"]  # ... relative to this, in fixed point


def posterior(
    noisy: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    *,
    sigma: float,
    windows: Windows,
    top_k: int | None,
    rows: range,
) -> Posterior:
    """See `nda.nonparametric.patches.naive.posterior`. Weights that are, all together, below the
    precision of the input's dtype are left out.

    Args:
        noisy: x_t.
        train: √ᾱ_t y.
        sigma: standard deviation of the noise, times the root of the temperature.
        windows: of these images.
        top_k: largest weights kept per train image; None: all.
        rows: rows of the query's positions to look at.

    Returns:
        The posterior of the positions in `rows`.
    """
    temperature = 2 * sigma**2
    norms = windows.energy(noisy)  # [query, position]
    energy = norms.unflatten(1, windows.grid)[:, rows.start : rows.stop].flatten(1)
    largest = train.abs().max().item() * windows.step
    formats = [
        Format.choose(norm, largest, len(train[0]), windows, temperature, noisy.dtype)
        for norm in norms.amax(1).tolist()
    ]
    shards = range(0, len(train), SHARD)

    def run(task: tuple[int, int]) -> Output:
        q, n = task
        cut = formats[q].cut(len(train) * windows.positions, noisy.dtype)
        part = train[n : n + SHARD]
        return _run(noisy[q], part, formats[q], temperature, cut, windows, top_k, rows)

    results = _in_threads(run, [(q, n) for q in range(len(noisy)) for n in shards])
    total = torch.empty(energy.shape, dtype=torch.float64)
    share = torch.empty(*energy.shape, len(train), dtype=noisy.dtype)
    for q, form in enumerate(formats):
        mine = results[q * len(shards) : (q + 1) * len(shards)]
        total[q] = _join(mine, form, share[q]) - energy[q] / temperature
    return Posterior(torch.arange(len(train)), total, share)


def _in_threads(
    run: Callable[[tuple[int, int]], Output], tasks: list[tuple[int, int]]
) -> list[Output]:
    """The results of all tasks, in their order, by as many threads as torch has."""
    threads = min(torch.get_num_threads(), len(tasks))
    if threads == 1:
        return [run(task) for task in tasks]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, tasks))


def _join(
    shards: list[Output], form: Format, share: Float[Tensor, "position train"]
) -> Float[Tensor, "position"]:
    """One query's log-sum of all weights, but for its energy; `share` is written in place."""
    least = torch.stack([shard.best for shard in shards]).amin(0)
    weights = [shard.total * torch.exp2(-form.value(shard.best - least)) for shard in shards]
    sums = torch.stack(weights).sum(0).log()
    for shard, columns in zip(shards, share.split(SHARD, dim=1), strict=True):
        shift = form.value(least[:, None] - shard.reference) * math.log(2) - sums[:, None]
        logs = shard.top.add_(shift[:, :, None].to(shard.top)).flatten(1)
        columns[:] = logs[:, : columns.shape[1]]
    return sums - math.log(2) * form.value(least)


def _run(
    noisy: Float[Tensor, "chan row col"],
    train: Float[Tensor, "train chan row col"],
    form: Format,
    temperature: float,
    cut: int,
    windows: Windows,
    top_k: int | None,
    rows: range,
) -> Output:
    """One query and one shard, at the positions in `rows`."""
    scale = 2.0**form.bits / (temperature * math.log(2))
    x = (windows.prepare(noisy[None].double())[0] * (-2 * scale)).to(form.real).contiguous()
    y = _in_lanes(windows.prepare(train.to(form.real)), form.lanes)
    blocks, positions = len(y), windows.positions
    output = Output(
        torch.full((positions,), torch.iinfo(form.whole).max, dtype=form.whole),
        torch.zeros(positions, dtype=torch.float64),
        torch.zeros(positions, blocks, form.lanes, dtype=form.real),
        torch.zeros(positions, blocks, dtype=form.whole),
    )
    _call(x, y, _integers(x, windows, top_k, rows, form.bits, len(train)), form, scale, cut, output)
    inside = slice(rows.start * windows.grid[1], rows.stop * windows.grid[1])
    best, total, top, reference = (values[inside] for values in output)
    return Output(best, total, top.log_(), reference)


def _call(
    x: Float[Tensor, "chan row col"],
    y: Float[Tensor, "block chan row col lane"],
    integers: list[np.ndarray],
    form: Format,
    scale: float,
    cut: int,
    output: Output,
) -> None:
    """The compiled function, which fills `output`; its arguments in the order of fused.cpp."""
    functions = compiled()
    assert functions is not None  # the front door has looked
    function = functions.narrow if form.narrow else functions.wide
    number = ctypes.c_int32 if form.narrow else ctypes.c_int64
    polynomial = form.polynomial().to(form.real)
    problem, pairs, columns = integers
    failed = function(
        *map(_address, (x, y)),
        *(_address(problem), _address(pairs), len(pairs), _address(columns), len(columns)),
        _address(polynomial),
        *(ctypes.c_double(scale), number(cut)),
        *map(_address, output),
    )
    if failed:
        raise MemoryError("the fused engine could not get its working memory")


def _address(values: Tensor | np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(values.data_ptr() if isinstance(values, Tensor) else values.ctypes.data)


def _integers(
    x: Tensor, windows: Windows, top_k: int | None, rows: range, bits: int, images: int
) -> list[np.ndarray]:
    """`Problem` of fused.cpp, and the ranges that meet: along rows (train, query), and columns."""
    keep = min(top_k or windows.positions, windows.positions)
    problem = [*x.shape, windows.taps, windows.step, keep, bits, images]
    edge = windows.before - windows.step + 1  # what comes before it is padding
    problem += [edge, windows.before + windows.height, edge, windows.before + windows.width]
    vertical, across = windows.groups()
    meeting = [
        (*((b.start, b.stop) if together else (start, stop)), start, stop, not together)
        for b, together in vertical
        if (start := max(b.start, rows.start)) < (stop := min(b.stop, rows.stop))
    ]
    ranges = meeting, [(b.start, b.stop, not together) for b, together in across]
    return [np.array(values, np.int32) for values in (problem, *ranges)]


def _in_lanes(
    images: Float[Tensor, "image chan row col"], lanes: int
) -> Float[Tensor, "block chan row col lane"]:
    """Images side by side in the lanes of vectors; lanes without one repeat the last."""
    # A margin before and after: displacements that leave an image read what lies next to it, and
    # forget it.
    blocks, margin = -(-len(images) // lanes), 8 * lanes
    memory = torch.zeros(blocks * lanes * images[0].numel() + 2 * margin, dtype=images.dtype)
    y = memory[margin:-margin].view(blocks, *images.shape[1:], lanes)
    y[:] = (
        torch.cat([images, images[-1:].expand(blocks * lanes - len(images), -1, -1, -1)])
        .unflatten(0, (blocks, lanes))
        .movedim(1, -1)
    )
    return y
