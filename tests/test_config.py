"""Configurations: how they are written, read and refused."""

import json
from dataclasses import asdict

import pytest
from nda_case import QUERIES, RICH, TRAIN

from nda.errors import InputError
from nda.nonparametric.config import PAPER, NDAConfig, Scale
from nda.nonparametric.scores import nda_scores


def test_single_and_two_scale():
    assert NDAConfig.single({100: 4}, coarse=True, top_k=None).scales == {
        100: (Scale(4, coarse=True),)
    }
    two = NDAConfig.two_scale({100: 3, 200: 5}, {100: 4, 200: 6}, {100: 0.2, 200: 1.0}, draws=3)
    assert (
        two.scales[100] == (Scale(3, weight=0.2), Scale(4, coarse=True, weight=0.8))
        and two.draws == 3
    )
    assert [term.scale for term in two.terms() if term.timestep == 200] == [
        Scale(5)
    ] * 3  # a scale of weight 0 is not computed


@pytest.mark.parametrize("keys", [int, str])  # papermill writes the keys of dictionaries as strings
def test_parse(keys):
    def key(values):
        return {keys(k): v for k, v in values.items()}

    single = {"patches": key({100: 3, 200: 5}), "borders": "zero"}
    assert NDAConfig.parse(single) == NDAConfig.single({100: 3, 200: 5}, borders="zero")
    two = {
        "patches": key({100: 3}),
        "coarse_patches": key({100: 4}),
        "scale_mix": key({100: 0.3}),
        "draws": 2,
    }
    assert NDAConfig.parse(two) == NDAConfig.two_scale({100: 3}, {100: 4}, 0.3, draws=2)
    assert NDAConfig.parse(two | {"scale_mix": 0.3}) == NDAConfig.parse(two)
    scales = [
        {"patch": 3},
        {"patch": 4, "coarse": True, "weight": 0.5},
        {"patch": 5, "weight": 2.0},
    ]
    many = {
        "scales": key({100: scales, 400: [{"patch": 4, "coarse": True}]}),
        "top_k": 3,
        "draws": 2,
        "noise_seed": 7,
        "flips": True,
    }
    assert NDAConfig.parse(many) == RICH


@pytest.mark.parametrize("config", [RICH, PAPER])
def test_parse_reads_what_was_written(config):
    assert NDAConfig.parse(asdict(config)) == config
    assert NDAConfig.parse(json.loads(json.dumps(asdict(config)))) == config


def test_paper():
    assert list(PAPER.scales) == [100, 200, 300, 400, 500]
    assert (PAPER.top_k, PAPER.borders, PAPER.draws, PAPER.temperature, PAPER.flips) == (
        100,
        "match",
        1,
        1.0,
        False,
    )
    assert PAPER.scales[100] == (Scale(7, weight=0.5), Scale(14, coarse=True, weight=0.5))
    assert len(list(PAPER.terms())) == 10


SINGLE, TWO = (
    {"patches": {100: 3}},
    {
        "patches": {100: 3},
        "coarse_patches": {100: 4},
        "scale_mix": 0.5,
    },
)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"patches": {}}, "scales"),
        ({"scales": {}}, "scales"),
        ({"scales": {100: []}}, "scales"),
        ({"patches": {1000: 3}}, "timestep"),
        ({"patches": {-1: 3}}, "timestep"),
        ({"patches": {100: 7}}, "patch .* side 6"),
        ({"patches": {100: 3, 200: 0}}, "patch"),
        ({"patches": {100: "3"}}, "patch"),
        (SINGLE | {"top_k": 0}, "top_k"),
        (SINGLE | {"borders": "torus"}, "borders"),
        (SINGLE | {"temperature": 0}, "temperature"),
        (SINGLE | {"draws": -1}, "draws"),
        (SINGLE | {"draws": 1.5}, "draws"),
        (SINGLE | {"draws": True}, "draws"),
        (SINGLE | {"windows": 3}, "unknown setting 'windows'"),
        (TWO | {"scale_mix": 1.1}, "scale_mix"),
        (TWO | {"scale_mix": float("nan")}, "scale_mix"),
        (TWO | {"scale_mix": {200: 0.5}}, "scale_mix"),
        (TWO | {"coarse_patches": {200: 4}}, "coarse_patches .*same timesteps"),
        (TWO | {"coarse_patches": {100: 3}}, "coarse_patch .* even"),
        (TWO | {"coarse_patches": {100: 8}}, "coarse_patch .* side 6"),
        ({"scales": {100: [{"patch": 3, "weight": -1.0}]}}, "weights"),
        ({"scales": {100: [{"patch": 3, "weight": 0.0}]}}, "weights"),
        ({"scales": {100: [{"patch": 3, "weight": float("inf")}]}}, "weights"),
        # what a person may well write into a profile
        ({}, "patches|scales"),
        ({"coarse_patches": {100: 4}, "scale_mix": 0.5}, "patches"),
        ({"patches": {100: 3}, "coarse_patches": {100: 4}}, "scale_mix"),
        (SINGLE | {"scale_mix": 0.5}, "scale_mix|coarse_patches"),
        # two answers to one question: neither may win silently
        (SINGLE | {"scales": {200: [{"patch": 3}]}}, "patches"),
        ({"patches": 3}, "patches"),
        ({"patches": {"early": 3}}, "early|patches|timestep"),
        ({"patches": {100.5: 3}}, "patches|timestep"),
        ({"scales": [{"patch": 3}]}, "scales"),
        ({"scales": {100: {"patch": 3}}}, "scales"),
        ({"scales": {100: [3]}}, "scales"),
        ({"scales": {100: [{"coarse": True}]}}, "patch|scales"),
        ({"scales": {100: [{"patches": 3}]}}, "patches|scales"),
        ({"scales": {100: [{"patch": 3, "weight": "half"}]}}, "weight"),
        (TWO | {"scale_mix": "half"}, "scale_mix"),
        (TWO | {"scale_mix": {100: "half"}}, "scale_mix"),
        (SINGLE | {"temperature": "warm"}, "temperature"),
        (SINGLE | {"noise_seed": 1.5}, "noise_seed"),
    ],
    ids=str,
)
def test_bad_configuration_is_one_sentence(settings, reason):
    with pytest.raises(InputError, match=reason) as error:
        nda_scores(QUERIES, TRAIN, NDAConfig.parse(settings))
    assert "\n" not in str(error.value)
