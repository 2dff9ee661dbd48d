"""DAS: diffusion attribution score, as its paper and as its code have it."""

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nda.errors import InputError
from nda.rivals.bench import Bench, Scored
from nda.rivals.inner_products import Source
from nda.rivals.kernel import Kernel, damping_path
from nda.rivals.trak import solved


def das_scores(
    crosses: Sequence[Float[Tensor, "query train"]],
    kernels: Sequence[Kernel],
    residuals: Float[Tensor, "train timestep"],
    *,
    damping: float,
    squared: bool = True,
) -> Float[Tensor, "query train"]:
    """DAS as the paper writes it: the mean over timesteps of ‖ψ_tᵀ K_t⁻¹ φ_t r_t / (1 - h_t)‖², the
    change of the query's predicted noise; h_t is the leverage at the same timestep.

    Eq. 17-18 are this with one cross and kernel of a readout of `unit_norm` over all timesteps, and
    `das_residual` as the only column. Source: DAS, Eq. 15-18.

    Args:
        crosses: inner products at each timestep, of gradients of `"output_mean"`, which stands for
            the vector of predicted noise.
        kernels: of the train images at each timestep.
        residuals: length of the vector r_t, the square root of
            `nda.model.outputs.denoising_losses`.
        damping: λ, relative to the mean eigenvalue at each timestep.
        squared: as in the paper, without a sign; False keeps the sign of ψᵀ K⁻¹ φ r.

    Returns:
        Scores in float64.

    Raises:
        InputError: for other numbers of timesteps or train images.
    """
    wanted = (len(kernels[0].gram), len(kernels)) if kernels else None
    if len(crosses) != len(kernels) or residuals.shape != wanted:
        raise InputError(
            f"residuals {tuple(residuals.shape)} must be [train, timestep], with one of the crosses"
            " and kernels per timestep"
        )
    changes = []
    for cross, kernel, residual in zip(crosses, kernels, _finite(residuals).T, strict=True):
        moved = kernel.solve(cross, damping) * residual.to(kernel.gram.device)
        change = moved / (1 - kernel.leverage(damping))
        changes.append(change.square() if squared else change)
    return torch.stack(changes).mean(0)


def das_residual(errors: Float[Tensor, "train timestep"]) -> Float[Tensor, "train"]:
    """r̄: each image's root mean squared errors over the timesteps, scaled to norm 1, averaged.
    Only the shape of the curve is left.

    Source: DAS, Eq. 17, as the released code reads it.

    Args:
        errors: `nda.model.outputs.denoising_losses(model, train, …)`.

    Returns:
        One number per train image, in float64.

    Raises:
        InputError: for errors that are negative, not finite, or of another shape.
    """
    if errors.ndim != 2 or (errors < 0).any():
        raise InputError(
            "errors must be squared errors [train, timestep], not negative, not"
            f" {tuple(errors.shape)}"
        )
    return F.normalize(_finite(errors).sqrt(), dim=1).mean(1)


def das_released_scores(
    cross: Float[Tensor, "query train"],
    kernel: Kernel,
    residual: Float[Tensor, "train"],
    *,
    damping: float,
    mode: str = "das1",
) -> Float[Tensor, "query train"]:
    """DAS as its released code does it, on gradients of `"output_mean"` with `unit_norm`, averaged
    over timesteps.

    Unlike the release, which does not run as it is, the leverage h is that of the train image, and
    K⁻¹ is not divided by its mean entry, which would make 1 - h depend on the number of dimensions.
    Source: DAS's released code, `07_score.py`.

    Args:
        cross: inner products of the queries' features with those of the train images.
        kernel: of the train images.
        residual: `das_residual`, r̄.
        damping: λ, relative to the mean eigenvalue.
        mode: `"das1"`, r̄ ψᵀ K⁻¹ φ; `"das0"`, r̄ ψᵀ K⁻² φ / (1 - h)²; either with `"_squared"`,
            squared.

    Returns:
        Scores in float64.

    Raises:
        InputError: for another mode, or residuals of other train images.
    """
    if mode.removesuffix("_squared") not in ("das1", "das0"):
        raise InputError(f"mode must be 'das1' or 'das0', with or without '_squared', not {mode!r}")
    if residual.shape != kernel.gram.shape[:1]:
        raise InputError(
            f"residual must be [train={len(kernel.gram)}], not {tuple(residual.shape)}; see"
            " das_residual"
        )
    factor = _finite(residual).to(kernel.gram.device)
    if mode.startswith("das0"):
        factor = factor / (1 - kernel.leverage(damping)) ** 2
        scores = kernel.solve(cross, damping, power=2) * factor
    else:
        scores = kernel.solve(cross, damping) * factor
    return scores.square() if mode.endswith("_squared") else scores


def _finite(values: Tensor) -> Tensor:
    if not torch.isfinite(values).all():
        raise InputError(
            "residuals or errors have NaN or infinite entries; the model's weights or some train"
            " image are broken"
        )
    return values.double()


# ---- on a bench


def das(
    bench: Bench, which: str, *, dampings: Sequence[float], squared: bool, **settings: Any
) -> Scored:
    """DAS as the paper writes it, with a kernel for each timestep; see `das_scores`.

    Args:
        bench: images and model.
        which: the queries.
        dampings: those that are wanted.
        squared: see `das_scores`.
        settings: of `nda.rivals.inner_products.Source.parse`, for all timesteps.

    Returns:
        Scores by damping, and seconds.
    """
    every = Source.parse(**settings)
    timesteps = every.readout.timesteps
    errors, spent = bench.errors(timesteps)
    found = [
        bench.products(which, replace(every, readout=replace(every.readout, timesteps=(t,))))
        for t in timesteps
    ]
    started = perf_counter()
    crosses, kernels = [p.cross for p in found], [p.kernel for p in found]
    path = damping_path(
        das_scores, crosses, kernels, errors.sqrt(), dampings=dampings, squared=squared
    )
    spent += perf_counter() - started
    return Scored(path, spent + sum(products.seconds for products in found))


def das_released(
    bench: Bench, which: str, *, dampings: Sequence[float], mode: str, **settings: Any
) -> Scored:
    """DAS as its released code does it, with one kernel of the mean gradient; see
    `das_released_scores`.

    Args:
        bench: images and model.
        which: the queries.
        dampings: those that are wanted.
        mode: see `das_released_scores`.
        settings: of `nda.rivals.inner_products.Source.parse`.

    Returns:
        Scores by damping, and seconds.
    """
    source = Source.parse(**settings)
    errors, spent = bench.errors(source.readout.timesteps)
    more = {"residual": das_residual(errors), "mode": mode}
    path, seconds = solved(das_released_scores, bench.products(which, source), dampings, **more)
    return Scored(path, spent + seconds)
