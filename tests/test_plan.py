"""What a run costs, before it: against what `small` did cost; and the command lines."""

import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from nda import __main__
from nda.artefact import jobs, notebooks, plan, rates
from nda.artefact.rates import Rate, Rates
from nda.errors import InputError
from nda.evidence import counterfactual
from nda.evidence.retrain import Plan
from nda.store import Store

SMALL = Store.shipped("small")
UNKNOWN = Rates(*[Rate(1.0, 500.0)] * 4, parameters=1000)


def said(stage: str) -> float:
    """Seconds that PROVENANCE.md says of a stage."""
    row = next(line for line in lines() if line.startswith(f"| {stage}"))
    return float(row.split("|")[2].replace(",", ""))


def lines() -> list[str]:
    return (SMALL.folder / "PROVENANCE.md").read_text().splitlines()


def whole() -> float:
    """Of what PROVENANCE.md adds up, and of the counterfactual models, by their table."""
    stages = ("full model", "generated queries", "select models", "report models", "scores of all")
    removed = SMALL.load("counterfactual/models")["seconds"].iloc[1:].sum()
    return sum(map(said, stages)) + removed


def test_what_was_spent_is_what_provenance_says():
    spent = plan.spent(SMALL)
    assert spent.sum() == pytest.approx(whole(), abs=1)
    assert spent["methods"] == pytest.approx(said("scores of all"), abs=0.1)


def test_hours_of_many_machines():
    def stage(name: str, tasks: int, *, array: bool) -> plan.Stage:
        return plan.Stage(name, tasks, 2.0, None, 0.0, "sidecars", "nda", array)

    every = [stage("models", 10, array=True), stage("nda", 3, array=False)]
    every.append(replace(every[1], name="data", seconds=None))
    assert plan.clock(every, 1) == sum(one.total for one in every) == 26
    assert plan.clock(every, 4) == 3 * 2 + 6  # three rounds of models, then one command
    assert plan.clock(every, 4, ["nda"]) == 3 * 2 + 6 / 4
    assert plan.clock(every, 1000) == plan.clock(every, 10) == 2 + 6


def from_sidecars() -> Rates:
    """What the units cost when `small` was computed."""
    given = notebooks.parameters("small")
    seconds = {
        name: SMALL.info(name)["seconds"]
        for name in ("model", "gen", "effects/trak-val", "effects/nda_two_scale-val")
    }
    steps = given["epochs"] * given["n_train"] / given["batch"]
    gradients = (given["n_train"] + given["n_val"]) * given["gradient_timesteps"]
    pairs = given["n_train"] * given["n_val"]
    costs = (
        seconds["model"] / steps,
        seconds["gen"] / (given["n_gen"] * given["sampling_steps"]),
        seconds["effects/trak-val"] / gradients,
        seconds["effects/nda_two_scale-val"] / pairs,
    )
    return Rates(*map(Rate, costs), parameters=1_125_315)


def test_total_of_small_is_near_its_provenance():
    given = notebooks.parameters("small")
    recorded = plan.stages(given, UNKNOWN, plan.recorded("small"))
    assert {stage.source for stage in recorded if stage.total} == {"sidecars"}
    worked_out = plan.stages(given, from_sidecars())
    for stages in (recorded, worked_out):
        assert 0.5 < sum(stage.total for stage in stages) / whole() < 2


def test_stages_of_small_are_near_their_sidecars():
    """Worked out of what a unit costs, each stage is within a factor of three."""
    recorded = plan.recorded("small")
    found = {s.name: s.seconds for s in plan.stages(notebooks.parameters("small"), from_sidecars())}
    for stage in ("full model", "subset models", "counterfactuals", "nda", "influence"):
        assert 1 / 3 < found[stage] / recorded[stage] < 3, stage


@pytest.mark.parametrize("profile", ["tiny", "small"])
def test_tasks_are_those_of_the_commands(tmp_path, profile):
    given = notebooks.parameters(profile)
    tasks = {stage.name: stage.tasks for stage in plan.stages(given, UNKNOWN)}
    store = Store(tmp_path)
    for family in ("select", "report"):
        masks = torch.ones(given[f"{family}_subsets"], 3, dtype=torch.bool)
        store.save(f"masks/{family}", masks, axes="subset train")
    seeds = {family: given[f"{family}_seeds"] for family in ("select", "report")}
    assert tasks["subset models"] == len(Plan(tmp_path, seeds, [1], [0]).members())
    store.save("train", torch.zeros(given["n_train"], 1, 2, 2), axes="image chan row col")
    arms = [family.arm for family in counterfactual.families(given)]
    for arm in {*arms} - {"random", "none"}:
        scores = torch.rand(given["n_gen"], given["n_train"])
        store.save(f"scores/{arm}-gen", scores, axes="query train")
    assert tasks["counterfactuals"] == len(counterfactual.plan(tmp_path, given).members())


