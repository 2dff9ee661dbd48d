"""Is a GPU right, and how fast is it? One command for a machine that has one.

    python benchmarks/gpu.py [--share 0.01] [--data /path/to/images] > gpu.json
    python benchmarks/gpu.py --ship gpu.json

First what is computed on the GPU is compared with the CPU: every engine, the scores of NDA and of
random-feature influence, the losses of a U-Net, its training, per-example gradients, and EK-FAC
influence, each at the tolerance that is printed beside it. Then times: all engines as on page 14 of
the book, the paper's CIFAR-2 table (2,000 queries, 5,000 train images, five timesteps, two scales),
of which a `--share` of the queries is run and the rest extrapolated, random-feature influence of as
many queries, and training steps per second with the paper's batch. One JSON is printed, with the
card's name. Without `--data` the images are smoothed noise.

Without a GPU it stops, with exit status 2. `--here` runs the same checks and times on the CPU at
small sizes, to try the script and not the machine. The second command puts what a run printed
beside the results of `small`, for the book.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import pandas as pd
import torch
from engine import pictures
from torch import Tensor, nn

import nda
from nda.model.outputs import denoising_losses
from nda.model.training import Training, train
from nda.model.unet import Recipe
from nda.nonparametric.config import PAPER, NDAConfig
from nda.nonparametric.patches import patch_scores, shared_noise, triton
from nda.nonparametric.random_features import rfi_scores
from nda.nonparametric.scores import nda_scores
from nda.rivals.gradients import Readout, features
from nda.rivals.influence import influence_scores
from nda.rivals.kfac import fit_curvature
from nda.store import Store

CPU = torch.device("cpu")
PAIRS = (2000, 5000)  # queries and train images of the paper's table
TIMESTEPS = [100, 500, 900]
SMALL_UNET = {
    "block_out_channels": [16, 32],
    "norm_num_groups": 8,
    "layers_per_block": 1,
    "add_attention": False,
    "down_block_types": ["DownBlock2D"] * 2,
    "up_block_types": ["UpBlock2D"] * 2,
}
SMALL = Recipe.parse({"unet": SMALL_UNET, "epochs": 3, "batch": 8, "lr": 1e-3})
# The U-Net of the paper's CIFAR-2 models (D-TRAK's configuration).
PAPERS = Recipe.parse(
    {
        "unet": {
            "block_out_channels": [128, 256, 256, 256],
            "layers_per_block": 2,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
            "dropout": 0.1,
        }
    }
)


class Sizes(NamedTuple):
    """How much is done; the fields of a GPU and of a try on the CPU."""

    side: int
    queries: int
    train: int
    timed: int  # train images in the comparison of engines
    steps: int
    recipe: Recipe
    windows: dict[str, tuple[int, bool]]  # side and whether coarse


WINDOWS = {"full, 7": (7, False), "full, 15": (15, False), "coarse, 14": (14, True)}
GPU = Sizes(32, 8, 64, 512, 20, PAPERS, WINDOWS)
HERE = Sizes(8, 2, 3, 4, 2, SMALL, {"full, 3": (3, False), "coarse, 4": (4, True)})


def relative(ours: Tensor, theirs: Tensor) -> float:
    """How far two results are apart.

    Args:
        ours: of the device.
        theirs: of the CPU.

    Returns:
        The norm of their difference, relative to that of the second.
    """
    difference = ours.detach().cpu().double() - theirs.detach().double()
    return (difference.norm() / theirs.double().norm()).item()


def engines(device: torch.device) -> list[str]:
    """Those that run on a device, but the definition.

    Args:
        device: where.

    Returns:
        Their names.
    """
    names = ["conv", "box", "fused" if device.type == "cpu" else "triton"]
    images = torch.zeros(1, 1, 1, 1, device=device)
    return [name for name in names if name != "triton" or triton.refusal(images) is None]


def patch_checks(device: torch.device, sizes: Sizes, images: Tensor) -> Iterator[dict[str, Any]]:
    """Posteriors and scores.

    Args:
        device: to be checked.
        sizes: of the check.
        images: queries, then train images.

    Yields:
        What was compared, the largest difference relative to the largest score, and its tolerance.
    """
    queries, bank = images.split([sizes.queries, len(images) - sizes.queries])
    for name, (patch, coarse) in sizes.windows.items():
        for borders, timestep, top_k in (
            ("match", 100, 100),
            ("zero", 500, 10),
            ("match", 0, None),
        ):
            ask: dict[str, Any] = {"patch": patch, "coarse": coarse, "borders": borders}
            ask |= {"timestep": timestep, "top_k": top_k}
            noise = shared_noise(queries, timestep, 0)
            # in float32 too, so that the noisy pixels are the same; good to 1e-5 itself
            there = patch_scores(queries, bank, noise=noise, **ask)
            for engine in engines(device):
                moved = (x.to(device) for x in (queries, bank))
                ours = patch_scores(*moved, engine=engine, noise=noise.to(device), **ask)
                off = ((ours.cpu() - there).abs().max() / there.max()).item()
                what = f"engine {engine}, {name}, {borders}, t = {timestep}, top_k {top_k}"
                yield {"check": what, "difference": off, "tolerance": 2e-5}
    small, large = list(sizes.windows.values())[0][0], list(sizes.windows.values())[-1][0]
    config = NDAConfig.two_scale({100: small, 400: small}, {100: large, 400: large}, 0.5)
    ours, theirs = (nda_scores(queries.to(d), bank.to(d), config) for d in (device, CPU))
    yield {"check": "nda_scores", "difference": relative(ours, theirs), "tolerance": 1e-5}
    ours, theirs = (
        rfi_scores(queries.to(d), bank.to(d), timesteps=[62, 460], gated=True)
        for d in (device, CPU)
    )
    yield {"check": "rfi_scores", "difference": relative(ours, theirs), "tolerance": 1e-3}


def model_checks(device: torch.device, sizes: Sizes, images: Tensor) -> Iterator[dict[str, Any]]:
    """Losses, training, gradients, influence, all of a small U-Net.

    Args:
        device: to be checked.
        sizes: of the check.
        images: queries, then train images.

    Yields:
        What was compared, the relative difference, and its tolerance.
    """

    def both(run: Callable[[torch.device], Tensor]) -> float:
        return relative(run(device), run(CPU))

    def trained(place: torch.device) -> Tensor:
        *_, last = train(images.to(place), SMALL)
        return last.losses

    def model(place: torch.device) -> nn.Module:
        return SMALL.build(0, images.shape).eval().to(place)

    def losses(place: torch.device) -> Tensor:
        return denoising_losses(model(place), images.to(place), timesteps=TIMESTEPS)

    def gradients(place: torch.device) -> Tensor:
        few = images[: sizes.queries].to(place)
        return features(model(place), few, Readout("loss", TIMESTEPS))

    def influence(place: torch.device) -> Tensor:
        net, bank = model(place), images.to(place)
        curvature = fit_curvature(net, bank, timesteps=TIMESTEPS)
        return influence_scores(net, bank[:2], bank, curvature=curvature, timesteps=TIMESTEPS)

    for check, run, tolerance in (
        ("denoising_losses", losses, 1e-5),
        ("losses of a training", trained, 1e-3),
        ("per-example gradients", gradients, 1e-4),
        ("EK-FAC influence", influence, 1e-2),  # eigenvectors of near equal eigenvalues may turn
    ):
        yield {"check": check, "difference": both(run), "tolerance": tolerance}


def seconds(device: torch.device, function: Callable[[], Any]) -> float:
    """The time that a function takes, its second run: the first one compiles.

    Args:
        device: that is waited for.
        function: what is timed.

    Returns:
        Seconds.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    function()
    wait()
    started = perf_counter()
    function()
    wait()
    return perf_counter() - started


