"""The command line: run the notebooks of a profile, retrain its subset models, score by blocks,
ship its results, test attributions of your own, or trace your own images."""

import argparse
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml

from nda import __version__
from nda.artefact import notebooks
from nda.errors import InputError


def parser() -> argparse.ArgumentParser:
    """The command line.

    Returns:
        Its parser; `options.do` is the function of the command.
    """
    root = argparse.ArgumentParser(prog="nda", description=__doc__)
    root.add_argument("--version", action="version", version=f"nda {__version__}")
    commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True)
    adds = (_add_run, _add_retrain, _add_attribute, _add_score, _add_trace, _add_plan, _add_ship)
    for add in adds:
        add(commands)
    return root


def _add_run(commands: Any) -> None:
    run = commands.add_parser("run", help="run the notebooks of a profile into book/runs/")
    run.set_defaults(do=_run)
    which = run.add_mutually_exclusive_group()
    which.add_argument("--from", dest="start", metavar="NN", help="first notebook, for example 03")
    which.add_argument("--only", nargs="+", default=(), metavar="NN", help="these notebooks alone")
    run.add_argument(
        "--results", metavar="PROFILE", help="show this profile on the results pages instead"
    )
    run.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="notebooks at a time (default 1)"
    )
    _add_profile(run)


def _add_retrain(commands: Any) -> None:
    retrain = commands.add_parser(
        "retrain", help="train the models of a profile's subsets: all that are missing, or one"
    )
    retrain.set_defaults(do=_retrain)
    retrain.add_argument(
        "--removals",
        action="store_true",
        help="the counterfactual models of notebook 09, without the images that a method ranks"
        " highest, instead of those of random halves",
    )
    _add_engine(retrain)
    _add_profile(retrain)


def _add_attribute(commands: Any) -> None:
    attribute = commands.add_parser(
        "attribute", help="score a profile's queries by one method, by blocks of images"
    )
    attribute.set_defaults(do=_attribute)
    attribute.add_argument("--method", required=True, metavar="KEY", help="such as nda_two_scale")
    attribute.add_argument(
        "--queries",
        choices=("val", "gen"),
        default="val",
        help="held-out or generated queries (default val)",
    )
    attribute.add_argument(
        "--block", type=int, default=100, metavar="N", help="images in a block (default 100)"
    )
    _add_engine(attribute)
    _add_profile(attribute)


def _add_score(commands: Any) -> None:
    score = commands.add_parser(
        "score", help="test your own scores[query, train] against the retrained models of a profile"
    )
    score.set_defaults(do=_score)
    score.add_argument(
        "file",
        type=Path,
        metavar="FILE.npy",
        help="a matrix [query, train] written by numpy.save; a higher score says that keeping the"
        " train image lowers the query's loss",
    )
    score.add_argument(
        "--queries",
        choices=("val", "gen"),
        default="val",
        help="held-out or generated queries (default val)",
    )
    score.add_argument(
        "--resamples", type=int, default=2000, metavar="N", help="of the bootstrap (default 2000)"
    )
    score.add_argument(
        "--profile", required=True, help="whose results to score against, for example small"
    )


def _add_trace(commands: Any) -> None:
    trace = commands.add_parser(
        "trace", help="look for the sources of images of your own among the images of a folder"
    )
    trace.set_defaults(do=_trace)
    trace.add_argument("folder", type=Path, metavar="FOLDER", help="images that a model was shown")
    trace.add_argument(
        "suspects", type=Path, nargs="+", metavar="SUSPECT", help="image files, or folders of them"
    )
    trace.add_argument(
        "--held-out",
        type=Path,
        metavar="FOLDER2",
        help="images that have no source in FOLDER but are otherwise like its images (default:"
        " images of FOLDER, each left out in turn)",
    )
    numbers = {
        "size": (32, "side in pixels at which images are compared"),
        "top": (20, "sources to list"),
        "exact-above": (5000, "above so many images maps are made among candidates"),
        "strangers": (100, "held-out images"),
    }
    for name, (default, what) in numbers.items():
        said = f"{what} (default {default})"
        trace.add_argument(f"--{name}", type=int, default=default, metavar="N", help=said)
    trace.add_argument(
        "--flips",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare mirror images, too",
    )
    trace.add_argument(
        "--timesteps",
        type=int,
        nargs="+",
        default=(25, 100, 300),
        metavar="T",
        help="noise levels of the maps, 0…999, ascending; the verdict is read at the first (default"
        " 25 100 300)",
    )
    trace.add_argument(
        "-o", dest="output", type=Path, required=True, metavar="REPORT", help="folder to write to"
    )


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser(
        "plan", help="what a profile costs before it is run, and the commands for here and clusters"
    )
    plan.set_defaults(do=_plan)
    plan.add_argument(
        "--write", type=Path, metavar="FOLDER", help="write files for Slurm and Kubernetes there"
    )
    _add_profile(plan)


