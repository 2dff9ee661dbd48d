"""Models that stand in for the target: that each is what its name says, and that methods look into
it and not into the target."""

from dataclasses import replace

import pytest
import torch
from made_up import save_losses
from tiny import IMAGES, SETTINGS, TINY, train

from nda import rng
from nda.evidence import proxies, tuning
from nda.evidence.truth import Truth
from nda.methods import METHODS
from nda.rivals.bench import Bench
from nda.store import Store

TRAIN, QUERIES = IMAGES[:7], {"val": IMAGES[7:11], "gen": IMAGES[11:]}
GIVEN = {"noise_seed": 0, "projection_dim": 0, "gradient_timesteps": 1, "query_block": 40}
NARROW = {"narrow": {"block_out_channels": [4, 4]}}
TRAK = METHODS["trak"].varied(K=2)


@pytest.fixture
def stores(tmp_path):
    store, results = (
        Store(tmp_path / "work", role="working"),
        Store(tmp_path / "out", role="results"),
    )
    for kind, images in {"train": TRAIN, **QUERIES}.items():
        store.save(kind, images, axes="image chan row col")
    half = TINY.build(5, TRAIN.shape).state_dict()
    model = train(TRAIN, TINY)[0].state_dict()
    store.save("model-50", {name: value.half() for name, value in half.items()})
    store.save("model", model, parameters={"recipe": SETTINGS})
    source = rng.generator("proxies")
    for family in ("select", "report"):
        masks = torch.rand(6, 7, generator=source) < 0.5
        results.save(f"masks/{family}", masks, axes="subset train")
        for which, images in QUERIES.items():
            save_losses(results, family, which, torch.rand(6, 1, len(images), 2, generator=source))
    return store, results


TRIED = proxies.proxies(TINY, 0, NARROW)


def test_what_is_tried():
    names = [proxy.name for proxy in TRIED]
    assert names == ["the target", "50 % of its training", "untrained", "another seed", "narrow"]
    assert [proxy.train_seed for proxy in TRIED] == [0, 0, 0, 1, 0]
    assert TRIED[-1].recipe == replace(TINY, unet={**TINY.unet, **NARROW["narrow"]})
    assert all(proxy.recipe == TINY for proxy in TRIED[:-1])


def test_each_is_what_its_name_says(stores):
    store, _ = stores
    target, half, untrained, another, narrow = (
        proxies.stand_in(proxy, store).load("model") for proxy in TRIED
    )
    trained = {seed: train(TRAIN, TINY, train_seed=seed)[0].state_dict() for seed in (0, 1)}
    small = train(TRAIN, TRIED[-1].recipe)[0].state_dict()
    drawn = TINY.build(0, TRAIN.shape).state_dict()
    kept = {name: value.float() for name, value in store.load("model-50").items()}
    pairs = [(target, trained[0]), (half, kept), (untrained, drawn), (another, trained[1])]
    for found, expected in [*pairs, (narrow, small)]:
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_row_is_the_method_asked_of_the_proxy(stores):
    store, results = stores
    rows = proxies.table(store, results, GIVEN, TRIED, [TRAK]).set_index(["proxy", "queries"])
    assert len(rows) == 2 * len(TRIED)
    for proxy in TRIED:
        place = proxies.stand_in(proxy, store)
        bench = Bench(place, GIVEN, choose=tuning.chooser(results))
        for which in QUERIES:
            found, row = METHODS["trak"].score(bench, which, K=2), rows.loc[proxy.name, which]
            lds = Truth.load(results, "report", which).lds(found.scores).mean().item()
            assert row["lds"] == pytest.approx(100 * lds)
            assert row["damping"] == found.choice.damping
            gain = row["lds"] - rows.loc[proxies.TARGET, which]["lds"]
            assert row["gain"] == pytest.approx(gain)
            assert row["parameters"] == sum(p.numel() for p in bench.model().parameters())
    assert (rows["training"] > 0).tolist() == [
        name in ("another seed", "narrow") for name, _ in rows.index
    ]


def test_nothing_is_computed_twice(stores, monkeypatch):
    store, results = stores
    first = proxies.table(store, results, GIVEN, TRIED, [TRAK])

    def never(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(proxies.training, "train", never)
    monkeypatch.setattr(type(TRAK), "score", never)
    assert first.equals(proxies.table(store, results, GIVEN, TRIED, [TRAK]))
