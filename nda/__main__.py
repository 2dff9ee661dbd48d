"""The command line: `python -m nda run --profile smoke`, `python -m nda member --profile P --task K`."""

import argparse
import logging
import sys

import yaml

from nda import pipeline
from nda.checks import InputError


def parser() -> argparse.ArgumentParser:
    """The small command line."""
    root = argparse.ArgumentParser(prog="python -m nda", description=__doc__)
    commands = root.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the notebooks of a profile into book/runs/")
    which = run.add_mutually_exclusive_group()
    which.add_argument("--from", dest="start", metavar="NN", help="first notebook, for example 03")
    which.add_argument("--only", metavar="NN", help="this notebook alone")
    member = commands.add_parser("member", help="retrain subset models: one task, or all that are missing")
    member.add_argument("--task", type=int, metavar="K", help="number of the task, for job arrays; default: all")
    member.add_argument("--workers", type=int, default=2, help="processes of one thread each (default 2)")
    for command in (run, member):
        command.add_argument("--profile", required=True, help="a file in notebooks/profiles/")
        command.add_argument("-p", dest="overrides", action="append", default=[], metavar="NAME=VALUE", help="override a parameter")
    return root


def overrides(pairs: list[str]) -> dict:
    """`["n=3"]` → `{"n": 3}`; values are YAML."""
    for pair in pairs:
        if "=" not in pair:
            raise InputError(f"-p needs NAME=VALUE, not {pair!r}")
    return {name: yaml.safe_load(value) for name, value in (pair.split("=", 1) for pair in pairs)}


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, 1 for a failed notebook, 2 for bad input."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    try:
        if options.command == "run":
            pipeline.run(options.profile, start=options.start, only=options.only, overrides=overrides(options.overrides))
        else:
            pipeline.plan(options.profile, overrides(options.overrides)).run(workers=options.workers, task=options.task)
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
