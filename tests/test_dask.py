"""The fan-out on a dask cluster of two processes: the bytes of one process, whoever is killed."""

import ast
import os
import re
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import test_blocks
import test_counterfactual
from test_fanout import done, fail, killed_once, write
from test_retrain import payloads, prepare

from nda import __main__, fanout
from nda.artefact import notebooks
from nda.errors import InputError
from nda.evidence import counterfactual
from nda.store import Store

distributed = pytest.importorskip("distributed", reason="dask is not installed")
CLUSTER = {"threads_per_worker": 1, "dashboard_address": None, "worker_dashboard_address": None}


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes on this machine."""
    with distributed.LocalCluster(n_workers=2, **CLUSTER) as made:
        yield made


@pytest.fixture
def on(cluster):
    """The arguments that send tasks there."""
    return {"engine": "dask", "scheduler": cluster.scheduler_address}


def test_runs_all_that_is_not_done_in_the_workers_on_one_thread(tmp_path, on):
    (tmp_path / "1").write_text("done before\n")
    asked = {"done": partial(done, tmp_path)} | on
    assert fanout.run(partial(write, tmp_path), range(6), **asked) == 5
    notes = [(tmp_path / str(task)).read_text().split() for task in (0, 2, 3, 4, 5)]
    assert {threads for _, threads in notes} == {"1"}
    assert str(os.getpid()) not in {process for process, _ in notes}
    assert fanout.run(fail, range(6), **asked) == 0


def test_killed_worker_is_replaced(tmp_path, on):
    asked = {"done": partial(done, tmp_path)} | on
    assert fanout.run(partial(killed_once, tmp_path), range(5), **asked) == 5
    assert (tmp_path / "attempted").exists() and all(done(tmp_path, task) for task in range(5))


def suicide(task: int) -> None:
    """A task that kills its worker, always."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_kills_every_worker_ends_with_one_sentence(on, monkeypatch, cluster):
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    with pytest.raises(RuntimeError, match="killed too often; it may need more memory"):
        fanout.run(suicide, [1], done=lambda _: False, **on)


