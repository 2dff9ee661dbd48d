"""Warm kernels: notebooks whose kernels are forked from one process that has imported everything.

A kernel spends most of a short notebook's time importing torch and its friends. Inside `warm()`
the kernel `python3` of whatever speaks Jupyter (papermill, nbval) is forked from a server that has
made these imports once. Every kernel is a process of its own with an empty namespace, and shares
the server's memory until it writes to it.

    python -m nda.artefact.kernels pytest --nbval-lax book/runs    # a command with warm kernels
"""

import ast
import atexit
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from nda.places import shared

LAUNCHER = """
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect(sys.argv[1])
socket.send_fds(server, [b"."], [0, 1, 2])
asked = {"arguments": sys.argv[2:], "folder": os.getcwd(), "environment": dict(os.environ)}
server.sendall(json.dumps(asked).encode() + b"\\n")
signal.signal(signal.SIGINT, signal.SIG_IGN)  # Jupyter's first word of every shutdown
sys.exit(int(server.makefile().readline() or 1))
"""  # what Jupyter takes for the kernel: it waits for the forked one and ends with its exit code
KERNEL = ("ipykernel.kernelapp", "matplotlib.pyplot")  # what every kernel needs


def imports(sources: Iterable[Path]) -> list[str]:
    """The modules that the code cells of notebooks import, sorted."""
    found = set()
    for path in sources:
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] != "code":
                continue
            for node in ast.walk(ast.parse("".join(cell["source"]))):
                if isinstance(node, ast.Import):
                    found |= {name.name for name in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return sorted(found)


@contextmanager
def warm() -> Iterator[bool]:
    """Inside, new kernels start warm; gives whether that is so.

    Where processes cannot be forked safely, which is everywhere but under Linux, kernels start as
    always. On leaving, kernels that still run are killed, as they are when this process is.
    """
    if sys.platform != "linux":
        yield False
        return
    before = os.environ.get("JUPYTER_PATH")
    folder = tempfile.mkdtemp(prefix="nda-kernels-")  # a context of its own would end in forks too
    try:
        with _server(Path(folder)):
            os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, (folder, before)))
            yield True
    finally:
        os.environ.pop("JUPYTER_PATH", None)
        if before is not None:
            os.environ["JUPYTER_PATH"] = before
        shutil.rmtree(folder)


@contextmanager
def _server(folder: Path) -> Iterator[None]:
    """The forked server, listening in `folder`, which gets a kernel `python3` that asks it."""
    address, spec = str(folder / "socket"), folder / "kernels" / "python3"
    spec.mkdir(parents=True)
    command = [sys.executable, "-I", "-S", "-c", LAUNCHER, address, "-f", "{connection_file}"]
    described = {"argv": command, "display_name": "Python 3", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(described))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    watched, held = os.pipe()  # closes when this process ends, however it ends
    server = os.fork()
    if not server:
        os.close(held)
        _end(_serve, listener, watched)
    listener.close()
    os.close(watched)
    try:
        yield
    finally:
        os.close(held)
        os.waitpid(server, 0)


def _end(function: Any, *arguments: Any) -> None:
    """Call a function in a forked process and leave it: what called the fork is not ours."""
    code = 1
    try:
        function(*arguments)
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            atexit._run_exitfuncs()
            sys.stdout.flush()
        os._exit(code)


def _serve(listener: socket.socket, watched: int) -> None:
    """Fork a kernel for every connection until `watched` is closed; a kernel whose connection is
    closed is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks decides what an interrupt means
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # read when imported
    sources = shared("notebooks").glob("*.ipynb")
    for name in (*imports(sources), *KERNEL):
        with suppress(ImportError):  # a name that is no module, or none here: the notebook will say
            import_module(name)
    kernels: dict[int, tuple[int, socket.socket]] = {}  # [handle]: process, who asked
    with selectors.DefaultSelector() as ready:
        ready.register(listener, selectors.EVENT_READ)
        ready.register(watched, selectors.EVENT_READ)
        ended = False
        while not ended:
            for key, _ in ready.select():
                ended |= key.fileobj == watched
                if key.fileobj is listener:
                    asked, _ = listener.accept()
                    process = _fork(listener, watched, asked)
                    handle = os.pidfd_open(process)
                    kernels[handle] = process, asked
                    ready.register(handle, selectors.EVENT_READ)
                    ready.register(asked, selectors.EVENT_READ, handle)
                elif key.data:  # who asked is gone
                    ready.unregister(key.fileobj)
                    _kill(kernels[key.data][0])
                elif key.fd in kernels:  # a kernel has ended
                    process, asked = kernels.pop(key.fd)
                    ready.unregister(key.fd)
                    os.close(key.fd)
                    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                    with suppress(KeyError):
                        ready.unregister(asked)
                    with suppress(OSError), asked:
                        asked.sendall(f"{code}\n".encode())
    for process, _ in kernels.values():
        _kill(process)


def _kill(process: int) -> None:
    """Kill a kernel and what it has started."""
    for kill in (os.kill, os.killpg):
        with suppress(ProcessLookupError):
            kill(process, signal.SIGKILL)


def _fork(listener: socket.socket, watched: int, asked: socket.socket) -> int:
    """Fork the kernel that a launcher asks for, with its streams, folder and environment."""
    _, streams, _, _ = socket.recv_fds(asked, 1, 3)
    settings = json.loads(asked.makefile().readline())
    process = os.fork()
    if process:
        for stream in streams:
            os.close(stream)
        return process
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    listener.close()
    asked.close()
    os.close(watched)
    _end(_kernel, settings)
    raise AssertionError


def _kernel(settings: dict[str, Any]) -> None:
    from ipykernel.kernelapp import IPKernelApp

    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(settings["folder"])
    os.environ.clear()
    os.environ.update(settings["environment"])
    IPKernelApp.launch_instance(argv=[*settings["arguments"], "--IPKernelApp.parent_handle=1"])


if __name__ == "__main__":
    with warm():
        sys.exit(subprocess.run(sys.argv[1:]).returncode)
