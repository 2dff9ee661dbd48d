"""Image files: folders and archives of them, read one way."""

import hashlib
import lzma
import os
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from nda.data.pixels import Images, resize
from nda.errors import InputError
from nda.places import cache

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def unpack(place: Path) -> Path:
    """A folder of what may be an archive, which is unpacked once.

    Args:
        place: a folder, or a `.tar`, `.tar.gz` or `.tar.xz` of images.

    Returns:
        The folder itself, or one in the cache folder.

    Raises:
        InputError: if it is neither, or cannot be unpacked.
    """
    if place.is_dir():
        return place
    if not tarfile.is_tarfile(place):
        raise InputError(f"{place} is neither a folder nor a tar archive of images")
    stat = place.stat()
    version = f"{place.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    key = hashlib.sha256(version.encode()).hexdigest()[:12]
    target = cache() / f"{place.name.split('.')[0]}-{key}"
    if not target.is_dir():
        try:
            cache().mkdir(parents=True, exist_ok=True)
            with (
                tempfile.TemporaryDirectory(dir=cache(), prefix=".unpacking-") as partial,
                tarfile.open(place) as archive,
            ):
                (Path(partial) / "files").mkdir()
                archive.extractall(Path(partial) / "files", filter="data")
                os.replace(Path(partial) / "files", target)
        except (OSError, EOFError, lzma.LZMAError, zlib.error, tarfile.TarError) as error:
            if not target.is_dir():  # else another process unpacked it first
                raise InputError(
                    f"{place} could not be unpacked into {cache()}: {error}"
                ) from error
    return target


def read_folder(place: Path, split: str, size: int) -> Images:
    """An image folder or an archive of one: class = first folder below the split; files straight in
    it, with none, are one class.

    Args:
        place: the folder or archive. One with `train/` and `test/` is used as it says; in any
            other, every tenth file of a class is `test`.
        split: `"train"` or `"test"`.
        size: side of the images in pixels.

    Returns:
        The images, sorted by class and path. Files that cannot be read are skipped, with a warning.

    Raises:
        InputError: if there is no readable image.
    """
    folder = _top(place)
    by_class, classes = _files(folder, split)
    pixels, labels, skipped = [], [], []
    todo = [(path, label) for label, name in enumerate(classes) for path in by_class.get(name, [])]
    for path, label in tqdm(todo, desc=f"reading {split} images", delay=2):
        try:
            pixels.append(resize(read(path), size))
            labels.append(label)
        except Exception as error:  # of a damaged file, anything: struct.error for one
            skipped.append(str(path))
            warnings.warn(f"skipped {path}: {error}", stacklevel=2)
    if not pixels:
        raise InputError(
            f"{folder} has no readable {split} images (PNG, JPEG or WebP); point to a folder that"
            " has some"
        )
    origin = f"image folder {place.resolve().name}"
    return Images(torch.stack(pixels), torch.tensor(labels), classes, origin, tuple(skipped))


def _top(place: Path) -> Path:
    """The folder that holds the classes or the splits: an archive has one folder more."""
    folder = unpack(place)
    inside = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    if len(inside) == 1 and inside[0].is_dir() and inside[0].name not in ("train", "test"):
        inner = {entry.name for entry in inside[0].iterdir() if entry.is_dir()}
        if {"train", "test"} & inner or (inner and folder != place):
            return inside[0]
    return folder


def _files(folder: Path, split: str) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """The split's files by class, and all classes: a label is one class in both splits."""
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        splits = {name: _by_class(folder / name) for name in ("train", "test")}
        return splits[split], tuple(sorted(splits["train"] | splits["test"]))
    found = _by_class(folder)
    by_class = {
        name: [p for i, p in enumerate(paths) if (i % 10 == 9) == (split == "test")]
        for name, paths in found.items()
    }
    return by_class, tuple(sorted(found))


def _by_class(base: Path) -> dict[str, list[Path]]:
    """Image files below `base` by their first folder; hidden ones are left out."""
    found: dict[str, list[Path]] = {}
    for path in sorted(base.rglob("*")):
        parts = path.relative_to(base).parts
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in parts):
            found.setdefault(parts[0] if len(parts) > 1 else "unsorted", []).append(path)
    return found


def write_folder(pictures: Mapping[str, UInt8[Tensor, "chan row col"]], folder: Path) -> Path:
    """Pictures as PNG files.

    Args:
        pictures: in 256 levels, of one or three channels, by the names of their files without
            suffix.
        folder: where they go; it is made if need be. Files of the same names are replaced.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in tqdm(pictures.items(), desc="writing images", delay=2):
        rgb = picture.expand(3, -1, -1).movedim(0, 2).contiguous()
        Image.fromarray(rgb.numpy()).save(folder / f"{name}.png")
    return folder


def read(path: Path | BytesIO) -> np.ndarray:
    """One image file: EXIF rotation applied, transparency laid over white.

    Args:
        path: the file, or an open one.

    Returns:
        8-bit RGB `[row, col, 3]`.
    """
    with Image.open(path) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
        # 16-bit and float grey, which Pillow's own conversion would clip
        if image.mode.startswith("I") or image.mode == "F":
            grey = np.asarray(image, dtype=np.float64)
            scale = 257.0 if image.mode.startswith("I") else max(grey.max() / 255, 1e-12)
            image = Image.fromarray((grey / scale).round().clip(0, 255).astype(np.uint8))
        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))
