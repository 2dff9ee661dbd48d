"""Every method that looks into the model, on a bench, against its algebra on features that are made
by hand."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from tiny import IMAGES, SETTINGS, TINY

from nda import rng
from nda.errors import InputError
from nda.methods import METHODS
from nda.model import sampling
from nda.model.outputs import denoising_losses
from nda.model.unet import load_model
from nda.rivals import bench as benches
from nda.rivals import das, embeddings, influence, kfac, trak
from nda.rivals.bench import Bench
from nda.rivals.embeddings import MissingWeights, embedding_scores
from nda.rivals.gradients import Readout, features
from nda.rivals.inner_products import Source
from nda.rivals.kernel import Choice, Kernel, gram, norms
from nda.rivals.projection import Projection
from nda.store import Store

TRAIN, VAL, STEPS, DAMPING = IMAGES[:7], IMAGES[7:11], 4, 0.1
GIVEN = {
    "gradient_timesteps": 2,
    "projection_dim": 0,
    "noise_seed": 3,
    "sampling_steps": STEPS,
    "influence_timesteps": [100, 600],
    "curvature_draws": 1,
    "relative_dampings": [0.1, 10.0],
}
TIMES = (0, 500)


def weights(name):
    return TINY.build(rng.seed("bench", name) % 1000, TRAIN.shape).state_dict()


def model(name="model"):
    return load_model(weights(name), TINY, TRAIN.shape, TRAIN.device)


GEN = sampling.sample(model(), range(3), steps=STEPS)
QUERIES = {"val": VAL, "gen": GEN}


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path)
    for kind, images in {"train": TRAIN, **QUERIES}.items():
        made.save(kind, images, axes="image chan row col")
    for name in ("model-50", "model"):
        made.save(name, weights(name), parameters={"recipe": SETTINGS})
    return made


def open_bench(store, **changed):
    """A bench that always chooses the same damping."""
    table = pd.DataFrame({"select": [1.0]}, [DAMPING])
    return Bench(store, GIVEN | changed, choose=lambda path, which: Choice(DAMPING, which, table))


def by_hand(output, which, name="model", projection=None, **more):
    """Cross and kernel, and the norms of both sides."""
    readout = Readout(output, TIMES, noise_seed=3, **more)
    psi, phi = (
        features(model(name), images, readout, projection=projection)
        for images in (QUERIES[which], TRAIN)
    )
    return gram(psi, phi), Kernel(gram(phi)), norms(psi), norms(phi)


@pytest.mark.parametrize("which", ["val", "gen"])
def test_gradients_at_the_model_and_at_all_checkpoints(store, which):
    bench = open_bench(store)
    assert bench.checkpoints == ["model-50", "model"]
    found = {m: METHODS[m].score(bench, which).scores for m in ("gradient_dot", "gas")}
    torch.testing.assert_close(found["gradient_dot"], by_hand("loss", which)[0])
    parts = [by_hand("loss", which, name) for name in bench.checkpoints]
    cosines = [cross / q[:, None] / t for cross, _, q, t in parts]
    torch.testing.assert_close(found["gas"], sum(cosines) / 2)
    dots = METHODS["tracincp"].score(bench, which).scores
    torch.testing.assert_close(dots, sum(cross for cross, *_ in parts) / 2)
    cosine = METHODS["gradient_cosine"].score(bench, which).scores
    torch.testing.assert_close(cosine, cosines[1])


@pytest.mark.parametrize("which", ["val", "gen"])
@pytest.mark.parametrize(
    ("key", "formula", "output"),
    [
        ("trak", trak.trak_scores, "loss"),
        ("relative_if", trak.relative_if_scores, "loss"),
        ("renormalised_if", trak.renormalised_if_scores, "loss"),
        ("d_trak", trak.trak_scores, "output_norm"),
    ],
)
def test_kernel_methods(store, key, formula, output, which):
    cross, kernel, *_ = by_hand(output, which)
    found = METHODS[key].score(open_bench(store), which).scores
    torch.testing.assert_close(found, formula(cross, kernel, damping=DAMPING))


def test_a_projection_of_the_profile_is_used(store):
    cross, kernel, *_ = by_hand("loss", "val", projection=Projection(64))
    found = METHODS["trak"].score(open_bench(store, projection_dim=64), "val").scores
    torch.testing.assert_close(found, trak.trak_scores(cross, kernel, damping=DAMPING))


def test_another_number_of_timesteps(store):
    readout = Readout("loss", tuple(range(0, 1000, 250)), noise_seed=3)
    psi, phi = (features(model(), images, readout) for images in (VAL, TRAIN))
    found = METHODS["trak"].score(open_bench(store), "val", K=4).scores
    expected = trak.trak_scores(gram(psi, phi), Kernel(gram(phi)), damping=DAMPING)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("which", ["val", "gen"])
def test_das_of_the_paper_and_as_released(store, which):
    errors = denoising_losses(model(), TRAIN, timesteps=TIMES)
    crosses, kernels = [], []
    for t in TIMES:
        readout = Readout("output_mean", (t,), noise_seed=3)
        psi, phi = (features(model(), images, readout) for images in (QUERIES[which], TRAIN))
        crosses.append(gram(psi, phi))
        kernels.append(Kernel(gram(phi)))
    expected = das.das_scores(crosses, kernels, errors.sqrt(), damping=DAMPING)
    bench = open_bench(store)
    torch.testing.assert_close(METHODS["das"].score(bench, which).scores, expected)
    cross, kernel, *_ = by_hand("output_mean", which, unit_norm=True)
    expected = das.das_released_scores(cross, kernel, das.das_residual(errors), damping=DAMPING)
    torch.testing.assert_close(METHODS["das_code"].score(bench, which).scores, expected)


def test_journeys_are_those_of_the_sampler(store):
    clean, times = sampling.journey(model(), range(len(GEN)), steps=STEPS)
    along = Readout("loss", times[::2], noise_seed=3)  # four steps, two timesteps
    psi = features(model(), clean[:, ::2], along)
    phi = features(model(), TRAIN, replace(along, timesteps=TIMES))
    expected = trak.trak_scores(gram(psi, phi), Kernel(gram(phi)), damping=DAMPING)
    found = METHODS["journey_trak"].score(open_bench(store), "gen").scores
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("key", ["kfac", "ekfac"])
def test_influence_is_fitted_and_scored_once(store, key, monkeypatch):
    fits, real = [], kfac.fit_curvature
    monkeypatch.setattr(influence, "fit_curvature", lambda *a, **k: fits.append(1) or real(*a, **k))
    both = {}
    for which in ("gen", "val"):
        both[which] = METHODS[key].score(open_bench(store), which)
    assert len(fits) == 1
    fit = real(model(), TRAIN, timesteps=[100, 600], kind=key, noise_seed=3)
    for which, result in both.items():
        ask = {"timesteps": [100, 600], "damping": DAMPING, "noise_seed": 3}
        expected = influence.influence_scores(model(), QUERIES[which], TRAIN, curvature=fit, **ask)
        torch.testing.assert_close(result.scores, expected, rtol=1e-3, atol=1e-4)
        assert result.tried == [0.1, 10.0]


def test_methods_share_gradients_and_each_is_charged_for_them(store, monkeypatch):
    passes, real = [], benches.collect
    monkeypatch.setattr(benches, "collect", lambda *a, **k: passes.append(1) or real(*a, **k))
    bench = open_bench(store)
    keys = ("gradient_dot", "gradient_cosine", "trak", "relative_if", "renormalised_if")
    seconds = [METHODS[key].score(bench, "val").seconds for key in keys]
    shared = bench.products("val", Source.parse(0, timesteps=TIMES, noise_seed=3))
    assert len(passes) == 1 and all(second >= shared.seconds for second in seconds)


def test_an_image_is_embedded_once(store, monkeypatch):
    seen = []

    def network():
        def encode(images):
            seen.append(len(images))
            return images.mean(3).flatten(1)

        return encode

    monkeypatch.setitem(embeddings.ENCODERS, "efficientnet", network)
    bench = open_bench(store)
    for key, normalise in (("efficientnet_dot", False), ("efficientnet_cosine", True)):
        for which, images in QUERIES.items():
            sides = [part.expand(-1, 3, -1, -1).mean(3).flatten(1) for part in (images, TRAIN)]
            expected = embedding_scores(*sides, normalise=normalise)
            torch.testing.assert_close(METHODS[key].score(bench, which).scores, expected)
    assert sum(seen) == len(TRAIN) + len(VAL) + len(GEN)


def test_a_method_without_its_weights_says_so(store, monkeypatch):
    monkeypatch.delenv("NDA_CLIP_DIR", raising=False)
    with pytest.raises(MissingWeights, match="no CLIP weights were named; pass"):
        METHODS["clip_dot"].score(open_bench(store), "val")


def test_what_is_missing_names_its_notebook(tmp_path):
    bench = open_bench(Store(tmp_path))
    with pytest.raises(InputError, match="run notebook 01_data first"):
        METHODS["pixel_dot"].score(bench, "val")
