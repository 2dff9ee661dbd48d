"""What a setting does to TRAK, D-TRAK and DAS: LDS tables with one setting changed at a time. Inner
products are made once and kept."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from nda.errors import InputError, check_choice
from nda.evidence.truth import gain_row, lds_row, truths
from nda.methods import METHODS, READ_LOSS, READ_MEAN_UNIT, READ_NORM, WHICH
from nda.model.outputs import OUTPUTS, uniform_timesteps
from nda.rivals import das, trak
from nda.rivals.bench import Bench
from nda.rivals.gradients import Readout
from nda.rivals.inner_products import Products
from nda.rivals.kernel import DAMPINGS
from nda.rivals.projection import Projection
from nda.store import Store

DAS = "DAS as released"
READOUTS = {"TRAK": READ_LOSS, "D-TRAK": READ_NORM, DAS: READ_MEAN_UNIT}
PIXELS = "pixel_cosine"
SCREENS = {PIXELS: "raw pixels", "efficientnet_cosine": "EfficientNet", "nda_two_scale": "NDA"}


@dataclass(frozen=True)
class Variant:
    """A method with its settings.

    weights: that are differentiated. residual: whether DAS's is in the formula. share: of the train
    images, those that `screen`, a method of the catalogue, ranks first for a query, which alone are
    scored, if `lowest` from the lowest of these. dampings: that it may choose from.
    """

    readout: Readout
    projection: Projection | None = None
    weights: str = "model"
    residual: bool = False
    share: float = 1.0
    screen: str = PIXELS
    lowest: bool = False
    dampings: tuple[float, ...] = DAMPINGS

    def __post_init__(self) -> None:
        check_choice("screen", self.screen, SCREENS)
        if not 0 < self.share <= 1:
            raise InputError(
                f"shares of candidates must be above 0 and at most 1, not {self.share!r}"
            )


@dataclass(frozen=True)
class Grid:
    """What is tried.

    ks: numbers of timesteps. dims: of a random projection. shares: of the train images that are
    candidates. screens: the methods that choose them, beside raw pixels. checkpoints: weights that
    are differentiated, those in use among them.
    """

    ks: Sequence[int]
    dims: Sequence[int]
    shares: Sequence[float]
    screens: Sequence[str] = (PIXELS,)
    checkpoints: Sequence[str] = ("model",)


Settings = Iterator[tuple[str, Variant]]  # of one method: the name of a setting, what it makes


def variants(
    readout: Readout, projection: Projection | None, grid: Grid
) -> Iterator[tuple[str, str, Variant, Variant]]:
    """Every ablation, its settings, what they make and what is in use: one setting of each method
    at `readout` and `projection` changed at a time.

    Sources: D-TRAK (K, outputs); DAS, Sec. 5 (the others).

    Args:
        readout: the profile's; each method has its own output and `unit_norm`.
        projection: the profile's.
        grid: what is tried.

    Yields:
        Name of the ablation, setting, variant, the variant that it is compared with.
    """
    bases = {
        method: Variant(replace(readout, **read), projection, residual=method == DAS)
        for method, read in READOUTS.items()
    }
    last = max(grid.ks)
    for name, methods, tried in _ablations(grid):
        for method in methods:
            for setting, variant in tried(bases[method]):
                yield f"{name}, {method}", setting, variant, bases[method]
    for method in ("D-TRAK", DAS) if last != len(readout.timesteps) else ():
        base = _at(bases[method], last)
        for setting, variant in _lengths(base):
            yield f"length one at K = {last}, {method}", setting, variant, base


def _ablations(
    grid: Grid,
) -> Iterator[tuple[str, Iterable[str], Callable[[Variant], Settings]]]:
    """Name, methods and, of a method in use, settings."""
    yield "K", READOUTS, lambda base: ((str(k), _at(base, k)) for k in grid.ks)
    yield "damping", READOUTS, _dampings
    yield "projection", READOUTS, lambda base: _projections(base, grid.dims)
    yield "up-blocks only", READOUTS, _parts
    yield "length one", ("D-TRAK", DAS), _lengths
    yield "candidates", READOUTS, lambda base: _shares(base, grid.shares)
    for screen in grid.screens:
        name = f"candidates of {SCREENS.get(screen, screen)}"
        yield name, (DAS,), partial(_shares, shares=grid.shares, screen=screen, lowest=True)
    yield "checkpoint", READOUTS, lambda base: _checkpoints(base, grid.checkpoints)
    yield "output", ("D-TRAK",), _outputs


def _at(base: Variant, k: int) -> Variant:
    return replace(base, readout=replace(base.readout, timesteps=uniform_timesteps(k)))


def _dampings(base: Variant) -> Settings:
    for damping in DAMPINGS[::2]:
        yield f"{damping:g}", replace(base, dampings=(damping,))


def _projections(base: Variant, dims: Sequence[int]) -> Settings:
    for size in dict.fromkeys([*map(Projection, dims), base.projection]):
        yield str(size.dim) if size else "none", replace(base, projection=size)


def _parts(base: Variant) -> Settings:
    for setting, parts in (("all", ()), ("up-blocks", ("up_blocks",))):
        yield setting, replace(base, readout=replace(base.readout, parts=parts))


def _lengths(base: Variant) -> Settings:
    for setting, unit_norm in (("no", False), ("yes", True)):
        yield setting, replace(base, readout=replace(base.readout, unit_norm=unit_norm))


def _shares(base: Variant, shares: Sequence[float], **more: Any) -> Settings:
    for share in shares:
        # all of the images are one variant, whoever would have chosen
        yield f"{share:g}", replace(base, share=share, **more) if share != 1 else base


def _checkpoints(base: Variant, checkpoints: Sequence[str]) -> Settings:
    for weights in checkpoints:
        trained = "100" if weights == base.weights else weights.removeprefix("model-")
        yield f"{trained} %", replace(base, weights=weights)


def _outputs(base: Variant) -> Settings:
    for output in OUTPUTS:
        yield output, replace(base, readout=replace(base.readout, model_output=output))


def record(readout: Readout, projection: Projection | None, grid: Grid) -> dict[str, Any]:
    """What is written beside a `table` with the same arguments.

    Args:
        readout: as in `variants`.
        projection: as in `variants`.
        grid: as in `variants`.

    Returns:
        Parameters for `Store.save`: what all methods share, and what each of them differentiates.
    """
    common = {name: value for name, value in asdict(readout).items() if name not in READ_LOSS}
    common["projection_dim"] = projection.dim if projection else 0
    return common | asdict(grid) | {"methods": READOUTS}


def candidates(scores: Float[Tensor, "query train"], share: float) -> Bool[Tensor, "query train"]:
    """True for the `share` of the train images, at least one, that are ranked first for a query; of
    equals, the first.

    Args:
        scores: of the method that ranks.
        share: above 0, at most 1.

    Returns:
        Which train images are candidates, for every query.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    count = max(1, round(share * scores.shape[1]))
    near = torch.zeros_like(order, dtype=torch.bool)
    return near.scatter_(1, order[:, :count], True)


