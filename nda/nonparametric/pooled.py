"""A coarse index of many images that is built once and kept on disk, and candidates from it.

The index is the images themselves, pooled to 16 x 16 pixels: 768 bytes each, so a million take
0.8 GB. It is written block by block, and read through a memory map, so that no process holds the
images or the index.

A query is compared with all of it. It asks with patches of 4 x 4 pooled pixels at three levels of a
pyramid, 16, 8 and 4 pixels wide: with a quarter of its side, half of it, and the whole. Every image
answers with its nearest patch, at any place, and these distances serve all noise levels. At a noise
level they are turned into masses, as NDA would if the nearest patch were all that an image has.
Images with the largest masses are the candidates.

A library for nearest neighbours names the images that are first in any row, and holds a vector for
every patch. Masses say more: how much better the first is than the next, and in how many rows. Of
5,000 images of CIFAR-10 and for four queries, 500 candidates from here had 82 % of the 20 images of
highest exact score. With faiss it was 60 % from patches (IVF-PQ, 43 CPU seconds to build, twice the
disk) and 64 % from whole images (HNSW). So faiss is no dependency. `benchmarks/million.py --part
faiss` measures it again.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from nda.errors import InputError, check_positive, check_timestep
from nda.nonparametric.index import PATCH, SIDE, pooled
from nda.schedule import sigma, signal
from nda.store import write_all

LEVELS = {16: 3, 8: 2, 4: 1}  # width of the pyramid's levels, and the stride of a query's patches
SETTINGS = {"format": 1, "side": SIDE}  # what the bytes of an index depend on, beside the images
TOGETHER = 128  # images that are compared at once
PIXELS, ABOUT = "pooled.int8", "index.json"

Blocks = Iterable[UInt8[Tensor, "image chan row col"]]


@dataclass(frozen=True)
class Index:
    """An index on disk.

    Attributes:
        folder: where it is.
        sha256: of the images.
        images: how many.
        shape: of an image, channels, rows and columns.
    """

    folder: Path
    sha256: str
    images: int
    shape: tuple[int, int, int]

    def masses(
        self,
        queries: UInt8[Tensor, "query chan row col"],
        timesteps: Sequence[int],
        *,
        flips: bool = False,
    ) -> Float[Tensor, "query train"]:
        """What each image would have of a query's patches if its nearest patch were all it has.

        Args:
            queries: in 256 levels, of the images' shape.
            timesteps: noise levels, 0…999, over which masses are averaged.
            flips: whether mirror images count as well.

        Returns:
            Masses; those of a query sum to 1.

        Raises:
            InputError: for queries of another shape, or no timesteps.
        """
        if queries.shape[1:] != self.shape or queries.dtype != torch.uint8:
            raise InputError(
                f"queries must be images of shape {self.shape} in 256 levels, as those of the index"
                f" are, not {tuple(queries.shape[1:])} {queries.dtype}"
            )
        if not timesteps:
            raise InputError("timesteps must name at least one noise level, for example [100]")
        for timestep in timesteps:
            check_timestep(timestep)
        return torch.stack([self._masses(query, timesteps, flips) for query in queries])

    def candidates(
        self,
        queries: UInt8[Tensor, "query chan row col"],
        count: int,
        timesteps: Sequence[int],
        *,
        flips: bool = False,
    ) -> list[Int[Tensor, "candidate"]]:
        """The images that have the largest masses.

        Args:
            queries: as of `masses`.
            count: how many are wanted of each query.
            timesteps: as of `masses`.
            flips: as of `masses`.

        Returns:
            For every query, sorted numbers of images, `count` of them or all that there are.

        Raises:
            InputError: if `count` is no positive integer, and as `masses`.
        """
        check_positive("count", count)
        masses = self.masses(queries, timesteps, flips=flips)
        order = masses.topk(min(count, self.images), dim=1).indices
        return list(order.sort(dim=1).values)

    def _masses(
        self, query: Tensor, timesteps: Sequence[int], flips: bool
    ) -> Float[Tensor, "train"]:
        asked = [
            F.unfold(level, PATCH, stride=stride)[0].T.unflatten(1, (-1, PATCH, PATCH))
            for level, stride in zip(_pyramid(pooled(query[None])), LEVELS.values(), strict=True)
        ]
        found = [torch.empty(len(patches), self.images) for patches in asked]
        starts = range(0, self.images, TOGETHER)
        for start in tqdm(starts, desc="index", unit="block", leave=False, delay=2):
            block = self._pixels()[start : start + TOGETHER].float()
            for patches, level, into in zip(asked, _pyramid(block), found, strict=True):
                views = [level, level.flip(-1)] if flips else [level]
                near = torch.stack([_nearest(patches, view) for view in views]).amin(0)
                into[:, start : start + TOGETHER] = near
        masses = torch.zeros(self.images)
        for width, into in zip(LEVELS, found, strict=True):
            pixels = self.shape[1] * self.shape[2] / width**2  # that a pooled one stands for
            for timestep in timesteps:
                factor = -pixels * (signal(timestep) / sigma(timestep) / 127.5) ** 2 / 2
                for row in into:
                    masses += (factor * row).softmax(0) / len(into)
        return masses / (len(LEVELS) * len(timesteps))

    def _pixels(self) -> Tensor:
        """All pooled images; the file is mapped, not read."""
        size = self.images * self.shape[0] * SIDE**2
        flat = torch.from_file(str(self.folder / PIXELS), size=size, dtype=torch.int8)
        return flat.view(self.images, self.shape[0], SIDE, SIDE)


def build(folder: Path, blocks: Blocks) -> Index:
    """Build an index, whatever is in its folder. If it fails half-way, there is none.

    Args:
        folder: where it goes.
        blocks: the images, some at a time.

    Returns:
        The index.

    Raises:
        InputError: for images that are not in 256 levels or not of one shape, or none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ABOUT).unlink(missing_ok=True)
    images, shape, seen, made = 0, (0, 0, 0), hashlib.sha256(), hashlib.sha256()
    written = folder / f".writing-{os.getpid()}-{PIXELS}.part"
    try:
        with written.open("wb") as file:
            for block in blocks:
                shape = _checked(block, shape if images else tuple(block.shape[1:]))
                images += len(block)
                seen.update(block.contiguous().numpy().data)
                payload = pooled(block).to(torch.int8).numpy().tobytes()
                made.update(payload)
                file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        if not images:
            raise InputError("blocks has no images; give at least one")
        os.replace(written, folder / PIXELS)
    finally:
        written.unlink(missing_ok=True)
    about = {"sha256": seen.hexdigest(), "images": images, "shape": shape}
    about |= {"settings": SETTINGS, "pooled": made.hexdigest()}
    write_all({folder / ABOUT: json.dumps(about, indent=1).encode()})
    return Index(folder, seen.hexdigest(), images, shape)


