"""Random images, for the tests of methods that look at images alone."""

import torch

from nda import rng

QUERIES, TRAIN = (
    2 * torch.rand(n, 3, 4, 5, generator=rng.generator("similarity", n)) - 1 for n in (3, 7)
)


def grey(n: int, height: int = 5, width: int = 5, name: str = "grey") -> torch.Tensor:
    source = rng.generator(name, n)
    return 2 * torch.rand(n, 1, height, width, dtype=torch.float64, generator=source) - 1
