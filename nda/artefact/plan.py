"""What a profile costs before it is run: tasks, seconds, memory and disk of every stage."""

import json
import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nda.artefact import notebooks
from nda.artefact.rates import Rates, measure, recipe
from nda.data.subsets import FAMILIES
from nda.evidence.counterfactual import RANDOM, families
from nda.evidence.truth import find_results
from nda.methods import METHODS, Method
from nda.store import Store

GRADIENTS = ("gradients", "kernels", "das")  # in notebook 07
# K-FAC and EK-FAC against the gradients that they take, by the sidecars of `small`: the rest is the
# fit, and rotating gradients into its basis
FIT = 4.0
MEASURED = "a little of it, measured"


@dataclass(frozen=True)
class Stage:
    """A part of a run whose tasks are alike.

    Attributes:
        name: for the table and for files.
        tasks: how many.
        seconds: of one task, on one core or one GPU.
        memory: of one task, in MB.
        disk: of all tasks, in MB.
        source: where seconds are from.
        command: does what is missing; of an array, `--task K` does one.
        array: whether the tasks can be jobs of their own.
    """

    name: str
    tasks: int
    seconds: float | None
    memory: float | None
    disk: float
    source: str
    command: str
    array: bool = False

    @property
    def total(self) -> float:
        """Seconds of all tasks, added up; 0 if they are not known."""
        return self.tasks * (self.seconds or 0)


def plan(profile: str, overrides: Mapping[str, Any] | None = None) -> list[Stage]:
    """The stages of a profile, in the order of running. Seconds are those of its sidecars, in
    `NDA_HOME` or shipped; what no sidecar says is measured.

    Args:
        profile: its name.
        overrides: parameters that shall differ from the profile's.

    Returns:
        The stages.
    """
    given = notebooks.parameters(profile, overrides)
    changed = [w for k, v in (overrides or {}).items() for w in ("-p", f"{k}={json.dumps(v)}")]
    return stages(given, measure(given), {} if overrides else recorded(profile), changed)


def recorded(profile: str) -> dict[str, float]:
    """Seconds of one task that sidecars of a profile tell.

    Args:
        profile: its name.

    Returns:
        By stage, where there are any.
    """
    results, found = find_results(profile), dict[str, float]()
    for stage, name in {"full model": "model", "generated queries": "gen"}.items():
        if name in results:
            found[stage] = results.info(name)["seconds"]
    losses = [results.info(n) for f in FAMILIES if (n := f"losses/{f}-val") in results]
    if losses:
        models = sum(info["shape"][0] * info["shape"][1] for info in losses)
        found["subset models"] = sum(info["seconds"] for info in losses) / models
    if "counterfactual/models" in results:
        trained = results.load("counterfactual/models").iloc[1:]  # the first is the full model
        found["counterfactuals"] = trained["seconds"].mean()
    for stage, methods in _pages().items():
        took = [_took(results, method) for method in methods]
        if any(took):
            found[stage] = sum(took) / len(took)
    return found


def spent(results: Store) -> pd.Series:
    """Seconds that a run has taken, from its sidecars, as `PROVENANCE.md` has them.

    Args:
        results: of a profile that was run, with its counterfactual models.

    Returns:
        By stage; "methods" are all that score, in all variants.
    """
    took = {name: results.info(name)["seconds"] or 0 for name in results.names()}
    return pd.Series(
        {
            "full model": took["model"],
            "generated queries": took["gen"],
            "subset models": sum(took[f"losses/{family}-val"] for family in FAMILIES),
            "methods": sum(took[name] for name in took if name.startswith("effects/")),
            # the first is the full model
            "counterfactuals": results.load("counterfactual/models")["seconds"].iloc[1:].sum(),
        }
    )


