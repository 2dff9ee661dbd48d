"""The fan-out runs what is missing, and goes on when a worker is killed."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from nda import fanout
from nda.errors import InputError


def write(folder: Path, task: int) -> None:
    """A task that notes its process and its number of threads."""
    with (folder / str(task)).open("a") as file:
        file.write(f"{os.getpid()} {torch.get_num_threads()}\n")


def killed_once(folder: Path, task: int) -> None:
    """As `write`, but task 2 dies on its first attempt."""
    marker = folder / "attempted"
    if task == 2 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    write(folder, task)


def fail(task: int) -> None:
    """A task with a bug."""
    raise ZeroDivisionError(task)


def slow(folder: Path, task: int) -> None:
    """As `write`, after a while."""
    time.sleep(0.3)
    write(folder, task)


def done(folder: Path, task: int) -> bool:
    """Whether a task has been noted."""
    return (folder / str(task)).exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_runs_all_that_is_not_done_once_on_one_thread(tmp_path, workers):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (tmp_path / "1").write_text("done before\n")
        assert (
            fanout.run(
                partial(write, tmp_path), range(4), done=partial(done, tmp_path), workers=workers
            )
            == 3
        )
        assert [(tmp_path / str(t)).read_text().split()[1:] for t in (0, 2, 3)] == [["1"]] * 3
        assert (tmp_path / "1").read_text() == "done before\n"
        assert (
            fanout.run(partial(fail), range(4), done=partial(done, tmp_path), workers=workers) == 0
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_killed_worker_is_replaced(tmp_path):
    assert (
        fanout.run(
            partial(killed_once, tmp_path), range(5), done=partial(done, tmp_path), workers=2
        )
        == 5
    )
    notes = [(tmp_path / str(task)).read_text().split() for task in range(5)]
    assert (tmp_path / "attempted").exists() and all(note[1] == "1" for note in notes)
    assert str(os.getpid()) not in {note[0] for note in notes}
    (
        tmp_path / "1"
    ).unlink()  # a single task that is left of many is not run in this process either
    assert (
        fanout.run(
            partial(killed_once, tmp_path), range(5), done=partial(done, tmp_path), workers=2
        )
        == 1
    )
    assert str(os.getpid()) not in (tmp_path / "1").read_text()


def test_workers_stop_when_who_asked_is_killed(tmp_path):
    code = (
        "import sys, pathlib, functools; from nda import fanout; from tests.test_fanout import"
        " slow, done; p = pathlib.Path(sys.argv[1]); "
    )
    code += (
        "fanout.run(functools.partial(slow, p), range(40), done=functools.partial(done, p),"
        " workers=2)"
    )
    asking = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parent.parent
    )
    try:
        while not list(tmp_path.iterdir()):
            assert asking.poll() is None
            time.sleep(0.02)
    finally:
        asking.kill()
        asking.wait()
    finished = len(list(tmp_path.iterdir()))
    time.sleep(2)
    assert len(list(tmp_path.iterdir())) <= finished + 2 < 40  # the tasks in hand


def test_one_thread_inside_and_as_before_after_an_error(monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    with pytest.raises(ZeroDivisionError), fanout.one_thread():
        raise ZeroDivisionError
    assert threads == [1, 7]


def test_error_of_a_task_is_raised():
    with pytest.raises(ZeroDivisionError):
        fanout.run(fail, [1], done=lambda _: False, workers=1)


def test_a_task_of_an_array():
    assert list(fanout.one_of("abc", None)) == ["a", "b", "c"] and fanout.one_of("abc", 2) == ["c"]
    with pytest.raises(InputError, match="task must be in 0…2, not 3"):
        fanout.one_of("abc", 3)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"engine": "slurm"}, "engine must be one of 'loky', 'dask', not 'slurm'"),
        ({"engine": "dask"}, "engine 'dask' needs the address of a scheduler"),
        ({"scheduler": "tcp://there:8786"}, "no other engine takes one"),
    ],
)
def test_bad_engine(where, message):
    with pytest.raises(InputError, match=message):
        fanout.run(fail, [1], done=lambda _: False, **where)


def test_dask_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(
        InputError, match=r"distributed is not installed.*pip install 'nda\[dask\]'"
    ):
        fanout.run(fail, [1], done=lambda _: False, engine="dask", scheduler="tcp://there:8786")
