"""Settings of all tests: no progress bars, one thread (the tensors are tiny), the same hypothesis
examples on every run."""

import os
import subprocess
import sys
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"  # before tqdm is imported: it reads this once
# Before triton is imported, likewise: without a GPU its kernels, which test_triton.py alone calls,
# are interpreted.
os.environ.setdefault("TRITON_INTERPRET", "1")

import axes
import pytest
import torch
from hypothesis import settings

axes.install()  # before nda is imported
torch.set_num_threads(1)
settings.register_profile("nda", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("nda")


THE_BOOK = tuple(
    f"tests/test_{name}.py" for name in ("notebooks", "book", "lds_page", "removals_page")
)
LONG = tuple(f"tests/test_{name}.py" for name in ("install", "counterfactual", "retrain", "fanout"))


def pytest_collection_modifyitems(items):
    """What takes longest first, so that two processes finish together: the tests that need the
    tiny book, which runs in processes of its own, then those that wait for others."""
    first = [*THE_BOOK, *LONG]
    items.sort(
        key=lambda item: first.index(f) if (f := _file(item.nodeid)) in first else len(first)
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each file's tests in one process, and in one process all that need the tiny book, so that it
    is made once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return "the tiny book" if _file(nodeid) in THE_BOOK else _file(nodeid)

    config.option.loadscopereorder = False  # not what has most tests, but the order above, first
    return ByFile(config, log)


def _file(nodeid):
    return nodeid.split("::")[0]


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory):
    """All notebooks executed at profile `tiny`, by the command that users type, in a folder of
    their own."""
    home = tmp_path_factory.mktemp("tiny")
    command = [sys.executable, "-m", "nda", "run", "--profile", "tiny", "--jobs", "2"]
    done = subprocess.run(
        command, env=os.environ | {"NDA_HOME": str(home)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture(scope="session")
def checked_home(request):
    """The home of the pages whose numbers are computed again: the tiny book, or what `NDA_BOOK`
    names, which `make book` sets to the repository and so checks the real one."""
    given = os.environ.get("NDA_BOOK")
    return Path(given) if given else request.getfixturevalue("tiny_home")