def test_error_of_a_task_is_raised(on):
    with pytest.raises(ZeroDivisionError):
        fanout.run(fail, [1], done=lambda _: False, **on)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of one process."""
    plan = prepare(tmp_path_factory.mktemp("whole"))
    plan.run(workers=1)
    return payloads(plan)


def kill_one(cluster, plan) -> None:
    """Kill a worker as soon as a model is finished."""
    while not payloads(plan):
        time.sleep(0.02)
    with distributed.Client(cluster, set_as_default=False) as client:
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)


def test_retraining_gives_the_bytes_of_one_process_though_a_worker_is_killed(
    tmp_path, cluster, on, whole
):
    plan = prepare(tmp_path)
    killer = threading.Thread(target=kill_one, args=(cluster, plan))
    killer.start()
    assert plan.run(**on) == 6
    killer.join()
    assert payloads(plan) == whole and plan.run(**on) == 0


def test_two_processes_here_and_array_tasks_give_the_same_bytes(tmp_path, whole):
    two, each = prepare(tmp_path / "two"), prepare(tmp_path / "each")
    assert two.run(workers=2) == 6
    assert [each.run(task=task) for task in (5, 0, 1, 4, 3, 2)] == [1] * 6
    assert payloads(two) == payloads(each) == whole


def test_command_line_sends_the_tasks(tmp_path, on, whole, monkeypatch):
    plan = prepare(tmp_path)
    monkeypatch.setattr(notebooks, "plan", lambda *_, **__: plan)
    command = ["retrain", "--profile", "tiny", "--engine", "dask", "--scheduler", on["scheduler"]]
    assert __main__.main([*command, "--task", "2"]) == 0 and len(payloads(plan)) == 1
    assert __main__.main(command) == 0 and payloads(plan) == whole


def removals(folder):
    """The plan of five models, most of them without some images."""
    test_counterfactual.prepared(folder)
    asked = {"curve_ks": [], "uncoupled_arm": "", "removal_arms": ["nda"], "removal_random": 1}
    asked |= {"removal_queries": 2, "removal_targets": 2, "curve_queries": 2}
    return counterfactual.plan(folder, test_counterfactual.GIVEN | asked)


def test_removals_give_the_bytes_of_one_process(tmp_path, on, monkeypatch):
    alone, plan = removals(tmp_path / "alone"), removals(tmp_path / "dask")
    monkeypatch.setattr(notebooks, "plan", lambda *_, removals: plan if removals else None)
    count, names = len(plan.members()), [member.name for member in plan.members()]
    assert alone.run(workers=1) == count
    command = ["retrain", "--removals", "--profile", "tiny", "--engine", "dask"]
    assert __main__.main([*command, "--scheduler", on["scheduler"]]) == 0
    made = (Store(folder).sha256(*names) for folder in (alone.folder, plan.folder))
    assert next(made) == next(made) and plan.run(**on) == 0


@pytest.mark.parametrize("method", ["nda", "gradient_cosine"])
def test_blocks_of_images_give_the_bytes_of_one_process(tmp_path, on, monkeypatch, method):
    dask = ["--engine", "dask", "--scheduler", on["scheduler"]]
    command = ["attribute", "--profile", "tiny", "--method", method, "--block", "3"]
    command += ["-p", "top_k=5", "-p", "gradient_timesteps=2"]
    for home, engine in {"alone": ["--workers", "1"], "dask": dask}.items():
        monkeypatch.setenv("NDA_HOME", str(tmp_path / home))
        test_blocks.fill(Store.working("tiny").folder)
        masks = test_blocks.halves()
        Store.results("tiny").save("masks/report", masks, axes="subset train")
        assert __main__.main([*command, *engine]) == 0
    made = [
        {
            path.relative_to(home).as_posix(): path.read_bytes()
            for path in home.rglob("*.safetensors")
            if path.parent.parent.name != "products"  # they hold the seconds that they took
        }
        for home in (tmp_path / "alone", tmp_path / "dask")
    ]
    assert made[0] == made[1] and f"data/tiny/scores/{method}-val.safetensors" in made[0]
    assert sum("parts/blocks" in name for name in made[0]) >= 5


def test_workers_that_the_book_starts_under_slurm_have_one_thread():
    from dask_jobqueue import SLURMCluster

    page = (Path(__file__).parent.parent / "book/reproduce.md").read_text()
    (asked,) = re.findall(r"SLURMCluster\((.*?)\)", page)
    made = ast.parse(f"f({asked})", mode="eval").body.keywords
    settings = {word.arg: ast.literal_eval(word.value) for word in made}
    local = {"scheduler_options": {"dashboard_address": None}}
    with SLURMCluster(**settings, **local) as cluster:
        script = cluster.job_script()
    assert "--nthreads 1" in script and "--nworkers" not in script.replace("--nworkers 1", "")


# ---- bad input


def ask(**where):
    return fanout.run(fail, [1], done=lambda _: False, **where)


def test_scheduler_that_is_not_there(monkeypatch):
    monkeypatch.setattr(fanout, "CONNECT", 0.5)
    for address in ("tcp://127.0.0.1:9", "carrier-pigeon://coop", "no address"):
        with pytest.raises(InputError, match=rf"no dask scheduler answers at '{address}'"):
            ask(engine="dask", scheduler=address)


def test_worker_with_another_version_is_refused(on, monkeypatch):
    monkeypatch.setattr(fanout, "ABOUT", fanout.ABOUT | {"nda": "0.0.9"})
    with pytest.raises(InputError, match=r"a worker has nda 0\.1\.0; install there .* nda 0\.0\.9"):
        ask(**on)


def test_worker_without_the_package(tmp_path):
    (tmp_path / "without.py").write_text("import sys\nsys.modules['nda'] = None\n")
    with (
        distributed.LocalCluster(
            n_workers=1, preload=[str(tmp_path / "without.py")], **CLUSTER
        ) as poor,
        pytest.raises(InputError, match="a worker of .* lacks the package nda; install there"),
    ):
        ask(engine="dask", scheduler=poor.scheduler_address)


def test_worker_of_several_threads(tmp_path):
    with (
        distributed.LocalCluster(
            n_workers=1, processes=False, **CLUSTER | {"threads_per_worker": 2}
        ) as wide,
        pytest.raises(InputError, match="a worker has 2 threads; start workers with --nthreads 1"),
    ):
        ask(engine="dask", scheduler=wide.scheduler_address)
