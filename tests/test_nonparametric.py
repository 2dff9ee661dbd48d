"""NDA: a mean of patch scores over timesteps, scales and noise, and parts of it that merge into the
whole."""

import json
from collections import Counter
from dataclasses import asdict, replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nda import rng
from nda.errors import InputError
from nda.nonparametric.config import PAPER, NDAConfig, Scale
from nda.nonparametric.partial import Partial, merge, partial_scores
from nda.nonparametric.patches import patch_scores, shared_noise
from nda.nonparametric.scores import nda_scores
from nda.store import Store

QUERIES, TRAIN = (
    2 * torch.rand(n, 1, 6, 7, generator=rng.generator("nda", n), dtype=torch.float64) - 1
    for n in (2, 5)
)
RICH = NDAConfig(
    {
        100: (Scale(3), Scale(4, coarse=True, weight=0.5), Scale(5, weight=2.0)),
        400: (Scale(4, coarse=True),),
    },
    top_k=3,
    draws=2,
    noise_seed=7,
    flips=True,
)


def assert_close(ours, theirs, tolerance=1e-9):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


# ---- what a score is a mean of


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


# ---- configurations


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
        (
            SINGLE | {"scales": {200: [{"patch": 3}]}},
            "patches",
        ),  # two answers to one question: neither may win silently
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


# ---- parts and their merging


@pytest.mark.parametrize(
    "config",
    [RICH, replace(RICH, top_k=None, flips=False, per_position=False)],
    ids=["rich", "plain"],
)
@settings(max_examples=8)
@given(shuffler=st.builds(Random, st.integers(0, 9999)))
def test_any_split_in_any_order_and_nesting_is_the_whole(shuffler, config):
    order = shuffler.sample(range(5), 5)
    cuts = [0, *sorted(shuffler.sample(range(1, 5), shuffler.randint(1, 4))), 5]
    blocks = [order[start:stop] for start, stop in zip(cuts, cuts[1:], strict=False)]
    parts = [partial_scores(QUERIES, TRAIN[block], config, images=block) for block in blocks]
    while len(parts) > 1:  # merge some, until one is left
        shuffler.shuffle(parts)
        some = shuffler.randint(1, len(parts))
        parts = [merge(parts[:some]), *parts[some:]]
    assert_close(parts[0].scores(), nda_scores(QUERIES, TRAIN, config))
    assert all(posterior.images.tolist() == [0, 1, 2, 3, 4] for posterior in parts[0].posteriors)


def test_images_are_appended():
    finished = partial_scores(QUERIES, TRAIN[:3], RICH)
    assert_close(finished.scores(), nda_scores(QUERIES, TRAIN[:3], RICH))
    assert_close(
        merge([finished, partial_scores(QUERIES, TRAIN[3:], RICH, images=range(3, 5))]).scores(),
        nda_scores(QUERIES, TRAIN, RICH),
    )


def test_numbers_need_not_be_without_gaps():
    parts = [
        partial_scores(QUERIES, TRAIN[n : n + 1], RICH, images=[number])
        for n, number in enumerate((900, 3, 77, 5, 12))
    ]
    merged = merge(parts)
    assert merged.posteriors[0].images.tolist() == [3, 5, 12, 77, 900]
    assert_close(merged.scores(), nda_scores(QUERIES, TRAIN, RICH)[:, [1, 3, 4, 2, 0]])


def test_scores_are_in_the_order_of_the_numbers():
    block = [2, 0, 1]
    part = partial_scores(QUERIES, TRAIN[block], RICH, images=block)
    whole = nda_scores(QUERIES, TRAIN[:3], RICH)
    assert_close(merge([part]).scores(), whole)
    assert_close(part.scores(), whole)


def test_configurations_that_are_equal_merge_into_the_same():
    """Two machines may read the timesteps of one configuration in different orders."""
    one, other = NDAConfig.single({100: 3, 400: 5}), NDAConfig.single({400: 5, 100: 3})
    parts = [
        partial_scores(QUERIES, TRAIN[:2], one),
        partial_scores(QUERIES, TRAIN[2:], other, images=range(2, 5)),
    ]
    if one == other:
        assert_close(merge(parts).scores(), nda_scores(QUERIES, TRAIN, one))
    else:
        with pytest.raises(InputError, match="configurations"):
            merge(parts)


