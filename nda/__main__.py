"""The command line: run the notebooks of a profile, retrain its subset models, ship its results, or
score attributions of your own."""

import argparse
import logging
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
    for add in (_add_run, _add_retrain, _add_score, _add_ship):
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
    retrain.add_argument(
        "--task", type=int, metavar="K", help="train number K alone, for job arrays (default: all)"
    )
    retrain.add_argument(
        "--workers", type=int, default=2, help="processes, of one thread each (default 2)"
    )
    _add_profile(retrain)


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


def _add_ship(commands: Any) -> None:
    ship = commands.add_parser(
        "ship",
        help="copy the model and the generated queries of a profile to its results, and write"
        " PROVENANCE.md there",
    )
    ship.set_defaults(do=_ship)
    ship.add_argument("--profile", required=True, help="a folder in data/, for example small")


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
        InputError: for a pair without `=`.
    """
    for pair in pairs:
        if "=" not in pair:
            raise InputError(f"-p needs NAME=VALUE, not {pair!r}")
    return {name: yaml.safe_load(value) for name, value in (pair.split("=", 1) for pair in pairs)}


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
    plan.run(workers=options.workers, task=options.task)


def _score(options: argparse.Namespace) -> None:
    from nda.evidence import scorecard  # here, with torch: `nda run` needs none of it

    scores = scorecard.load_scores(options.file)
    asked = {"resamples": options.resamples}
    print(scorecard.score(scores, options.queries, options.profile, **asked))


def _ship(options: argparse.Namespace) -> None:
    from nda.artefact import release

    print(release.ship(options.profile))


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: those of the command line; default: those that the process was started with.

    Returns:
        The exit code: 0, 1 for a failed notebook, 2 for bad input, 130 if interrupted.
    """
    options = parser().parse_args(arguments)
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