def test_without_sidecars_nothing_is_made_up():
    stages = {s.name: s for s in plan.stages(notebooks.parameters("paper"), UNKNOWN)}
    assert stages["similarity"].seconds is None and stages["similarity"].source == "not known"
    assert stages["subset models"].source == plan.MEASURED
    table = plan.table(list(stages.values()))
    assert table.loc["similarity", "seconds each"] == "?"
    assert table.loc["subset models", "tasks"] == "256"


def test_costs_are_measured():
    given = notebooks.parameters("tiny")
    found = rates.measure(given)
    costs = [found.step, found.forward, found.gradient, found.nda]
    assert all(0 < cost.seconds < 60 for cost in costs) and found.parameters > 1000
    assert all(cost.memory is None or 50 < cost.memory < 100_000 for cost in costs)


# ---- the command lines


@pytest.fixture
def small() -> list[plan.Stage]:
    given = notebooks.parameters("small")
    return plan.stages(given, UNKNOWN, plan.recorded("small"), ["-p", "removal_arms=['a b']"])


def test_commands_are_in_order_and_understood(small):
    commands = jobs.here(small)
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "nda" and __main__.parser().parse_args(arguments).profile == "small"
        assert "removal_arms=['a b']" in arguments
    numbers = [re.search(r"--only (\d\d)", command) for command in commands]
    assert [n and n[1] for n in numbers] == [
        "01", "02", None, "03", "06", "05", "07", "08", "15", None, "09"
    ]  # fmt: skip


def test_files_for_clusters_are_complete(small, tmp_path):
    files = jobs.write(small, tmp_path / "jobs", Path("/shared/my runs"))
    assert {path.suffix for path in files} == {".sbatch", ".yaml", ".sh"}
    for path in files:
        if path.suffix == ".yaml":
            spec = yaml.safe_load(path.read_text())["spec"]
            assert spec["completionMode"] == "Indexed" and spec["template"]["spec"]["containers"]
        else:
            subprocess.run(["bash", "-n", str(path)], check=True)
    text = next(path for path in files if path.name == "02-subset-models.sbatch").read_text()
    assert "#SBATCH --array=0-159\n" in text and '--task "$SLURM_ARRAY_TASK_ID"' in text
    hours = re.search(r"--time=(\d+):(\d\d):00", text)
    seconds = plan.recorded("small")["subset models"]
    assert int(hours[1]) * 60 + int(hours[2]) >= 2 * seconds / 60
    job = yaml.safe_load((tmp_path / "jobs" / "02-subset-models.yaml").read_text())
    assert job["spec"]["completions"] == 160
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[2].endswith("--task $JOB_COMPLETION_INDEX")


def test_submit_sends_one_after_the_other(small, tmp_path):
    """With a stand-in for sbatch that numbers what it is sent."""
    jobs.write(small, tmp_path / "jobs", tmp_path)
    fake = tmp_path / "sbatch"
    fake.write_text('#!/bin/bash\necho "$@" >> "$LOG"\nwc -l < "$LOG"\n')
    fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "LOG": str(tmp_path / "log")}
    subprocess.run(["bash", str(tmp_path / "jobs" / "submit.sh")], env=environment, check=True)
    sent = (tmp_path / "log").read_text().splitlines()
    assert len(sent) == 11 and sent[0] == "--parsable 00-data.sbatch"
    assert sent[3].startswith("--parsable --dependency=afterok:3 03-gather")


def test_command_shows_the_plan(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(plan, "measure", lambda given: UNKNOWN)
    folder = tmp_path / "jobs"
    assert __main__.main(["plan", "--profile", "small", "--write", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "subset models" in shown and "nda retrain --profile small --removals" in shown
    assert f"sh {folder}/submit.sh" in shown and (folder / "submit.sh").exists()
    assert __main__.main(["plan", "--profile", "nothing"]) == 2


def test_another_recipe_is_not_told_by_sidecars(monkeypatch):
    monkeypatch.setattr(plan, "measure", lambda given: replace(UNKNOWN, step=Rate(2.0)))
    stages = {stage.name: stage for stage in plan.plan("small", {"epochs": 3})}
    assert (
        stages["full model"].seconds == 3 * 10 * 2 and stages["full model"].source == plan.MEASURED
    )
    with pytest.raises(InputError, match="no notebook has a parameter"):
        plan.plan("small", {"epoch": 3})
