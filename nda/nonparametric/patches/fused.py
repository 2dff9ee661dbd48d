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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nda.nonparametric.patches.posterior import Posterior
from nda.nonparametric.patches.windows import Windows
from nda.places import cache as cache_folder

SOURCE = Path(__file__).with_name("fused.cpp")
# Not -ffast-math: a library built with it makes the whole process flush small numbers to zero.
FLAGS = (
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

        norm: largest squared norm of a query window. largest: largest absolute pixel of the
        prepared train images. A logit is a sum of taps² products of floats, rounded to fixed point,
        and every step of the vertical box filter adds the rounding of `taps` more.
        """
        other = windows.taps**2 * chan * largest**2
        bound = (
            1.01 * max(norm, other + 2 * math.sqrt(norm * other)) / (temperature * math.log(2))
            + 1e-9
        )
        # One product of a window is at most `bound`; with a single tap the filter also rounds the
        # difference of two at once.
        digits = (31 if windows.taps > 1 else 30) - math.ceil(math.log2(bound))
        fixed = (
            0.3
            * math.sqrt(windows.taps * (windows.taps + windows.height))
            * math.log(2)
            * 2.0**-digits
        )
        floats = (
            2.0**-24 * 2 * largest * math.sqrt(norm) / temperature
        )  # Σ(xy)² is at most largest² norm
        if dtype == torch.float32 and math.hypot(fixed, floats) <= NARROW_ERROR:
            return cls(min(digits, 23), True)
        return cls(min(digits + 31, 52), False)

    def value(self, whole: Tensor) -> Tensor:
        """Bits from fixed-point numbers; differences of nearby numbers are exact."""
        return whole.double() * 2.0**-self.bits

    def polynomial(self, terms: int) -> Tensor:
        """Coefficients of 2^-f, for f counted in last bits: interpolation at Chebyshev nodes, to
        1e-7 with 6 terms and 1e-15 with 14."""
        k = np.arange(terms)
        nodes = (1 - np.cos((2 * k + 1) * np.pi / (2 * terms))) / 2
        return torch.from_numpy(
            np.linalg.solve(np.vander(nodes, increasing=True), np.exp2(-nodes))
            * np.exp2(-float(self.bits) * k)
        )


@cache
def compiled() -> ctypes.CDLL | None:
    """The compiled functions, or None if there is no C++ compiler; kept in the cache folder
    (`NDA_CACHE`), one per source and CPU."""
    compiler = (
        shutil.which(os.environ.get("CXX", ""))
        or shutil.which("c++")
        or shutil.which("g++")
        or shutil.which("clang++")
    )
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
    precision of the input's dtype are left out."""
    temperature = 2 * sigma**2
    norms = windows.energy(noisy)  # [query, position]
    energy = norms.unflatten(1, windows.grid)[:, rows.start : rows.stop].flatten(1)
    largest = train.abs().max().item() * windows.step
    formats = [
        Format.choose(norm, largest, len(train[0]), windows, temperature, noisy.dtype)
        for norm in norms.amax(1).tolist()
    ]
    tasks = [(q, n) for q in range(len(noisy)) for n in range(0, len(train), SHARD)]

    def run(task: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, n = task
        return _run(
            noisy[q],
            train[n : n + SHARD],
            len(train),
            formats[q],
            temperature,
            windows,
            top_k,
            rows,
        )

    threads = min(torch.get_num_threads(), len(tasks))
    if threads == 1:
        results = [run(task) for task in tasks]
    else:
        with ThreadPoolExecutor(threads) as pool:
            results = list(pool.map(run, tasks))
    shards = len(tasks) // len(noisy)
    total = torch.empty(energy.shape, dtype=torch.float64)
    share = torch.empty(*energy.shape, len(train), dtype=noisy.dtype)
    for q, form in enumerate(formats):
        mine = results[q * shards : (q + 1) * shards]
        least = torch.stack([best for best, *_ in mine]).amin(0)
        sums = (
            torch.stack(
                [weight * torch.exp2(-form.value(best - least)) for best, weight, *_ in mine]
            )
            .sum(0)
            .log()
        )
        total[q] = sums - math.log(2) * form.value(least) - energy[q] / temperature
        for shard, (_, _, top, reference) in enumerate(
            mine
        ):  # in place: these are the largest arrays
            shift = form.value(least[:, None] - reference) * math.log(2) - sums[:, None]
            logs = top.add_(shift[:, :, None].to(top)).flatten(1)
            columns = slice(shard * SHARD, min((shard + 1) * SHARD, len(train)))
            share[q, :, columns] = logs[:, : columns.stop - columns.start]
    return Posterior(torch.arange(len(train)), total, share)


def _run(
    noisy: Float[Tensor, "chan row col"],
    train: Float[Tensor, "train chan row col"],
    n_train: int,
    form: Format,
    temperature: float,
    windows: Windows,
    top_k: int | None,
    rows: range,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One query and one shard: `Output` of fused.cpp as tensors; best, total [position], top
    [position, block, lane], reference [position, block]."""
    real, whole, number = (
        (torch.float32, torch.int32, ctypes.c_int32)
        if form.narrow
        else (torch.float64, torch.int64, ctypes.c_int64)
    )
    lanes, terms = (16, 6) if form.narrow else (8, 14)
    functions = compiled()
    assert functions is not None  # the front door has looked
    function = functions.narrow if form.narrow else functions.wide
    scale = 2.0**form.bits / (temperature * math.log(2))
    x = (windows.prepare(noisy[None].double())[0] * (-2 * scale)).to(real).contiguous()
    y = _in_lanes(windows.prepare(train.to(real)), lanes)
    blocks, width, positions = len(y), windows.grid[1], windows.positions
    integers = _integers(x, windows, top_k, rows, form.bits, len(train))
    negligible = math.log(n_train * positions) - 2 * math.log(
        torch.finfo(noisy.dtype).eps
    )  # nats below the best
    cut = min(int(negligible / math.log(2) * 2.0**form.bits), 2 ** (30 if form.narrow else 62))
    polynomial = form.polynomial(terms).to(real)
    best = torch.full((positions,), torch.iinfo(whole).max, dtype=whole)
    total = torch.zeros(positions, dtype=torch.float64)
    top = torch.zeros(positions, blocks, lanes, dtype=real)
    reference = torch.zeros(positions, blocks, dtype=whole)
    settings, pairs, columns = [ctypes.c_void_p(values.ctypes.data) for values in integers]
    tensors = [
        ctypes.c_void_p(v.data_ptr()) for v in (x, y, polynomial, best, total, top, reference)
    ]
    many = len(integers[1]), len(integers[2])
    arguments = (
        tensors[:2],
        (settings, pairs, many[0], columns, many[1]),
        tensors[2:3],
        (ctypes.c_double(scale), number(cut)),
        tensors[3:],
    )
    if function(*chain(*arguments)):
        raise MemoryError("the fused engine could not get its working memory")
    inside = slice(rows.start * width, rows.stop * width)
    return best[inside], total[inside], top[inside].log_(), reference[inside]


def _integers(
    x: Tensor, windows: Windows, top_k: int | None, rows: range, bits: int, images: int
) -> list[np.ndarray]:
    """`Problem` of fused.cpp, and the ranges of positions that meet: along rows (train image,
    query) and along columns."""
    edge, positions = (
        windows.before - windows.step + 1,
        windows.positions,
    )  # what comes before the edge is padding
    problem = [
        *x.shape,
        windows.taps,
        windows.step,
        min(top_k or positions, positions),
        bits,
        images,
    ]
    problem += [edge, windows.before + windows.height, edge, windows.before + windows.width]
    vertical, across = windows.bands()
    meeting = [
        (b.start, b.stop, max(b.start, rows.start), min(b.stop, rows.stop)) for b in vertical
    ]
    ranges = [m for m in meeting if m[2] < m[3]], [(b.start, b.stop) for b in across]
    return [np.array(values, np.int32) for values in (problem, *ranges)]


def _in_lanes(
    images: Float[Tensor, "image chan row col"], lanes: int
) -> Float[Tensor, "block chan row col lane"]:
    """Images side by side in the lanes of vectors, with a margin before and after: displacements
    that leave an image read what lies next to it, and forget it. Lanes without an image repeat the
    last one."""
    blocks, margin = -(-len(images) // lanes), 8 * lanes
    memory = torch.zeros(blocks * lanes * images[0].numel() + 2 * margin, dtype=images.dtype)
    y = memory[margin:-margin].view(blocks, *images.shape[1:], lanes)
    y[:] = (
        torch.cat([images, images[-1:].expand(blocks * lanes - len(images), -1, -1, -1)])
        .unflatten(0, (blocks, lanes))
        .movedim(1, -1)
    )
    return y
