"""The catalogue: names, settings and records; what chooses a damping; a method of one's own."""

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from nda import methods, rng
from nda.artefact import notebooks
from nda.errors import InputError
from nda.evidence.records import record
from nda.evidence.truth import group_effects
from nda.methods import CHECKPOINTS, IMAGES, METHODS, MODEL, Method, family, recorded
from nda.model.outputs import uniform_timesteps
from nda.nonparametric.config import NDAConfig
from nda.nonparametric.scores import nda_scores
from nda.rivals.bench import Bench, Scored
from nda.rivals.kernel import DAMPINGS, Choice
from nda.store import Store, digest_json

ROOT = Path(__file__).parent.parent
FAMILIES = {
    "nda": "05_nda",
    "similarity": "06_similarity",
    "gradients": "07a_gradients",
    "kernels": "07b_kernels",
    "das": "07c_das",
    "influence": "08_influence",
    "beyond": "15_beyond",
}
SEEING_A_MODEL = [method for method in METHODS.values() if method.needs in (MODEL, CHECKPOINTS)]
RECIPE = {"unet": {"layers_per_block": 1}, "epochs": 3}


def draw(name, *shape):
    return torch.rand(*shape, generator=rng.generator("methods", name)) * 2 - 1


def parameters(profile="small"):
    """All parameters of a profile."""
    return notebooks.parameters(profile)


@pytest.fixture
def stores(tmp_path):
    """A working store with images and a model's name, and a results store with masks."""
    store, results = Store(tmp_path / "data"), Store(tmp_path / "results")
    for kind, count in {"train": 6, "val": 4, "gen": 3}.items():
        store.save(kind, draw(kind, count, 1, 4, 4), axes="image chan row col")
    store.save("model", {"weight": draw("weight", 2)}, parameters={"recipe": RECIPE})
    results.save("masks/report", draw("masks", 5, 6) > 0, axes="subset train")
    return store, results


# ---- the catalogue


def test_every_entry_has_a_place_a_look_and_a_function():
    for key, method in METHODS.items():
        assert key == method.key == method.name and callable(method.function), key
        assert re.fullmatch("#[0-9a-f]{6}", method.colour) and method.takes in (
            "images",
            "bench",
            "losses",
        )
    for what in ("label", "colour"):
        assert len({getattr(method, what) for method in METHODS.values()}) == len(METHODS)


def test_every_family_is_scored_by_its_page():
    apart = {"retrained"}  # fitted on the page of the LDS
    assert {method.family for method in METHODS.values()} == {*FAMILIES, *apart}
    for name, page in FAMILIES.items():
        code = (notebooks.SOURCES / f"{page}.ipynb").read_text()
        assert f'family(\\"{name}\\")' in code
        assert family(name) and all(method.family == name for method in family(name))


@pytest.mark.parametrize("method", SEEING_A_MODEL, ids=lambda method: method.key)
def test_a_variant_has_a_name_a_label_and_a_paler_colour(method):
    fewer = method.varied(K=10)
    assert fewer.name == f"{method.key}-k10" and fewer.key == method.key
    assert fewer.label == f"{method.label}, K\u00a0=\u00a010"
    for i in (1, 3, 5):
        assert int(fewer.colour[i : i + 2], 16) >= int(method.colour[i : i + 2], 16)
    assert fewer.colour != method.colour and method.varied() is method


@pytest.mark.parametrize(
    ("key", "variant"), [("nda", {"K": 10}), ("pixel_dot", {"K": 2}), ("trak", {"k": 10})]
)
def test_other_variants_are_refused(key, variant):
    with pytest.raises(InputError, match=f"variant of {key} must be K"):
        METHODS[key].varied(**variant)


# ---- settings


@pytest.mark.parametrize("profile", ["smoke", "tiny", "small", "paper"])
def test_every_method_has_its_settings_from_every_profile(profile):
    for method in METHODS.values():
        found = method.settings(parameters(profile))
        assert json.loads(json.dumps(found)) == found


def test_settings_are_what_is_run():
    given = parameters() | {"gradient_timesteps": 5, "projection_dim": 64, "noise_seed": 3}
    of = {key: method.settings(given) for key, method in METHODS.items()}
    read = {"timesteps": [0, 200, 400, 600, 800], "noise_seed": 3, "projection_dim": 64}
    loss, norm = ({"model_output": o, "unit_norm": False} for o in ("loss", "output_norm"))
    for key in ("trak", "relative_if", "renormalised_if"):
        assert of[key] == loss | read
    assert of["d_trak"] == norm | read
    assert of["journey_trak"] == loss | read | {"sampling_steps": 50}
    mean = {"model_output": "output_mean"} | read
    assert of["das"] == mean | {"unit_norm": False, "squared": True}
    assert of["das_code"] == mean | {"unit_norm": True, "mode": "das1"}
    assert of["gas"] == loss | read | {"weights": "checkpoints", "normalise": True}
    assert of["gradient_dot"] == loss | read | {"weights": "model", "normalise": False}
    curvature = {"fisher": "mc", "sharing": "expand", "measurement": "loss", "draws": 1}
    times = {"timesteps": given["influence_timesteps"], "noise_seed": 3}
    assert of["ekfac"] == curvature | times | {"kind": "ekfac"}
    assert of["random"] == {"seed": 0} and of["pixel_cosine"] == {"kind": "cosine"}
    assert of["clip_cosine"] == {"encoder": "clip", "normalise": True}


