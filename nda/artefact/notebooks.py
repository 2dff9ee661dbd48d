"""Run the notebooks of a profile in order, through papermill, into `book/runs/`."""

import ast
import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from nda.artefact import warm
from nda.errors import InputError, check_positive, needs
from nda.places import home, shared

if TYPE_CHECKING:
    from nda.evidence.retrain import Plan


SOURCES = shared("notebooks")


def notebooks() -> list[str]:
    """All notebooks, in reading order.

    Returns:
        Their stems.
    """
    return sorted(path.stem for path in SOURCES.glob("[0-9][0-9]*_*.ipynb"))


def find(name: str) -> str:
    """The one notebook that starts with a name.

    Args:
        name: for example `"05"`.

    Returns:
        Its stem.

    Raises:
        InputError: if none or several do.
    """
    found = [stem for stem in notebooks() if stem.startswith(name)]
    if len(found) != 1:
        raise InputError(
            f"no single notebook starts with {name!r}; there are {', '.join(notebooks())}"
        )
    return found[0]


def numbered(number: str) -> list[str]:
    """The notebooks of a number.

    Args:
        number: such as `"07"`, which has three, or `"08"`, of which one has no letter; a longer
            beginning, such as `"07b"`, has one.

    Returns:
        Their stems.
    """
    pages = [stem for stem in notebooks() if re.match(rf"{re.escape(number)}[a-z]?_", stem)]
    return pages or [find(number)]


def defaults(notebook: str) -> dict[str, Any]:
    """The parameters that a notebook declares: the literals of its cell tagged `parameters`.

    Args:
        notebook: its stem.

    Returns:
        Their defaults by name.
    """
    cells = _source(notebook)["cells"]
    source = next(
        "".join(cell["source"])
        for cell in cells
        if "parameters" in cell["metadata"].get("tags", [])
    )
    return {line.target.id: ast.literal_eval(line.value) for line in ast.parse(source).body}  # type: ignore[attr-defined]


