"""`pip install .` alone: a wheel that brings notebooks, profiles and results, and needs neither
diffusers nor a notebook; the files that say what an environment holds agree."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image

import nda
from nda.errors import InputError, needs

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# what of data/results/ is committed
SHIPPED = ("small", "published", "confirmation", "attention", "cifar10", "digits")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without a network from a copy that also holds what must not be shipped."""
    folder = tmp_path_factory.mktemp("source")
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, folder)
    junk = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for part in ("nda", "notebooks", *(f"data/results/{name}" for name in SHIPPED)):
        shutil.copytree(ROOT / part, folder / part, ignore=junk)
    (folder / "data/results/smoke").mkdir()
    (folder / "data/results/smoke/model.json").write_text("{}")
    command = [sys.executable, "-m", "pip", "wheel", ".", "--quiet", "--wheel-dir", "dist"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, *offline], cwd=folder, check=True, timeout=300)
    return next((folder / "dist").glob("nda-*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """What `pip install nda-….whl` makes of an empty environment: the wheel, installed, and links
    to the packages that it asks for and to those that they ask for."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(folder), str(wheel)], check=True, timeout=300)
    for name in light():
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
    return folder


def light():
    """Distributions that `pip install nda` brings."""
    wanted, found = [Requirement(line) for line in PROJECT["project"]["dependencies"]], set()
    while wanted:
        requirement = wanted.pop()
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            if requirement.name.lower() not in found:
                found.add(requirement.name.lower())
                wanted += map(Requirement, metadata.requires(requirement.name) or ())
    return found


def python(site, folder, source, *arguments):
    """Run `source` in `folder` with what is in `site` and the standard library alone."""
    start = f"import sys; sys.path.insert(0, {str(site)!r}); import nda;"
    start += f"assert nda.__file__.startswith({str(site)!r}), nda.__file__;"
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "NDA_HOME")}
    command = [sys.executable, "-S", "-P", "-c", start + source, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True)


