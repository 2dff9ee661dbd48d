"""A plan as command lines: for this machine, for Slurm, for Kubernetes."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml

from nda.artefact.plan import Stage

ROOM, LEAST = 3, 600  # times the seconds that were measured; at least so many
GATHERED = {"subset models": "03", "counterfactuals": "09"}  # by this notebook, when all are there
IMAGE = "your-registry/nda"  # an image with this repository installed
CLAIM = "nda-results"  # a volume that all tasks share


def here(stages: Sequence[Stage]) -> list[str]:
    """The commands of this machine.

    Args:
        stages: of `nda.artefact.plan.plan`.

    Returns:
        One line each, in order.
    """
    lines = []
    for command in dict.fromkeys(stage.command for stage in stages):  # one makes two of the stages
        lines.append(command)
        if number := GATHERED.get(next(s.name for s in stages if s.command == command)):
            _, _, asked = command.replace(" --removals", "").partition("retrain ")
            lines.append(f"nda run {asked} --only {number}")
    return lines


def write(stages: Sequence[Stage], folder: Path, home: Path) -> list[Path]:
    """A file for Slurm and one for Kubernetes for every command, and `submit.sh`, which sends all
    to Slurm, each to start when the one before has ended well.

    Args:
        stages: of `nda.artefact.plan.plan`.
        folder: where the files are written.
        home: the folder that all machines share, `NDA_HOME`.

    Returns:
        The files.
    """
    files, submit = {}, ["#!/bin/bash", "set -euo pipefail", 'cd "$(dirname "$0")"', "after="]
    for number, command in enumerate(here(stages)):
        made = [stage for stage in stages if stage.command == command]
        name = f"{number:02d}-{made[0].name if made else 'gather'}".replace(" ", "-")
        files[f"{name}.sbatch"] = slurm(name, command, made, home)
        files[f"{name}.yaml"] = kubernetes(name, command, made)
        submit.append(f"after=$(sbatch --parsable $after {name}.sbatch)")
        submit.append('after="--dependency=afterok:$after"')
    files["submit.sh"] = "\n".join(submit) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).write_text(text)
    return [folder / file for file in files]


def slurm(name: str, command: str, stages: Sequence[Stage], home: Path) -> str:
    """A complete sbatch file.

    Args:
        name: of the job.
        command: what it runs; of an array, its tasks.
        stages: that the command makes; none if it only gathers.
        home: `NDA_HOME`.

    Returns:
        The text.
    """
    tasks, seconds, memory = _asks(stages)
    minutes = math.ceil(seconds / 60)
    lines = [f"--job-name=nda-{name}", "--ntasks=1", "--cpus-per-task=1", f"--mem={memory}M"]
    lines += [f"--time={minutes // 60}:{minutes % 60:02d}:00"]
    if tasks:
        lines += [f"--array=0-{tasks - 1}", "--output=%x-%a.out"]
        command += ' --task "$SLURM_ARRAY_TASK_ID"'
    head = ["#!/bin/bash", *(f"#SBATCH {line}" for line in lines), "set -euo pipefail"]
    head += [f"export OMP_NUM_THREADS=1 NDA_HOME={shlex.quote(str(home))}", command]
    return "\n".join(head) + "\n"


def kubernetes(name: str, command: str, stages: Sequence[Stage]) -> str:
    """A complete Job, with an index if the command is an array.

    Args:
        name: of the job.
        command: what it runs; of an array, its tasks.
        stages: that the command makes; none if it only gathers.

    Returns:
        The text.
    """
    tasks, seconds, memory = _asks(stages)
    command += " --task $JOB_COMPLETION_INDEX" if tasks else ""
    environment = {"NDA_HOME": "/results", "OMP_NUM_THREADS": "1"}
    container = {
        "name": "nda",
        "image": IMAGE,
        "command": ["sh", "-c", command],
        "resources": {"requests": {"cpu": "1", "memory": f"{memory}M"}},
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "volumeMounts": [{"name": "results", "mountPath": "/results"}],
    }
    volume = {"name": "results", "persistentVolumeClaim": {"claimName": CLAIM}}
    pod = {"restartPolicy": "OnFailure", "containers": [container], "volumes": [volume]}
    spec = {"completionMode": "Indexed", "completions": max(1, tasks), "parallelism": 8}
    spec |= {"template": {"spec": pod}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": f"nda-{name}"}}
    return yaml.safe_dump(job | {"spec": spec}, sort_keys=False)


def _asks(stages: Sequence[Stage]) -> tuple[int, float, int]:
    """Tasks of an array, or 0; seconds and MB of one job, with room to spare."""
    array = next((stage for stage in stages if stage.array), None)
    seconds = (array.seconds or 0) if array else sum(stage.total for stage in stages)
    memory = max((stage.memory or 0 for stage in stages), default=0)
    least = LEAST if stages and seconds else 6 * LEAST  # of what is not known
    asked = max(least, ROOM * seconds), math.ceil(1.5 * max(memory, 2000))
    return array.tasks if array else 0, *asked
