"""Warm kernels are processes of their own with empty namespaces, and none outlives who asked."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from jupyter_client.manager import KernelManager

from nda.artefact import warm

pytestmark = pytest.mark.skipif(not warm.AVAILABLE, reason="kernels are forked on Linux alone")


@pytest.fixture(scope="module", autouse=True)
def server():
    with warm.kernels(["colorsys", "no_such_module"]):
        yield


@pytest.fixture
def start(tmp_path):
    """A function that starts a kernel in `tmp_path`, and gives it and what runs code in it."""
    started = []

    def start(**environment):
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel(cwd=str(tmp_path), env=os.environ | environment)
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=120)
        started.append((manager, client))
        return manager, lambda code: printed(client, code)

    yield start
    for manager, client in started:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def printed(client, code):
    """What the code prints."""
    message, text = client.execute(code), ""
    while True:
        reply = client.get_iopub_msg(timeout=60)
        if reply["parent_header"].get("msg_id") == message:
            text += reply["content"].get("text", "")
            if reply["content"].get("execution_state") == "idle":
                return text.strip()


def until(condition):
    """Wait for something that is about to happen."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_kernels_share_imports_and_nothing_else(start, tmp_path):
    _, first = start(NDA_TEST="first")
    _, second = start(NDA_TEST="second")
    state = "import os, sys; print('colorsys' in sys.modules, os.environ['NDA_TEST'], os.getcwd())"
    assert first(state) == f"True first {tmp_path}" and second(state) == f"True second {tmp_path}"
    first("mine = 1")
    assert second("print('mine' in globals())") == "False" and first("print(mine)") == "1"
    assert first("print(os.getppid())") == second("print(os.getppid())")
    assert first("print(os.getpid())") != second("print(os.getpid())")


def test_a_kernel_ends_when_it_is_asked_to(start):
    manager, run = start()
    process = int(run("import os; print(os.getpid())"))
    run("import atexit, pathlib; atexit.register(pathlib.Path('left').touch)")
    folder = run("print(os.getcwd())")
    manager.shutdown_kernel()
    until(lambda: not alive(process))
    assert os.listdir(folder) == ["left"]


def test_the_exit_code_is_that_of_the_kernel(start):
    manager, run = start()
    run("import os, threading; threading.Timer(0.2, os._exit, [7]).start()")
    until(lambda: not manager.is_alive())
    assert manager.provisioner.process.returncode == 7


def test_a_kernel_is_killed_with_its_launcher(start):
    manager, run = start()
    code = "import os, subprocess; child = subprocess.Popen(['sleep', '100']).pid"
    run(code)
    kernel, child = map(int, run("print(os.getpid(), child)").split())
    manager.signal_kernel(signal.SIGKILL)
    until(lambda: not alive(kernel) and not alive(child))


def test_kernels_are_killed_with_who_warmed_them(tmp_path):
    """Kill -9 of a command while a kernel of its is at work."""
    code = """if True:
        from jupyter_client.manager import start_new_kernel
        from nda.artefact import warm
        with warm.kernels([]):
            manager, client = start_new_kernel(startup_timeout=120)
            client.execute_interactive("import os, time; print(os.getpid()); time.sleep(100)")"""
    running = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    kernel = int(running.stdout.readline())
    assert alive(kernel)
    running.kill()
    running.communicate()
    until(lambda: not alive(kernel))


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch knows no GPU")
def test_a_kernel_can_use_a_gpu_that_an_import_has_looked_for(start, tmp_path, monkeypatch):
    """As diffusers does; once CUDA itself is asked, no forked process can use it."""
    probe = """
import torch
torch.cuda._device_count_nvml = lambda: 1  # a driver's library that finds one
there = torch.accelerator.is_available() and torch.cuda.is_available()
"""
    (tmp_path / "probe.py").write_text(probe)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with warm.kernels(["probe"]):
        _, run = start()
        asked = "import probe, torch; print(probe.there, torch.cuda._is_in_bad_fork())"
        assert run(asked) == "True False"


def test_imports_of_notebooks(tmp_path):
    source = "import a.b as c, d\nif True:\n    from e import f"
    cells = [
        {"cell_type": "code", "source": source.splitlines(keepends=True)},
        {"cell_type": "markdown", "source": ["import g"]},
    ]
    (tmp_path / "x.ipynb").write_text(json.dumps({"cells": cells}))
    assert warm.imports(tmp_path.glob("*.ipynb")) == ["a.b", "d", "e", "e.f"]
