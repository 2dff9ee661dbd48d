"""The kernel of the engine `triton`, and how it is started.

One program does one query, one train image and a few columns of the query's positions, from pixels
to log-sums, in the registers of a GPU.

A tile holds the inner products of the windows at row i, columns j of the query with windows of the
train image, in float64. Slot s is the window that starts in row k = (i + s) mod (rows + span) of
the train image, counted from above the first row, so that a slot keeps its displacement when i
moves on, and its window slides down by one row of pixels:

    total += new row of the window - old row

No slot moves, and nothing is stored. A slot that leaves the image at the bottom is emptied, and
comes in again at the top, row by row. Logits are in bits (powers of two), less what depends on the
query alone.

Functions that Triton compiles have Triton's types, so that no others are checked. To import this
takes the package triton, so `triton.py` does it late.
"""

import logging
from functools import cache
from subprocess import CalledProcessError
from typing import no_type_check

import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from nda.nonparametric.patches.windows import Group, Windows

COLUMNS = 4  # of the query's positions per program
TILE = 8192  # the largest tile: numbers that fit into the registers of 8 warps

CUT = tl.constexpr(40.0)  # bits below an image's best logit at which a weight is nothing
TIE = tl.constexpr(2.0**-24)  # bits by which logits may differ and be taken for the same
log = logging.getLogger(__name__)


@triton.jit
@no_type_check
def _add_row(total, x, y, inside, chan, plane, span, STEP: tl.constexpr):
    """`total` with the products of the windows' row of pixels at `x` and `y`."""
    for c in range(chan):
        for column in range(0, span + 1, STEP):
            at = c * plane + column
            total += tl.load(x + at) * tl.load(y + at, mask=inside, other=0.0)
    return total


@triton.jit
@no_type_check
def _slide(total, x, y, old_x, old_y, inside, chan, plane, span, STEP: tl.constexpr):
    """The same, and without those of an old row."""
    for c in range(chan):
        for column in range(0, span + 1, STEP):
            at = c * plane + column
            total += tl.load(x + at) * tl.load(y + at)
            total -= tl.load(old_x + at) * tl.load(old_y + at, mask=inside, other=0.0)
    return total


@triton.jit
@no_type_check
def _flat(tile):
    """[J, S, M] as [J, S * M], so that a reduction goes through registers, lanes and warps once."""
    return tl.reshape(tile, [tile.shape[0], tile.shape[1] * tile.shape[2]])


@triton.jit
@no_type_check
def _sum(tile):
    return tl.sum(_flat(tile), 1)


@triton.jit
@no_type_check
def _largest(d, weights, keep, guess):
    # Sum of the weights of the `keep` smallest d in every row, and the border that was found: by
    # bisection, of which every second step is guided by the counts, from the border of the row
    # before. What ties at the border counts as often as there is room for it.
    low = tl.zeros_like(guess)
    high = low + CUT
    below_low = tl.zeros_like(low).to(tl.int32)
    below = _sum((d < CUT).to(tl.int32))
    middle = tl.where((guess > low) & (guess < high), guess, 0.5 * high)
    searching = below > keep
    turn = 1
    while tl.max(searching.to(tl.int32), 0) > 0:
        count = _sum((d < middle[:, None, None]).to(tl.int32))
        enough, few = searching & (count >= keep), searching & (count < keep)
        high, below = tl.where(enough, middle, high), tl.where(enough, count, below)
        low, below_low = tl.where(few, middle, low), tl.where(few, count, below_low)
        guided = low + (high - low) * ((keep - below_low + 0.5) / (below - below_low + 0.0))
        middle = 0.5 * (low + high)
        apart = (high - low > TIE) & (middle > low) & (middle < high)
        searching = (below > keep) & apart
        sound = (turn % 2 == 1) & (guided > low) & (guided < high)
        middle = tl.where(sound, guided, middle)
        turn += 1
    border = tl.where(below > keep, low, high)
    rest = tl.where(below > keep, (keep - below_low) * tl.exp2(-low), 0.0)
    return _sum(tl.where(d < border[:, None, None], weights, 0.0)) + rest, high


