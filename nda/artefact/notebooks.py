"""Run the notebooks of a profile in order, through papermill, into `book/runs/`."""

import ast
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from nda.errors import InputError, needs
from nda.places import home, shared
from nda.store import Store

if TYPE_CHECKING:
    from nda.evidence.retrain import Plan


SOURCES = shared("notebooks")


def notebooks() -> list[str]:
    """Stems of all notebooks, in reading order."""
    return sorted(path.stem for path in SOURCES.glob("[0-9][0-9]*_*.ipynb"))


def find(name: str) -> str:
    """The one notebook that starts with `name`, for example `"05"`."""
    found = [stem for stem in notebooks() if stem.startswith(name)]
    if len(found) != 1:
        raise InputError(
            f"no single notebook starts with {name!r}; there are {', '.join(notebooks())}"
        )
    return found[0]


def numbered(number: str) -> list[str]:
    """The notebooks of a number, for example the three of `"07"`; a longer beginning, such as
    `"07b"`, is one of them."""
    pages = [stem for stem in notebooks() if re.match(rf"{re.escape(number)}[a-z]_", stem)]
    return pages or [find(number)]


def defaults(notebook: str) -> dict[str, Any]:
    """The parameters that a notebook declares, with their defaults: the literals of its cell tagged
    `parameters`."""
    cells = json.loads((SOURCES / f"{notebook}.ipynb").read_text())["cells"]
    source = next(
        "".join(cell["source"])
        for cell in cells
        if "parameters" in cell["metadata"].get("tags", [])
    )
    return {line.target.id: ast.literal_eval(line.value) for line in ast.parse(source).body}  # type: ignore[attr-defined]


def profile(name: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The parameters of `notebooks/profiles/<name>.yaml` with overrides, checked: every name must
    be declared by some notebook and every value must have the type of its default."""
    path = SOURCES / "profiles" / f"{name}.yaml"
    if not path.is_file():
        raise InputError(
            f"profile {name!r} does not exist; there are"
            f" {', '.join(sorted(p.stem for p in path.parent.glob('*.yaml')))}"
        )
    known: dict[str, Any] = {
        key: value for notebook in notebooks() for key, value in defaults(notebook).items()
    }
    parameters = yaml.safe_load(path.read_text()) | {"profile": name} | dict(overrides or {})
    for key, value in parameters.items():
        if key not in known:
            raise InputError(
                f"no notebook has a parameter {key!r}; known: {', '.join(sorted(known))}"
            )
        wanted = type(known[key])
        if not (
            isinstance(value, wanted)
            and isinstance(value, bool) == (wanted is bool)
            or wanted is float
            and type(value) is int
        ):
            raise InputError(f"parameter {key} must be of type {wanted.__name__}, not {value!r}")
    return parameters


def run(
    name: str,
    *,
    start: str | None = None,
    only: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Execute the notebooks of a profile and return the folder of the executed copies.

    start: number of the first notebook. only: numbers of those to run, if not all. Raises
    InputError before anything runs if a name or a value is wrong; a notebook that fails stops the
    run, and its executed copy stays to be looked at.
    """
    needs("papermill", "book")
    import papermill

    chosen = (
        sorted(stem for number in only for stem in numbered(number))
        or notebooks()[notebooks().index(numbered(start)[0]) if start else 0 :]
    )
    parameters = profile(name, overrides)
    runs = home() / "book" / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    os.environ["TQDM_DISABLE"] = (
        "1"  # in the kernels: executed notebooks hold results, not progress bars
    )
    for notebook in chosen:
        print(f"{notebook} (profile {name})", flush=True)
        mine = {key: value for key, value in parameters.items() if key in defaults(notebook)}
        try:
            papermill.execute_notebook(
                SOURCES / f"{notebook}.ipynb",
                runs / f"{notebook}.ipynb",
                mine,
                kernel_name="python3",
                progress_bar=False,
            )
        except papermill.PapermillExecutionError as error:
            seen = f"the executed copy is {runs / notebook}.ipynb"
            if error.ename == "InputError":
                raise InputError(f"{notebook}: {error.evalue} ({seen})") from None
            raise RuntimeError(
                f"notebook {notebook} failed with {error.ename}: {error.evalue}; {seen}"
            ) from None
    return runs


def plan(name: str, overrides: Mapping[str, Any] | None = None) -> "Plan":
    """The retrainings of a profile, as notebook 03 runs them."""
    from nda.evidence.retrain import (
        Plan,  # here, since diffusers takes seconds to import, which no other command needs
    )

    settings = defaults(find("03")) | {
        key: value for key, value in profile(name, overrides).items() if key in defaults(find("03"))
    }
    return Plan(
        Store.working(name).folder,
        {"select": settings["select_seeds"], "report": settings["report_seeds"]},
        settings["timesteps"],
        settings["noise_seeds"],
        settings["device"],
    )
