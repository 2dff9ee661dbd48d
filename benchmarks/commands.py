"""What the two commands cost, at another commit and at this one: time, processor time, memory.

    python benchmarks/commands.py COMMIT [test] [book]

Both commits are checked out into empty folders and run one after the other in the environment of
this Python, on a machine that should have nothing else to do. Ratios are this commit's share of
the other's. Memory is the largest sum over all processes of what they have for themselves and
their part of what they share (PSS), looked at once a second. Needs Linux.
"""

import os
import resource
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent


def memory(process: int) -> float:
    """What a process and its descendants take at this moment.

    Args:
        process: its number.

    Returns:
        Their memory, in GB.
    """
    used = 0.0
    with suppress(OSError):  # it may end meanwhile
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                used = int(line.split()[1]) / 2**20
        for task in Path(f"/proc/{process}/task").iterdir():
            used += sum(map(memory, map(int, (task / "children").read_text().split())))
    return used


def cost(command: str, folder: Path) -> dict[str, float]:
    """Run `make command` in a folder.

    Args:
        command: the target, such as `"test"`.
        folder: a checkout that has an environment.

    Returns:
        What it cost, by what is measured.
    """
    environment = os.environ | {"PYTHONPATH": str(folder), "NDA_HOME": ""}
    asked = ["make", "-o", ".venv/installed", command]  # the environment is as it should be
    before, started, peak = resource.getrusage(resource.RUSAGE_CHILDREN), monotonic(), 0.0
    with open(folder / f"{command}.log", "wb") as log:
        running = subprocess.Popen(asked, cwd=folder, env=environment, stdout=log, stderr=log)
        while running.poll() is None:
            peak = max(peak, memory(running.pid))
            sleep(1)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    if running.returncode:  # the times are those of a run to its end all the same, or the log shows
        print((folder / f"{command}.log").read_text()[-4000:], f"make {command} failed", sep="\n")
    return {
        "seconds": monotonic() - started,
        "processor seconds": spent.ru_utime + spent.ru_stime - before.ru_utime - before.ru_stime,
        "memory, GB": peak,
    }


def main(commit: str, *commands: str) -> None:
    """Print the costs of commands at both commits, and their ratios.

    Args:
        commit: the other one.
        commands: targets of the Makefile; default: both.
    """
    costs = {}
    with tempfile.TemporaryDirectory() as name:
        for which in (commit, "HEAD"):
            folder = Path(name, which.replace("/", "-"))
            git = ["git", "-C", str(ROOT), "worktree"]
            subprocess.run([*git, "add", "--quiet", "--detach", folder, which], check=True)
            try:
                (folder / ".venv").symlink_to(sys.prefix)
                for command in commands or ("test", "book"):
                    costs[command, which] = cost(command, folder)
            finally:
                subprocess.run([*git, "remove", "--force", folder], check=True)
    table = pd.DataFrame(costs).T.unstack()
    for what in table.columns.get_level_values(0).unique():
        table[what, "ratio"] = table[what, "HEAD"] / table[what, commit]
    print(table.sort_index(axis=1, level=0, sort_remaining=False).round(2).to_string())


if __name__ == "__main__":
    main(*sys.argv[1:])
