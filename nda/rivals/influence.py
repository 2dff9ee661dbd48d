"""Influence functions: what removing a train image would do to a measurement of a query, by
gradients and the curvature of the loss.

A score is ∇m(query)ᵀ (C + damping I)⁻¹ ∇ℓ(train), with ℓ the denoising loss, m a measurement and C
from `nda.rivals.kfac`; gradients are of the weights and biases of Linear and Conv2d layers alone.
Source: Mlodozeniec et al., "Influence functions for scalable data attribution in diffusion models"
(arXiv 2410.13850).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import Module
from tqdm import tqdm

from nda.checks import check_same_shape
from nda.errors import InputError, check_choice, check_draws
from nda.model.outputs import OUTPUTS
from nda.rivals.bench import Bench, Scored
from nda.rivals.gradients import Readout, features
from nda.rivals.kfac import Block, covered, fit_curvature, mean_eigenvalue, restore


def measurement_gradients(
    model: Module,
    images: Float[Tensor, "image chan row col"],
    *,
    timesteps: Sequence[int],
    measurement: str = "loss",
    draws: int = 1,
    noise_seed: int = 0,
    batch: int = 64,
) -> dict[str, Float[Tensor, "image *shape"]]:
    """Gradient of every image's measurement, the mean over timesteps and draws, by parameter; all
    images' are held at once.

    Those of `nda.rivals.gradients.features`, of the layers that K-FAC covers.

    Args:
        model: called as `model(noisy, timesteps).sample`.
        images: clean, in [-1, 1].
        timesteps: in 0…999.
        measurement: one of `nda.model.outputs.OUTPUTS`, such as `"loss"`, squared error per pixel.
        draws: noise images per timestep, common to all images.
        noise_seed: names them.
        batch: noisy images in one pass; it changes nothing else.

    Returns:
        `[image, *shape]` for every parameter, by name.
    """
    check_choice("measurement", measurement, OUTPUTS)
    check_draws(timesteps, draws=draws, batch=batch)
    parameters = covered(model)
    readout = Readout(measurement, timesteps, draws, noise_seed, parts=tuple(parameters))
    found = features(model, images, readout, batch=batch)  # in the order of named_parameters
    order = [name for name, _ in model.named_parameters() if name in parameters]
    parts = found.split([parameters[name].numel() for name in order], 1)
    return {
        name: part.unflatten(1, parameters[name].shape)
        for name, part in zip(order, parts, strict=True)
    }


class Compressed(NamedTuple):
    """Tensors in 8 bits per entry: low + step * codes, off by at most half a step."""

    codes: UInt8[Tensor, "image entry"]
    low: Float[Tensor, "image 1"]
    step: Float[Tensor, "image 1"]


def compress(values: Float[Tensor, "image *shape"]) -> Compressed:
    """Round every image's tensor to 256 levels between its least and its largest entry.

    Source: Mlodozeniec et al. 2024.

    Args:
        values: of any shape.

    Returns:
        Codes, and what they stand for.
    """
    low, high = values.flatten(1).aminmax(dim=1, keepdim=True)
    # a constant tensor has code 0 everywhere
    step = ((high - low) / 255).clamp_min(torch.finfo(values.dtype).tiny)
    return Compressed(((values.flatten(1) - low) / step).round().to(torch.uint8), low, step)


def decompress(compressed: Compressed) -> Float[Tensor, "image entry"]:
    """The values that the codes stand for.

    Args:
        compressed: by `compress`.

    Returns:
        One flat row per image.
    """
    return compressed.low + compressed.step * compressed.codes


# of train gradients: one block's share of the scores
Share = Callable[[Float[Tensor, "train *shape"]], Float[Tensor, "damping query train"]]


def _products(
    block: Block, queries: Float[Tensor, "query *shape"], dampings: Sequence[float]
) -> Share:
    """One block's share of the scores."""
    # in its eigenbasis a damping only rescales: both sides are rotated once for all dampings
    rotated = block.rotate(queries)

    def products(train: Tensor) -> Tensor:
        columns = block.rotate(train)
        solved = (columns / (block.eigenvalues + damping) for damping in dampings)
        return torch.stack([rotated.flatten(1) @ column.flatten(1).T for column in solved])

    return products


def _compressed_products(
    block: Block, queries: Float[Tensor, "query *shape"], dampings: Sequence[float]
) -> Share:
    """The same with the preconditioned query gradients in 8 bits."""
    rows = [compress(block.precondition(queries, damping)) for damping in dampings]
    return lambda train: torch.stack(
        [decompress(compressed) @ train.flatten(1).T for compressed in rows]
    )


def _absolute(dampings: Sequence[float], curvature: Mapping[str, Tensor]) -> list[float]:
    if not dampings:
        raise InputError(
            "damping must name at least one value; it is relative to the mean eigenvalue, try 0.1"
        )
    for damping in dampings:
        if not 0 < damping < math.inf:
            raise InputError(
                f"damping must be positive and finite, not {damping}; it is relative to the mean"
                " eigenvalue, try 0.1"
            )
    unit = mean_eigenvalue(curvature)
    if not 0 < unit < math.inf:
        raise InputError(
            f"curvature has the mean eigenvalue {unit}, so that nothing can be relative to it; fit"
            " it to a trained model"
        )
    return [damping * unit for damping in dampings]


