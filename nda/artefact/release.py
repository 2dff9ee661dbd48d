"""What a profile hands over: model, checkpoints and generated queries among the results, and a page
that says how all was made."""

import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nda.store import COPIED, VERSIONS, Store


def ship(profile: str) -> Path:
    """Copy the model, its checkpoints (16-bit) and the generated queries (8-bit, exact) to the
    results and write `PROVENANCE.md` there.

    Returns the page's path. Raises InputError if a notebook that makes any of it has not run yet.
    """
    store, results = Store.working(profile), Store.results(profile)
    for name, copy in _copies(store).items():
        made = {key: store.info(name)[key] for key in ("axes", "parameters", "seconds")}
        inputs = {COPIED.format(name): store.info(name)["sha256"]}
        results.kept(name, partial(copy, store.load(name)), inputs=inputs, **made)
    results.write("PROVENANCE.md", provenance(profile))
    return results.folder / "PROVENANCE.md"


def _copies(store: Store) -> dict[str, Callable[[Any], Any]]:
    """What is copied to the results, and how: the model as it is, its checkpoints in 16 bits, the
    generated queries in 8."""
    shares = store.info("model")["parameters"]["recipe"]["checkpoints"][:-1]
    checkpoints = [f"model-{round(100 * share)}" for share in shares]
    return {"model": dict, **dict.fromkeys(checkpoints, _halved), "gen": levels}


def _halved(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.half() for name, value in weights.items()}


def levels(images: Tensor) -> Tensor:
    """The 256 levels of an image file, uint8, of pixels in [-1, 1]; `levels / 127.5 - 1` gives the
    pixels back."""
    return ((images + 1) * 127.5).round().to(torch.uint8)


def provenance(profile: str) -> str:
    """How the results of a profile were made, in Markdown, from their sidecars."""
    results = Store.results(profile)
    made = {name: results.info(name) for name in results.names()}
    model, losses = (
        results.info("model"),
        {family: results.info(f"losses/{family}-val") for family in ("select", "report")},
    )
    seeds = [f"{family} models {info['parameters']['seeds']}" for family, info in losses.items()]
    data = results.info("masks/report")["parameters"]
    facts = {
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
        "train seeds": f"full model {model['parameters']['train_seed']}, {', '.join(seeds)}",
        "timesteps of the losses": ", ".join(map(str, losses["report"]["parameters"]["timesteps"])),
        "noise seeds of the losses": losses["report"]["parameters"]["noise_seeds"],
        "recipe": ", ".join(
            f"{name} {value}" for name, value in model["parameters"]["recipe"].items()
        ),
    }
    seconds = {"full model": model["seconds"], "generated queries": results.info("gen")["seconds"]}
    seconds |= {
        f"{family} models, one core each, added up": info["seconds"]
        for family, info in losses.items()
    }
    seconds["scores of all methods, added up; what methods share counts for each"] = sum(
        info["seconds"] or 0 for name, info in made.items() if name.startswith("effects/")
    )
    files = [
        [
            name,
            info["shape"] if info["kind"] == "tensor" else info["kind"],
            _seconds(info["seconds"]),
            info["written"][:16],
            info["sha256"],
        ]
        for name, info in made.items()
    ]
    parts = [
        (
            f"# Provenance of `{profile}`\n\nWritten by `python -m nda ship` from the sidecars of"
            " the files; do not edit."
        ),
        _table(["what", "how"], list(facts.items())),
        _table(["stage", "seconds"], [[stage, _seconds(took)] for stage, took in seconds.items()]),
        _table(["file", "shape", "seconds", "written, UTC", "sha256"], files),
    ]
    return "\n\n".join(parts) + "\n"


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
