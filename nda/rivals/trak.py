"""The gradient-based attribution scores: a few lines of algebra each on inner products of features.

Everything works in the dual. With features φ_i of train images and ψ_q of queries, `gram[i, j]` =
φ_i·φ_j and `cross[q, i]` = ψ_q·φ_i, the ridge solve in parameter space is ψ_qᵀ (ΦᵀΦ + λI)⁻¹ φ_i =
[cross (gram + λI)⁻¹][q, i], exactly, however many parameters there are.

`damping` is λ relative to the mean eigenvalue of the Gram matrix, so that a value means the same
for every model, readout and number of images; `Kernel.ridge` gives λ itself. All results are
float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nda.errors import InputError
from nda.rivals.bench import Bench, Scored
from nda.rivals.inner_products import Products, Side, Source, collect
from nda.rivals.kernel import Kernel, checked, damping_path


def dot_scores(crosses: Sequence[Float[Tensor, "query train"]]) -> Float[Tensor, "query train"]:
    """Gradient (dot product) at one checkpoint; TracInCP, the mean over checkpoints, without
    learning rates, at several.

    Sources: TracIn; D-TRAK, App. C.

    Args:
        crosses: `gram(query_features, train_features)` of the output `"loss"` at each checkpoint.

    Returns:
        Scores in float64.

    Raises:
        InputError: without any, or for inner products that are not finite or of other train images.
    """
    if not crosses:
        raise InputError("crosses are empty; pass the inner products of at least one checkpoint")
    return torch.stack([checked(cross, crosses[0].shape[-1]) for cross in crosses]).mean(0)


def cosine_scores(
    crosses: Sequence[Float[Tensor, "query train"]],
    query_norms: Sequence[Float[Tensor, "query"]],
    train_norms: Sequence[Float[Tensor, "train"]],
) -> Float[Tensor, "query train"]:
    """Gradient (cosine) at one checkpoint; GAS, its mean over checkpoints, at several.

    Sources: GAS; D-TRAK, App. C.

    Args:
        crosses: as in `dot_scores`.
        query_norms: `norms` of the queries' features at each checkpoint.
        train_norms: those of the train images.

    Returns:
        Scores in float64; 0 for an image without a gradient.

    Raises:
        InputError: for norms of other images than those of the inner products.
    """
    if not len(crosses) == len(query_norms) == len(train_norms) or [c.shape for c in crosses] != [
        (len(q), len(t)) for q, t in zip(query_norms, train_norms, strict=True)
    ]:
        raise InputError(
            "query_norms and train_norms must hold one norm per query and train image for each of"
            " the crosses"
        )
    every = zip(crosses, query_norms, train_norms, strict=True)
    return dot_scores([_over(cross.double(), q[:, None] * t) for cross, q, t in every])


def trak_scores(
    cross: Float[Tensor, "query train"], kernel: Kernel, *, damping: float
) -> Float[Tensor, "query train"]:
    """ψᵀ (ΦᵀΦ + λI)⁻¹ φ, of one model.

    TRAK if all features are gradients of `"loss"`; D-TRAK if of `"output_norm"`; Journey-TRAK if of
    `"loss"` with the queries' along their `journey`. Sources: TRAK (its factor Q is 1 for a loss,
    one model); D-TRAK; Journey-TRAK, as adapted in D-TRAK.

    Args:
        cross: inner products of the queries' features with those of the train images.
        kernel: of the train images.
        damping: λ, relative to the mean eigenvalue.

    Returns:
        Scores in float64.
    """
    return kernel.solve(cross, damping)


def relative_if_scores(
    cross: Float[Tensor, "query train"], kernel: Kernel, *, damping: float
) -> Float[Tensor, "query train"]:
    """TRAK's scores over ‖(ΦᵀΦ + λI)⁻¹ φ‖: what a train image does per change of the parameters.

    Source: RelatIF (θ-relative).

    Args:
        cross: as in `trak_scores`.
        kernel: as in `trak_scores`.
        damping: as in `trak_scores`.

    Returns:
        Scores in float64; 0 for an image without a gradient.
    """
    norms = kernel.solved_norms(damping).where(kernel.gram.diagonal() > 0, 0.0)
    return _over(kernel.solve(cross, damping), norms)


def renormalised_if_scores(
    cross: Float[Tensor, "query train"], kernel: Kernel, *, damping: float
) -> Float[Tensor, "query train"]:
    """TRAK's scores over ‖φ‖.

    Sources: renormalised influence (GAS's paper); D-TRAK, App. C.

    Args:
        cross: as in `trak_scores`.
        kernel: as in `trak_scores`.
        damping: as in `trak_scores`.

    Returns:
        Scores in float64; 0 for an image without a gradient.
    """
    return _over(kernel.solve(cross, damping), kernel.gram.diagonal().double().sqrt())


def _over(scores: Float[Tensor, "query train"], scale: Tensor) -> Float[Tensor, "query train"]:
    """Divided by a norm; an image without a gradient scores 0."""
    return torch.where(scale > 0, scores / scale, 0.0)


# ---- on a bench


def gradient_scores(
    bench: Bench, which: str, *, weights: str, normalise: bool, **settings: Any
) -> Scored:
    """Gradient (dot), Gradient (cosine), TracInCP and GAS.

    Args:
        bench: images and models.
        which: the queries.
        weights: `"model"`, or `"checkpoints"` for the mean over all.
        normalise: cosines in place of dot products.
        settings: of `nda.rivals.inner_products.Source.parse`.

    Returns:
        Scores and seconds.
    """
    names = bench.checkpoints if weights == "checkpoints" else [weights]
    source = Source.parse(**settings)
    found = [bench.products(which, replace(source, weights=name)) for name in names]
    crosses = [products.cross for products in found]
    started = perf_counter()
    if normalise:
        train = [products.train_norms for products in found]
        scores = cosine_scores(crosses, [products.norms for products in found], train)
    else:
        scores = dot_scores(crosses)
    spent = perf_counter() - started
    return Scored(scores, spent + sum(products.seconds for products in found))


def solved(
    formula: Callable[..., Tensor], products: Products, dampings: Sequence[float], **more: Any
) -> Scored:
    """Scores of one source along a path of dampings.

    Args:
        formula: `trak_scores` or one like it.
        products: of the source.
        dampings: those that are wanted.
        more: other arguments of the formula.

    Returns:
        Scores by damping, and seconds, those of the gradients included.
    """
    started = perf_counter()
    path = damping_path(formula, products.cross, products.kernel, dampings=dampings, **more)
    return Scored(path, perf_counter() - started + products.seconds)


def trak(bench: Bench, which: str, *, dampings: Sequence[float], **settings: Any) -> Scored:
    """TRAK, and D-TRAK, which differ in what is differentiated; see `trak_scores`.

    Args:
        bench: images and model.
        which: the queries.
        dampings: those that are wanted.
        settings: of `nda.rivals.inner_products.Source.parse`.

    Returns:
        Scores by damping, and seconds.
    """
    return solved(trak_scores, bench.products(which, Source.parse(**settings)), dampings)


def relative_if(bench: Bench, which: str, *, dampings: Sequence[float], **settings: Any) -> Scored:
    """Relative IF; see `relative_if_scores`.

    Args:
        bench: images and model.
        which: the queries.
        dampings: those that are wanted.
        settings: of `nda.rivals.inner_products.Source.parse`.

    Returns:
        Scores by damping, and seconds.
    """
    return solved(relative_if_scores, bench.products(which, Source.parse(**settings)), dampings)


def renormalised_if(
    bench: Bench, which: str, *, dampings: Sequence[float], **settings: Any
) -> Scored:
    """Renormalised IF; see `renormalised_if_scores`.

    Args:
        bench: images and model.
        which: the queries.
        dampings: those that are wanted.
        settings: of `nda.rivals.inner_products.Source.parse`.

    Returns:
        Scores by damping, and seconds.
    """
    return solved(renormalised_if_scores, bench.products(which, Source.parse(**settings)), dampings)


def journey_trak(
    bench: Bench, which: str, *, dampings: Sequence[float], sampling_steps: int, **settings: Any
) -> Scored:
    """Journey-TRAK: TRAK with the gradients of generated queries along the way of the sampler, at
    about as many of its steps, evenly spread, as train gradients have timesteps.

    Args:
        bench: images and model.
        which: "gen", the only queries that were sampled.
        dampings: those that are wanted.
        sampling_steps: of the sampler.
        settings: of `nda.rivals.inner_products.Source.parse`, for the train images.

    Returns:
        Scores by damping, and seconds, those of sampling included.
    """
    source = Source.parse(**settings)
    clean, times, sampled = bench.journey(sampling_steps)
    some = slice(None, None, max(1, sampling_steps // len(source.readout.timesteps)))
    along = Side(clean[:, some], replace(source.readout, timesteps=times[some]))
    sides = {"train": Side(bench.images("train"), source.readout), f"journey-{which}": along}
    projections, weights = [source.projection], source.weights
    made = collect(bench.model(), sides, projections, store=bench.store, name=weights)
    path, seconds = solved(trak_scores, made[source.projection][f"journey-{which}"], dampings)
    return Scored(path, seconds + sampled)