@triton.jit
@no_type_check
def _advance(
    total,
    x,
    y,
    i,
    k,
    again,
    band,
    chan,
    plane,
    width,
    span,
    STEP: tl.constexpr,
    WHOLE: tl.constexpr,
):
    # The products of all windows, `total`[j, s, m], at row i of the query and rows k of the train
    # image: those of the former i moved down, unless they are wanted afresh.
    if again or WHOLE:
        total = tl.zeros_like(total)
        for r in range(0, span + 1, STEP):
            at, of = x + (i + r) * width, y + (k + r) * width
            total = _add_row(total, at, of, k + r >= band, chan, plane, span, STEP)
    else:
        total = tl.where(k < band - span + STEP, 0.0, total)  # it comes in again
        new, old = x + (i + span) * width, x + (i - STEP) * width
        enters, leaves = y + (k + span) * width, y + (k - STEP) * width
        inside = k - STEP >= band
        total = _slide(total, new, enters, old, leaves, inside, chan, plane, span, STEP)
    return total


@triton.jit
@no_type_check
def _log_sums(logits, keep, guess, SELECT: tl.constexpr):
    # Of every row: of all weights, of the `keep` largest, and where those end, below the best.
    best = tl.max(_flat(logits), 1)
    d = (best[:, None, None] - logits).to(tl.float32)
    weights = tl.exp2(-d)
    sums = _sum(weights)
    largest = sums
    if SELECT:
        largest, guess = _largest(d, weights, keep, guess)
    return best + tl.log2(sums).to(tl.float64), best + tl.log2(largest).to(tl.float64), guess


# One machine code for all sizes: their divisors are not worth a compilation each.
SIZES = (
    "chan plane width positions grid_width out_images out_start out_rows row0 row1 band band_rows"
    " col0 cols span keep"
)


# fmt: off
@triton.jit(do_not_specialize=SIZES.split())
@no_type_check
def _kernel(
    x, y,  # [query, chan, row, col], prepared, times twice the scale; [image, chan, row, col]
    energy,  # [image, position]: squared norms of the windows of y, times the scale
    every, top,  # [query, row, column, image]: log-sums of all weights and of the `keep` largest
    chan, plane, width,  # of the prepared images
    positions, grid_width,
    out_images, out_start, out_rows,  # of the outputs: images; the first row, and how many
    row0, row1,  # rows of the query to do
    band, band_rows,  # rows of the train images that they meet
    col0, cols,  # columns of both
    span, keep,
    STEP: tl.constexpr,
    ROWS_MEET: tl.constexpr, COLS_MEET: tl.constexpr,  # all of them; else each only its own
    SELECT: tl.constexpr,  # whether an image has more than `keep` weights
    # the tile: columns of the query, rows of the train image, columns of it
    J: tl.constexpr, S: tl.constexpr, M: tl.constexpr,
):
    # See above; program (columns and phase of rows, train image, query).
    image, query = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    first, block = row0 + tl.program_id(0) % STEP, tl.program_id(0) // STEP
    number, s, other = block * J + tl.arange(0, J), tl.arange(0, S)[None, :, None], tl.arange(0, M)
    column = col0 + tl.minimum(number, cols - 1)  # columns past the last repeat it
    v, there = column[:, None, None], (other < 1)[None, None, :]
    if COLS_MEET:
        v = (col0 + tl.minimum(other, cols - 1))[None, None, :]
        there = (other < cols)[None, None, :]
    x += query * chan * plane + column[:, None, None]
    y += image * chan * plane + v
    energy += image * positions + v
    total, guess = tl.zeros([J, S, M], tl.float64), tl.zeros([J], tl.float32)
    for i in range(first, row1, STEP):
        k = i + s * 0
        if ROWS_MEET:
            k = band - span + (i + s) % (band_rows + span)
        total = _advance(
            total, x, y, i, k, i == first, band, chan, plane, width, span, STEP, not ROWS_MEET
        )
        valid = there & (k >= band) & (s < band_rows + span)
        logits = total - tl.load(energy + k * grid_width, mask=valid, other=float("inf"))
        everything, largest, guess = _log_sums(logits, keep, guess, SELECT)
        u = (query * out_rows + i - out_start) * grid_width + column
        at, owned = u * out_images + image, number < cols
        tl.store(every + at, everything, mask=owned)
        tl.store(top + at, largest, mask=owned)
