"""The folder that a report is written to: a new one, or that of an older report."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nda.data.untrusted import one_line, printable
from nda.errors import InputError
from nda.store import write_all

FILES = {"report.json", "index.html"}


def check(folder: Path) -> None:
    """Check, before anything is computed, that a report can be written to a folder.

    Args:
        folder: a new one, an empty one or that of an older report.

    Raises:
        InputError: if it is something else, or cannot be written to.
    """
    shown = one_line(printable(folder))
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output {shown} is a file; name a folder")
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    there = {name for name in there if not name.startswith(".writing-")}  # of a killed run
    if other := sorted(there - FILES):
        raise InputError(
            f"output {shown} has other content ({one_line(printable(other[0]))}); name a new folder"
        )
    if there and not _is_report(folder / "report.json"):
        raise InputError(f"output {shown} has files that are no report; name a new folder")
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    try:
        (trial := place / f".writing-{os.getpid()}").touch()
        trial.unlink()
    except OSError as error:
        raise InputError(f"output {shown} cannot be written: {error.strerror}") from error


def _is_report(file: Path) -> bool:
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["schema"]).startswith("nda-trace/")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write(report: Mapping[str, Any], page: str, folder: Path) -> None:
    """Write a report and its page, both or none.

    Args:
        report: of `Trace.report`.
        page: HTML.
        folder: see `check`.

    Raises:
        InputError: if that fails.
    """
    check(folder)
    new = not folder.exists()
    text = json.dumps(report, ensure_ascii=True, allow_nan=False)
    try:
        write_all({folder / "report.json": text.encode(), folder / "index.html": page.encode()})
    except InputError:
        if new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise
