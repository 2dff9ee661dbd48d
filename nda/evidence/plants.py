"""Queries with known answers: images that are made of train images, and which pixel is whose."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Generator, Tensor

from nda import rng
from nda.checks import check_images
from nda.errors import InputError, check_positive
from nda.nonparametric.patches import Windows, patch_posterior
from nda.schedule import sigma, signal

NOBODY = -1  # owns the pixels that are no train image's
SIDES = {"1/4": 4, "3/8": 6, "1/2": 8}  # of a transplanted square, in sixteenths of the image's
# The steps of an ideal sample, timestep: side of the window, in sixteenths of the image's side
IDEAL = {900: 11, 700: 9, 500: 7, 300: 5, 100: 3, 20: 3}
JPEG_QUALITY = 50
BRIGHTER = 0.2  # added to pixels in [-1, 1]
NOISE = 0.1


@dataclass(frozen=True)
class Planted:
    """Queries of one kind, with their answers.

    Attributes:
        case: "copies", "transplants", "mosaics", "ideal samples" or "strangers".
        kind: what was done, for example "mirrored".
        queries: pixels in [-1, 1].
        owner: the number of the train image that each pixel is from, or `NOBODY`.
        answers: the train images that a method should name; none for strangers.
        known: how surely a pixel is its owner's: 1 where it was copied. A pixel of an ideal sample
            has the mass that its owner had when it was drawn.
    """

    case: str
    kind: str
    queries: Float[Tensor, "query chan row col"]
    owner: Int[Tensor, "query row col"]
    answers: Int[Tensor, "query answer"]
    known: Float[Tensor, "query row col"]


def plant(
    train: Float[Tensor, "train chan row col"],
    held_out: Float[Tensor, "held_out chan row col"],
    count: int,
    seed: int = 0,
) -> list[Planted]:
    """All cases. Everything is drawn by name, and the first queries of a kind are the same however
    many there are.

    Args:
        train: pixels in [-1, 1].
        held_out: other images of the same shape: hosts of the transplants, and strangers.
        count: queries of each kind; strangers are all of `held_out`.
        seed: names the draws.

    Returns:
        One entry for every kind.

    Raises:
        InputError: for images that do not go together, or are too few or too small.
    """
    check_images(train, "train")
    check_images(held_out, "held_out")
    check_positive("count", count)
    if train.shape[1:] != held_out.shape[1:]:
        raise InputError(
            f"held_out are {tuple(held_out.shape[1:])} but train is {tuple(train.shape[1:])};"
            " resize one of them"
        )
    if len(train) < 4:
        raise InputError(
            f"train must have at least 4 images, one for each quadrant of a mosaic, not"
            f" {len(train)}"
        )
    if (side := min(train.shape[2:])) < 8:
        raise InputError(
            f"train must be at least 8 px wide and high for the smallest square, not {side}; load"
            " the images at a larger size"
        )
    squares = [(part, moved) for part in SIDES for moved in (False, True)]
    return [
        *(copies(train, count, kind, seed) for kind in CHANGES),
        *(transplants(train, held_out, count, *square, seed) for square in squares),
        mosaics(train, count, seed),
        ideal_samples(train, count, seed),
        _planted("strangers", "held out", held_out, NOBODY, held_out.new_empty(len(held_out), 0)),
    ]


# ---- copies


def _shifted(image: Tensor, by: int) -> Tensor:
    """To the right; the first column is repeated."""
    return F.pad(image, (by, 0, 0, 0), mode="replicate")[..., : image.shape[2]]


def _jpeg(image: Tensor) -> Tensor:
    """Through a file, in colour if it has three channels."""
    done = []
    for part in [image] if len(image) == 3 else image.split(1):
        levels = ((part + 1) * 127.5).round().byte().cpu().movedim(0, 2).numpy().squeeze()
        Image.fromarray(levels).save(file := BytesIO(), "JPEG", quality=JPEG_QUALITY)
        read = torch.frombuffer(bytearray(Image.open(file).tobytes()), dtype=torch.uint8)
        done.append(read.view(*part.shape[1:], len(part)).movedim(2, 0) / 127.5 - 1)
    return torch.cat(done).to(image)


def _noisy(image: Tensor, source: Generator) -> Tensor:
    return image + NOISE * torch.randn(image.shape, generator=source).to(image)


def _cropped(image: Tensor) -> Tensor:
    """Without an eighth of the side at every edge, resized to what it was."""
    rows, cols = (side // 8 for side in image.shape[1:])
    inner = image[:, rows:-rows, cols:-cols]
    options: Any = {"mode": "bilinear", "align_corners": False, "antialias": True}
    return F.interpolate(inner[None], image.shape[1:], **options)[0]


CHANGES: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "exact": lambda image, source: image,
    "mirrored": lambda image, source: image.flip(-1),
    "shifted by 1 px": lambda image, source: _shifted(image, 1),
    "shifted by 2 px": lambda image, source: _shifted(image, 2),
    "brighter": lambda image, source: image + BRIGHTER,
    "JPEG": lambda image, source: _jpeg(image),
    "noisy": _noisy,
    "cropped, resized": lambda image, source: _cropped(image),
}


def copies(
    train: Float[Tensor, "train chan row col"], count: int, kind: str, seed: int = 0
) -> Planted:
    """Train images, changed.

    Args:
        train: pixels in [-1, 1].
        count: of queries.
        kind: one of `CHANGES`.
        seed: names the draws.

    Returns:
        The queries; the pixels that a shift repeats are nobody's.
    """
    sources = _drawn("copies", len(train), count, seed)
    made = [
        CHANGES[kind](train[n], rng.generator("planted", kind, i, seed))
        for i, n in enumerate(sources)
    ]
    owner = torch.tensor(sources)[:, None, None].repeat(1, *train.shape[2:])
    if kind.startswith("shifted"):
        owner[:, :, : int(kind.split()[2])] = NOBODY
    queries = torch.stack(made).clamp(-1, 1)
    return _planted("copies", kind, queries, owner, torch.tensor(sources)[:, None])


# ---- transplants and mosaics


def transplants(
    train: Float[Tensor, "train chan row col"],
    held_out: Float[Tensor, "held_out chan row col"],
    count: int,
    part: str,
    moved: bool,
    seed: int = 0,
) -> Planted:
    """Held-out images with a square of one train image pasted in.

    A square without any drawing has no owner. So it is drawn among the half of all squares of the
    train image whose pixels vary most.

    Args:
        train: pixels in [-1, 1].
        held_out: the hosts.
        count: of queries.
        part: of the image's side that the square's side is, one of `SIDES`.
        moved: whether it is pasted anywhere, and not where it was.
        seed: names the draws.

    Returns:
        The queries.
    """
    side = round(min(train.shape[2:]) * SIDES[part] / 16)
    sources = _drawn("transplants", len(train), count, seed)
    hosts = _drawn("hosts", len(held_out), count, seed)
    queries = held_out[hosts].clone()
    owner = torch.full((count, *train.shape[2:]), NOBODY)
    for i, n in enumerate(sources):
        draw = rng.generator("planted", "transplants", side, i, seed)
        squares = train[n].unfold(1, side, 1).unfold(2, side, 1)  # [chan, row, col, side, side]
        spread = squares.var((3, 4), correction=0).sum(0)
        busiest = spread.flatten().argsort(descending=True, stable=True)[: -(-spread.numel() // 2)]
        at, to = (
            divmod(int(places[torch.randint(len(places), (), generator=draw)]), spread.shape[1])
            for places in (busiest, torch.arange(spread.numel()))
        )
        (r, c), (row, col) = at, to if moved else at
        queries[i, :, row : row + side, col : col + side] = squares[:, r, c]
        owner[i, row : row + side, col : col + side] = n
    kind = f"{part} of the side" + ", moved" * moved
    return _planted("transplants", kind, queries, owner, torch.tensor(sources)[:, None])


def mosaics(train: Float[Tensor, "train chan row col"], count: int, seed: int = 0) -> Planted:
    """The four quadrants of four train images, each in its place.

    Args:
        train: pixels in [-1, 1], at least four.
        count: of queries.
        seed: names the draws.

    Returns:
        The queries.
    """
    sources = torch.tensor(_drawn("mosaics", len(train), 4 * count, seed)).view(count, 4)
    rows, cols = train.shape[2:]
    place = 2 * (torch.arange(rows) >= rows // 2)[:, None] + (torch.arange(cols) >= cols // 2)
    owner = sources[:, place]
    return _planted("mosaics", "four quadrants", _from_owners(train, owner), owner, sources)


def _from_owners(train: Tensor, owner: Int[Tensor, "query row col"]) -> Tensor:
    """Every pixel from its owner, at its own place."""
    rows, cols = (torch.arange(side) for side in owner.shape[1:])
    return train[owner, :, rows[:, None], cols].movedim(3, 1)


# ---- ideal samples


def ideal_samples(train: Float[Tensor, "train chan row col"], count: int, seed: int = 0) -> Planted:
    """Images that the patch posterior itself has drawn. From noise to an image: at every timestep
    each pixel draws a train patch by its posterior mass and takes the pixel in its middle; then
    noise is added for the next timestep. The draws of the last step are the known sources.

    It is the generative model of the theory (Kamb & Ganguli 2024), with draws in place of means.

    Args:
        train: pixels in [-1, 1].
        count: of queries.
        seed: names the draws.

    Returns:
        The queries. Their answer is the train image with the most pixels.
    """
    made = [_ideal(train, rng.generator("planted", "ideal", i, seed)) for i in range(count)]
    queries, owner, known = (torch.stack(parts) for parts in zip(*made, strict=True))
    most = torch.stack([F.one_hot(o.flatten(), len(train)).sum(0).argmax() for o in owner])
    return _planted("ideal samples", "drawn by pixel", queries, owner, most[:, None], known)


def _ideal(train: Tensor, draw: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """One image, its owners, and the masses that they had."""
    (height, width), side = train.shape[2:], min(train.shape[2:])
    image = torch.zeros_like(train[0])
    for timestep, sixteenths in IDEAL.items():
        windows = Windows(height, width, 2 * (side * sixteenths // 32) + 1)
        noise = torch.randn(image.shape, generator=draw).to(image)
        options: Any = {"timestep": timestep, "patch": windows.patch, "noise": noise}
        masses = patch_posterior(image[None], train, **options, top_k=None).masses[0]
        owner = torch.multinomial(masses.cpu(), 1, generator=draw)[:, 0]
        noisy = signal(timestep) * image + sigma(timestep) * noise
        image = _drawn_pixels(noisy, train, owner, windows, timestep, draw).view_as(image)
    known = masses.cpu().gather(1, owner[:, None])
    return image, owner.view(height, width), known.view(height, width).to(image)


def _drawn_pixels(
    noisy: Tensor,
    train: Tensor,
    owner: Tensor,
    windows: Windows,
    timestep: int,
    draw: Generator,
) -> Float[Tensor, "chan position"]:
    """For every position a patch of its owner, drawn by its mass; the pixel in its middle."""
    kinds, own = windows.kinds(), windows.take(noisy[None])[0]
    found = train.new_empty(len(noisy), windows.positions)
    for n in owner.unique().tolist():
        here = (owner == n).nonzero()[:, 0]
        bank = windows.take(signal(timestep) * train[[n]])[0]
        squares = torch.cdist(own[here], bank).square().cpu()
        meet = kinds[here, None] == kinds
        logits = torch.where(meet, -squares / (2 * sigma(timestep) ** 2), -torch.inf)
        at = torch.multinomial(logits.softmax(1), 1, generator=draw)[:, 0]
        found[:, here] = train[n].flatten(1)[:, at]
    return found


# ---- what they share


def _drawn(case: str, n: int, count: int, seed: int) -> list[int]:
    """Numbers below `n` in a random order, again from the first if there are not enough."""
    order = torch.randperm(n, generator=rng.generator("planted", case, n, seed))
    return order[torch.arange(count) % n].tolist()


def _planted(
    case: str,
    kind: str,
    queries: Tensor,
    owner: Tensor | int,
    answers: Tensor | Sequence[int],
    known: Tensor | None = None,
) -> Planted:
    shape = len(queries), *queries.shape[2:]
    owners = owner if isinstance(owner, Tensor) else torch.full(shape, owner)
    known = queries.new_ones(shape) if known is None else known
    return Planted(case, kind, queries, owners, torch.as_tensor(answers).long(), known)
