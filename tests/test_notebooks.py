"""The notebooks run, in order, on the tiny profile; run again by nbval they give the same checked
cells."""

import json
import os
import subprocess
import sys

from nda.artefact import notebooks


def outputs(runs):
    for path in sorted(runs.glob("*.ipynb")):
        yield path.stem, json.loads(path.read_text())


def test_every_notebook_ran_to_its_end(tiny_home):
    executed = dict(outputs(tiny_home / "book/runs"))
    assert list(executed) == notebooks.notebooks()
    for name, notebook in executed.items():
        assert not notebook["metadata"]["papermill"]["exception"], name


def test_nbval(tiny_home):
    """Lax everywhere, strict on the cells tagged `nbval-check-output`; the kernels run in the
    notebooks' own folder."""
    flags = ["--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", "-q", "-c", os.devnull]
    environment = os.environ | {"NDA_HOME": str(tiny_home), "TQDM_DISABLE": "1"}
    command = [sys.executable, "-m", "pytest", *flags, str(tiny_home / "book/runs")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]


def test_each_notebook_has_a_strictly_checked_cell():
    for name in notebooks.notebooks():
        cells = json.loads((notebooks.SOURCES / f"{name}.ipynb").read_text())["cells"]
        assert any("nbval-check-output" in cell["metadata"].get("tags", []) for cell in cells), name


def test_results_pages_need_only_the_results_folder(tiny_home, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/results").symlink_to(tiny_home / "data/results")
    environment = os.environ | {"NDA_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "nda", "run", "--profile", "tiny", "--only", "10"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
