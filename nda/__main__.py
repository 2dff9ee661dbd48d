"""The command line: run the notebooks of a profile, retrain its subset models, ship its results, or
score attributions of your own."""

import argparse
import logging
import sys
from pathlib import Path

import yaml

from nda.artefact import notebooks, release
from nda.errors import InputError
from nda.evidence import scorecard
from nda.evidence.truth import REPORT
from nda.store import Store


def parser() -> argparse.ArgumentParser:
    """The small command line; `options.do` is the function of the command."""
    root = argparse.ArgumentParser(prog="python -m nda", description=__doc__)
    commands = root.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the notebooks of a profile into book/runs/")
    run.set_defaults(do=_run)
    which = run.add_mutually_exclusive_group()
    which.add_argument("--from", dest="start", metavar="NN", help="first notebook, for example 03")
    which.add_argument("--only", nargs="+", default=(), metavar="NN", help="these notebooks alone")
    member = commands.add_parser(
        "member", help="retrain subset models: one task, or all that are missing"
    )
    member.set_defaults(do=_member)
    member.add_argument(
        "--task", type=int, metavar="K", help="number of the task, for job arrays; default: all"
    )
    member.add_argument(
        "--workers", type=int, default=2, help="processes of one thread each (default 2)"
    )
    score = commands.add_parser(
        "score", help="test your own scores[query, train] against the retrained models of a profile"
    )
    score.set_defaults(do=_score)
    score.add_argument(
        "file",
        type=Path,
        metavar="FILE.npy",
        help="a matrix [query, train], higher = proponent, written by numpy.save",
    )
    score.add_argument(
        "--queries",
        choices=list(REPORT),
        default="val",
        help="held-out or generated queries (default val)",
    )
    score.add_argument(
        "--resamples", type=int, default=2000, metavar="N", help="of the bootstrap (default 2000)"
    )
    score.add_argument(
        "--profile", required=True, help="a folder in data/results/, for example small"
    )
    ship = commands.add_parser(
        "ship",
        help=(
            "add the model and the generated queries to the results of a profile, and PROVENANCE.md"
        ),
    )
    ship.set_defaults(do=_ship)
    ship.add_argument("--profile", required=True, help="a folder in data/, for example small")
    for command in (run, member):
        command.add_argument("--profile", required=True, help="a file in notebooks/profiles/")
        command.add_argument(
            "-p",
            dest="overrides",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="override a parameter",
        )
    return root


def overrides(pairs: list[str]) -> dict:
    """`["n=3"]` → `{"n": 3}`; values are YAML."""
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
    )


def _member(options: argparse.Namespace) -> None:
    notebooks.plan(options.profile, overrides(options.overrides)).run(
        workers=options.workers, task=options.task
    )


def _score(options: argparse.Namespace) -> None:
    scores = scorecard.load_scores(options.file)
    print(
        scorecard.score(
            scores, options.queries, Store.results(options.profile), resamples=options.resamples
        )
    )


def _ship(options: argparse.Namespace) -> None:
    print(release.ship(options.profile))


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, 1 for a failed notebook, 2 for bad input."""
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
