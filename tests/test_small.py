"""The shipped benchmark, profile `small`: its sizes and budget, its ceilings, its settings chosen
on `select` alone."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from nda import rng
from nda.artefact import notebooks
from nda.errors import InputError
from nda.evidence import scorecard
from nda.evidence.ablations import curvature, gradients
from nda.evidence.ablations.nonparametric import best_windows
from nda.evidence.records import check_results, recorded_effects
from nda.evidence.truth import FAMILIES, REPORT, Truth, truth_inputs
from nda.methods import CHECKPOINTS, METHODS, MODEL, recorded
from nda.model.outputs import uniform_timesteps
from nda.nonparametric.config import NDAConfig
from nda.rivals import retrained
from nda.rivals.gradients import Readout
from nda.rivals.projection import Projection
from nda.store import Store, digest_json, plain

SMALL = Store.shipped("small")
AXES = "subset seed query group"


def test_there_is_as_much_truth_as_promised():
    shapes = {
        name: tuple(SMALL.load(f"losses/{name}", AXES).shape)
        for name in ("report-val", "report-gen", "select-val", "select-gen")
    }
    assert shapes["report-val"] == shapes["report-gen"] == (64, 2, 200, 8)
    assert shapes["select-val"] == shapes["select-gen"] == (32, 1, 200, 8)


def test_it_was_made_within_the_budget():
    core_seconds = sum(
        SMALL.info(f"losses/{family}-val")["seconds"] for family in ("select", "report")
    )
    assert core_seconds / 2 <= 6 * 3600


@pytest.mark.parametrize(
    ("transform", "least"),
    [(lambda truth: truth, 55), (Truth.centred, 60)],
    ids=["plain", "centred"],
)
def test_the_ceiling_of_validation_queries_is_high_enough(transform, least):
    _, ceiling = transform(Truth.load(SMALL, "report", "val")).seed_ceiling()
    assert 100 * ceiling >= least


def test_no_verdict_of_a_trace_is_wrong_more_often_than_its_level():
    rows = SMALL.load("trace/calibration")
    assert {*rows["data"]} == {"mnist", "cifar10"} and rows["splits"].min() == 20
    assert (rows["rate"] <= rows["level"]).all()


@pytest.mark.parametrize("which", REPORT)
def test_nda_is_above_the_null(which):
    truth = Truth.load(SMALL, "report", which)
    effects = {m: recorded_effects(SMALL, truth)[m] for m in ("nda", "random")}
    rows = truth.summary(effects, reference="random").set_index("method")
    assert rows.loc["nda", "gain_low"] > 0


def test_ndas_settings_are_those_that_are_best_on_select():
    rows, profile = SMALL.load("ablations/nda"), notebooks.profile("small")

    def best(name):
        found = rows[(rows["ablation"] == name) & (rows["queries"] == "val")]
        return found.loc[found["select"].idxmax(), "setting"]

    last = int(best("largest timestep"))
    assert profile["patches"] == {t: side for t, side in best_windows(rows).items() if t <= last}
    assert profile["coarse_patches"] == {
        t: side for t, side in best_windows(rows, coarse=True).items() if t <= last
    }
    assert (str(profile["top_k"]), profile["scale_mix"]) == (
        best("top_k"),
        float(best("scale_mix")),
    )


@pytest.mark.parametrize("which", REPORT)
def test_a_stranger_with_random_scores_gets_zero(which):
    scores = torch.randn(200, 200, generator=rng.generator("stranger", which))
    for _, row in scorecard.score(scores, which, SMALL, resamples=200).summary.iterrows():
        assert abs(row["LDS"]) < 6 and row["low"] < 0 < row["high"]


def test_transposed_scores_are_refused_although_the_matrix_is_square():
    truth = Truth.load(SMALL, "select", "val", "all")
    scores = retrained.datamodel(truth.mean, truth.masks)
    with pytest.raises(InputError, match="look transposed"):
        scorecard.score(scores.T, "val", SMALL)


def test_every_method_is_in_the_tables_or_could_not_run():
    found = {run.key for which in REPORT for run in recorded(SMALL, which).values()}
    could_not = {"clip_dot", "clip_cosine", "empirical_influence", "datamodel"}
    # no weights; fitted on the page
    assert set(METHODS) - found <= could_not


# ---- what is recorded


GIVEN = notebooks.parameters("small")
RUNS = [(name, which) for which in REPORT for name in recorded(SMALL, which)]


@pytest.mark.parametrize(("name", "which"), RUNS)
def test_every_sidecar_says_what_the_catalogue_does(name, which):
    method, info = recorded(SMALL, which)[name], SMALL.info(f"effects/{name}-{which}")
    said = info["parameters"]
    assert said.keys() == {"method", "variant", "settings", "damping"}
    assert method.name == name and said["settings"] == method.settings(GIVEN)
    tried = method.tried(GIVEN)
    assert bool(said["damping"]) == bool(tried)
    if tried:
        assert said["damping"].keys() == {"value", "tried", "chosen_on"}
        assert said["damping"]["tried"] == tried
        assert said["damping"]["value"] in [*tried, "not recorded"]
    assert ("model" in info["inputs"]) == (method.needs in (MODEL, CHECKPOINTS))
    if method.family != "beyond":  # scored after the corrections
        assert info["corrected"]["reason"] and info["corrected"]["date"] == "2026-11-25"


@pytest.mark.parametrize(
    ("key", "output", "unit_norm"),
    [
        ("trak", "loss", False),
        ("d_trak", "output_norm", False),
        ("das", "output_mean", False),
        ("das_code", "output_mean", True),
    ],
)
@pytest.mark.parametrize("variant", ["", "-k10"])
def test_each_methods_own_readout_is_recorded(key, output, unit_norm, variant):
    for which in REPORT:
        said = SMALL.info(f"effects/{key}{variant}-{which}")["parameters"]["settings"]
        assert (said["model_output"], said["unit_norm"]) == (output, unit_norm)
        assert len(said["timesteps"]) == (10 if variant else 100)


def test_ablations_are_recorded_as_their_notebooks_would_today():
    """So that a run with the same settings finds them, and one with others is refused."""
    settings = {m.key: m.settings(GIVEN) for m in METHODS.values() if m.family == "nda"}
    nda = {key: asdict(NDAConfig.parse(values)) for key, values in settings.items()}
    assert SMALL.info("ablations/nda")["parameters"] == plain(nda)
    readout = Readout(
        timesteps=uniform_timesteps(GIVEN["ablate_k"]), noise_seed=GIVEN["noise_seed"]
    )
    projection = Projection(dim) if (dim := GIVEN["projection_dim"]) else None
    tried = [GIVEN[f"ablate_{name}"] for name in ("ks", "dims", "shares", "screens")]
    grid = gradients.Grid(*tried, ["model-25", "model-50", "model-75", "model"])
    made = gradients.record(readout, projection, grid)
    assert SMALL.info("ablations/gradients")["parameters"] == plain(made)
    assert SMALL.info("ablations/curvature")["parameters"] == plain(curvature.record(GIVEN))
    model = {"model", "recipe"}
    for name, more in {"nda": set(), "gradients": model, "curvature": model}.items():
        inputs, truth = SMALL.info(f"ablations/{name}")["inputs"], truth_inputs(SMALL)
        assert inputs.keys() == truth.keys() | {"train", *REPORT} | more
        assert truth.items() <= inputs.items()


def test_arrays_are_those_that_were_shipped():
    """Sidecars were corrected; not a byte of what they describe was."""
    known = json.loads((Path(__file__).parent / "small_sha256.json").read_text())
    files = [f for f in SMALL.folder.rglob("*") if f.suffix in (".safetensors", ".csv")]
    found = {
        file.relative_to(SMALL.folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }
    assert found == known and len(known) == 122


def test_the_results_belong_together_and_say_so():
    check_results(SMALL)
    model = SMALL.info("model")["parameters"]["recipe"]
    for family in FAMILIES:
        for which in REPORT:
            inputs = SMALL.info(f"losses/{family}-{which}")["inputs"]
            assert inputs.keys() == {f"masks/{family}", "train", which, "recipe"}
            assert inputs["recipe"] == digest_json(model)


def test_the_page_of_provenance_says_that_sidecars_were_corrected():
    page = (SMALL.folder / "PROVENANCE.md").read_text()
    assert "No array or table was touched." in page and "| 2026-11-25 |" in page
