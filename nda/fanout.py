"""Run many independent tasks: skip what is done, survive a killed worker, show progress."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

from nda import __version__
from nda.errors import InputError, check_choice, needs
from nda.store import VERSIONS

Task = TypeVar("Task")
ENGINES = ("loky", "dask")
ABOUT = {"nda": __version__, **VERSIONS}  # with other versions the bytes may be others
CONNECT = 20  # seconds that a scheduler may take to answer


def run(
    function: Callable[[Task], Any],
    tasks: Sequence[Task],
    *,
    done: Callable[[Task], bool],
    workers: int = 2,
    label: str = "tasks",
    engine: str = "loky",
    scheduler: str | None = None,
    retries: int = 3,
) -> int:
    """Call `function(task)` for every task that is not `done`, each on one thread, and start those
    again whose worker was killed.

    A function writes its own result; `done` looks for it, so the same call resumes a killed run and
    loses at most the tasks in hand.

    Args:
        function: does a task.
        tasks: all of them.
        done: whether a task's result is there.
        workers: processes here; how many a cluster has is its own affair.
        label: of the progress bar.
        engine: `"loky"`, processes on this machine, or `"dask"`, the workers of a cluster that see
            the same folders and have the same versions of this module and its packages.
        scheduler: of the cluster, for example `"tcp://10.0.0.1:8786"`.
        retries: how often the tasks that are still missing are started again after a worker process
            was killed; of a cluster, the scheduler's own setting counts.

    Returns:
        How many tasks ran.

    Raises:
        InputError: for an engine that there is not, or a cluster that cannot be used.
        RuntimeError: when workers are killed more often than that.
    """
    check_choice("engine", engine, ENGINES)
    if (engine == "dask") != (scheduler is not None):
        raise InputError(
            "engine 'dask' needs the address of a scheduler, and no other engine takes one; give"
            " both, such as --engine dask --scheduler tcp://10.0.0.1:8786"
        )
    todo = [task for task in tasks if not done(task)]
    if todo:
        with tqdm(total=len(tasks), initial=len(tasks) - len(todo), desc=label, unit="task") as bar:
            if scheduler is not None:
                _on_dask(function, todo, scheduler, bar)
            else:
                # not len(todo): the last task of many must not run, and be killed, in this process
                jobs = max(1, min(workers, len(tasks)))
                _on_loky(function, todo, done, jobs, retries, bar)
    return len(todo)


def one_of(tasks: Sequence[Task], number: int | None) -> Sequence[Task]:
    """The task of a job array, or all.

    Args:
        tasks: all of them.
        number: its place among them; None for all.

    Returns:
        Those to run.

    Raises:
        InputError: if there is no such task.
    """
    if number is not None and not 0 <= number < len(tasks):
        raise InputError(f"task must be in 0…{len(tasks) - 1}, not {number}")
    return tasks if number is None else [tasks[number]]


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


def _on_loky(
    function: Callable[[Task], Any],
    todo: Sequence[Task],
    done: Callable[[Task], bool],
    jobs: int,
    retries: int,
    bar: tqdm,
) -> None:
    alone = joblib.delayed(partial(_alone, function, os.getpid()))
    for attempt in range(retries + 1):
        try:
            with joblib.parallel_config(backend="loky", n_jobs=jobs):
                for _ in joblib.Parallel(return_as="generator_unordered")(map(alone, todo)):
                    bar.update()
            return
        except TerminatedWorkerError:
            if attempt == retries:
                raise
            todo = [task for task in todo if not done(task)]
            bar.n = bar.total - len(todo)


def _alone(function: Callable[[Task], Any], asked: int, task: Task) -> None:
    if asked not in (os.getpid(), os.getppid()):
        os._exit(1)  # who asked was killed, and its successor may be at the same tasks already
    with one_thread():
        function(task)


def _on_dask(
    function: Callable[[Task], Any], todo: Sequence[Task], scheduler: str, bar: tqdm
) -> None:
    """Send the tasks; the scheduler gives those of a killed worker to another one."""
    needs("distributed", "dask")
    from distributed import CancelledError, Client, KilledWorker, as_completed
    from distributed.protocol.pickle import dumps, loads

    try:
        client = Client(scheduler, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no dask scheduler answers at {scheduler!r} ({type(error).__name__}); start one with:"
            " dask scheduler"
        ) from None
    with client:
        if not client.scheduler_info()["workers"]:
            logging.warning("the scheduler at %s has no workers yet; the tasks wait", scheduler)
        letters = [dumps(partial(_remote, function, ABOUT, task)) for task in todo]
        # a lambda is sent whole, so that a worker without nda can say so
        made = client.map(lambda letter: loads(letter)(), letters, pure=False)
        try:
            for future in as_completed(made, loop=client.loop):
                future.result()
                bar.update()
        except ModuleNotFoundError as error:
            raise InputError(
                f"a worker of {scheduler} lacks the package {(error.name or '').split('.')[0]};"
                f" install there what is here, nda {__version__} with its extras"
            ) from None
        except CancelledError:
            raise RuntimeError(
                f"the scheduler at {scheduler} has gone; what is done is kept, and the same command"
                " goes on from there"
            ) from None
        except KilledWorker as error:
            raise RuntimeError(
                f"workers that had the task {error.task} were killed too often; it may need more"
                " memory than they have"
            ) from None


def _remote(function: Callable[[Task], Any], about: dict[str, str], task: Task) -> None:
    """In a worker: refuse to work with other versions than those of who asks, or beside others."""
    from distributed import get_worker

    if (threads := get_worker().state.nthreads) > 1:  # torch's threads and dropout are a process's
        raise InputError(f"a worker has {threads} threads; start workers with --nthreads 1")
    other = [f"{name} {ABOUT.get(name)}" for name in about if ABOUT.get(name) != about[name]]
    if other:
        wanted = ", ".join(f"{name} {version}" for name, version in about.items())
        raise InputError(
            f"a worker has {', '.join(other)}; install there what is here, {wanted}, since other"
            " versions may give other bytes"
        )
    with one_thread():
        function(task)
