"""Verdicts about suspects: against a null of held-out images, and beside the power to find copies
that were planted."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from jaxtyping import UInt8
from torch import Tensor

from nda.data.bank import Bank, floats
from nda.data.pixels import levels
from nda.errors import InputError
from nda.evidence import plants
from nda.evidence.attribution import Attributor, Reading
from nda.evidence.calibration import LEVELS, Threshold, p_value, threshold
from nda.nonparametric.index import near_copies

COPIES = {  # what planted copies are called, and what `plants` calls what is done to them
    "exact copy": "exact",
    "mirrored": "mirrored",
    "cropped": "cropped, resized",
    "JPEG": "JPEG",
    "recoloured": "brighter",
}
PARTS = {"part, 3/8 of the side, moved": ("3/8", True), "part, half of the side": ("1/2", False)}
WHOLE = 0.75  # of the share that a planted exact copy has: from there on it is a copy
TELL = 3  # sources that a sentence names


@dataclass(frozen=True)
class Null:
    """Statistics of held-out images, ascending."""

    shares: tuple[float, ...]

    def p(self, share: float) -> float:
        """How often a held-out image has so large a statistic.

        Args:
            share: the statistic.

        Returns:
            The p-value.
        """
        return p_value(share, self.shares)

    @property
    def thresholds(self) -> list[Threshold]:
        """What a suspect must reach."""
        return [threshold(self.shares, level) for level in LEVELS]


@dataclass(frozen=True)
class Power:
    """Planted copies of one case: how many, how many were attributed, and of how many the original
    came first."""

    case: str
    planted: int
    found: int
    named: int


@dataclass(frozen=True)
class Source:
    """One picture of the folder that a suspect may owe pixels to; `image` is its place in the
    bank."""

    image: int
    share: float
    p: float
    score: float
    mirrored: bool


@dataclass(frozen=True)
class Verdict:
    """kind: "copy", "parts" or "none"; sentence: the same in words; share and p: of the first
    source."""

    kind: str
    sentence: str
    share: float
    p: float


@dataclass(frozen=True)
class Strangers:
    """Images that are no sources of anything. pixels: in 256 levels. without: for each, places of
    pictures that are taken out of the bank when it is asked: itself, if it was set aside. near: how
    many were left out because the bank has a near copy."""

    pixels: UInt8[Tensor, "image chan row col"]
    without: tuple[tuple[int, ...], ...]
    near: int


def set_aside(bank: Bank, count: int, *, flips: bool) -> Strangers:
    """Pictures of the bank, each of which is left out in turn and asked as if it was a suspect.

    All pictures remain possible sources of a suspect. A suspect that was drawn as the pictures were
    has then one picture more to owe something to than the pictures themselves have, which raises
    the rate of false attributions by no more than one in the size of the bank. A picture with a
    near copy in the bank is no stranger, and is left out.

    Args:
        bank: the pictures.
        count: how many are wanted.
        flips: whether mirror images count as near copies as well.

    Returns:
        At most `count` pictures, drawn by name.
    """
    chosen, near = _alone(bank, "set aside", count, flips)
    return Strangers(bank.pixels[chosen], tuple((n,) for n in chosen), near)


def _alone(bank: Bank, name: str, count: int, flips: bool) -> tuple[list[int], int]:
    """The first pictures of a draw that have no near copy, and how many before them have one."""
    chosen: list[int] = []
    near, order = 0, torch.tensor(bank.draw(name))
    for some in order.split(max(64, count)):
        copies = near_copies(bank.pixels[some], bank.pixels, flips=flips)
        for n, found in zip(some.tolist(), copies, strict=True):
            if len(chosen) == count:
                return chosen, near
            if set(found) <= {n}:
                chosen.append(n)
            else:
                near += 1
    return chosen, near


def held_out(bank: Bank, other: Bank, names: Sequence[str], count: int) -> Strangers:
    """Pictures of another folder.

    Args:
        bank: those that sources are looked for among.
        other: those that are held out.
        names: of the files of both: of the bank's pictures, then of the others, by their places.
        count: how many are wanted.

    Returns:
        At most `count` pictures, drawn by name.

    Raises:
        InputError: if one of them, or a near copy, is in the bank.
    """
    copies = near_copies(other.pixels, bank.pixels, flips=True)
    if both := [(n, found[0]) for n, found in enumerate(copies) if found]:
        (n, twin), more = both[0], len(both) - 1
        also = f", and {more} more are" * (more > 0)
        raise InputError(
            f"held-out image {names[len(bank) + n]} is in the folder, too, as {names[twin]} or"
            f" nearly so{also}; take it out of one of them"
        )
    chosen = other.draw("set aside")[:count]
    return Strangers(other.pixels[chosen], ((),) * len(chosen), 0)


def null(attributor: Attributor, strangers: Strangers) -> Null:
    """The statistic of images that have no source.

    Args:
        attributor: of the bank.
        strangers: the images.

    Returns:
        Their statistics.
    """
    found = attributor.readings(strangers.pixels, strangers.without)
    return Null(tuple(sorted(one.largest for one in found)))


def power(
    attributor: Attributor, strangers: Strangers, null: Null, count: int
) -> tuple[list[Power], float]:
    """Copies of the bank's own pictures, whole or in part, and whether they are found.

    Args:
        attributor: of the bank.
        strangers: hosts of the parts.
        null: what a copy has to exceed.
        count: copies of each case.

    Returns:
        Every case, and the median share of an exact copy. No cases if all pictures have near
        copies.
    """
    bank, flips = attributor.bank, attributor.how.flips
    sources, _ = _alone(bank, "planted", count, flips)
    if not sources:
        return [], 1.0
    pixels = bank.floats(sources)[:, None]
    asked: list[tuple[str, int, Tensor, tuple[int, ...]]] = []
    for case, kind in COPIES.items():
        for n, one in zip(sources, pixels, strict=True):
            asked.append((case, n, plants.copies(one, 1, kind).queries, ()))
    for case, (part, moved) in PARTS.items():
        for seed, (n, one) in enumerate(zip(sources, pixels, strict=True)):
            if (host := _host(strangers, n, seed)) is not None:
                onto = floats(strangers.pixels[[host]])
                made = plants.transplants(one, onto, 1, part, moved, seed=seed).queries
                asked.append((case, n, made, strangers.without[host]))
    queries = levels(torch.cat([query for _, _, query, _ in asked]))
    readings = attributor.readings(queries, [without for *_, without in asked])
    found = []
    for case in dict.fromkeys(case for case, *_ in asked):
        here = [(n, one) for (c, n, *_), one in zip(asked, readings, strict=True) if c == case]
        reached = sum(null.p(one.largest) <= LEVELS[0] for _, one in here)
        found.append(Power(case, len(here), reached, sum(one.images[0] == n for n, one in here)))
    exact = next(iter(COPIES))
    whole = [one.largest for (c, *_), one in zip(asked, readings, strict=True) if c == exact]
    return found, median(whole)


def _host(strangers: Strangers, source: int, start: int) -> int | None:
    """A stranger that a part of `source` can be planted in: not this picture itself."""
    count = len(strangers.pixels)
    turns = [(start + n) % count for n in range(count)]
    return next((n for n in turns if source not in strangers.without[n]), None)


def judge(
    reading: Reading, null: Null, names: Sequence[str], whole: float, same: str | None
) -> Verdict:
    """The verdict about a suspect.

    Args:
        reading: of the suspect.
        null: of the held-out images.
        names: of the pictures' files, by their places.
        whole: median share of an exact copy.
        same: name of a file that is the suspect byte for byte, if there is one.

    Returns:
        What the page says first.
    """
    share, p = reading.largest, null.p(reading.largest)
    told = [
        names[n]
        for n, one in zip(reading.images, reading.shares, strict=True)
        if one > 0 and null.p(one) <= LEVELS[0]
    ]
    if same is not None:
        return Verdict("copy", f"A copy of {same}, byte for byte", share, p)
    if not told:
        few = f": {len(null.shares)} held-out images are too few to say more"
        few *= null.thresholds[0].share is None
        return Verdict("none", f"No attributable source{few}", share, p)
    if share >= WHOLE * whole:
        return Verdict("copy", f"A copy of {told[0]}", share, p)
    first, last = told[: TELL - 1], told[TELL - 1 :]
    first += [f"{len(last)} more"] if len(last) > 1 else last
    return Verdict("parts", f"Parts from {' and '.join(first)}", share, p)
