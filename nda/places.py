"""Where things are: what comes with the module, what is computed, what is cached."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
REPOSITORY = PACKAGE.parent
SHARED = {"notebooks": "notebooks", "results": "data/results"}  # their places in the repository


def home() -> Path:
    """The folder that holds `data/` and `book/runs/`.

    Returns:
        `NDA_HOME`, else the repository, else the working directory.
    """
    here = REPOSITORY if (REPOSITORY / "notebooks").is_dir() else Path.cwd()
    return Path(os.environ.get("NDA_HOME") or here)


def cache() -> Path:
    """Where downloads, unpacked archives and the compiled engine are kept.

    Returns:
        `NDA_CACHE`, else `~/.cache/nda`.
    """
    return Path(os.environ.get("NDA_CACHE") or Path.home() / ".cache" / "nda")


def shared(name: str) -> Path:
    """What comes with the module, installed or in the repository, wherever `NDA_HOME` points.

    Args:
        name: `"notebooks"`, with their profiles, or `"results"`.

    Returns:
        The folder.
    """
    installed = PACKAGE / "shared" / name
    return installed if installed.is_dir() else REPOSITORY / SHARED[name]