def test_wheel_holds_notebooks_profiles_and_committed_results(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    own = {f"nda/{path.relative_to(ROOT / 'nda').as_posix()}" for path in _files(ROOT / "nda")}
    shared = {
        f"nda/shared/{place}/{path.relative_to(ROOT / folder).as_posix()}"
        for place, folder in (("notebooks", "notebooks"), ("results", "data/results"))
        for path in _files(ROOT / folder)
        if place == "notebooks" or path.relative_to(ROOT / folder).parts[0] in SHIPPED
    } - {"nda/shared/notebooks/ruff.toml"}
    found = {name for name in names if not name.startswith("nda-")}
    assert found == own | shared
    assert "nda/py.typed" in names and "nda/shared/results/small/masks/report.json" in names


def _files(folder):
    """All files, without hidden ones and compiled code."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return [
        path for name, path in found.items() if not re.search(r"(^|/)\.|__pycache__", f"{name}")
    ]


def test_command_is_installed(site):
    assert os.access(site / "bin/nda", os.X_OK)
    assert "nda.__main__" in (site / "bin/nda").read_text()


def test_light_means_light():
    assert light() >= {"torch", "numpy", "pandas", "scipy", "pillow", "pyyaml"}
    heavy = {"diffusers", "torchvision", "transformers", "papermill", "jupyter-book", "sphinx"}
    assert not light() & (heavy | {"scikit-learn", "mlxtend", "ipython", "jupyterlab"})


def test_command_line_needs_only_the_light_packages(site, tmp_path):
    """In one process, since each takes seconds to start: what asks for an extra, score, help."""
    shape = [
        nda.Store.shipped("small").info(name)["shape"][axis]
        for name, axis in (("losses/report-val", 2), ("masks/report", 1))
    ]
    np.save(tmp_path / "scores.npy", np.random.default_rng(0).normal(size=shape))
    source = """
from nda.__main__ import main
codes = [main([command, "--profile", "tiny"]) for command in ("run", "retrain")]
score = ["score", "scores.npy", "--profile", "small", "--resamples", "20"]
print("codes", *codes, main(score))
main(["--help"])
"""
    done = python(site, tmp_path, source)
    assert done.returncode == 0 and "codes 2 2 0" in done.stdout.splitlines(), done.stderr
    asked = done.stderr.splitlines()
    assert len(asked) == 2 and "pip install 'nda[book]'" in asked[0], asked
    assert "pip install 'nda[model]'" in asked[1]
    assert "NDA, single scale" in done.stdout and "retrain " in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["scores.npy"]  # nothing is written


def test_nda_runs_on_a_folder_of_images_with_the_light_packages(site, tmp_path):
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02d}.png")
    source = """
from nda import NDAConfig, load, nda_scores, provenance
import nda.report.pictures, nda.report.plots, nda.report.tables
train, test = (load(sys.argv[1], split=split, size=8).pixels for split in ("train", "test"))
config = NDAConfig.single({100: 3})
print(*nda_scores(test, train, config).shape)
print(*provenance(test[0], train, timestep=100, patch=3).image.shape)
"""
    done = python(site, tmp_path, source, tmp_path)
    assert done.stdout.splitlines() == ["2 18", "8 8 3"], done.stderr


def test_names_at_the_top_are_found_listed_and_seen_by_type_checkers():
    tree = ast.parse((ROOT / "nda/__init__.py").read_text())
    typed = {
        (alias.asname, f"{node.module}")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nda.")
        for alias in node.names
    }
    assert typed == set(nda._FILE.items()) and {name for name, _ in typed} == set(nda.__all__)
    assert set(nda.__all__) <= set(dir(nda))
    for name in nda.__all__:
        assert getattr(nda, name) is not None
    with pytest.raises(ImportError, match="nothing_such"):
        exec("from nda import nothing_such")


def test_importing_nda_is_light():
    code = "import sys, nda; dir(nda); sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_version_is_one():
    assert f"version: {nda.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "nda.__version__"}


def test_lock_and_environment_file_agree_with_the_project():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    project = PROJECT["project"]
    assert "python=3.11" in environment and project["requires-python"] == ">=3.11"
    extras = set(environment[-1]["pip"][1].removeprefix("-e .[").removesuffix("]").split(","))
    assert extras == set(project["optional-dependencies"])
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    locked = {line.split("==")[0].lower() for line in lines if "==" in line}
    wanted = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    names = {Requirement(line).name.lower() for line in wanted} - {"nda"}
    assert names <= locked, names - locked


def test_every_dependency_is_imported_or_is_a_tool():
    """No package is asked for that nobody uses."""
    sources = [*(ROOT / "nda").rglob("*.py"), *(ROOT / "tests").glob("*.py")]
    imported = {
        name.split(".")[0]
        for path in sources
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    owners = metadata.packages_distributions()
    used = {owner.lower() for name in imported for owner in owners.get(name, [])}
    tools = {"jupyter-book", "sphinx-mathjax-offline", "ipywidgets", "ipykernel", "jupyterlab"}
    tools |= {
        "dask",
        "pytest-xdist",
        "nbval",
        "ruff",
        "mypy",
        "types-pyyaml",
        "pandas-stubs",
        "beartype",
    }
    project = PROJECT["project"]
    asked = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    # what an import is named is known of packages that are installed alone
    here = {name.lower() for found in owners.values() for name in found} | tools
    names = {Requirement(line).name.lower() for line in asked} & here
    assert names - used == tools & names - used, names - used - tools


def test_a_package_that_is_there_is_not_asked_for():
    needs("numpy", "model")
    with pytest.raises(InputError, match=r"nothing_such.*pip install 'nda\[model\]'"):
        needs("nothing_such", "model")


def targets():
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_workflow_runs_the_same_command_as_by_hand():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    steps = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert steps == [".ci/run"] and os.access(ROOT / ".ci/run", os.X_OK)
    made = re.findall(r"^step (\w+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert made == ["env", "lint", "test", "book"] and set(made) <= targets()


def test_image_makes_the_book_as_binders_user():
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    image = [line.split(maxsplit=1) for line in lines if line and line[0] not in "# "]
    assert image[-1] == ["CMD", '["make", "book"]'] and "book" in targets()
    assert set(re.findall(r"make (\w+)", str(image))) <= targets()
    python = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert image[0] == ["FROM", f"python:{python}-slim"]
    arguments = [what for word, what in image if word == "ARG"]
    assert arguments == ["NB_USER=jovyan", "NB_UID=1000"]
    assert [what for word, what in image if word == "USER"] == ["${NB_USER}"]
    assert not [word for word, _ in image if word == "ENTRYPOINT"]  # Binder gives its own command


def test_image_is_given_what_is_committed():
    """.dockerignore leaves out what git leaves out, and nothing else."""
    ignored, by_git = (
        [line.strip("/") for line in (ROOT / name).read_text().splitlines() if line[:1] != "#"]
        for name in (".dockerignore", ".gitignore")
    )
    assert {line.removeprefix("**/") for line in ignored} == set(by_git) - {"*.log"}


def test_hooks_before_a_commit_are_the_locked_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    found = {hook["id"]: repo["rev"] for repo in hooks for hook in repo["hooks"]}
    assert set(found) == {"ruff-check", "ruff-format", "nbstripout"}
    lock = (ROOT / "requirements.lock").read_text()
    assert f"ruff=={found['ruff-check'].removeprefix('v')}\n" in lock
