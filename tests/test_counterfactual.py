"""Removals: which images go, what is trained and measured, and that a killed run goes on."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nda import rng
from nda.errors import InputError
from nda.evidence import counterfactual
from nda.evidence.outcomes import rms
from nda.model import sampling, training, unet
from nda.store import Store

RECIPE = unet.Recipe.parse(
    {
        "unet": {
            "block_out_channels": [8, 8],
            "norm_num_groups": 4,
            "layers_per_block": 1,
            "add_attention": False,
            "down_block_types": ["DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D"],
        },
        "epochs": 3,
        "batch": 4,
        "lr": 1e-2,
    }
)
TRAIN = torch.rand(8, 1, 8, 8, generator=rng.generator("train")) * 2 - 1
GIVEN = {
    "n_gen": 5,
    "train_seed": 7,
    "timesteps": [100, 500],
    "noise_seeds": [0],
    "sampling_steps": 3,
    "device": "cpu",
    "removal_queries": 3,
    "removal_targets": 3,
    "removal_k": 2,
    "removal_arms": ["pixel_cosine", "nda"],
    "removal_random": 2,
    "removal_seeds": 1,
    "curve_ks": [1],
    "curve_arms": ["nda"],
    "curve_queries": 2,
    "curve_random": 1,
    "uncoupled_arm": "nda",
}


def prepared(folder, train=TRAIN):
    """A working store with a trained model, its queries and the scores of two methods."""
    store = Store(folder)
    store.save("train", train, axes="image chan row col")
    *_, last = training.train(train, RECIPE, train_seed=7)
    made = {"parameters": {"recipe": asdict(RECIPE)}, "inputs": store.sha256("train")}
    store.save("model", last.weights, **made)
    model = unet.load_model(last.weights, RECIPE, train.shape, torch.device("cpu"))
    gen = sampling.sample(model, range(5), steps=3)
    store.save("gen", gen, axes="image chan row col", inputs=store.sha256("model"))
    for arm in ("pixel_cosine", "nda"):
        scores = torch.rand(5, len(train), generator=rng.generator(arm))
        store.save(f"scores/{arm}-gen", scores, axes="query train")
    return store


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("removals")
    prepared(folder)
    plan = counterfactual.plan(folder, GIVEN)
    assert plan.run(workers=1) == len(plan.members())
    return plan


@given(n=st.integers(1, 30), more=st.integers(0, 30))
def test_queries_are_drawn_by_name(n, more):
    rows = counterfactual.draw_queries(60, n + more)
    assert rows[:n] == counterfactual.draw_queries(60, n) and len({*rows}) == len(rows)


@given(n_train=st.integers(2, 20), draws=st.integers(1, 4), data=st.data())
def test_random_removals_are_nested(n_train, draws, data):
    few, many = sorted(data.draw(st.lists(st.integers(1, n_train - 1), min_size=2, max_size=2)))
    smaller, larger = (counterfactual.random_removals(n_train, k, draws) for k in (few, many))
    assert ((~smaller).sum(1) == few).all() and ((~larger).sum(1) == many).all()
    assert not (larger & ~smaller).any()  # what is gone stays gone
    assert torch.equal(smaller, counterfactual.random_removals(n_train, few, draws + 1)[:draws])


@given(queries=st.integers(1, 4), n_train=st.integers(2, 12), data=st.data())
def test_top_removals_take_the_highest_scores(queries, n_train, data):
    k = data.draw(st.integers(1, n_train - 1))
    values = st.lists(st.integers(-2, 2), min_size=n_train, max_size=n_train)
    scores = torch.tensor([data.draw(values) for _ in range(queries)]).double()
    masks = counterfactual.top_removals(scores, k)
    for row, mask in zip(scores.tolist(), masks.tolist(), strict=True):
        gone = sorted(range(n_train), key=lambda i: (-row[i], i))[:k]
        assert [i for i in range(n_train) if not mask[i]] == sorted(gone)


def test_a_removal_may_empty_a_class():
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    assert counterfactual.top_removals(scores, 2).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("k", [0, 4, 9])
def test_an_impossible_number_of_images(k):
    with pytest.raises(InputError, match="k must take away at least one of the 4 train images"):
        counterfactual.random_removals(4, k, 1)
    with pytest.raises(InputError, match="leave one, not"):
        counterfactual.top_removals(torch.rand(2, 4), k)


def test_scores_that_are_not_finite():
    with pytest.raises(InputError, match="scores have NaN"):
        counterfactual.top_removals(torch.tensor([[1.0, float("nan")]]), 1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"removal_queries": 6}, "removal_queries must be at most the 5 generated queries, not 6"),
        ({"removal_queries": 0}, "removal_queries must be a positive integer"),
        ({"removal_arms": ["magic"]}, "removal_arms must be one of 'random'.*not 'magic'"),
        ({"curve_arms": ["d_trak"]}, "curve_arms must be one of 'pixel_cosine', 'nda', not 'd_t"),
        ({"uncoupled_arm": "d_trak"}, "uncoupled_arm must be one of"),
        ({"removal_k": 8}, "k must take away at least one of the 8 train images and leave one"),
        ({"removal_arms": ["d_trak", "nda"]}, "scores/d_trak-gen is missing in .*07b"),
        ({"removal_targets": 4}, "removal_targets must be at most the 3 removal_queries, not 4"),
        ({"curve_queries": 4}, "curve_queries must be at most the 3 removal_queries, not 4"),
    ],
)
def test_bad_design(trained, changed, message):
    with pytest.raises(InputError, match=message):
        counterfactual.plan(trained.folder, GIVEN | changed)


def test_families_and_their_order(trained):
    counts = pd.Series([member.family for member in trained.members()]).value_counts(sort=False)
    assert counts.to_dict() == {
        "kept": 2,
        "removed-random": 2,
        "removed-pixel_cosine": 3,
        "removed-nda": 3,
        "removed-random-1": 1,
        "removed-nda-1": 2,
        "uncoupled-random": 2,
        "uncoupled-nda": 2,
    }
    seeds = {member.family: member.train_seed for member in trained.members()}
    assert seeds == dict.fromkeys(seeds, 7) | {
        "kept": 8,
        "uncoupled-random": 8,
        "uncoupled-nda": 8,
    }


def test_queries_that_are_no_targets_are_only_drawn(trained):
    """And the models of the targets stay what they are."""
    some = counterfactual.plan(trained.folder, GIVEN | {"removal_targets": 1})
    counts = pd.Series([member.family for member in some.members()]).value_counts()
    assert counts["removed-nda"] == counts["removed-nda-1"] == 1 and counts["removed-random"] == 2
    assert some.run(workers=1) == 0
    assert counterfactual.collect(some)[1]["images"].shape[1] == 3


def test_the_same_seed_draws_the_same_pictures(trained):
    """Training it again, without any removal, changes nothing at all."""
    models, found = counterfactual.collect(trained)
    same = models.index[models["family"] == "kept"][0]
    assert torch.equal(found["images"][0], found["images"][same])
    assert torch.equal(found["losses"][0], found["losses"][same])
    assert (found["outputs"][same] == 0).all() and (found["outputs"][0] == 0).all()
    others = models.index[2:]
    assert (rms(found["images"], found["images"][0])[others] > 0).all()
    assert (found["outputs"][others] > 0).all()


def test_what_is_collected(trained):
    models, found = counterfactual.collect(trained)
    store, rows = Store(trained.folder), list(trained.rows)
    assert list(models.iloc[0])[:5] == ["full", "none", 0, -1, 7] and found["masks"][0].all()
    for arm in ("pixel_cosine", "nda"):
        here = models[models["family"] == f"removed-{arm}"]
        assert here["target"].tolist() == [0, 1, 2] and (here["k"] == 2).all()
        scores = store.load(f"scores/{arm}-gen")[rows]
        assert torch.equal(~found["masks"][here.index], scores >= scores.topk(2).values[:, 1:])
    assert (models[models["arm"] == "random"]["target"] == -1).all()
    assert ((~found["masks"]).sum(1) == torch.tensor(models["k"].tolist())).all()
    gen = ((store.load("gen")[rows] + 1) * 127.5).round()
    assert (found["images"][0].float() - gen).abs().max() <= 1


def test_missing_models_are_named(trained, tmp_path):
    prepared(tmp_path)
    plan = counterfactual.plan(tmp_path, GIVEN)
    plan.run(workers=1, task=0)
    with pytest.raises(
        InputError,
        match="16 of 17 models are not trained yet, members/kept-000-8 first;.*09_counterfactual",
    ):
        counterfactual.collect(plan)


def test_members_of_another_model_are_not_taken(trained):
    """Those of a store whose full model has changed since are trained again."""
    other = replace(trained, timesteps=[100])
    assert not other.done(other.members()[0]) and trained.done(trained.members()[0])


KILLED = """
import sys
sys.path.insert(0, "tests")
from pathlib import Path
from test_counterfactual import GIVEN
from nda.evidence import counterfactual
counterfactual.plan(Path(sys.argv[1]), GIVEN).run(workers=2)
"""


def test_a_killed_batch_goes_on_and_ends_with_the_same_bytes(trained, tmp_path):
    prepared(tmp_path)
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    run = subprocess.Popen(command, start_new_session=True)
    members = tmp_path / "members"
    while not list(members.glob("removed-*.safetensors")):
        assert run.poll() is None
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    subprocess.run(command, check=True)
    names = [member.name for member in trained.members()]
    there, here = (Store(folder).sha256(*names) for folder in (trained.folder, tmp_path))
    assert there == here


def test_a_duplicate_group_is_missed():
    """A planted truth: four copies of one picture, which the model memorises. Without all copies
    the queries that show it change more than without four random others."""
    picture = torch.where(torch.arange(8) < 4, 1.0, -1.0).expand(8, 8)
    others = -0.8 + 0.1 * torch.rand(8, 1, 8, 8, generator=rng.generator("others"))
    train = torch.cat([picture.expand(4, 1, 8, 8), others])
    network = RECIPE.unet | {"block_out_channels": [16, 16]}
    recipe = replace(RECIPE, unet=network, epochs=400, batch=12, lr=5e-3)

    def drawn(keep):
        *_, last = training.train(train, recipe, keep=keep, train_seed=3)
        model = unet.load_model(last.weights, recipe, train.shape, torch.device("cpu"))
        return counterfactual.draw_again(model, range(32), 20)

    full = drawn(torch.ones(12, dtype=torch.bool))
    shown = ((train[:1] + 1) * 127.5).round().byte()
    copies = rms(full, shown.expand_as(full)) < 0.3
    assert copies.sum() >= 4  # queries that show the picture
    sources = torch.cat([torch.ones(1, 4), torch.zeros(1, 8)], 1)
    without = counterfactual.top_removals(sources, 4)[0]
    found, random = (rms(drawn(keep), full)[copies] for keep in (without, torch.arange(12) < 8))
    assert found.mean() > 3 * random.mean()