def clock(every: Sequence[Stage], machines: int, split: Collection[str] = ()) -> float:
    """How long many machines are busy with a run: one stage after the other, as `submit.sh` of
    `nda.artefact.jobs` sends them, each machine with one task at a time.

    Args:
        every: the stages.
        machines: how many, each like the one that the seconds are of.
        split: stages that are divided evenly, as `nda attribute` divides by blocks of images.

    Returns:
        Seconds.
    """

    def rounds(stage: Stage) -> float:
        if stage.name in split:
            return stage.tasks / machines
        return math.ceil(stage.tasks / machines) if stage.array else stage.tasks

    return sum(rounds(stage) * (stage.seconds or 0) for stage in every)


def stages(
    given: Mapping[str, Any],
    rates: Rates,
    recorded: Mapping[str, float] | None = None,
    changed: Sequence[str] = (),
) -> list[Stage]:
    """Every stage, worked out of what a unit of its work costs.

    Args:
        given: all parameters of the profile.
        rates: costs of the units.
        recorded: seconds of one task where they are known better, by stage.
        changed: what the commands say after the profile's name, such as `["-p", "n_train=50"]`.

    Returns:
        The stages, in the order of running.
    """
    known = recorded or {}
    worked = _seconds(given, rates)
    memory, disk, tasks = _memory(given, rates), _disk(given, rates), _tasks(given)

    def stage(what: str, command: str, array: bool = False) -> Stage:
        source = "sidecars" if what in known else MEASURED if what in worked else "not known"
        seconds = known.get(what, worked.get(what))
        sizes = (memory.get(what), disk.get(what, 0.0))
        return Stage(what, tasks[what], seconds, *sizes, source, command, array)

    asked = " ".join(["--profile", given["profile"], *map(shlex.quote, changed)])
    run, retrain = f"nda run {asked} --only", f"nda retrain {asked}"
    found = [
        stage("data", f"{run} 01"),
        stage("full model", f"{run} 02"),
        stage("generated queries", f"{run} 02"),
        stage("subset models", retrain, array=True),
    ]
    found += [stage(page, f"{run} {PAGES[page]}") for page in _pages()]
    removals = stage("counterfactuals", f"{retrain} --removals", array=True)
    return [one for one in [*found, removals] if one.tasks]


def table(every: list[Stage]) -> pd.DataFrame:
    """The stages for a reader.

    Args:
        every: of `plan`.

    Returns:
        A row for each, and one for all.
    """

    def number(value: float | None) -> str:
        return "?" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"

    rows = {
        one.name: [
            f"{one.tasks:,}",
            number(one.seconds),
            number(one.memory),
            number(None if one.seconds is None else one.total / 3600),
            number(one.disk),
            one.source,
        ]
        for one in every
    }
    hours, disk = sum(one.total for one in every) / 3600, sum(one.disk for one in every)
    count = f"{sum(one.tasks for one in every):,}"
    rows["all"] = [count, "", "", number(hours), number(disk), "one core, or one GPU"]
    columns = ["tasks", "seconds each", "MB each", "hours", "disk, MB", "seconds from"]
    return pd.DataFrame(rows, columns).T


PAGES = {"similarity": "06", "nda": "05", "gradients": "07", "influence": "08", "beyond": "15"}


def _pages() -> dict[str, list[Method]]:
    """The methods of every page that scores."""
    families = {page: GRADIENTS if page == "gradients" else (page,) for page in PAGES}
    return {
        page: [method for method in METHODS.values() if method.family in some]
        for page, some in families.items()
    }


def _took(results: Store, method: Method) -> float:
    """Seconds of all queries."""
    names = [f"effects/{method.name}-{which}" for which in method.which]
    return sum(results.info(name)["seconds"] or 0 for name in names if name in results)


def _tasks(given: Mapping[str, Any]) -> dict[str, int]:
    halves = sum(given[f"{family}_subsets"] * len(given[f"{family}_seeds"]) for family in FAMILIES)
    removed = 0
    for family in families(given):
        aimed = min(len(family.rows), given["removal_targets"])
        masks = 1 if family.arm == "none" else family.draws if family.arm == RANDOM else aimed
        removed += masks * len(family.train_seeds)
    tasks = {"data": 1, "full model": 1, "generated queries": 1}
    tasks |= {"subset models": halves, "counterfactuals": removed}
    return tasks | {page: len(methods) for page, methods in _pages().items()}


