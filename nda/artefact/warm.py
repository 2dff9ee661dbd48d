"""Warm kernels: kernels of notebooks that are forked from a process that has imported everything.

A kernel spends most of a short notebook's time importing torch and its friends. Inside `kernels()`
the kernel `python3` of whatever speaks Jupyter (papermill, nbval) is forked from a server that has
made these imports once. Every kernel is a process of its own with an empty namespace, and shares
the server's memory until it writes to it.

    python -m nda.artefact.warm pytest --nbval-lax book/runs    # a command with warm kernels
"""

import ast
import atexit
import json
import os
import selectors
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
from typing import Any, NoReturn

from nda.places import shared

AVAILABLE = sys.platform == "linux"  # elsewhere a process of many libraries is not safe to fork
SERVER = "import sys; from nda.artefact import warm; warm.serve(*sys.argv[1:])"
LAUNCHER = """
import json, os, signal, socket, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # Jupyter's first word of every shutdown
server = socket.socket(socket.AF_UNIX)
server.connect(sys.argv[1])
socket.send_fds(server, [b"."], [0, 1, 2])
asked = {"arguments": sys.argv[2:], "folder": os.getcwd(), "environment": dict(os.environ)}
server.sendall(json.dumps(asked).encode() + b"\\n")
sys.exit(int(server.makefile().readline() or 1))
"""  # what Jupyter takes for the kernel: it waits for the forked one and ends with its exit code
KERNEL = ("ipykernel.kernelapp", "matplotlib.pyplot")  # what every kernel needs
BACKEND = "module://matplotlib_inline.backend_inline"  # as ipykernel sets it, too late for a fork
# A process that has asked CUDA for its GPUs cannot fork one that uses them, and diffusers asks when
# it is imported. Like this torch asks the driver's library instead.
CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"


def imports(notebooks: Iterable[Path]) -> list[str]:
    """What the code cells of notebooks import.

    Args:
        notebooks: their files.

    Returns:
        Names of modules, and of what is taken from them, which may be modules too.
    """
    found = set[str]()
    for path in notebooks:
        cells = json.loads(path.read_text())["cells"]
        for source in ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"):
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Import):
                    found |= {name.name for name in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return sorted(found)


@contextmanager
def kernels(modules: Iterable[str]) -> Iterator[None]:
    """Inside, new kernels start warm, where that is `AVAILABLE`.

    On leaving, kernels that still run are killed, as they are when this process is.

    Args:
        modules: what the kernels shall have imported when they start.

    Yields:
        Nothing.
    """
    before = os.environ.get("JUPYTER_PATH")
    with tempfile.TemporaryDirectory(prefix="nda-kernels-") as folder:
        address, spec = f"{folder}/socket", Path(folder, "kernels", "python3")
        launch = [sys.executable, "-I", "-S", "-c", LAUNCHER, address, "-f", "{connection_file}"]
        described = {"argv": launch, "display_name": "Python 3", "language": "python"}
        spec.mkdir(parents=True)
        (spec / "kernel.json").write_text(json.dumps(described))
        environment = os.environ | {"MPLBACKEND": BACKEND, CHECK: "1"}
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            server = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(listener.fileno()), *KERNEL, *modules],
                stdin=subprocess.PIPE,  # closes when this process ends, however it ends
                env=environment,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # an interrupt is for this process, which then ends it
            )
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, (folder, before)))
        try:
            yield
        finally:
            os.environ.pop("JUPYTER_PATH")
            if before is not None:
                os.environ["JUPYTER_PATH"] = before
            server.communicate()


def serve(number: str, *modules: str) -> None:
    """Import modules, then fork a kernel for every connection, until standard input is closed. A
    kernel whose connection is closed is killed.

    Args:
        number: of the listening socket's file.
        modules: their names; one that cannot be imported is left to the notebook that does it.
    """
    for name in modules:
        with suppress(ImportError):
            import_module(name)
    running: dict[int, socket.socket] = {}  # [process]: who asked for it
    with socket.socket(fileno=int(number)) as listener, selectors.DefaultSelector() as ready:
        ready.register(listener, selectors.EVENT_READ)
        ready.register(0, selectors.EVENT_READ)
        while 0 not in (found := {key.fd: key for key, _ in ready.select()}):
            for key in found.values():
                if key.fileobj is listener:
                    asked, _ = listener.accept()
                    if process := _fork(listener, asked):
                        running[process] = asked
                        ready.register(asked, selectors.EVENT_READ, process)
                        ready.register(os.pidfd_open(process), selectors.EVENT_READ, process)
                    continue
                ready.unregister(key.fileobj)
                if isinstance(key.fileobj, int):  # a kernel has ended
                    os.close(key.fileobj)
                    _ended(key.data, running.pop(key.data))
                elif key.data in running:  # who asked has gone
                    _kill(key.data)
    for process in running:
        _kill(process)


def _fork(listener: socket.socket, asked: socket.socket) -> int:
    """Fork the kernel that a launcher asks for, with its streams; 0 if the launcher has gone."""
    _, streams, _, _ = socket.recv_fds(asked, 1, 3)
    settings = asked.makefile().readline()
    process = os.fork() if settings else 0
    if settings and not process:
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        listener.close()
        asked.close()
        _kernel(json.loads(settings))
    for stream in streams:
        os.close(stream)
    return process


def _kernel(settings: dict[str, Any]) -> NoReturn:
    """Be the kernel in this forked process, and end with it."""
    from ipykernel.kernelapp import IPKernelApp

    code = 1
    try:
        os.chdir(settings["folder"])
        os.environ.clear()
        os.environ.update(settings["environment"])
        quiet = "--IPKernelApp.parent_handle=1"  # no advice on how to end it, in any output
        IPKernelApp.launch_instance(argv=[*settings["arguments"], quiet])
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)  # the server's loop is not ours to go on with


def _ended(process: int, asked: socket.socket) -> None:
    """Tell the launcher of a kernel how that has ended."""
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with suppress(OSError):  # it may have gone
        asked.sendall(f"{code}\n".encode())
        asked.shutdown(socket.SHUT_WR)


def _kill(process: int) -> None:
    """Kill a kernel and what it has started."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError):
            kill(process, signal.SIGKILL)


if __name__ == "__main__":
    with kernels(imports(shared("notebooks").glob("*.ipynb"))):
        sys.exit(subprocess.run(sys.argv[1:]).returncode)
