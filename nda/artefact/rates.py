"""What a step of everything that takes long costs on this machine, measured on a little of it."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

from nda import rng
from nda.checks import pick_device
from nda.fanout import one_thread
from nda.methods import METHODS
from nda.model import outputs, training, unet
from nda.nonparametric.scores import configured_scores
from nda.rivals.gradients import Readout, features

TIMES = outputs.uniform_timesteps(8)
FEW = 16  # train images that NDA is measured on
LONG = 10  # seconds beside which the compiler's hardly count


@dataclass(frozen=True)
class Rate:
    """seconds: of one unit of work. memory: the process's largest while it was measured, in MB;
    None where the system does not say."""

    seconds: float
    memory: float | None = None


@dataclass(frozen=True)
class Rates:
    """What units of work cost.

    Attributes:
        step: of training: one batch.
        forward: of the model: one image at one timestep.
        gradient: of a model output: one image at one timestep.
        nda: both scales and all timesteps: one query and one train image.
        parameters: how many the model has.
    """

    step: Rate
    forward: Rate
    gradient: Rate
    nda: Rate
    parameters: int


def recipe(given: Mapping[str, Any]) -> unet.Recipe:
    """How the model of a profile is made.

    Args:
        given: all parameters of the profile.

    Returns:
        The recipe.
    """
    names = [f.name for f in fields(unet.Recipe)]
    return unet.Recipe.parse({name: given[name] for name in names if name in given})


def measure(given: Mapping[str, Any]) -> Rates:
    """Train one step, ask the untrained model, and score one query against a few train images; all
    are random pixels of the right size. On one thread, as tasks run; on a CPU in its own seconds,
    in which nothing counts that runs beside it.

    Args:
        given: all parameters of the profile.

    Returns:
        The costs.
    """
    made, place = recipe(given), pick_device(given["device"])
    shape = (max(made.batch, FEW), 1 if given["dataset"] == "mnist" else 3, *[given["size"]] * 2)
    images = (2 * torch.rand(*shape, generator=rng.generator("rates")) - 1).to(place)
    batch, one = images[: made.batch], images[:1]
    timed = partial(_timed, clock=process_time if place.type == "cpu" else perf_counter)
    with one_thread():
        run = training.Training(made, batch, torch.ones(len(batch), dtype=torch.bool), 0)
        step = timed(run.run_epoch, 1)
        model = run.model.eval().requires_grad_(False)
        ask: Any = {"timesteps": TIMES, "noise_seeds": [0]}
        few = images[:FEW]
        forward = timed(lambda: outputs.denoising_losses(model, few, **ask), len(few) * len(TIMES))
        readout = Readout("loss", TIMES)
        gradient = timed(lambda: features(model, one, readout), len(TIMES))
        settings = METHODS["nda_two_scale"].settings(given)
        nda = timed(lambda: configured_scores(one, few, **settings), len(few))
    return Rates(step, forward, gradient, nda, sum(p.numel() for p in model.parameters()))


def _timed(work: Callable[[], Any], units: int, *, clock: Callable[[], float]) -> Rate:
    """The second of two runs, or the first if it is long: it compiles and fills caches."""
    for _ in range(2):
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the largest memory starts anew
        started = clock()
        work()
        took = clock() - started
        if took > LONG:
            break
    return Rate(took / units, _largest())


def _largest() -> float | None:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")]
    return found[0] if found else None