def _add_ship(commands: Any) -> None:
    ship = commands.add_parser(
        "ship",
        help="copy the model and the generated queries of a profile to its results, and write"
        " PROVENANCE.md there",
    )
    ship.set_defaults(do=_ship)
    ship.add_argument("--profile", required=True, help="a folder in data/, for example small")
    ship.add_argument(
        "--without-checkpoints", action="store_true", help="leave out the model's checkpoints"
    )


def _add_engine(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--task", type=int, metavar="K", help="do number K alone, for job arrays (default: all)"
    )
    command.add_argument(
        "--workers", type=int, default=2, help="processes here, of one thread each (default 2)"
    )
    command.add_argument(
        "--engine",
        choices=["loky", "dask"],
        default="loky",
        help="loky, processes here, or dask, the workers of a cluster (default loky)",
    )
    command.add_argument(
        "--scheduler", metavar="ADDRESS", help="of the cluster, such as tcp://10.0.0.1:8786"
    )


def _add_profile(command: argparse.ArgumentParser) -> None:
    command.add_argument("--profile", required=True, help="a file in notebooks/profiles/")
    command.add_argument(
        "-p",
        dest="overrides",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="give a parameter another value",
    )


def overrides(pairs: list[str]) -> dict:
    """`["n=3"]` → `{"n": 3}`; values are YAML.

    Args:
        pairs: what was typed after each `-p`.

    Returns:
        The values by name.

    Raises:
        InputError: for a pair without `=`, or a value that is no YAML.
    """
    given = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"-p needs NAME=VALUE, not {pair!r}")
        try:
            given[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(
                f"-p {name} has the value {value!r}, which is no YAML; give a number, a word, or a"
                " list such as [1, 2]"
            ) from None
    return given


def _run(options: argparse.Namespace) -> None:
    notebooks.run(
        options.profile,
        start=options.start,
        only=options.only,
        overrides=overrides(options.overrides),
        results=options.results,
        jobs=options.jobs,
    )


def _retrain(options: argparse.Namespace) -> None:
    given = overrides(options.overrides)
    plan = notebooks.plan(options.profile, given, removals=options.removals)
    plan.run(**_where(options))


def _plan(options: argparse.Namespace) -> None:
    from nda.artefact import jobs, plan
    from nda.places import home

    stages = plan.plan(options.profile, overrides(options.overrides))
    print(plan.table(stages).to_string(), "", *jobs.here(stages), sep="\n")
    if options.write:
        files = jobs.write(stages, options.write, home().absolute())
        print(
            f"\nwritten to {options.write}: {len(files)} files; sh {files[-1]} sends all to Slurm"
        )


def _attribute(options: argparse.Namespace) -> None:
    from nda.artefact.attribute import attribute

    given = {"overrides": overrides(options.overrides), "block": options.block}
    attribute(options.profile, options.method, options.queries, **given, **_where(options))


def _where(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("task", "workers", "engine", "scheduler")}


def _score(options: argparse.Namespace) -> None:
    from nda.evidence import scorecard  # here, with torch: `nda run` needs none of it

    scores = scorecard.load_scores(options.file)
    asked = {"resamples": options.resamples}
    print(scorecard.score(scores, options.queries, options.profile, **asked))


def _trace(options: argparse.Namespace) -> None:
    from nda import trace  # here, with torch
    from nda.report import output
    from nda.report.page import page

    output.check(options.output)
    names = ("held_out", "size", "top", "flips", "timesteps", "exact_above", "strangers")
    asked = {name: getattr(options, name) for name in names}
    found = trace.trace(options.folder, options.suspects, **asked)
    report = found.report(shlex.join(["nda", *options.typed]))
    output.write(report, page(report), options.output)
    for line in found.lines():
        print(line)
    print(f"the page is {options.output / 'index.html'}")


def _ship(options: argparse.Namespace) -> None:
    from nda.artefact import release

    print(release.ship(options.profile, checkpoints=not options.without_checkpoints))


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: those of the command line; default: those that the process was started with.

    Returns:
        The exit code: 0, 1 for a failed notebook, 2 for bad input, 130 if interrupted.
    """
    options = parser().parse_args(arguments)
    options.typed = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.WARNING)
    try:
        options.do(options)
    except (InputError, OSError, yaml.YAMLError) as error:
        print(f"nda: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"nda: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nda: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