def test_nda_is_the_configuration_of_the_profile():
    given = parameters()
    names = ("patches", "top_k", "borders", "draws", "noise_seed")
    single = {name: given[name] for name in names}
    both = single | {name: given[name] for name in ("coarse_patches", "scale_mix")}
    found = {m.key: NDAConfig.parse(m.settings(given)) for m in family("nda")}
    assert found["nda"] == NDAConfig.parse(single)
    assert found["nda_two_scale"] == NDAConfig.parse(both)
    for timestep, scales in found["nda_two_scale"].scales.items():
        assert found["nda_coarse"].scales[timestep] == scales[1:]


@pytest.mark.parametrize("method", SEEING_A_MODEL, ids=lambda method: method.key)
def test_k_is_the_number_of_timesteps(method):
    found = method.varied(K=10).settings(parameters())
    assert found["timesteps"] == list(uniform_timesteps(10))
    assert {**found, "timesteps": 0} == {**method.settings(parameters()), "timesteps": 0}


def test_a_missing_parameter_is_named():
    with pytest.raises(InputError, match="parameters lack 'patch', which pixel_patches reads"):
        METHODS["pixel_patches"].settings({})


def test_dampings_are_those_of_the_kernel_or_of_the_profile():
    given = parameters() | {"relative_dampings": [1, 10.0]}
    assert METHODS["das"].tried(given) == list(DAMPINGS)
    assert METHODS["kfac"].tried(given) == [1.0, 10.0] and METHODS["gas"].tried(given) == []


# ---- scores and their record


def test_scores_of_images_and_what_is_recorded(stores):
    store, results = stores
    given = {"patches": {100: 3}, "top_k": 5, "borders": "match", "draws": 1, "noise_seed": 2}
    bench = Bench(store, given | {"bank_flips": False})
    result = METHODS["nda"].score(bench, "val")
    config = NDAConfig.single({100: 3}, top_k=5, noise_seed=2)
    expected = nda_scores(store.load("val"), store.load("train"), config)
    assert torch.equal(result.scores, expected)
    record(result, store=store, results=results)
    assert torch.equal(store.load("scores/nda-val", "query train"), expected)
    effects = group_effects(expected, results.load("masks/report")).float()
    assert torch.equal(results.load("effects/nda-val", "subset query"), effects)
    scores, effect = store.info("scores/nda-val"), results.info("effects/nda-val")
    assert (
        scores["parameters"]
        == effect["parameters"]
        == {
            "method": "nda",
            "variant": {},
            "settings": METHODS["nda"].settings(bench.parameters),
            "damping": None,
        }
    )
    assert scores["inputs"] == store.sha256("train", "val")
    assert effect["inputs"] == store.sha256("train", "val") | results.sha256("masks/report")
    assert scores["seconds"] == effect["seconds"] == result.seconds > 0


@pytest.fixture
def stand_in(monkeypatch):
    """A method with a damping whose scores say what they were asked for, and the calls."""
    calls = []

    def run(bench, which, *, dampings, **settings):
        calls.append((which, list(dampings), settings["timesteps"]))
        shape = len(bench.images(which)), len(bench.images("train"))
        return Scored({d: torch.full(shape, d) for d in dampings}, 5.0)

    method = replace(METHODS["trak"], run=run, dampings=lambda _: (0.5, 2.0, 8.0))
    monkeypatch.setitem(METHODS, "trak", method)
    return method, calls


def bench_that_chooses(store, best=2.0):
    asked = []

    def choose(path, which):
        asked.append((which, list(path)))
        return Choice(best, f"what {which} said", pd.DataFrame({"select": [1.0]}, [best]))

    given = {"gradient_timesteps": 4, "projection_dim": 0, "noise_seed": 1, "sampling_steps": 3}
    return Bench(store, given, choose=choose), asked


