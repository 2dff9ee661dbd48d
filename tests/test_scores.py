"""Scores are the means of patch scores that their configuration says."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nda_case import QUERIES, RICH, TRAIN, assert_close

from nda.nonparametric.config import NDAConfig, Scale
from nda.nonparametric.partial import partial_scores
from nda.nonparametric.patches import patch_scores, shared_noise
from nda.nonparametric.scores import nda_scores


@pytest.mark.parametrize(
    "settings", [{}, {"top_k": 2, "borders": "zero", "noise_seed": 3, "temperature": 0.7}]
)
def test_mean_over_timesteps_each_with_its_window(settings):
    config = NDAConfig.single({100: 3, 400: 4}, **settings)
    seed = settings.get("noise_seed", 0)
    options = {k: v for k, v in settings.items() if k != "noise_seed"}
    noise = {t: shared_noise(QUERIES, t, seed) for t in (100, 400)}
    three = patch_scores(QUERIES, TRAIN, timestep=100, patch=3, noise=noise[100], **options) / (
        6 * 7
    )
    four = patch_scores(QUERIES, TRAIN, timestep=400, patch=4, noise=noise[400], **options) / (
        5 * 6
    )
    assert_close(nda_scores(QUERIES, TRAIN, config), (three + four) / 2)
    plain = nda_scores(QUERIES, TRAIN, replace(config, per_position=False))
    assert_close(plain, (three * 6 * 7 + four * 5 * 6) / 2)


def test_result_is_of_the_images_type():
    scores = nda_scores(QUERIES.float(), TRAIN.float(), NDAConfig.single({100: 3}))
    assert scores.shape == (2, 5) and scores.dtype == torch.float32


def test_scales_mix_as_their_weights_say():
    """With scores per position the grids (42 and 30 positions) do not count; with the released
    code's sums they do."""
    config = NDAConfig.two_scale({200: 3}, {200: 4}, 0.25, top_k=2)
    noise = shared_noise(QUERIES, 200, 0)
    fine, coarse = (
        patch_scores(QUERIES, TRAIN, timestep=200, patch=p, coarse=c, top_k=2, noise=noise)
        for p, c in ((3, False), (4, True))
    )
    assert_close(nda_scores(QUERIES, TRAIN, config), 0.25 * fine / 42 + 0.75 * coarse / 30)
    assert_close(
        nda_scores(QUERIES, TRAIN, replace(config, per_position=False)), 0.25 * fine + 0.75 * coarse
    )


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("flips", [False, True])
def test_scores_of_a_query_sum_to_one(top_k, flips):
    total = nda_scores(QUERIES, TRAIN, replace(RICH, top_k=top_k, flips=flips)).sum(1)
    if top_k is None:
        assert_close(total, torch.ones(2, dtype=torch.float64))
    else:
        assert (total < 1).all()


@given(
    st.dictionaries(
        st.integers(0, 999),
        st.lists(
            st.builds(Scale, st.integers(1, 6), st.just(False), st.floats(0, 4)),
            min_size=1,
            max_size=4,
        ).filter(lambda scales: sum(s.weight for s in scales) > 1e-3),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 3),
)
def test_weights_sum_to_one_and_timesteps_weigh_the_same(scales, draws):
    terms, timesteps = list(NDAConfig(scales, draws=draws).terms()), Counter()
    for term in terms:
        timesteps[term.timestep] += term.weight
    assert timesteps == pytest.approx(dict.fromkeys(scales, 1 / len(scales)))
    assert len(terms) == sum(
        scale.weight > 0 for listed in scales.values() for scale in listed
    ) * max(1, draws)


def test_draws_are_averaged():
    scores = [
        patch_scores(
            QUERIES,
            TRAIN,
            timestep=300,
            patch=3,
            noise=shared_noise(QUERIES, 300, 5, draw),
            top_k=4,
        )
        / 42
        for draw in range(3)
    ]
    for draws in (1, 2, 3):
        ours = nda_scores(
            QUERIES, TRAIN, NDAConfig.single({300: 3}, draws=draws, noise_seed=5, top_k=4)
        )
        assert_close(ours, torch.stack(scores[:draws]).mean(0))
    assert not torch.allclose(scores[0], scores[1])


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_no_draws_is_no_noise(temperature):
    ours = nda_scores(QUERIES, TRAIN, NDAConfig.single({300: 3}, draws=0, temperature=temperature))
    assert_close(
        ours, patch_scores(QUERIES, TRAIN, timestep=300, patch=3, temperature=temperature) / 42
    )
    assert torch.equal(
        ours,
        nda_scores(
            QUERIES,
            TRAIN,
            NDAConfig.single({300: 3}, draws=0, temperature=temperature, noise_seed=1),
        ),
    )


@pytest.mark.parametrize("top_k", [2, None])
def test_flips_add_the_mass_of_mirrored_images(top_k):
    config = replace(RICH, top_k=top_k)
    mirrored = nda_scores(QUERIES, torch.cat([TRAIN, TRAIN.flip(-1)]), replace(config, flips=False))
    both = mirrored[:, :5] + mirrored[:, 5:]
    assert_close(nda_scores(QUERIES, TRAIN, config), both)
    assert_close(partial_scores(QUERIES, TRAIN, config).scores(), both)


def test_a_mirrored_query_finds_its_original():
    config = NDAConfig.single({50: 6}, flips=True)
    assert nda_scores(TRAIN.flip(-1), TRAIN, config).argmax(1).tolist() == [0, 1, 2, 3, 4]
    assert nda_scores(TRAIN.flip(-1), TRAIN, config).diagonal().min() > 0.9
    assert nda_scores(TRAIN.flip(-1), TRAIN, replace(config, flips=False)).diagonal().min() < 0.5


def test_settings_reach_the_patches():
    default = NDAConfig.single({300: 3})
    scores = nda_scores(QUERIES, TRAIN, default)
    changes = (
        {"top_k": 1},
        {"borders": "zero"},
        {"noise_seed": 1},
        {"temperature": 2.0},
        {"flips": True},
        {"draws": 2},
        {"draws": 0},
    )
    for change in (*changes, {"per_position": False}):
        assert not torch.allclose(scores, nda_scores(QUERIES, TRAIN, replace(default, **change))), (
            change
        )


@pytest.mark.parametrize("engine", ["naive", "conv", "box"])
def test_engine_reaches_the_patches(engine, caplog):
    config = NDAConfig.single({300: 3})
    with caplog.at_level("INFO", logger="nda.nonparametric.patches"):
        ours = nda_scores(QUERIES, TRAIN, config, engine=engine)
    assert caplog.messages[-1].startswith(f"engine {engine}:")
    assert_close(ours, nda_scores(QUERIES, TRAIN, config))
    assert_close(partial_scores(QUERIES, TRAIN, config, engine=engine).scores(), ours)
