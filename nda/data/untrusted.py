"""Image files that nobody has vouched for: whatever they are called and whatever is in them, each
becomes pixels or a sentence."""

import hashlib
import os
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from nda.data.folders import SUFFIXES, read
from nda.data.pixels import levels, resize
from nda.errors import InputError

ALL_SUFFIXES = SUFFIXES | {".bmp", ".gif", ".tif", ".tiff"}
TINY = 8  # a side below it, in pixels, is worth a note


class Unreadable(InputError):
    """A file that is no image; the message is the reason alone."""


@dataclass(frozen=True)
class Picture:
    """One image file.

    name: safe to print and to write as UTF-8, otherwise as it came. pixels: square, in 256 levels.
    of: width and height of the file. sha256: of the file. notes: what was done to it.
    """

    name: str
    pixels: UInt8[Tensor, "chan row col"]
    of: tuple[int, int]
    sha256: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Folder:
    """All image files of a folder, by name. unreadable: names and reasons."""

    names: tuple[str, ...]
    pixels: UInt8[Tensor, "image chan row col"]
    of: tuple[tuple[int, int], ...]
    sha256: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]


def printable(name: str | Path) -> str:
    """A name as text that can be written anywhere.

    Args:
        name: of a file, perhaps with bytes that are no UTF-8.

    Returns:
        The name, with � for what is no text. Quotes, newlines and markup stay: whoever shows it
        escapes it.
    """
    return os.fsencode(name).decode("utf-8", "replace")


def one_line(text: str) -> str:
    """A name for a sentence in the terminal, where a newline or an escape would do harm.

    Args:
        text: any.

    Returns:
        The same, with \\n and the like for what cannot be printed.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def read_picture(path: Path, size: int, *, name: str | None = None) -> Picture:
    """One image file: its middle square at `size`, in colour.

    Args:
        path: the file.
        size: side of the result in pixels.
        name: what to call it; default: the file's name.

    Returns:
        The picture. Of an animation it is the first frame, transparency is laid over white.

    Raises:
        Unreadable: for whatever is no image, or one with more pixels than Pillow's limit.
    """
    try:
        if not path.is_file():
            what = "it is not a file" if path.exists() else "there is no such file"
            raise Unreadable(f"{what}; check its name")
        content = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(content)) as opened:
                of, notes = opened.size, _notes(opened)
            colours = read(BytesIO(content))
        pixels = levels(resize(colours, size))
    except Unreadable:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Unreadable(
            f"it has more than {Image.MAX_IMAGE_PIXELS} pixels, Pillow's limit; make it smaller"
        ) from None
    except UnidentifiedImageError:
        raise Unreadable("it is no image that Pillow can read; save it as PNG") from None
    except Exception as error:  # of a damaged file, anything: struct.error for one
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Unreadable(f"it is damaged ({reason}); save it again") from None
    shown = printable(path.name if name is None else name)
    return Picture(shown, pixels, of, hashlib.sha256(content).hexdigest(), notes)


def _notes(image: Image.Image) -> tuple[str, ...]:
    """What becomes of it that a reader should know."""
    frames, (width, height) = getattr(image, "n_frames", 1), image.size
    notes = [f"animated: the first of {frames} frames"] if frames > 1 else []
    if image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I"):
        notes.append("grey: in three equal channels")
    if "A" in image.getbands() or "transparency" in image.info:
        notes.append("transparent: laid over white")
    if min(width, height) < TINY:
        notes.append(f"tiny: {width} x {height} pixels, enlarged")
    if width != height:
        notes.append("not square: only its middle was compared")
    return tuple(notes)


def files(folder: Path) -> list[Path]:
    """The image files of a folder and those below it, by their suffix.

    Args:
        folder: it exists.

    Returns:
        Sorted; hidden ones are left out.
    """
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in ALL_SUFFIXES
        and not path.is_dir()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def read_all(folder: Path, size: int) -> Folder:
    """All image files of a folder.

    Args:
        folder: any folder.
        size: side of the images in pixels.

    Returns:
        Those that can be read and, by name, those that cannot.

    Raises:
        InputError: if it is no folder, or has no readable image.
    """
    shown = one_line(printable(folder))
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{shown} {what}; name a folder of images")
    paths = files(folder)
    pixels = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    names: list[str] = []
    of, sha256, unreadable = [], [], []
    for path in tqdm(paths, desc="reading images", delay=2):
        name = printable(path.relative_to(folder))
        try:
            picture = read_picture(path, size, name=name)
        except Unreadable as error:
            unreadable.append((name, str(error)))
            continue
        pixels[len(names)] = picture.pixels
        names.append(name)
        of.append(picture.of)
        sha256.append(picture.sha256)
    if not names:
        found = f"none of its {len(paths)} image files can be read" if paths else "it has none"
        kinds = "PNG, JPEG, WebP, GIF, BMP or TIFF"
        raise InputError(f"{shown} has no readable images: {found}; give it some ({kinds})")
    return Folder(tuple(names), pixels[: len(names)], tuple(of), tuple(sha256), tuple(unreadable))
