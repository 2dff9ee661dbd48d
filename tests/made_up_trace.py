"""Reports of `nda trace` that nobody traced: of any size, with any names, as the schema wants."""

import base64
import io
import itertools
import json
from pathlib import Path

import numpy as np
from PIL import Image

import nda.report.page

SCHEMA = json.loads((Path(nda.report.page.__file__).parent / "trace.schema.json").read_text())
FEW = 3  # sources of a pixel


def png(pixels):
    """Base64 of an array [row, col, 3] of bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return base64.b64encode(file.getvalue()).decode()


def made_up(
    *, suspects=1, sources=4, size=8, timesteps=(20, 100), names=(), kind="parts", seed=0, **changed
):
    """A report. The left half of a suspect is owed to source 0, the right to source 1.

    names: every text from outside is one of these, in turn. changed: parts of the report that are
    others.
    """
    random = np.random.default_rng(seed)
    pictures = random.integers(0, 256, (sources, size, size, 3), dtype=np.uint8)
    turn = itertools.cycle(names)
    name = (lambda usual: next(turn)) if names else (lambda usual: usual)
    shares = np.sort(random.uniform(0, 0.2, 99)).round(4).tolist()
    made = {
        "schema": "nda-trace/1",
        "made": {
            "version": "1.2.3",
            "at": "2026-01-02T03:04:05+00:00",
            "command": name("nda trace photos suspect.png -o report"),
            "settings": {"size": size, "top": sources, "flips": True, "timesteps": list(timesteps)},
            "sha256": {"train": "a" * 64, "held_out": "b" * 64},
        },
        "folder": {
            "name": name("photos"),
            "images": max(sources, 500),
            "unreadable": [{"name": name("notes.txt"), "why": name("not an image")}],
            "held_out": {"from": name("set aside"), "images": len(shares)},
        },
        "null": {
            "shares": shares,
            "smallest_p": 0.01,
            "thresholds": [
                dict(level=0.05, share=0.19, false=4, of=99, rate=0.0404, low=0.011, high=0.1),
                dict(level=0.01, share=None, false=0, of=99, rate=0.0, low=0.0, high=0.037),
            ],
        },
        "power": [{"case": name("exact copy"), "planted": 16, "found": 16, "named": 15}],
        "sources": {
            str(7 * i): {
                "name": name(f"source_{i}.png"),
                "thumbnail": png(picture[:4, :4]),
                "picture": png(picture),
                "of": [640, 480],
            }
            for i, picture in enumerate(pictures)
        },
        "suspects": [
            _suspect(name(f"suspect_{i}.png"), pictures, timesteps, kind, name)
            for i in range(suspects)
        ],
    }
    return made | changed


def _suspect(name, pictures, timesteps, kind, other):
    count, size = pictures.shape[:2]
    joined = np.where(np.arange(size)[:, None] < size // 2, pictures[0], pictures[1 % count])
    found = [] if kind == "none" else range(count)
    return {
        "name": name,
        "sha256": "c" * 64,
        "of": [300, 200],
        "picture": png(joined.astype(np.uint8)),
        "notes": [other("animated: first frame")],
        "verdict": {
            "kind": kind,
            "sentence": other("Parts from source_0.png and source_1.png."),
            "share": 0.5,
            "p": 0.01,
        },
        "sources": [
            dict(
                image=7 * i,
                share=round(0.5 / (i + 1), 4),
                p=min(0.01 * (i + 1), 1.0),
                score=float(count - i),
                mirrored=i == 1,
            )
            for i in found
        ],
        "maps": [_map(count, size, timestep) for timestep in timesteps],
    }


def _map(count, size, timestep):
    """At timestep 20 a pixel is explained by the source of its half; later by another."""
    rows, cols = np.indices((size, size))
    few = min(FEW, count)
    first = (cols >= size // 2).astype(int) + (timestep > 20) * 2
    image = 7 * ((first[..., None] + np.arange(few)) % count)
    mass = np.broadcast_to(np.array([0.8, 0.15, 0.05])[:few], image.shape)
    centres = [np.broadcast_to(where[..., None], image.shape) for where in (rows, cols)]
    flat = [np.asarray(a).ravel().tolist() for a in (image, mass, *centres, 0 * image)]
    names = ("image", "mass", "row", "col", "mirrored")
    made = dict(timestep=timestep, rows=size, cols=size, patch=3, entropy=[0.61] * size**2)
    return made | dict(zip(names, flat, strict=True))
