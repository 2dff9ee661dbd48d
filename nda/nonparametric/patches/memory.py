"""What to do when a GPU has too little memory: smaller blocks, and then one sentence."""

from collections.abc import Callable
from typing import TypeVar

import torch

from nda.errors import InputError

Result = TypeVar("Result")
LEAST = 2**10  # a block that many times smaller than the first, or of size 1, is not halved


class OutOfMemory(InputError):
    """The memory does not suffice, even for the smallest blocks."""


def within_memory(run: Callable[[int], Result], size: int) -> Result:
    """`run(size)`, again with half the size as long as it runs out of the GPU's memory.

    Args:
        run: does all the work in blocks of a size, which changes nothing but memory.
        size: to begin with, in any unit.

    Returns:
        What it returns.

    Raises:
        OutOfMemory: if the smallest blocks are too large too.
    """
    smallest = max(1, size // LEAST)
    while True:
        try:
            return run(size)
        except (torch.OutOfMemoryError, OutOfMemory):
            if size <= smallest:
                raise OutOfMemory(
                    "the GPU's memory does not suffice, even in small blocks; score fewer train"
                    " images at a time and merge the parts, or choose device 'cpu'"
                ) from None
        size = max(smallest, size // 2)  # here, where the failed run's arrays are no longer held
