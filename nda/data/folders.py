"""Image files: folders and archives of them, read one way."""

import hashlib
import lzma
import os
import tarfile
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from nda.data.pixels import Images, _finish, resize
from nda.errors import InputError
from nda.places import cache

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def unpack(place: Path) -> Path:
    """The folder itself, or the folder into which a `.tar`, `.tar.gz` or `.tar.xz` of images is
    unpacked, once."""
    if place.is_dir():
        return place
    if not tarfile.is_tarfile(place):
        raise InputError(f"{place} is neither a folder nor a tar archive of images")
    stat = place.stat()
    key = hashlib.sha256(
        f"{place.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()
    ).hexdigest()[:12]
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


def _folder(place: Path, split: str, size: int) -> Images:
    """An image folder or an archive of one: class = first folder below the split; files straight in
    it, with none, are one class."""
    folder = unpack(place)
    inside = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    if len(inside) == 1 and inside[0].is_dir() and not {"train", "test"} & {inside[0].name}:
        inner = {entry.name for entry in inside[0].iterdir() if entry.is_dir()}
        if {"train", "test"} & inner or (inner and folder != place):
            folder = inside[0]  # an archive's single top folder
    divided = (folder / "train").is_dir() and (folder / "test").is_dir()
    if divided:
        splits = {name: _by_class(folder / name) for name in ("train", "test")}
        by_class, classes = (
            splits[split],
            tuple(sorted(splits["train"] | splits["test"])),
        )  # a label is one class in both splits
    else:
        found = _by_class(folder)
        by_class = {
            name: [p for i, p in enumerate(paths) if (i % 10 == 9) == (split == "test")]
            for name, paths in found.items()
        }
        classes = tuple(sorted(found))
    pixels, labels, skipped = [], [], []
    todo = [(path, label) for label, name in enumerate(classes) for path in by_class.get(name, [])]
    for path, label in tqdm(todo, desc=f"reading {split} images", delay=2):
        try:
            pixels.append(resize(read(path), size))
            labels.append(label)
        except (
            Exception
        ) as error:  # on a damaged file Pillow may raise anything, struct.error for one
            skipped.append(str(path))
            warnings.warn(f"skipped {path}: {error}", stacklevel=2)
    if not pixels:
        raise InputError(
            f"{folder} has no readable {split} images (PNG, JPEG or WebP); point to a folder that"
            " has some"
        )
    return _finish(
        torch.stack(pixels),
        torch.tensor(labels),
        classes,
        f"image folder {place.resolve().name}",
        tuple(skipped),
    )


def _by_class(base: Path) -> dict[str, list[Path]]:
    """Image files below `base`, sorted, by their first folder; those straight in it are "unsorted",
    hidden ones are left out."""
    found: dict[str, list[Path]] = {}
    for path in sorted(base.rglob("*")):
        parts = path.relative_to(base).parts
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in parts):
            found.setdefault(parts[0] if len(parts) > 1 else "unsorted", []).append(path)
    return found


def read(path: Path) -> np.ndarray:
    """One image file as 8-bit RGB `[row, col, 3]`: EXIF rotation applied, transparency laid over
    white."""
    with Image.open(path) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
        if (
            image.mode.startswith("I") or image.mode == "F"
        ):  # 16-bit and float grey: Pillow's own conversion would clip
            grey = np.asarray(image, dtype=np.float64)
            scale = 257.0 if image.mode.startswith("I") else max(grey.max() / 255, 1e-12)
            image = Image.fromarray((grey / scale).round().clip(0, 255).astype(np.uint8))
        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))
