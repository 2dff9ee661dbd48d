"""draft"""

import math
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nda.nonparametric.patches.posterior import Posterior
from nda.nonparametric.patches.windows import Windows

class Tile(NamedTuple):
    columns: int = 4
    warps: int = 4

def _power(n): return 1 << max(0, n - 1).bit_length()

def _groups(bands):
    groups = []
    for band in bands:
        single = len(band) == 1
        if single and groups and not groups[-1][1]:
            band = range(groups.pop()[0].start, band.stop)
        groups.append((band, not single))
    return groups

def posterior(noisy, train, *, sigma, windows, top_k, rows, tile=Tile()):
    from nda.nonparametric.patches.sweep import sweep
    scale = 1 / (2 * sigma**2 * math.log(2))
    grid = windows.grid
    x = windows.prepare(noisy.double()).mul_(2 * scale).contiguous()
    every = x.new_empty(len(noisy), len(rows), grid[1], len(train))
    top = torch.empty_like(every)
    y = windows.prepare(train.double()).contiguous()
    energy = windows.energy(train).mul_(scale)
    vertical, across = (_groups(b) for b in windows.bands())
    for (band, rows_meet), (cols, cols_meet) in product(vertical, across):
        first, last = max(band.start, rows.start), min(band.stop, rows.stop)
        if first >= last: continue
        tall, wide = (len(band) if rows_meet else 1), (len(cols) if cols_meet else 1)
        keep = min(top_k or tall * wide, tall * wide)
        J = min(tile.columns, _power(len(cols)))
        sweep[(-(-len(cols) // J) * windows.step, len(train), len(noisy))](
            x, y, energy, every, top, *x.shape[1:], *grid, len(train), rows.start, len(rows),
            first, last, band.start, tall, cols.start, len(cols), windows.span, keep,
            STEP=windows.step, ROWS_MEET=rows_meet, COLS_MEET=cols_meet, SELECT=keep < tall * wide,
            J=J, S=_power(tall), M=_power(wide), num_warps=tile.warps)
    every, top = every.flatten(1, 2), top.flatten(1, 2)
    total = every.logsumexp(2) if False else ((every - (b := every.amax(2, keepdim=True))).exp2().sum(2).log2() + b[..., 0])
    share = ((top - total[..., None]) * math.log(2)).to(noisy)
    energies = windows.energy(noisy) * scale
    return Posterior(torch.arange(len(train), device=train.device), (total - energies[:, rows.start*grid[1]:rows.stop*grid[1]]) * math.log(2), share)