def screened(
    scores: Float[Tensor, "query train"], near: Bool[Tensor, "query train"], *, lowest: bool
) -> Float[Tensor, "query train"]:
    """Scores of candidates alone; the others get 0.

    Args:
        scores: of all.
        near: which are candidates, at least one for each query.
        lowest: count from the lowest score of a query's candidates, so that no other image comes
            before a candidate; else, as in DAS, 0 is above the candidates with negative scores.

    Returns:
        The scores.
    """
    floor = scores.where(near, torch.inf).amin(1, keepdim=True) if lowest else 0
    return (scores - floor) * near


def _near(bench: Bench, which: str, variant: Variant) -> Bool[Tensor, "query train"]:
    # other scores than those of pixels are kept by the notebooks of their methods
    if variant.screen == PIXELS:
        scores = METHODS[PIXELS].score(bench, which).scores
    else:
        scores = bench.store.load(f"scores/{variant.screen}-{which}", "query train")
    return candidates(scores.to(bench.device), variant.share)


def tuned_scores(
    bench: Bench, products: dict[str, Products], variant: Variant
) -> tuple[float, dict[str, Float[Tensor, "query train"]]]:
    """The damping that the bench chooses for validation queries, and the scores at it.

    Args:
        bench: images, model, and how a damping is chosen.
        products: of the variant's gradients, by kind.
        variant: the method with its settings.

    Returns:
        The damping, and the scores of each kind of queries.
    """
    formula: Callable[..., Tensor] = trak.trak_scores
    if variant.residual:
        errors, _ = bench.errors(variant.readout.timesteps, variant.weights)
        formula = partial(das.das_released_scores, residual=das.das_residual(errors))

    def scored(which: str, dampings: Sequence[float]) -> dict[float, Tensor]:
        path = trak.solved(formula, products[which], dampings).scores
        if variant.share < 1:
            near = _near(bench, which, variant)
            path = {d: screened(s, near, lowest=variant.lowest) for d, s in path.items()}
        return path

    damping = bench.choose(scored("val", variant.dampings), "val").damping
    return damping, {which: scored(which, [damping])[damping] for which in WHICH}


def table(
    bench: Bench,
    readout: Readout,
    projection: Projection | None,
    grid: Grid,
    *,
    results: Store,
) -> pd.DataFrame:
    """One row per ablation, setting and kind of queries, "val" and "gen", with the columns of
    `nda.evidence.truth.lds_row` and `gain_row`.

    Each row has its own damping, chosen by `tuned_scores`, but where the damping is ablated. A
    killed run goes on by the same call, from the inner products in the bench's store.

    Args:
        bench: images, model, and how a damping is chosen; for candidates of another method than raw
            pixels also its scores, in the store.
        readout: the profile's; each method has its own output and `unit_norm`.
        projection: the profile's.
        grid: what is tried.
        results: masks and losses.

    Returns:
        The rows, in the order of `variants`.
    """
    known = {which: truths(results, which) for which in WHICH}
    tried = list(variants(readout, projection, grid))
    alike: dict[tuple[Readout, str], list[Variant]] = {}  # variants that share their gradients
    for variant in dict.fromkeys(variant for _, _, *both in tried for variant in both):
        alike.setdefault((variant.readout, variant.weights), []).append(variant)
    scores: dict[Variant, dict[str, Tensor]] = {}
    for (shared, weights), members in tqdm(
        alike.items(), desc="ablations", unit="gradient", leave=False
    ):
        wanted = list(dict.fromkeys(variant.projection for variant in members))
        products = bench.collect(shared, wanted, weights)
        for variant in members:
            scores[variant] = tuned_scores(bench, products[variant.projection], variant)[1]
    columns = {
        (variant, in_use, which): lds_row(scores[variant][which], known[which])
        | gain_row(scores[variant][which], scores[in_use][which], known[which])
        for variant, in_use in dict.fromkeys((v, in_use) for _, _, v, in_use in tried)
        for which in WHICH
    }
    found = (
        {"ablation": name, "setting": to, "queries": which} | columns[v, in_use, which]
        for name, to, v, in_use in tried
        for which in WHICH
    )
    return pd.DataFrame(found)
