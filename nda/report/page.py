"""The page of `nda trace`: one HTML file that needs no network, and trusts no name in it."""

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from nda.errors import InputError
from nda.methods import METHODS

SCHEMA = "nda-trace/1"
FOLDER = Path(__file__).parent
# A name may hold what no page shows: control characters get their pictures, ␊ for a new line, and
# half a character, as Python reads bytes that are no UTF-8, becomes the sign for that.
SHOWN = {code: 0x2400 + code for code in range(32)} | {0x7F: "\u2421"}
SHOWN |= dict.fromkeys(range(0x80, 0xA0), "\ufffd") | dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
LISTED = 200  # unreadable files on the page; all are in report.json


def page(report: Mapping[str, Any]) -> str:
    """The page of a report.

    Args:
        report: as `nda/report/trace.schema.json` describes it.

    Returns:
        An HTML document, to be written in UTF-8. It loads nothing and runs no script but its own.

    Raises:
        InputError: for a report of another version of the schema.
    """
    if report.get("schema") != SCHEMA:
        raise InputError(
            f"report must be of schema {SCHEMA!r}, not {report.get('schema')!r}; make it again with"
            " `nda trace`"
        )
    shown = _shown(report)
    style = _colours() + (FOLDER / "trace.css").read_text(encoding="utf-8")
    script = (FOLDER / "trace.js").read_text(encoding="utf-8")
    return (
        _templates()
        .get_template("trace.html.j2")
        .render(
            shown,
            style=Markup(style),
            script=Markup(script),
            allowed={"style": _sha256(style), "script": _sha256(script)},
            data=_data(shown),
            listed=LISTED,
        )
    )


class Live:
    """The page of a report as a file of the book, in a frame and with a link to it alone."""

    def __init__(self, report: Mapping[str, Any], file: Path, title: str) -> None:
        """Write the page.

        Args:
            report: as of `page`.
            file: in `book/runs/pages/`, whose files are copied to the top of the built book.
            title: what the page shows, in words.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page(report), encoding="utf-8")
        where, title = f"../../{file.name}", escape(title)
        self.html = (
            f'<p><a href="{where}">{title}, on a page of its own</a></p>'
            f'<iframe class="live" src="{where}" title="{title}" loading="lazy"></iframe>'
        )

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return "a live page"


@cache
def _templates() -> Environment:
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": _percent, "count": _count, "p": _p}
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return made


def _shown(value: Any) -> Any:
    """The report with every text as it can be shown."""
    if isinstance(value, str):
        return value.translate(SHOWN)
    if isinstance(value, Mapping):
        return {key: _shown(inner) for key, inner in value.items()}
    return [_shown(inner) for inner in value] if isinstance(value, list | tuple) else value


def _data(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the script reads; a thumbnail that is the picture again is not sent twice."""
    sources = {
        number: {k: v for k, v in one.items() if k != "thumbnail" or v != one["picture"]}
        for number, one in report["sources"].items()
    }
    return {"null": report["null"], "sources": sources, "suspects": report["suspects"]}


def _colours() -> str:
    """NDA and the null look as in every figure of the book."""
    names = {"nda": "nda", "nda-pale": "nda_coarse", "null": "random"}
    return f":root {{ {' '.join(f'--{k}: {METHODS[v].colour};' for k, v in names.items())} }}\n"


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _percent(share: float) -> str:
    shown = f"{100 * share:.1f}" if share >= 0.001 else f"{100 * share:.2g}"
    return shown.removesuffix(".0") + "\u00a0%"


def _count(number: int) -> str:
    return f"{number:,}"


def _p(p: float) -> str:
    """Two digits that say something."""
    return f"{p:.2g}"