def influence_scores(
    model: Module,
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    *,
    curvature: Mapping[str, Tensor],
    timesteps: Sequence[int],
    damping: float | Sequence[float] = 0.1,
    measurement: str = "loss",
    draws: int = 1,
    noise_seed: int = 0,
    compressed: bool = False,
    batch: int = 64,
    query_block: int = 32,
    train_block: int = 16,
) -> Float[Tensor, "*damping query train"]:
    """Influence of every train image on every query's measurement; of a sequence of dampings, one
    matrix for each.

    Higher = keeping the train image lowers the measurement, for `"loss"` the query's loss. Memory
    is that of `query_block` + `train_block` gradients; train gradients are computed anew for every
    block of queries.

    Args:
        model: called as `model(noisy, timesteps).sample`.
        queries: clean, in [-1, 1].
        train: clean, in [-1, 1].
        curvature: from `nda.rivals.kfac.fit_curvature`.
        timesteps: see `measurement_gradients`.
        damping: relative to the curvature's mean eigenvalue (times
            `nda.rivals.kfac.mean_eigenvalue` it is absolute).
        measurement: of the queries; the train side is always the loss.
        draws: see `measurement_gradients`.
        noise_seed: see `measurement_gradients`.
        compressed: keep the preconditioned query gradients in 8 bits, one byte per parameter, query
            and damping in place of four per parameter and query.
        batch: see `measurement_gradients`.
        query_block: queries whose gradients are held.
        train_block: train images whose gradients are held.

    Returns:
        The scores.
    """
    check_same_shape(queries, train)
    check_choice("measurement", measurement, OUTPUTS)
    check_draws(
        timesteps, draws=draws, batch=batch, query_block=query_block, train_block=train_block
    )
    blocks = restore(curvature, model)
    dampings = _absolute([damping] if isinstance(damping, int | float) else damping, curvature)
    settings: dict[str, Any] = {"timesteps": timesteps, "draws": draws}
    settings |= {"noise_seed": noise_seed, "batch": batch}
    scores = train.new_zeros(len(dampings), len(queries), len(train))
    for rows in torch.arange(len(queries)).split(query_block):
        gradients = measurement_gradients(model, queries[rows], measurement=measurement, **settings)
        make = _compressed_products if compressed else _products
        held = {name: make(block, gradients.pop(name), dampings) for name, block in blocks.items()}
        for columns in tqdm(
            torch.arange(len(train)).split(train_block), desc="influence", unit="block", leave=False
        ):
            parts = measurement_gradients(model, train[columns], **settings)
            for name, products in held.items():
                scores[:, rows[:, None], columns] += products(parts[name])
    return scores[0] if isinstance(damping, int | float) else scores


# ---- on a bench


def curvature(bench: Bench, **settings: Any) -> tuple[dict[str, Tensor], float]:
    """The curvature of the bench's model, fitted once and kept in its store.

    Args:
        bench: train images and model.
        settings: of `nda.rivals.kfac.fit_curvature`.

    Returns:
        The fit, and the seconds that it took.
    """
    name = f"curvature/{_name(settings)}"
    fit = partial(fit_curvature, bench.model(), bench.images("train"), **settings)
    inputs = bench.store.sha256("model", "train")
    kept = bench.store.kept(name, fit, parameters=settings, inputs=inputs)
    return kept, bench.store.info(name)["seconds"]


def _name(settings: Mapping[str, Any]) -> str:
    """Of a fit, for a reader: what is not as the catalogue has it is said."""
    changed = [settings[key] for key in ("fisher", "sharing")]
    parts = [settings["kind"], f"k{len(settings['timesteps'])}"]
    return "-".join(parts + [part for part in changed if part not in ("mc", "expand")])


def curvature_scores(
    bench: Bench, which: str, *, dampings: Sequence[float], measurement: str, **settings: Any
) -> Scored:
    """K-FAC and EK-FAC influence: fit the curvature, score along a path of dampings. Both are kept
    in the bench's store.

    Args:
        bench: images and model.
        which: the queries.
        dampings: those that are wanted.
        measurement: see `measurement_gradients`.
        settings: of `nda.rivals.kfac.fit_curvature`.

    Returns:
        Scores by damping, and seconds, those of the fit included.
    """
    fit, fitted = curvature(bench, **settings)
    asked = "" if measurement == "loss" else f"-{measurement}"
    name = f"parts/{_name(settings)}{asked}-{which}"
    make = partial(
        influence_scores,
        bench.model(),
        bench.images(which),
        bench.images("train"),
        curvature=fit,
        damping=dampings,
        measurement=measurement,
        timesteps=settings["timesteps"],
        noise_seed=settings["noise_seed"],
        query_block=bench.parameters.get("query_block", 32),
    )
    path = bench.store.kept(
        name,
        make,
        axes="damping query train",
        parameters=settings | {"measurement": measurement, "dampings": list(dampings)},
        inputs=bench.store.sha256("model", "train", which),
    ).to(bench.device)
    seconds = fitted + bench.store.info(name)["seconds"]
    return Scored(dict(zip(dampings, path, strict=True)), seconds)