def test_validation_queries_choose_a_damping_once_and_generated_ones_have_it(stores, stand_in):
    (store, _), (method, calls) = stores, stand_in
    bench, asked = bench_that_chooses(store)
    generated = method.score(bench, "gen")
    times = list(uniform_timesteps(4))
    assert calls == [("val", [0.5, 2.0, 8.0], times), ("gen", [2.0], times)]
    held_out = method.score(bench, "val")
    assert asked[0] == ("val", [0.5, 2.0, 8.0]) and {which for which, _ in asked} == {"val"}
    for result, count in ((generated, 3), (held_out, 4)):
        assert torch.equal(result.scores, torch.full((count, 6), 2.0)) and result.seconds == 5
        assert result.parameters["damping"] == {
            "value": 2.0,
            "tried": [0.5, 2.0, 8.0],
            "chosen_on": "what val said",
        }
    method.score(bench, "gen", K=10)
    assert calls[-2:] == [
        ("val", [0.5, 2.0, 8.0], list(uniform_timesteps(10))),
        ("gen", [2.0], list(uniform_timesteps(10))),
    ]


def test_a_method_with_a_model_records_model_recipe_and_variant(stores, stand_in):
    (store, results), (method, _) = stores, stand_in
    bench, _ = bench_that_chooses(store)
    result = method.score(bench, "gen", K=10)
    record(result, store=store, results=results)
    info = results.info("effects/trak-k10-gen")
    assert info["inputs"] == {
        **results.sha256("masks/report"),
        **store.sha256("train", "gen", "model"),
        "recipe": digest_json(RECIPE),
    }
    assert info["parameters"]["variant"] == {"K": 10} and info["parameters"]["method"] == "trak"
    assert info["parameters"]["settings"]["timesteps"] == list(uniform_timesteps(10))


def test_journeys_choose_on_generated_queries(stores):
    store, _ = stores
    bench, asked = bench_that_chooses(store, best=DAMPINGS[3])

    def run(bench, which, *, dampings, **settings):
        return Scored({damping: torch.zeros(3, 6) for damping in dampings}, 1.0)

    method = replace(METHODS["journey_trak"], run=run)
    result = method.score(bench, "gen")
    assert [which for which, _ in asked] == ["gen"] and result.choice.on == "what gen said"
    with pytest.raises(InputError, match="which must be one of 'gen', not 'val'"):
        method.score(bench, "val")


def test_a_bench_without_a_way_to_choose_says_so(stores, stand_in):
    with pytest.raises(InputError, match="bench cannot choose a damping"):
        stand_in[0].score(Bench(stores[0], bench_that_chooses(stores[0])[0].parameters), "val")


def test_what_is_fitted_to_retrained_models_is_not_scored_here(stores):
    with pytest.raises(InputError, match="datamodel is fitted to the losses"):
        METHODS["datamodel"].score(Bench(stores[0], {}), "val")


# ---- what a results folder holds


def test_recorded_methods_are_in_the_order_of_the_tables(stores, stand_in):
    (store, results), (method, _) = stores, stand_in
    bench, _ = bench_that_chooses(store)
    for result in (
        method.score(bench, "gen", K=10),
        METHODS["pixel_dot"].score(bench, "val"),
        method.score(bench, "gen"),
        method.score(bench, "gen", K=5),
        METHODS["pixel_dot"].score(bench, "gen"),
    ):
        record(result, store=store, results=results)
    found = recorded(results, "gen")
    assert list(found) == ["pixel_dot", "trak", "trak-k5", "trak-k10"]
    labels = [m.label for m in found.values()]
    assert labels[2:] == ["TRAK, K\u00a0=\u00a05", "TRAK, K\u00a0=\u00a010"]
    assert list(recorded(results, "val")) == ["pixel_dot"]


def test_a_sidecar_without_a_method_is_refused_by_name(stores):
    results = stores[1]
    results.save("effects/trak-gen", draw("effects", 5, 3), axes="subset query")
    with pytest.raises(InputError, match="effects/trak-gen in .* names no method"):
        recorded(results, "gen")


# ---- one's own


def test_the_example_is_short_and_prints_its_rows(monkeypatch, capsys):
    file = ROOT / "examples/own_method.py"
    assert len(file.read_text().splitlines()) <= 30
    monkeypatch.setattr(methods, "METHODS", dict(METHODS))
    runpy.run_path(str(file))
    own, cosine = capsys.readouterr().out.splitlines()
    assert own.startswith("Seen from afar: LDS ") and own.endswith("settings {'pool': 4}")
    found = [float(line.split("LDS ")[1].split(" ")[0]) for line in (own, cosine)]
    assert 20 < found[0] < found[1] <= 100


def test_ones_own_function_is_one_entry(stores, monkeypatch):
    def brightest(queries, train, *, power):
        return queries.mean((1, 2, 3))[:, None] * train.mean((1, 2, 3)) ** power

    about = ("mine", "My method", "#123456", "similarity", IMAGES, brightest)
    monkeypatch.setitem(METHODS, "mine", Method(*about, fixed={"power": 3}))
    store, results = stores
    result = METHODS["mine"].score(Bench(store, {}), "gen")
    record(result, store=store, results=results)
    assert result.parameters["settings"] == {"power": 3}
    assert recorded(results, "gen")["mine"].label == "My method"
