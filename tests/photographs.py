"""Small made-up photographs, as tensors and as files."""

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from nda import rng


def photographs(count: int, size: int = 8, name: str = "photographs") -> torch.Tensor:
    """Smooth colours with detail on top, in 256 levels; all different."""
    source = rng.generator(name, size)
    coarse = torch.rand(count, 3, 3, 3, generator=source)
    smooth = F.interpolate(coarse, size, mode="bilinear", align_corners=True)
    detail = torch.rand(count, 3, size, size, generator=source) - 0.5
    return ((0.8 * smooth + 0.4 * detail).clamp(0, 1) * 255).round().byte()


def save(picture: torch.Tensor, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.movedim(0, 2).numpy()).save(path, **options)
    return path


def folder(place: Path, pictures: torch.Tensor) -> Path:
    for n, picture in enumerate(pictures):
        save(picture, place / f"{n:03d}.png")
    return place