def profile(name: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The parameters of `notebooks/profiles/<name>.yaml` with overrides; a profile with a line
    `like: other` has those of the other profile, but where it says otherwise.

    Args:
        name: of the profile.
        overrides: parameters that shall differ from the profile's.

    Returns:
        The values by name.

    Raises:
        InputError: if there is no such profile, for a name that no notebook declares, and for a
            value of another type than its default.
    """
    known = _declared()
    given = _written(name) | {"profile": name} | dict(overrides or {})
    for key, value in given.items():
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
    return given


def _written(name: str) -> dict[str, Any]:
    """What is in the file of a profile, and of the one that it is like."""
    path = SOURCES / "profiles" / f"{name}.yaml"
    if not path.is_file():
        raise InputError(
            f"profile {name!r} does not exist; there are"
            f" {', '.join(sorted(p.stem for p in path.parent.glob('*.yaml')))}"
        )
    own: dict[str, Any] = yaml.safe_load(path.read_text())
    other = own.pop("like", None)
    return (_written(other) if other else {}) | own


def parameters(name: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Those of `profile`, and the defaults of all that it does not name.

    Args:
        name: of the profile.
        overrides: as of `profile`.

    Returns:
        The value of every parameter that a notebook declares.
    """
    return _declared() | profile(name, overrides)


def follows(notebook: str) -> set[str]:
    """The notebooks whose results a notebook takes, from its own table.

    These are the ones that its row "Reads" links to, or all before it if it links to none. One that
    measures time says so in its metadata (`"nda": {"alone": true}`): it follows all others, and
    those of its kind before it, so that nothing runs beside it.

    Args:
        notebook: its stem.

    Returns:
        Their stems.
    """
    alone = {stem for stem in notebooks() if _alone(stem)}
    others = {stem for stem in notebooks() if stem != notebook} - alone
    if notebook in alone:
        return others | {stem for stem in alone if stem < notebook}
    linked = {stem for stem in others if f"]({stem})" in _row(notebook, "Reads")}
    return linked or {stem for stem in others if stem < notebook}


def shows_results(notebook: str) -> bool:
    """Whether a notebook is a results page: one that reads `data/results/<profile>/` and writes
    nothing.

    Args:
        notebook: its stem.

    Returns:
        True for a results page.
    """
    return (
        "`data/results/<profile>/`" in _row(notebook, "Reads")
        and _row(notebook, "Writes").strip() == "nothing"
    )


def _declared() -> dict[str, Any]:
    """All parameters with their defaults, which are the same in every notebook."""
    return {key: value for stem in notebooks() for key, value in defaults(stem).items()}


def _source(notebook: str) -> dict[str, Any]:
    return json.loads((SOURCES / f"{notebook}.ipynb").read_text())


def _row(notebook: str, name: str) -> str:
    """What the table of a notebook has in the row `name`."""
    start = f"| **{name}** |"
    lines = (
        line for cell in _source(notebook)["cells"] for line in "".join(cell["source"]).split("\n")
    )
    return next(line for line in lines if line.startswith(start))[len(start) : -1]


def _alone(notebook: str) -> bool:
    return _source(notebook)["metadata"].get("nda", {}).get("alone", False)


def run(
    name: str,
    *,
    start: str | None = None,
    only: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    results: str | None = None,
    jobs: int = 1,
) -> Path:
    """Execute the notebooks of a profile.

    A notebook that fails stops the run, and its executed copy stays to be looked at.

    Args:
        name: the profile.
        start: number of the first notebook.
        only: numbers of those to run, if not all.
        overrides: parameters that shall differ from the profile's.
        results: the profile that results pages show, if it is another one.
        jobs: how many notebooks may run at a time, each with its share of the cores, where none
            needs the results of the other.

    Returns:
        The folder of the executed copies.

    Raises:
        InputError: before anything runs, if a name or a value is wrong; or if a notebook meets one.
    """
    needs("papermill", "book")
    check_positive("jobs", jobs)
    first = notebooks().index(numbered(start)[0]) if start else 0
    chosen = sorted(stem for number in only for stem in numbered(number)) or notebooks()[first:]
    given = {stem: profile(name, overrides) for stem in chosen}
    after = {stem: follows(stem) & {*chosen} for stem in chosen}
    if results and results != name:
        for stem in filter(shows_results, chosen):
            given[stem], after[stem] = profile(results), set()
    runs = home() / "book" / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    # in the kernels: executed notebooks hold results, not progress bars
    os.environ["TQDM_DISABLE"] = "1"
    if len(chosen) > 1 and warm.AVAILABLE:
        _together(given, after, runs, jobs)
    else:  # in a kernel that starts as always
        for stem in TopologicalSorter(after).static_order():
            _execute(stem, given[stem], runs)
    return runs


def _together(
    given: Mapping[str, Mapping[str, Any]], after: Mapping[str, set[str]], runs: Path, jobs: int
) -> None:
    """Execute notebooks in warm kernels, `jobs` at a time; each one when those that it follows are
    done."""
    with suppress(ImportError):
        import black  # noqa: F401 # papermill's threads would do it both at once
    waiting, done, running = list(given), set[str](), dict[Future[None], str]()
    cores = len(os.sched_getaffinity(0))
    modules = warm.imports(SOURCES / f"{stem}.ipynb" for stem in given)
    # the kernels are killed first if something fails, so that no thread waits for them
    with ThreadPoolExecutor(jobs) as pool, warm.kernels(modules):
        while waiting or running:
            ready = [stem for stem in waiting if after[stem] <= done]
            for stem in ready[: jobs - len(running)]:
                threads = cores if _alone(stem) else max(1, cores // jobs)
                task = pool.submit(_execute, stem, given[stem], runs, threads)
                waiting.remove(stem)
                running[task] = stem
            for task in wait(running, return_when=FIRST_COMPLETED).done:
                done.add(running.pop(task))
                task.result()


def _execute(
    notebook: str, parameters: Mapping[str, Any], runs: Path, threads: int | None = None
) -> None:
    """Execute one notebook with those of the parameters that it has."""
    import papermill

    print(f"{notebook} (profile {parameters['profile']})\n", end="", flush=True)  # in one piece
    set_threads = f"--IPKernelApp.exec_lines=import torch; torch.set_num_threads({threads})"
    try:
        papermill.execute_notebook(
            SOURCES / f"{notebook}.ipynb",
            runs / f"{notebook}.ipynb",
            {key: value for key, value in parameters.items() if key in defaults(notebook)},
            kernel_name="python3",
            progress_bar=False,
            start_timeout=600,  # on a machine that is busy
            iopub_timeout=60,  # the same
            extra_arguments=[set_threads] if threads else [],
        )
    except papermill.PapermillExecutionError as error:
        seen = f"the executed copy is {runs / notebook}.ipynb"
        if error.ename == "InputError":
            raise InputError(f"{notebook}: {error.evalue} ({seen})") from None
        raise RuntimeError(
            f"notebook {notebook} failed with {error.ename}: {error.evalue}; {seen}"
        ) from None


def plan(
    name: str, overrides: Mapping[str, Any] | None = None, *, removals: bool = False
) -> "Plan":
    """The retrainings of a profile, as a notebook runs them.

    Args:
        name: of the profile.
        overrides: as of `profile`.
        removals: those of notebook 09, without chosen images, instead of those of notebook 03, on
            random halves.

    Returns:
        The plan.
    """
    # here, since torch and diffusers take seconds to import, which running notebooks does without
    from nda.data.subsets import FAMILIES
    from nda.evidence import counterfactual
    from nda.evidence.retrain import Plan
    from nda.store import Store

    # absolute: the workers of a cluster start elsewhere
    given, folder = parameters(name, overrides), Store.working(name).folder.absolute()
    if removals:
        return counterfactual.plan(folder, given)
    return Plan(
        folder,
        {family: given[f"{family}_seeds"] for family in FAMILIES},
        given["timesteps"],
        given["noise_seeds"],
        given["device"],
    )
