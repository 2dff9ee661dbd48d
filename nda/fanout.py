"""Run many independent tasks: skip what is done, survive a killed worker, show progress."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

Task = TypeVar("Task")


def run(
    function: Callable[[Task], Any],
    tasks: Sequence[Task],
    *,
    done: Callable[[Task], bool],
    workers: int = 2,
    label: str = "tasks",
    backend: str = "loky",
    retries: int = 3,
) -> int:
    """Call `function(task)` for every task that is not `done`, in `workers` processes of one thread
    each.

    A function writes its own result; `done` looks for it, so the same call resumes a killed run and
    loses at most the tasks in hand.

    Args:
        function: does a task.
        tasks: all of them.
        done: whether a task's result is there.
        workers: processes.
        label: of the progress bar.
        backend: of joblib; `"dask"` sends the tasks to the current dask cluster.
        retries: how often the tasks that are still missing are started again after a worker process
            was killed.

    Returns:
        How many tasks ran.

    Raises:
        TerminatedWorkerError: when workers are killed more often than that.
    """
    todo = [task for task in tasks if not done(task)]
    total, asked = len(todo), os.getpid() if backend == "loky" else 0
    # not len(todo): the last task of many must not run, and be killed, in this process
    jobs = max(1, min(workers, len(tasks)))
    for attempt in range(retries + 1):
        if not todo:
            break
        try:
            done_before = len(tasks) - len(todo)
            with (
                tqdm(total=len(tasks), initial=done_before, desc=label, unit="task") as bar,
                joblib.parallel_config(backend=backend, n_jobs=jobs),
            ):
                calls = (joblib.delayed(_alone)(function, task, asked) for task in todo)
                for _ in joblib.Parallel(return_as="generator_unordered")(calls):
                    bar.update()
            return total
        except TerminatedWorkerError:
            if attempt == retries:
                raise
            todo = [task for task in todo if not done(task)]
    return total


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch uses one thread: the same bits whatever the machine's number of cores, and no
    crowd when workers share them.

    Yields:
        Nothing.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _alone(function: Callable[[Task], Any], task: Task, asked: int) -> Any:
    if asked and asked not in (os.getpid(), os.getppid()):
        os._exit(1)  # who asked was killed, and its successor may be at the same tasks already
    with one_thread():
        return function(task)
