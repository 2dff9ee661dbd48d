"""Images and a rich configuration, for the tests of scores, configurations and partial results."""

import torch

from nda import rng
from nda.nonparametric.config import NDAConfig, Scale

QUERIES, TRAIN = (
    2 * torch.rand(n, 1, 6, 7, generator=rng.generator("nda", n), dtype=torch.float64) - 1
    for n in (2, 5)
)
RICH = NDAConfig(
    {
        100: (Scale(3), Scale(4, coarse=True, weight=0.5), Scale(5, weight=2.0)),
        400: (Scale(4, coarse=True),),
    },
    top_k=3,
    draws=2,
    noise_seed=7,
    flips=True,
)


def assert_close(ours, theirs, tolerance=1e-9):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
