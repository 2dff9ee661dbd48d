"""How often a verdict is wrong: the statistic of held-out images is its null."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

from scipy.special import betaincinv

from nda.errors import InputError

LEVELS = (0.05, 0.01)  # false attribution rates that a threshold is given for
STEP = 1e-4  # statistics are multiples of it, so that rounding decides nothing


@dataclass(frozen=True)
class Threshold:
    """What a suspect's statistic must reach to be attributed.

    level: the false attribution rate that is aimed at. share: the threshold; None if there are too
    few held-out images for this level, or theirs are too large. false: held-out images that reach
    it, of all `of`. rate: their share, with its 95 % binomial interval from low to high.
    """

    level: float
    share: float | None
    false: int
    of: int
    rate: float
    low: float
    high: float


def rounded(statistic: float) -> float:
    """A statistic as it is compared.

    Args:
        statistic: any.

    Returns:
        The nearest multiple of `STEP`.
    """
    return round(round(statistic / STEP) * STEP, 6)


def p_value(statistic: float, null: Sequence[float]) -> float:
    """How often a held-out image has so large a statistic: (1 + those that have) / (n + 1).

    If the suspect were drawn as the n held-out images were, its rank among them would be any with
    equal probability, and p would be at most x with probability at most x.

    Args:
        statistic: of the suspect, `rounded`.
        null: of the held-out images, `rounded`.

    Returns:
        Above 0, at most 1.
    """
    return (1 + sum(other >= statistic for other in null)) / (len(null) + 1)


def interval(count: int, of: int, level: float = 0.95) -> tuple[float, float]:
    """The exact binomial interval of Clopper and Pearson.

    Args:
        count: successes.
        of: trials.
        level: how often it covers the true rate, at least.

    Returns:
        Lower and upper end; 0 and 1 of no trials.

    Raises:
        InputError: if there are more successes than trials.
    """
    if not 0 <= count <= of:
        raise InputError(f"count must be between 0 and {of}, the number of trials, not {count}")
    tail = (1 - level) / 2
    low = betaincinv(count, of - count + 1, tail) if count else 0.0
    high = betaincinv(count + 1, of - count, 1 - tail) if count < of else 1.0
    return float(low), float(high)


def threshold(null: Sequence[float], level: float) -> Threshold:
    """The least statistic whose p is at most `level`.

    Args:
        null: statistics of the held-out images, `rounded`.
        level: between 0 and 1.

    Returns:
        The threshold, and how many of these same images reach it.
    """
    falling = sorted(null, reverse=True)
    allowed = floor(level * (len(null) + 1) + 1e-9) - 1  # held-out images that may reach it
    share = None
    if allowed >= 0:
        over = falling[allowed] if allowed < len(falling) else -STEP
        above = rounded(over + STEP)
        share = above if above <= 1 else None
    false = sum(other >= share for other in null) if share is not None else 0
    rate = false / len(null) if null else 0.0
    return Threshold(level, share, false, len(null), rate, *interval(false, len(null)))
