"""The notebooks run, in order, on the tiny profile; run again by nbval they give the same checked
cells."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from graphlib import TopologicalSorter

import pytest

from nda.artefact import notebooks
from nda.errors import InputError


def outputs(runs):
    for path in sorted(runs.glob("*.ipynb")):
        yield path.stem, json.loads(path.read_text())


def test_every_notebook_ran_to_its_end(tiny_home):
    executed = dict(outputs(tiny_home / "book/runs"))
    assert list(executed) == notebooks.notebooks()
    for name, notebook in executed.items():
        assert not notebook["metadata"]["papermill"]["exception"], name


def test_nbval(tiny_home, tmp_path):
    """Lax everywhere, strict on the cells tagged `nbval-check-output`; the kernels run in the
    notebooks' own folder, two at a time, on a copy: other tests look at what was recorded."""
    home = shutil.copytree(tiny_home, tmp_path / "home")
    flags = ["--nbval-lax", "-p", "no:cacheprovider", "-q", "-c", os.devnull]
    both = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    environment = os.environ | {"NDA_HOME": str(home), "TQDM_DISABLE": "1"}
    environment |= {"OMP_NUM_THREADS": "1"}  # two kernels of two threads wait for each other
    warm = [sys.executable, "-m", "nda.artefact.warm"]
    command = [*warm, sys.executable, "-m", "pytest", *flags, *both, str(home / "book/runs")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    cells = [
        cell
        for _, notebook in outputs(home / "book/runs")
        for cell in notebook["cells"]
        if cell["cell_type"] == "code" and "".join(cell["source"]).strip()
    ]
    assert f"{len(cells)} passed" in done.stdout, done.stdout[-4000:]


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


def test_a_notebook_follows_those_that_its_table_names():
    everything = notebooks.notebooks()
    after = {name: notebooks.follows(name) for name in everything}
    for name, follows in after.items():
        linked = re.findall(r"\]\((\d\d\w*)\)", notebooks._row(name, "Reads"))
        assert {*linked} <= follows and bool(follows) == (name != everything[0])
    order = list(TopologicalSorter(after).static_order())  # no two wait for each other
    assert notebooks.follows(notebooks.find("04")) == {notebooks.find("01")}
    assert notebooks.find("03") in notebooks.follows(notebooks.find("05"))
    assert notebooks.find("15") in notebooks.follows(notebooks.find("10"))  # a later page's row
    alone = [notebooks.find("14_"), notebooks.find("14b")]  # one after the other, and the last
    assert notebooks.follows(alone[0]) == {*everything} - {*alone} and order[-2:] == alone
    assert notebooks.follows(alone[1]) == {*everything} - {alone[1]}


def test_results_pages_are_those_that_only_read_results():
    shown = filter(notebooks.shows_results, notebooks.notebooks())
    assert [name[:2] for name in shown] == ["10", "11", "11", "12", "13", "17"]


AFTER = {"a": set(), "b": {"a"}, "c": {"a"}, "d": {"a"}, "e": {"b", "c"}}


@pytest.fixture
def pretend(monkeypatch, tmp_path):
    """A function that runs the notebooks of `AFTER`, which do nothing for a while; gives what
    started and ended, in order. `broken` fails."""
    monkeypatch.setattr(notebooks.warm, "imports", lambda _: [])
    monkeypatch.setattr(notebooks.warm, "kernels", lambda _: nullcontext())
    monkeypatch.setattr(notebooks, "_alone", lambda stem: stem == "e")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6), raising=False)

    def run(jobs, broken=""):
        seen = []

        def execute(stem, parameters, runs, threads):
            seen.append((stem, "starts", threads))
            time.sleep(0.05)
            seen.append((stem, "ends", parameters))
            if stem == broken:
                raise InputError(stem)

        monkeypatch.setattr(notebooks, "_execute", execute)
        try:
            notebooks._together(dict.fromkeys(AFTER, {}), AFTER, tmp_path, jobs)
        except InputError as error:
            seen.append((str(error), "fails", None))
        return [(stem, what) for stem, what, _ in seen], {stem: n for stem, _, n in seen[::-1]}

    return run


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_each_starts_when_those_that_it_follows_have_ended(pretend, jobs):
    seen, threads = pretend(jobs)
    at_a_time = 0
    for position, (stem, what) in enumerate(seen):
        at_a_time += 1 if what == "starts" else -1
        assert at_a_time <= jobs
        if what == "starts":
            assert all((before, "ends") in seen[:position] for before in AFTER[stem])
    assert sorted(stem for stem, what in seen if what == "ends") == list(AFTER)
    assert threads == dict.fromkeys("abcd", 6 // jobs) | {"e": 6}


def test_nothing_starts_after_a_failure(pretend):
    seen, _ = pretend(2, broken="a")
    assert seen == [("a", "starts"), ("a", "ends"), ("a", "fails")]
