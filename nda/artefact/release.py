"""What a profile hands over: model, checkpoints and generated queries among the results, and a page
that says how all was made."""

import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from nda.data.pixels import levels
from nda.evidence.records import check_results
from nda.evidence.truth import FAMILIES
from nda.store import COPIED, VERSIONS, Store


def ship(profile: str, *, checkpoints: bool = True) -> Path:
    """Copy the model, its checkpoints (16-bit) and the generated queries (8-bit, exact) to the
    results, see that all results belong together, and write `PROVENANCE.md` there.

    Args:
        profile: its name.
        checkpoints: whether these are copied, too.

    Returns:
        The page's path.
    """
    store, results = Store.working(profile), Store.results(profile)
    for name, copy in _copies(store, checkpoints).items():
        info = store.info(name)
        made = {key: info[key] for key in ("axes", "parameters", "seconds")}
        made["inputs"] = info["inputs"] | {COPIED.format(name): info["sha256"]}
        results.kept(name, partial(copy, store.load(name)), **made)
    check_results(results)
    results.write("PROVENANCE.md", provenance(profile, results))
    return results.folder / "PROVENANCE.md"


def _copies(store: Store, checkpoints: bool) -> dict[str, Callable[[Any], Any]]:
    """What is copied, and how: the model as it is, checkpoints in 16 bits, queries in 8."""
    shares = store.info("model")["parameters"]["recipe"]["checkpoints"][:-1]
    names = [f"model-{round(100 * share)}" for share in shares if checkpoints]
    return {"model": dict, **dict.fromkeys(names, _halved), "gen": levels}


def _halved(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.half() for name, value in weights.items()}


def provenance(profile: str, results: Store) -> str:
    """How the results of a profile were made, from their sidecars and its `NOTES.md`, if any.

    Args:
        profile: its name.
        results: its results.

    Returns:
        A page in Markdown.
    """
    needed = ["masks/report", *(f"losses/{family}-val" for family in FAMILIES), "model", "gen"]
    made = {name: results.info(name) for name in sorted({*needed, *results.names()})}
    parts = [
        (
            f"# Provenance of `{profile}`\n\nWritten by `python -m nda ship` from the sidecars of"
            " the files; do not edit."
        ),
        _table(["what", "how"], list(_facts(profile, made).items())),
        _table(["stage", "seconds"], list(_stages(made).items())),
        _table(["file", "shape", "seconds", "written, UTC", "sha256"], _files(made)),
        *_corrections(made),
    ]
    notes = results.folder / "NOTES.md"  # written by hand: what no sidecar knows
    parts += [notes.read_text().strip()] if notes.exists() else []
    return "\n\n".join(parts) + "\n"


def _facts(profile: str, made: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    model, data = made["model"]["parameters"], made["masks/report"]["parameters"]
    losses = {family: made[f"losses/{family}-val"] for family in FAMILIES}
    seeds = [f"{family} models {info['parameters']['seeds']}" for family, info in losses.items()]
    measured = losses["report"]["parameters"]
    return {
        "commands": (
            f"`python -m nda run --profile {profile}` and the others of the book's page *Run it"
            " again*, `ship` last"
        ),
        "data": (
            f"`{Path(data['dataset']).name}` at {data['size']} x {data['size']}: {data['origin']}"
        ),
        "sha256 of the pool's pixels": data["pool_sha256"],
        "commit when this page was written": _commit(),
        "machine when this page was written": (
            f"{_machine()}; device of the losses: {losses['report']['device']}"
        ),
        "versions": ", ".join(f"{name} {number}" for name, number in VERSIONS.items()),
        "train seeds": f"full model {model['train_seed']}, {', '.join(seeds)}",
        "timesteps of the losses": ", ".join(map(str, measured["timesteps"])),
        "noise seeds of the losses": measured["noise_seeds"],
        "recipe": ", ".join(f"{name} {value}" for name, value in model["recipe"].items()),
    }


def _stages(made: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    took = {"full model": made["model"]["seconds"], "generated queries": made["gen"]["seconds"]}
    took |= {
        f"{family} models, one core each, added up": made[f"losses/{family}-val"]["seconds"]
        for family in FAMILIES
    }
    took["scores of all methods, added up; what methods share counts for each"] = sum(
        info["seconds"] or 0 for name, info in made.items() if name.startswith("effects/")
    )
    return {stage: _seconds(seconds) for stage, seconds in took.items()}


def _files(made: Mapping[str, Mapping[str, Any]]) -> list[list[Any]]:
    return [
        [
            name,
            info["shape"] if info["kind"] == "tensor" else info["kind"],
            _seconds(info["seconds"]),
            info["written"][:16],
            info["sha256"],
        ]
        for name, info in made.items()
    ]


def _corrections(made: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What was put right later in sidecars, if anything: one row for each day and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, info in made.items():
        if said := info.get("corrected"):
            found.setdefault((said["date"], said["reason"]), []).append(name)
    rows = [[date, why, f"{len(names)}, {_kinds(names)}"] for (date, why), names in found.items()]
    said = (
        "Sidecars were corrected after the files had been written. No array or table was touched."
    )
    return [said, _table(["date", "what had been wrong", "sidecars"], rows)] if rows else []


def _kinds(names: Sequence[str]) -> str:
    """Files by name; those in a folder by the folder's."""
    return ", ".join(dict.fromkeys(name.split("/")[0] + "/…" * ("/" in name) for name in names))


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    return "\n".join(
        "| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows)
    )


def _seconds(took: float | None) -> str:
    return "not measured" if took is None else f"{took:,.1f}"


def _machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return (
        f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    )


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
