"""Retraining on subsets: resumable, the same bytes whatever happened in between."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from tiny import UNET, train

from nda import fanout
from nda.data import images
from nda.data.subsets import keep_masks
from nda.errors import InputError
from nda.evidence.records import check_results
from nda.evidence.retrain import Member, Plan
from nda.evidence.truth import AXES, Truth
from nda.model import outputs, training, unet
from nda.store import Store, digest_json

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPE = unet.Recipe.parse({"unet": UNET, "epochs": 8, "batch": 4, "lr": 1e-3})
SCRIPT = """if True:
    import sys
    from pathlib import Path
    from nda.evidence.retrain import Plan
    if __name__ == "__main__":
        Plan(Path(sys.argv[1]), {"report": [0, 1]}, [100, 500], [0], "cpu").run(workers=2)"""


def prepare(folder: Path) -> Plan:
    """A working store with 12 digits and 3 masks, and its plan of 3 subsets × 2 seeds."""
    digits = images.load("mnist", split="test", size=8)
    chosen = torch.arange(1000) % 100 < 2  # two of each class
    train, labels = digits.pixels[chosen][:12], digits.labels[chosen][:12]
    store = Store(folder)
    for name, value in {
        "train": train,
        "val": digits.pixels[-4:],
        "gen": digits.pixels[50:53],
    }.items():
        store.save(name, value, axes="image chan row col")
    store.save("masks/report", keep_masks(labels, 3, family="report"), axes="subset train")
    store.save("model", {"weight": torch.zeros(1)}, parameters={"recipe": asdict(RECIPE)})
    return Plan(folder, {"report": [0, 1]}, [100, 500], [0], "cpu")


def payloads(plan: Plan) -> dict[str, bytes]:
    """The bytes of all finished members."""
    return {
        path.name: path.read_bytes()
        for path in sorted((plan.folder / "members").glob("report-???-?.safetensors"))
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Plan:
    """An uninterrupted run."""
    plan = prepare(tmp_path_factory.mktemp("whole"))
    assert plan.run(workers=1) == 6
    return plan


def test_members_are_numbered_seed_by_seed(whole):
    assert whole.members() == [
        Member("report", subset, seed) for seed in (0, 1) for subset in (0, 1, 2)
    ]
    assert [member.name for member in whole.members()][3] == "members/report-000-1"
    assert all(whole.done(member) for member in whole.members())
    assert not [name for name in Store(whole.folder).names() if name.endswith("-state")]


def test_losses_are_ordered_by_subset_then_seed(whole):
    losses = whole.losses("report", "val", 2)
    assert torch.equal(whole.losses("report", "val", 1), losses.mean(3, keepdim=True))
    with pytest.raises(InputError, match="timestep_groups must divide the 2 timesteps, not 3"):
        whole.losses("report", "val", 3)
    assert losses.shape == (3, 2, 4, 2) and whole.losses("report", "gen", 2).shape == (3, 2, 3, 2)
    for member in whole.members():
        kept = Store(whole.folder).load(member.name)["val"]  # [noise, query, timestep]
        assert torch.equal(losses[member.subset, member.train_seed], kept[0])
    assert len(losses[:, :, 0, 0].unique()) == 6


def test_a_member_is_its_subset_trained_with_its_seed(whole):
    store = Store(whole.folder)
    model, _ = train(store.load("train"), RECIPE, keep=store.load("masks/report")[2], train_seed=1)
    expected = outputs.denoising_losses(
        model, store.load("gen"), timesteps=[100, 500], noise_seeds=[0]
    )
    assert torch.equal(whole.losses("report", "gen", 2)[2, 1], expected)


def test_second_run_trains_nothing(whole, monkeypatch):
    before = payloads(whole)
    monkeypatch.setattr(Plan, "retrain", lambda *_: pytest.fail("trained again"))
    assert (
        whole.run(workers=1) == 0
        and whole.run(workers=1, task=3) == 0
        and payloads(whole) == before
    )


def test_killed_run_goes_on_to_the_same_bytes(tmp_path, whole):
    """Kill -9 of the whole process group in the middle, then the same run again."""
    plan = prepare(tmp_path)
    script = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    running = subprocess.Popen(
        script, cwd=REPOSITORY, start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        while not list((tmp_path / "members").glob("report-???-?.json")):
            assert running.poll() is None, "the run ended before anything was finished"
            time.sleep(0.02)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    finished = {member for member in plan.members() if plan.done(member)}
    assert 1 <= len(finished) < 6
    assert plan.run(workers=1) == 6 - len(finished)
    assert payloads(plan) == payloads(whole)


class Full(Exception):
    """Stands for a full disk, or a kill."""


def stop_at_state(monkeypatch, number: int) -> list[str]:
    """The names of what is saved; saving the state for the `number`th time fails."""
    saved, save = [], Store.save

    def full(self, name, *values, **settings):
        saved.append(name)
        if sum(n.endswith("-state") for n in saved) == number:
            raise Full
        save(self, name, *values, **settings)

    monkeypatch.setattr(Store, "save", full)
    return saved


def test_a_member_goes_on_from_its_last_state(tmp_path, monkeypatch, whole):
    """The state is replaced, never removed first: a full disk or a kill in the middle of a write
    costs one checkpoint."""
    plan, store = prepare(tmp_path), Store(tmp_path)
    member, epochs, run_epoch = plan.members()[4], [], training.Training.run_epoch
    with monkeypatch.context() as patch, pytest.raises(Full):
        saved = stop_at_state(patch, 2)
        plan.retrain(member)
    assert saved == [f"{member.name}-state"] * 2
    assert store.load(f"{member.name}-state")["epoch"] == 2 and not plan.done(member)
    monkeypatch.setattr(
        training.Training, "run_epoch", lambda run: (epochs.append(run.epoch), run_epoch(run))
    )
    plan.retrain(member)
    assert epochs == [2, 3, 4, 5, 6, 7]
    (name,) = payloads(plan)
    assert payloads(plan)[name] == payloads(whole)[name]
    assert f"{member.name}-state" not in store
    assert store.info(member.name)["notes"]["precision"] == "float32"


def test_a_state_of_other_settings_is_replaced(tmp_path, monkeypatch):
    plan, store = prepare(tmp_path), Store(tmp_path)
    member = plan.members()[0]
    with monkeypatch.context() as patch, pytest.raises(Full):
        stop_at_state(patch, 2)
        plan.retrain(member)
    store.save("masks/report", ~store.load("masks/report"), axes="subset train")
    plan.retrain(member)
    fresh = prepare(tmp_path / "fresh")
    other = Store(fresh.folder)
    other.save("masks/report", store.load("masks/report"), axes="subset train")
    fresh.retrain(member)
    assert payloads(plan) == payloads(fresh)


def test_single_tasks_give_the_same_bytes(tmp_path, whole):
    plan = prepare(tmp_path)
    for task in (5, 0):
        assert plan.run(workers=2, task=task) == 1
    expected = payloads(whole)
    assert payloads(plan) == {
        name: expected[name] for name in ("report-000-0.safetensors", "report-002-1.safetensors")
    }
    with pytest.raises(InputError, match="4 of 6 models .*members/report-001-0"):
        plan.losses("report", "val", 2)


@pytest.mark.parametrize("task", [-1, 6])
def test_task_out_of_range(whole, task):
    with pytest.raises(InputError, match=r"task must be in 0…5"):
        whole.run(workers=1, task=task)


@pytest.mark.parametrize(
    "changed", ["masks/report", "train", "val", "model", "timesteps", "noise_seeds"]
)
def test_changed_settings_or_inputs_make_members_stale(tmp_path, monkeypatch, changed):
    plan = prepare(tmp_path)
    store, member = Store(plan.folder), plan.members()[0]
    made = training.Checkpoint(1.0, {}, torch.zeros(0), {}, "float32")
    monkeypatch.setattr(training, "train", lambda *_, **__: [made])
    untrained = RECIPE.build(0, store.load("train").shape)
    monkeypatch.setattr(unet, "load_model", lambda *_: untrained)
    monkeypatch.setattr(
        outputs, "denoising_losses", lambda model, queries, **_: queries.sum((1, 2, 3))[:, None]
    )
    plan.retrain(member)
    assert plan.done(member)
    if changed == "masks/report":
        store.save(changed, ~store.load(changed), axes="subset train")
    elif changed == "model":
        store.delete("model")
        store.save(
            "model",
            {"weight": torch.zeros(1)},
            parameters={"recipe": asdict(replace(RECIPE, epochs=2))},
        )
    elif changed in ("train", "val"):
        store.save(changed, -store.load(changed), axes="image chan row col")
    else:
        plan = replace(plan, **{changed: [7]})
    assert not plan.done(member)
    with pytest.raises(InputError, match="not trained"):
        plan.losses("report", "val", 1)
    ran = []

    def pretend(function, tasks, *, done, **_):
        ran.extend(task for task in tasks if not done(task))
        return len(ran)

    monkeypatch.setattr(fanout, "run", pretend)
    assert plan.run(workers=1) == len(ran) == 6
    plan.retrain(member)  # replaces what is stale
    assert plan.done(member)


# ---- any masks, any recipe

OTHER = unet.Recipe.parse({"unet": UNET, "epochs": 2, "batch": 4, "lr": 1e-3})


@pytest.fixture
def removals(tmp_path) -> Plan:
    """All images but one, and but two, without a full model; two noises and one kind of queries."""
    prepare(tmp_path)
    store = Store(tmp_path)
    store.delete("model")
    masks = torch.ones(2, 12, dtype=torch.bool)
    masks[0, 3] = masks[1, 5] = masks[1, 7] = False
    store.save("masks/single", masks, axes="subset train")
    seeds = {"single": [4], "report": [1]}
    return Plan(tmp_path, seeds, [100, 500], [0, 3], "cpu", which=("val",), recipe=asdict(OTHER))


def test_any_masks_are_retrained_on_with_a_recipe_of_their_own(removals):
    assert [m.name for m in removals.members()][:2] == [
        "members/single-000-4",
        "members/single-001-4",
    ]
    assert removals.run(workers=1) == 5
    store = Store(removals.folder)
    measured = removals.measured("single", "val")
    assert measured.shape == (2, 1, 2, 4, 2)
    keep = store.load("masks/single")[1]
    model, _ = train(store.load("train"), OTHER, keep=keep, train_seed=4)
    for noise, seed in enumerate([0, 3]):
        expected = outputs.denoising_losses(
            model, store.load("val"), timesteps=[100, 500], noise_seeds=[seed]
        )
        assert torch.equal(measured[1, 0, noise], expected)
    torch.testing.assert_close(removals.losses("single", "val", 1)[..., 0], measured.mean((2, 4)))
    assert not torch.equal(measured[0], measured[1])
    assert store.info("members/single-000-4")["notes"]["precision"] == "float32"


def test_the_recipe_is_among_the_inputs_of_members_and_losses(whole, tmp_path):
    store, member = Store(whole.folder), whole.members()[0]
    recipe = {"recipe": digest_json(asdict(RECIPE))}
    inputs = store.sha256("train", "val", "gen", "masks/report") | recipe
    assert store.info(member.name)["inputs"] == inputs
    results = Store(tmp_path)
    results.save("masks/report", store.load("masks/report"), axes="subset train")
    made = whole.record("report", "val", results)
    assert made["inputs"] == results.sha256("masks/report") | store.sha256("train", "val") | recipe
    assert made["parameters"] == {"timesteps": [100, 500], "noise_seeds": [0], "seeds": [0, 1]}
    took = sum(store.info(m.name)["seconds"] for m in whole.members())
    assert made["seconds"] == pytest.approx(took)
    results.save("losses/report-val", whole.losses("report", "val", 2), axes=AXES, **made)
    check_results(results)
    assert Truth.load(results, "report", "val", "all").losses.shape == (3, 2, 4, 2)


def test_family_without_seeds(whole):
    with pytest.raises(InputError, match="train seed"):
        replace(whole, train_seeds={"report": []}).members()


def test_missing_input_names_its_notebook(tmp_path):
    plan = prepare(tmp_path)
    Store(tmp_path).delete("gen")
    with pytest.raises(InputError, match="gen is missing.*02_diffusion_model"):
        plan.run(workers=1)
    Store(tmp_path).delete("masks/report")
    with pytest.raises(InputError, match="masks/report is missing.*01_data"):
        plan.members()
