"""The kernel of the engine `triton`: one query, one train image and a few columns of the query's
positions, from pixels to log-sums, in the registers of a GPU.

A tile holds the inner products of the windows at row i, columns j of the query with windows of the
train image, in float64: `total[j, s, m]` is that of column m and row k = (i + s) mod K, so that
every slot s keeps its displacement when i moves on and its window slides down by one row,

    total += new row of the window - old row

No slot moves and nothing is stored. The slot whose window has left the image at the bottom comes
in again at the top, and is summed afresh. Logits are in bits (powers of two), less what depends on
the query alone.

Whoever imports this needs the package triton, which is why `triton.py` does it late.
"""

import triton
import triton.language as tl

CUT = tl.constexpr(64.0)  # bits below an image's best logit at which a weight is nothing
TIE = tl.constexpr(2.0**-24)  # bits by which logits may differ and be taken for the same


@triton.jit
def _window(total, x, y, chan, plane, width, span, STEP: tl.constexpr):
    """`total` and the products of whole windows, whose corners are at `x` and `y`."""
    for row in range(0, span + 1, STEP):
        for c in range(chan):
            for column in range(0, span + 1, STEP):
                at = c * plane + row * width + column
                total += tl.load(x + at) * tl.load(y + at)
    return total


@triton.jit
def _slide(total, x, y, out, chan, plane, width, span, STEP: tl.constexpr):
    """`total` less the products of the row at `x` and `out` and with those of the row that has come
    in, at `x` and `y` a window's height further down."""
    down = (span + STEP) * width
    for c in range(chan):
        for column in range(0, span + 1, STEP):
            at = c * plane + column
            total += tl.load(x + at + down) * tl.load(y + at)
            total -= tl.load(x + at) * tl.load(out + at)
    return total


@triton.jit
def _sum(values):
    return tl.sum(tl.sum(values, 2), 1)


@triton.jit
def _largest(d, weights, keep):
    """Sum of the weights of the `keep` smallest d in every row: bisection by counting, every second
    step guided by the counts. What ties at the border counts as often as there is room for it."""
    low, high = tl.zeros_like(_sum(d)), tl.zeros_like(_sum(d)) + CUT
    below_low, below = _sum((d < 0).to(tl.int32)), _sum((d < CUT).to(tl.int32))
    turn = 0
    searching = (below > keep).to(tl.int32)
    while tl.max(searching, 0) > 0:
        middle = 0.5 * (low + high)
        guess = low + (high - low) * ((keep - below_low + 0.5) / (below - below_low))
        sound = (turn % 2 == 0) & (guess > low) & (guess < high)
        middle = tl.where(sound, guess, middle)
        count = _sum((d < middle[:, None, None]).to(tl.int32))
        enough = (searching > 0) & (count >= keep)
        few = (searching > 0) & (count < keep)
        high, below = tl.where(enough, middle, high), tl.where(enough, count, below)
        low, below_low = tl.where(few, middle, low), tl.where(few, count, below_low)
        middle = 0.5 * (low + high)
        apart = (high - low > TIE) & (middle > low) & (middle < high)
        searching = ((below > keep) & apart).to(tl.int32)
        turn += 1
    border = tl.where(below > keep, low, high)
    rest = tl.where(below > keep, (keep - below_low) * tl.exp2(-low), 0.0)
    return _sum(tl.where(d < border[:, None, None], weights, 0.0)) + rest


@triton.jit
def sweep(
    x,  # [query, chan, height, width]: prepared, times twice the scale
    y,  # [image, chan, height, width]: prepared
    energy,  # [image, grid_height, grid_width]: squared norms of the windows of y, times the scale
    every,  # [query, row, grid_width, images]: log-sum of all weights of an image ...
    top,  # ... and of the `keep` largest
    chan,
    height,
    width,
    grid_height,
    grid_width,
    images,
    out_row,  # of the query's rows, the first in the output ...
    out_rows,
    row0,  # ... and those to do here
    row1,
    band,  # rows of the train images that they meet
    band_rows,
    col0,  # columns of both
    cols,
    span,
    keep,
    STEP: tl.constexpr,
    ROWS_MEET: tl.constexpr,  # all rows of the band; else each only its own
    COLS_MEET: tl.constexpr,
    SELECT: tl.constexpr,  # whether an image has more than `keep` weights
    J: tl.constexpr,  # the tile: columns of the query, rows of the train image, columns of it
    S: tl.constexpr,
    M: tl.constexpr,
):
    """See above; program (column block and phase of rows, train image, query)."""
    image, query = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    phase, block = tl.program_id(0) % STEP, tl.program_id(0) // STEP
    plane = height * width
    x += query * chan * plane
    y += image * chan * plane
    energy += image * grid_height * grid_width
    number, slot, other = block * J + tl.arange(0, J), tl.arange(0, S), tl.arange(0, M)
    mine = col0 + tl.minimum(number, cols - 1)  # columns past the last repeat it
    j, s = mine[:, None, None], slot[None, :, None]
    v, there = j, (other < 1)[None, None, :]
    if COLS_MEET:
        v, there = (col0 + tl.minimum(other, cols - 1))[None, None, :], (other < cols)[None, None, :]
    total = tl.zeros([J, S, M], tl.float64)
    for i in range(row0 + phase, row1, STEP):
        k = i + s * 0
        if ROWS_MEET:
            k = band + (i + s) % band_rows
            if i < row0 + STEP:
                total = _window(
                    tl.zeros([J, S, M], tl.float64),
                    x + i * width + j,
                    y + k * width + v,
                    chan,
                    plane,
                    width,
                    span,
                    STEP,
                )
            else:
                last = x + (i - STEP) * width + j
                new = y + (k + span) * width + v
                old = y + tl.maximum(k - STEP, 0) * width + v
                total = _slide(total, last, new, old, chan, plane, width, span, STEP)
                for again in range(band, band + tl.minimum(STEP, band_rows)):
                    fresh = _window(
                        tl.zeros([J, 1, M], tl.float64),
                        x + i * width + j,
                        y + again * width + v,
                        chan,
                        plane,
                        width,
                        span,
                        STEP,
                    )
                    total = tl.where(k == again, fresh, total)
        else:
            total = _window(
                tl.zeros([J, S, M], tl.float64),
                x + i * width + j,
                y + i * width + v,
                chan,
                plane,
                width,
                span,
                STEP,
            )
        logits = total - tl.load(energy + k * grid_width + v)
        logits = tl.where(there & (s < band_rows), logits, float("-inf"))
        best = tl.max(tl.max(logits, 2), 1)
        d = (best[:, None, None] - logits).to(tl.float32)
        weights = tl.exp2(-d)
        sums = _sum(weights)
        largest = sums
        if SELECT:
            largest = _largest(d, weights, keep)
        u = (query * out_rows + i - out_row) * grid_width + mine
        at, owned = u * images + image, number < cols
        tl.store(every + at, best + tl.log2(sums).to(tl.float64), mask=owned)
        tl.store(top + at, best + tl.log2(largest).to(tl.float64), mask=owned)