def engine_times(device: torch.device, sizes: Sizes, images: Tensor) -> dict[str, dict[str, float]]:
    """One query at timestep 100, as on page 14.

    Args:
        device: where.
        sizes: the windows.
        images: one query, then train images; the slow engines get an eighth of them.

    Returns:
        Microseconds per train image, by window and engine.
    """
    found: dict[str, dict[str, float]] = {}
    for name, (patch, coarse) in sizes.windows.items():
        for engine in engines(device):
            count = len(images) - 1 if engine in ("triton", "fused") else len(images) // 8 + 1
            query, bank = images[:1], images[1 : count + 1]
            ask: dict[str, Any] = {"timestep": 100, "patch": patch, "coarse": coarse}
            ask |= {"noise": shared_noise(query, 100, 0), "engine": engine}
            spent = seconds(device, partial(patch_scores, query, bank, **ask))
            found.setdefault(name, {})[engine] = 1e6 * spent / count
    return found


def table_times(
    device: torch.device, images: Tensor, queries: int, config: NDAConfig
) -> dict[str, Any]:
    """The paper's table, with the engine that `auto` picks.

    Args:
        device: where.
        images: queries, then train images.
        queries: how many of them.
        config: timesteps and windows.

    Returns:
        Seconds that were measured by term, the share of the pairs that this was, and seconds of the
        whole table, which are extrapolated unless the share is 1, and None from less than 1 %.
    """
    asked, bank = images.split([queries, len(images) - queries])
    share = len(asked) * len(bank) / (PAIRS[0] * PAIRS[1])
    measured: dict[str, float] = {}
    for term in config.terms():
        ask = config.options(asked, term)
        patch_scores(asked[:1], bank, **ask)  # compiles
        started = perf_counter()
        patch_scores(asked, bank, **ask).sum().item()  # waits for the device
        scale = "coarse" if term.scale.coarse else "full"
        name = f"{scale}, {term.scale.patch}, t = {term.timestep}"
        measured[name] = perf_counter() - started
        print(f"{name}: {measured[name]:.2f} s", file=sys.stderr)
    whole = sum(measured.values()) / share if share >= 0.01 else None
    return {"measured_seconds": measured, "share": share, "whole_seconds": whole}