def test_parts_of_different_engines_merge():
    parts = [
        partial_scores(QUERIES, TRAIN[n : n + 1], RICH, images=[n], engine=e)
        for n, e in enumerate(("fused", "conv", "box", "fused"))
    ]
    assert_close(merge(parts).scores(), nda_scores(QUERIES, TRAIN[:4], RICH))


def test_parts_travel_through_a_store(tmp_path):
    parts = [
        partial_scores(QUERIES, TRAIN[:2], RICH),
        partial_scores(QUERIES, TRAIN[2:], RICH, images=[2, 3, 4]),
    ]
    for n, part in enumerate(parts):
        Store(tmp_path).save(f"part{n}", part.tensors(), parameters={"config": asdict(RICH)})
    store = Store(tmp_path)  # another process
    found = [
        Partial.from_tensors(
            NDAConfig.parse(store.info(f"part{n}")["parameters"]["config"]), store.load(f"part{n}")
        )
        for n in range(2)
    ]
    for ours, theirs in zip(found, parts, strict=True):
        assert ours.config == theirs.config and ours.shape == theirs.shape
        assert torch.equal(ours.scores(), theirs.scores())
        assert all(
            torch.equal(a.log_total, b.log_total)
            for a, b in zip(ours.posteriors, theirs.posteriors, strict=True)
        )
    assert_close(merge(found).scores(), nda_scores(QUERIES, TRAIN, RICH))


@pytest.mark.parametrize("flips", [False, True])
def test_shares_of_nothing_survive(flips, tmp_path):
    """At the first timestep images other than the query have no mass that a float can hold: -inf,
    which must not become NaN."""
    config = NDAConfig.single({0: 6}, draws=0, flips=flips)
    query, train = TRAIN[:1].float(), TRAIN.float()
    parts = [
        partial_scores(query, train[[0, 1]], config, images=[0, 1]),
        partial_scores(query, train[2:], config, images=[2, 3, 4]),
    ]
    minus = [
        replace(p, log_share=p.log_share.masked_fill(p.log_share < -80, -torch.inf))
        for p in parts[0].posteriors
    ]
    assert any(p.log_share.isneginf().any() for p in minus)
    Store(tmp_path).save("part", replace(parts[0], posteriors=tuple(minus)).tensors())
    merged = merge([Partial.from_tensors(config, Store(tmp_path).load("part")), parts[1]])
    assert_close(merged.scores(), torch.tensor([[1.0, 0, 0, 0, 0]]), 1e-6)
    assert_close(merged.scores(), nda_scores(query, train, config), 1e-6)


def test_merge_refuses():
    config = NDAConfig.single({100: 3})
    part = partial_scores(QUERIES, TRAIN[:2], config)
    other = {
        "image 1 is in more than one": partial_scores(QUERIES, TRAIN[:2], config, images=[1, 2]),
        "configurations": partial_scores(
            QUERIES, TRAIN[2:], replace(config, top_k=3), images=[2, 3, 4]
        ),
        "image sizes": partial_scores(QUERIES.mT, TRAIN[2:].mT, config, images=[2, 3, 4]),
        "different queries": partial_scores(QUERIES[:1], TRAIN[2:], config, images=[2, 3, 4]),
    }
    for reason, second in other.items():
        with pytest.raises(InputError, match=reason) as error:
            merge([part, second])
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="at least one"):
        merge([])


@pytest.mark.parametrize(
    "images", [[0, 1], [[0, 1, 2, 3, 4]], [0, 1, 2, 3, 3], [0.5, 1.0, 2.0, 3.0, 4.0]], ids=str
)
def test_bad_numbers(images):
    with pytest.raises(InputError, match="image"):
        merge([partial_scores(QUERIES, TRAIN, NDAConfig.single({100: 3}), images=images)])


def test_parts_of_other_queries_do_not_merge():
    parts = [
        partial_scores(QUERIES, TRAIN[:2], RICH),
        partial_scores(QUERIES.flip(0), TRAIN[2:], RICH, images=[2, 3, 4]),
    ]
    with pytest.raises(InputError, match="queries"):
        merge(parts)