# fmt: on


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernel, on the CPU.

    Returns:
        Whether TRITON_INTERPRET was set when triton was imported.
    """
    return not isinstance(_kernel, triton.JITFunction)


@cache
def trouble() -> str | None:
    """Why Triton cannot start kernels on this machine's GPU; logged as a warning, once.

    Returns:
        One sentence, or None if it can.
    """
    if interpreted():
        return None
    try:
        target = triton.runtime.driver.active.get_current_target()  # compiles what starts kernels
    except (RuntimeError, OSError, ImportError, CalledProcessError) as error:
        reason = str(error).strip().splitlines()[:1]
        found = f"cannot start a kernel here ({''.join(reason)}): it needs a C compiler, Python's"
        found += " headers and a GPU"
    else:
        if target.backend != "cuda" or target.arch >= 70:
            return None
        found = f"needs a GPU of compute capability 7.0, not {target.arch / 10}"
    log.warning("engine 'triton' %s", found)
    return f"engine 'triton' {found}; choose 'box' or 'auto'"


def sweep(
    x: Float[Tensor, "query chan padded_row padded_col"],
    y: Float[Tensor, "image chan padded_row padded_col"],
    energy: Float[Tensor, "image position"],
    every: Float[Tensor, "query row column rest"],
    top: Float[Tensor, "query row column rest"],
    *,
    group: tuple[Group, Group],
    windows: Windows,
    top_k: int | None,
    rows: range,
) -> None:
    """Write the log-sums of one group of positions, all arrays in float64.

    Args:
        x: prepared queries, times twice the scale that makes distances logits in bits.
        y: prepared train images.
        energy: squared norms of the windows of y, times the scale.
        every: gets, for the first images of its last axis, the log-sum of all weights.
        top: gets that of the largest.
        group: of `windows.groups()`, along rows and along columns.
        windows: of these images.
        top_k: largest weights kept per train image; None: all.
        rows: the query's rows of positions that the outputs have.
    """
    (tall, rows_meet), (wide, cols_meet) = group
    first, last = max(tall.start, rows.start), min(tall.stop, rows.stop)
    if first >= last:
        return
    heights, widths = len(tall) if rows_meet else 1, len(wide) if cols_meet else 1
    keep = min(top_k or heights * widths, heights * widths)
    slots, across = power(heights + windows.span) if rows_meet else 1, power(widths)
    columns = max(1, min(COLUMNS, power(len(wide)), TILE // (slots * across)))
    grid = (-(-len(wide) // columns) * windows.step, len(y), len(x))
    _kernel[grid](
        *(x, y, energy, every, top),
        *(x.shape[1], x[0, 0].numel(), x.shape[3], windows.positions, windows.grid[1]),
        *(every.stride(2), rows.start, len(rows), first, last),
        *(tall.start, heights, wide.start, len(wide), windows.span, keep),
        STEP=windows.step,
        ROWS_MEET=rows_meet,
        COLS_MEET=cols_meet,
        SELECT=keep < heights * widths,
        J=columns,
        S=slots,
        M=across,
        num_warps=max(1, columns * slots * across // 1024),
    )


def power(number: int) -> int:
    """The next power of two.

    Args:
        number: at least 1.

    Returns:
        The smallest power of two that is not less.
    """
    return 1 << (number - 1).bit_length()
