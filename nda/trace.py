"""Your images in, a page of sources out: what suspects owe to the pictures of a folder, and how
often such a verdict is wrong."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from nda import __version__
from nda.data.bank import Bank, digest, floats
from nda.data.pixels import levels
from nda.data.untrusted import (
    Folder,
    Picture,
    Unreadable,
    files,
    one_line,
    printable,
    read_all,
    read_picture,
)
from nda.errors import InputError, check_positive
from nda.evidence import verdicts
from nda.evidence.attribution import Attributor, How, Map, Reading
from nda.evidence.verdicts import Null, Power, Source, Strangers, Verdict
from nda.places import cache
from nda.store import Store

SCHEMA = "nda-trace/1"
ASIDE = "set aside"  # where held-out images are from that are no folder of their own


@dataclass(frozen=True)
class Suspect:
    """A suspect and what was found."""

    picture: Picture
    notes: tuple[str, ...]
    verdict: Verdict
    sources: tuple[Source, ...]
    maps: tuple[Map, ...]


@dataclass(frozen=True)
class Trace:
    """What `trace` found: read `suspects`, or `write` the report."""

    name: str
    folder: Folder  # without its pixels, which the bank has
    bank: Bank
    how: How
    held_out: str
    strangers: Strangers
    null: Null
    power: tuple[Power, ...]
    suspects: tuple[Suspect, ...]

    def report(self, command: str = "nda.trace.trace") -> dict[str, Any]:
        """The report as plain values, as `nda/report/trace.schema.json` describes it.

        Args:
            command: that made it.

        Returns:
            What `report.json` holds.
        """
        settings: dict[str, Any] = {n: plain(v) for n, v in asdict(self.how).items()}
        aside = "each is left out of the folder in turn, and all remain possible sources"
        settings["held out"] = aside if self.held_out == ASIDE else "a folder of their own"
        settings["patches"] = [self.how.patch(t) for t in self.how.timesteps]
        settings["same pictures"] = len(self.bank.again)
        settings["not held out, since the folder has a near copy"] = self.strangers.near
        return {
            "schema": SCHEMA,
            "made": {
                "version": __version__,
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": command,
                "settings": settings,
                "sha256": {"train": self.bank.sha256, "held_out": digest(self.strangers.pixels)},
            },
            "folder": {
                "name": self.name,
                "images": len(self.bank),
                "unreadable": [{"name": name, "why": why} for name, why in self.folder.unreadable],
                "held_out": {"from": self.held_out, "images": len(self.null.shares)},
            },
            "null": {
                "shares": list(self.null.shares),
                "smallest_p": self.null.p(2.0),
                "thresholds": [asdict(one) for one in self.null.thresholds],
            },
            "power": [asdict(one) for one in self.power],
            "sources": {str(self.bank.file[n]): self._source(n) for n in self._named()},
            "suspects": [self._suspect(one) for one in self.suspects],
        }

    def lines(self) -> Iterator[str]:
        """What is said in the terminal.

        Yields:
            A line for each suspect.
        """
        for one in self.suspects:
            said = one.verdict
            owed = f"{100 * said.share:.0f} % of its pixels are owed to one image, p = {said.p:.2g}"
            yield one_line(f"{one.picture.name}: {said.sentence} ({owed})")

    def _named(self) -> list[int]:
        maps = [one.images.unique().tolist() for suspect in self.suspects for one in suspect.maps]
        sources = [source.image for suspect in self.suspects for source in suspect.sources]
        return sorted({*sources, *(n for found in maps for n in found)})

    def _source(self, n: int) -> dict[str, Any]:
        file, picture = self.bank.file[n], png(self.bank.pixels[n])
        small = png(levels(_thumbnail(self.bank.pixels[n]))) if self.how.size > 48 else picture
        return {
            "name": self.folder.names[file],
            "thumbnail": small,
            "picture": picture,
            "of": list(self.folder.of[file]),
        }

    def _suspect(self, one: Suspect) -> dict[str, Any]:
        return {
            "name": one.picture.name,
            "sha256": one.picture.sha256,
            "of": list(one.picture.of),
            "picture": png(one.picture.pixels),
            "notes": list(one.notes),
            "verdict": asdict(one.verdict),
            "sources": [
                asdict(source) | {"image": self.bank.file[source.image]} for source in one.sources
            ],
            "maps": [self._map(found) for found in one.maps],
        }

    def _map(self, found: Map) -> dict[str, Any]:
        file = torch.tensor(self.bank.file)
        return {
            "timestep": found.timestep,
            "rows": found.entropy.shape[0],
            "cols": found.entropy.shape[1],
            "patch": found.patch,
            "image": file[found.images].flatten().tolist(),
            "mass": _decimals(found.masses),
            "row": found.source[..., 0].flatten().tolist(),
            "col": found.source[..., 1].flatten().tolist(),
            "mirrored": found.mirrored.int().flatten().tolist(),
            "entropy": _decimals(found.entropy),
        }


def _decimals(values: Tensor) -> list[float]:
    return [abs(round(value, 3)) for value in values.flatten().tolist()]


def _thumbnail(picture: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(floats(picture)[None], 32, mode="area")[0]


def png(picture: UInt8[Tensor, "chan row col"]) -> str:
    """A picture as text.

    Args:
        picture: in 256 levels.

    Returns:
        A PNG file in base64.
    """
    file = BytesIO()
    Image.fromarray(picture.movedim(0, 2).contiguous().numpy()).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def plain(value: Any) -> Any:
    """Tuples as lists.

    Args:
        value: of a setting.

    Returns:
        What JSON gives back.
    """
    return list(value) if isinstance(value, tuple) else value


# ---- how it is found


def trace(
    folder: Path | str,
    suspects: Sequence[Path | str],
    *,
    held_out: Path | str | None = None,
    size: int = 32,
    top: int = 20,
    flips: bool = True,
    timesteps: Sequence[int] = (25, 100, 300),
    exact_above: int = 5000,
    candidates: int = 256,
    strangers: int = 100,
    planted: int = 8,
) -> Trace:
    """Look for the sources of suspects among the images of a folder.

    Args:
        folder: the images, of any size and mode, in any folders below it.
        suspects: image files, or folders of them.
        held_out: a folder of images that have no source in `folder`, but are otherwise like its
            images; default: images of `folder`, each left out in turn.
        size: side in pixels at which images are compared, a multiple of 4; only the middle square
            of an image is.
        top: sources that are listed of each suspect.
        flips: whether mirror images are compared as well.
        timesteps: noise levels of the maps, 0…999, ascending; the verdict is read at the first.
        exact_above: above so many images the maps are made among candidates.
        candidates: images that each verdict is made among, of those that a coarse index names.
        strangers: held-out images, at most.
        planted: copies of each kind that are planted to measure the power.

    Returns:
        What was found. All results are kept in the folder `trace` of the cache, about 10 MB per
        suspect, noise level and thousand images.

    Raises:
        InputError: for whatever cannot be used, in one sentence.
    """
    how = How(size, flips, tuple(timesteps), candidates, exact_above, top)
    check_positive("strangers", strangers)
    check_positive("planted", planted)
    pictures = list(_suspects(suspects, size))
    read = read_all(Path(folder), size)
    bank = Bank.of(read)
    read = replace(read, pixels=read.pixels[:0].clone())  # the bank has them
    shown = one_line(printable(Path(folder).resolve().name))
    if len(bank) < 2:
        raise InputError(
            f"{shown} has one picture, and every pixel would be owed to it; give it more of those"
            " that the model was trained on"
        )
    attributor = Attributor(bank, how, Store(cache() / "trace"))
    if held_out is None:
        aside, source = verdicts.set_aside(bank, strangers, flips=flips), ASIDE
    else:
        aside = _held_out(read, bank, Path(held_out), strangers)
        source = printable(Path(held_out).resolve().name)
    null = verdicts.null(attributor, aside)
    power, whole = verdicts.power(attributor, aside, null, planted)
    readings = attributor.readings(torch.stack([one.pixels for one in pictures]))
    found = [
        _found(attributor, read, picture, reading, null, whole)
        for picture, reading in zip(pictures, readings, strict=True)
    ]
    name = printable(Path(folder).resolve().name)
    return Trace(name, read, bank, how, source, aside, null, tuple(power), tuple(found))


def _held_out(folder: Folder, bank: Bank, place: Path, count: int) -> Strangers:
    """Images of a folder of their own."""
    read = read_all(place, bank.pixels.shape[-1])
    other = Bank.of(read)
    names = [folder.names[n] for n in bank.file] + [read.names[n] for n in other.file]
    return verdicts.held_out(bank, other, [*map(one_line, names)], count)


def _suspects(places: Sequence[Path | str], size: int) -> Iterator[Picture]:
    """Every suspect; a folder stands for its images."""
    for place in map(Path, places):
        inside = place.is_dir()
        paths = files(place) if inside else [place]
        for path in paths:
            try:
                name = path.relative_to(place) if inside else path.name
                yield read_picture(path, size, name=printable(name))
            except Unreadable as error:
                raise InputError(
                    f"suspect {one_line(printable(path))} cannot be used: {error}"
                ) from None
        if not paths:
            raise InputError(
                f"suspect {one_line(printable(place))} is a folder without images; name a file"
            )


def _found(
    attributor: Attributor,
    folder: Folder,
    picture: Picture,
    reading: Reading,
    null: Null,
    whole: float,
) -> Suspect:
    """Everything about one suspect."""
    bank, names = attributor.bank, [folder.names[n] for n in attributor.bank.file]
    files = dict(zip(reversed(folder.sha256), reversed(folder.names), strict=True))
    same, pixels = files.get(picture.sha256), digest(picture.pixels)
    notes = list(picture.notes)
    if same is not None:
        notes.append(f"an exact copy of {same}, by hash")
    elif pixels in bank.digests:
        twin = names[bank.digests.index(pixels)]
        notes.append(f"the same pixels as {twin} at {attributor.how.size} px")
    maps = attributor.maps(picture.pixels, reading.images)
    if len(bank) > attributor.how.exact_above:
        outside = ", ".join(f"{100 * m.outside:.1f} % at timestep {m.timestep}" for m in maps)
        notes.append(f"mass outside of the candidates, by estimate: {outside}")
    scores = attributor.scores(picture.pixels, reading.images)
    mirrored = _mirrored(maps[0])
    sources = tuple(
        Source(n, share, null.p(share), score, mirrored.get(n, False))
        for n, share, score in zip(reading.images, reading.shares, scores, strict=True)
    )
    verdict = verdicts.judge(reading, null, names, whole, same)
    return Suspect(picture, tuple(notes), verdict, sources, tuple(maps))


def _mirrored(found: Map) -> dict[int, bool]:
    """Whether most of a picture's mass is its mirror image's."""
    balance: dict[int, float] = {}
    flat = (found.images, found.masses, found.mirrored)
    for n, mass, other in zip(*(one.flatten().tolist() for one in flat), strict=True):
        balance[n] = balance.get(n, 0.0) + (mass if other else -mass)
    return {n: towards > 0 for n, towards in balance.items()}