def _seconds(given: Mapping[str, Any], rates: Rates) -> dict[str, float]:
    """Of one task of every stage that is made of the units."""
    made, n_train, times = recipe(given), given["n_train"], len(given["timesteps"])
    queries = given["n_val"] + given["n_gen"]
    step, forward, gradient = (r.seconds for r in (rates.step, rates.forward, rates.gradient))

    def training(images: float) -> float:
        return made.epochs * math.ceil(images / made.batch) * step

    losses = times * len(given["noise_seeds"]) * forward
    drawn = given["sampling_steps"] * forward  # of one query
    sources = len(made.checkpoints) + 4  # loss at each, three other outputs and the journey
    every = (n_train + queries) * gradient
    blocks = sum(math.ceil(given[f"n_{w}"] / given["query_block"]) for w in ("val", "gen"))
    fit = 2 * n_train * given["curvature_draws"]  # K-FAC's and EK-FAC's
    influence = fit + 2 * (queries + blocks * n_train)
    influence *= len(given["influence_timesteps"]) * gradient * FIT
    pages = {page: len(methods) for page, methods in _pages().items()}
    removed = n_train - given["removal_k"]
    again = given["removal_queries"] * (drawn + 3 * losses)
    return {
        "full model": training(n_train),
        "generated queries": given["n_gen"] * drawn,
        "subset models": training(n_train * given["keep_fraction"]) + queries * losses,
        "nda": 2 * queries * n_train * rates.nda.seconds / pages["nda"],  # one twice, two of half
        "gradients": sources * every * given["gradient_timesteps"] / pages["gradients"],
        "influence": influence / pages["influence"],
        "counterfactuals": training(removed) + again,
    }


def _memory(given: Mapping[str, Any], rates: Rates) -> dict[str, float | None]:
    """MB of one task: what was measured, and what is held beside it."""
    queries = max(given["n_val"], given["n_gen"])
    dim = given["projection_dim"] or rates.parameters
    held = {
        "gradients": 4 * (given["n_train"] + queries) * dim,
        "influence": 4 * (given["query_block"] + 16) * 2 * rates.parameters,
    }
    units = {
        **dict.fromkeys(("full model", "subset models", "counterfactuals"), rates.step),
        "generated queries": rates.forward,
        "nda": rates.nda,
        **dict.fromkeys(("gradients", "influence"), rates.gradient),
    }
    return {
        stage: None if unit.memory is None else unit.memory + held.get(stage, 0) / 1e6
        for stage, unit in units.items()
    }


def _disk(given: Mapping[str, Any], rates: Rates) -> dict[str, float]:
    """MB of all tasks, in single precision; states of trainings in hand come and go."""
    n_train, queries, tasks = given["n_train"], given["n_val"] + given["n_gen"], _tasks(given)
    pixels, weights = (
        (1 if given["dataset"] == "mnist" else 3) * given["size"] ** 2,
        rates.parameters,
    )
    scores = 4 * queries * n_train
    losses = 4 * queries * len(given["timesteps"]) * len(given["noise_seeds"])
    drawn = given["removal_queries"] * (pixels + 8 * len(given["timesteps"]))
    sources = len(recipe(given).checkpoints) + 4
    found = {
        "data": 4 * (n_train + given["n_val"]) * pixels,
        "full model": 4 * weights * len(recipe(given).checkpoints),
        "generated queries": 4 * given["n_gen"] * pixels,
        "subset models": tasks["subset models"] * losses,
        "counterfactuals": tasks["counterfactuals"] * drawn,
    }
    found |= {page: len(methods) * scores for page, methods in _pages().items()}
    found["gradients"] += sources * 2 * (scores + 4 * n_train**2)
    found["influence"] += 2 * len(given["relative_dampings"]) * scores
    return {stage: size / 1e6 for stage, size in found.items()}
