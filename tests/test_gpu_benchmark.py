"""The script for machines with a GPU: tried on the CPU, and one sentence where there is no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks/gpu.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )


def test_a_try_on_the_cpu_checks_and_times_everything():
    done = run("--here")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["device"] == "CPU, a try" and result["command"].endswith("gpu.py --here")
    checks = {check["check"]: check for check in result["checks"]}
    assert all(check["passed"] for check in checks.values())
    assert {"nda_scores", "denoising_losses", "EK-FAC influence"} < {*checks}
    assert {"losses of a training", "per-example gradients"} < {*checks}
    assert any(name.startswith("engine box") for name in checks)
    assert all(min(of.values()) == 1 for of in result["times_slower_than_the_fastest"].values())
    # far less than 1 % of the paper's table, and so no time of it
    assert result["table"]["share"] < 0.01 and result["table"]["whole_seconds"] is None
    assert result["training_steps_per_second"]["float32"] > 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [((), "no CUDA GPU was found"), (("--share", "0.001"), "--share must be between 0.01 and 1")],
)
def test_what_cannot_be_run_is_one_sentence(arguments, reason):
    done = run(*arguments)
    assert done.returncode == 2 and reason in done.stderr.strip().splitlines()[-1]
    assert not done.stdout