def kept(folder: Path, blocks: Callable[[], Blocks], *, sha256: str | None = None) -> Index:
    """The index of these images that is in a folder; if there is none, or one that was not written
    to its end, it is built.

    Args:
        folder: where it is, or goes.
        blocks: gives the images, some at a time, from the first on whenever it is called.
        sha256: of the images, as `digest` says, if it is known; else they are read for it.

    Returns:
        The index.

    Raises:
        InputError: if the folder has an index of other images or of other settings.
    """
    about = _about(folder)
    if about is None:
        return build(folder, blocks())
    if about["settings"] != SETTINGS:
        raise InputError(
            f"the index in {folder} was built with other settings, {about['settings']}; delete that"
            " folder or name another one"
        )
    if about["sha256"] != (sha256 or digest(blocks())):
        raise InputError(
            f"the index in {folder} is of other images, sha256 {about['sha256'][:12]}…; delete that"
            " folder or name another one"
        )
    return Index(folder, about["sha256"], about["images"], tuple(about["shape"]))


def digest(blocks: Blocks) -> str:
    """Of images, however they are divided into blocks.

    Args:
        blocks: the images, some at a time.

    Returns:
        The sha256 of their pixels.
    """
    seen = hashlib.sha256()
    for block in blocks:
        seen.update(block.contiguous().numpy().data)
    return seen.hexdigest()


def _about(folder: Path) -> dict | None:
    """What an index says of itself, if it is whole."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        with (folder / PIXELS).open("rb") as file:
            whole = hashlib.file_digest(file, "sha256").hexdigest() == about["pooled"]
    except (FileNotFoundError, ValueError, KeyError):
        return None
    there = {"sha256", "images", "shape", "settings"} <= about.keys()
    return about if there and whole else None


def _checked(block: Tensor, shape: tuple[int, ...]) -> tuple[int, int, int]:
    if block.dtype != torch.uint8 or block.ndim != 4 or block.shape[1:] != shape:
        raise InputError(
            f"blocks must be images [image, chan, row, col] in 256 levels, all of shape"
            f" {tuple(shape)}, not {tuple(block.shape)} {block.dtype}"
        )
    chan, row, col = shape
    if math.prod(shape) == 0:
        raise InputError(f"blocks has images without pixels, of shape {tuple(shape)}")
    return chan, row, col


def _pyramid(images: Float[Tensor, "image chan row col"]) -> Iterator[Tensor]:
    """Pooled images at every level, in whole numbers."""
    for width in LEVELS:
        yield F.adaptive_avg_pool2d(images, width).round()


def _nearest(
    patches: Float[Tensor, "patch chan side side"], images: Float[Tensor, "image chan row col"]
) -> Float[Tensor, "patch image"]:
    """Squared distances of every image's nearest patch, each less the square of what is asked."""
    # sums of whole numbers, and exact
    squares = F.avg_pool2d(
        images.square().sum(1, keepdim=True), PATCH, stride=1, divisor_override=1
    )
    return torch.add(squares, F.conv2d(images, patches), alpha=-2).amin((2, 3)).T