def rfi_time(device: torch.device, images: Tensor, queries: int) -> dict[str, float]:
    """Random-feature influence with its gate, at the settings of the catalogue.

    Args:
        device: where.
        images: queries, then train images.
        queries: how many of them.

    Returns:
        Queries, train images and seconds.
    """
    asked, bank = images.split([queries, len(images) - queries])
    rfi_scores(asked, bank[:64], timesteps=[100], gated=True)  # compiles
    started = perf_counter()
    rfi_scores(asked, bank, gated=True).sum().item()  # waits for the device
    return {"queries": queries, "train": len(bank), "seconds": perf_counter() - started}


def training_speed(device: torch.device, sizes: Sizes, images: Tensor) -> dict[str, float]:
    """Training steps per second.

    Args:
        device: where.
        sizes: the recipe and how many steps.
        images: what is trained on, again and again.

    Returns:
        Images in a step, and steps per second in float32 and, on a GPU, in bfloat16.
    """
    batch = sizes.recipe.batch
    many = images.repeat(-(-batch * sizes.steps // len(images)), 1, 1, 1)[: batch * sizes.steps]
    found: dict[str, float] = {"batch": batch}
    for bf16 in (False, True) if device.type == "cuda" else (False,):
        everything = torch.ones(len(many), dtype=torch.bool)
        run = Training(replace(sizes.recipe, bf16=bf16), many, everything, 0)
        found["bfloat16" if bf16 else "float32"] = sizes.steps / seconds(device, run.run_epoch)
    return found


def measured(device: torch.device, sizes: Sizes, options: argparse.Namespace) -> dict[str, Any]:
    """Everything.

    Args:
        device: to be checked and timed.
        sizes: how much of it.
        options: of the command line.

    Returns:
        What is printed.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    images = pictures(sizes.queries + sizes.train, sizes.side, options.data)
    checks = []
    for part in (patch_checks, model_checks):
        for check in part(device, sizes, images):
            check["passed"] = check["difference"] <= check["tolerance"]
            print("{check}: {difference:.1e}".format(**check), file=sys.stderr)
            checks.append(check)
    torch.backends.cudnn.allow_tf32 = True  # torch's default, with which times are taken
    queries = 1 if options.here else max(1, round(options.share * PAIRS[0]))
    count = sizes.timed if options.here else PAIRS[1]
    patches = list(sizes.windows.values())[0][0]
    config = NDAConfig.single({100: patches}) if options.here else PAPER
    many = pictures(max(queries + count, sizes.timed + 1), sizes.side, options.data).to(device)
    times = engine_times(device, sizes, many[: sizes.timed + 1])
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, a try",
        "date": date.today().isoformat(),
        "command": " ".join(["python benchmarks/gpu.py", *sys.argv[1:]]),
        "versions": {"nda": nda.__version__, "torch": torch.__version__, "cuda": torch.version.cuda}
        | {"python": platform.python_version()},
        "images": options.data or "smoothed noise",
        "checks": checks,
        "engines_us_per_image": times,
        "times_slower_than_the_fastest": {
            window: {engine: t / min(of.values()) for engine, t in of.items()}
            for window, of in times.items()
        },
        "table": table_times(device, many[: queries + count], queries, config),
        "random_features": rfi_time(device, many[: queries + count], queries),
        "training_steps_per_second": training_speed(device, sizes, many[: sizes.timed]),
    }


def ship(path: Path) -> None:
    """Put what a run printed beside the results of `small`: the times of the engines as a table,
    and all else as its notes.

    Args:
        path: of the JSON.

    Raises:
        SystemExit: if one of its checks failed.
    """
    ran = json.loads(path.read_text())
    if failed := [check["check"] for check in ran["checks"] if not check["passed"]]:
        raise SystemExit(f"nothing is shipped of a run where checks failed: {', '.join(failed)}")
    times = pd.DataFrame(ran.pop("engines_us_per_image")).T.rename_axis("window").reset_index()
    del ran["times_slower_than_the_fastest"]  # the table says it
    Store.shipped("small").save("gpu/engines", times, notes=ran)


def main() -> int:
    """Print the JSON, or ship one.

    Returns:
        The exit status: 0, 1 if a check failed, 2 if there is no GPU.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--share", type=float, default=0.01, help="of the paper's table that is run"
    )
    parser.add_argument("--data", help="a data set or folder, as `nda.data.images.load` takes it")
    parser.add_argument("--here", action="store_true", help="a try on the CPU at small sizes")
    parser.add_argument("--ship", type=Path, metavar="JSON", help="of a run, for the book")
    options = parser.parse_args()
    if options.ship:
        ship(options.ship)
        return 0
    if not 0.01 <= options.share <= 1:
        parser.error(f"--share must be between 0.01 and 1, not {options.share}")
    if not options.here and not torch.cuda.is_available():
        print("no CUDA GPU was found; run this where there is one, or --here", file=sys.stderr)
        return 2
    result = measured(
        CPU if options.here else torch.device("cuda"), HERE if options.here else GPU, options
    )
    print(json.dumps(result, indent=1))
    failed = [check["check"] for check in result["checks"] if not check["passed"]]
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
