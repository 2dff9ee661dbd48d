"""`pip install .` alone: a wheel that brings notebooks, profiles and results, and needs neither
diffusers nor a notebook; the files that say what an environment holds agree."""

import ast
import os
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
SHIPPED = ("small", "published")  # the profiles of data/results/ that are committed


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


def command(site, folder, *arguments):
    """`nda <arguments>`, there."""
    source = "from nda.__main__ import main; sys.exit(main(sys.argv[1:]))"
    return python(site, folder, source, *arguments)


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
    junk = ("__pycache__", ".ipynb_checkpoints")
    return [p for p in folder.rglob("*") if p.is_file() and not set(junk) & set(p.parts)]


def test_command_is_installed(site):
    assert os.access(site / "bin/nda", os.X_OK)
    assert "nda.__main__" in (site / "bin/nda").read_text()


def test_light_means_light():
    assert light() >= {"torch", "numpy", "pandas", "scipy", "pillow", "pyyaml"}
    heavy = {"diffusers", "torchvision", "transformers", "papermill", "jupyter-book", "sphinx"}
    assert not light() & (heavy | {"scikit-learn", "mlxtend", "ipython", "jupyterlab"})


def test_help_and_score_need_only_the_light_packages(site, tmp_path):
    shown = command(site, tmp_path, "--help")
    assert shown.returncode == 0 and "retrain" in shown.stdout, shown.stderr
    shape = [
        nda.Store.shipped("small").info(name)["shape"][axis]
        for name, axis in (("losses/report-val", 2), ("masks/report", 1))
    ]
    np.save(tmp_path / "scores.npy", np.random.default_rng(0).normal(size=shape))
    few = ["--profile", "small", "--resamples", 20]
    scored = command(site, tmp_path, "score", "scores.npy", *few)
    assert scored.returncode == 0 and "NDA, single scale" in scored.stdout, scored.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["scores.npy"]  # nothing is written


@pytest.mark.parametrize(
    ("extra", "arguments"),
    [("book", ["run", "--profile", "tiny"]), ("model", ["retrain", "--profile", "tiny"])],
)
def test_what_an_extra_brings_is_asked_for_in_one_sentence(extra, arguments, site, tmp_path):
    done = command(site, tmp_path, *arguments)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert f"pip install 'nda[{extra}]'" in done.stderr


def test_nda_runs_on_a_folder_of_images_with_the_light_packages(site, tmp_path):
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02d}.png")
    source = """
from nda import NDAConfig, load, nda_scores, provenance
import nda.report.pictures, nda.report.plots, nda.report.tables
train, test = (load(sys.argv[1], split=split, size=8).pixels for split in ("train", "test"))
config = NDAConfig.single(3, [100])
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
    tools |= {"pytest-xdist", "nbval", "ruff", "mypy", "types-pyyaml", "pandas-stubs", "beartype"}
    project = PROJECT["project"]
    asked = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    names = {Requirement(line).name.lower() for line in asked} - {"nda"}
    assert names - used == tools & names - used, names - used - tools


def test_a_package_that_is_there_is_not_asked_for():
    needs("numpy", "model")
    with pytest.raises(InputError, match=r"nothing_such.*pip install 'nda\[model\]'"):
        needs("nothing_such", "model")
