"""What a setting does to TRAK, D-TRAK and DAS: LDS tables with one setting changed at a time. Inner
products are made once and kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from nda.errors import InputError
from nda.evidence.truth import lds_row, truths
from nda.methods import READ_LOSS, READ_MEAN_UNIT, READ_NORM, WHICH
from nda.model.outputs import uniform_timesteps
from nda.rivals import das, trak
from nda.rivals.bench import Bench
from nda.rivals.gradients import Readout
from nda.rivals.inner_products import Products
from nda.rivals.kernel import DAMPINGS
from nda.rivals.pixels import pixel_scores
from nda.rivals.projection import Projection
from nda.store import Store

DAS = "DAS as released"
READOUTS = {"TRAK": READ_LOSS, "D-TRAK": READ_NORM, DAS: READ_MEAN_UNIT}


@dataclass(frozen=True)
class Variant:
    """A method with its settings. share: of the train images, those nearest to the query, which
    alone are scored. dampings: that it may choose from."""

    readout: Readout
    projection: Projection | None = None
    share: float = 1.0
    dampings: tuple[float, ...] = DAMPINGS

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(
                f"shares of candidates must be above 0 and at most 1, not {self.share!r}"
            )


def variants(
    readout: Readout,
    projection: Projection | None = None,
    *,
    ks: Sequence[int],
    dims: Sequence[int],
    shares: Sequence[float],
) -> Iterator[tuple[str, str, Variant]]:
    """Every ablation, its settings and what they make: one setting of each method at `readout` and
    `projection` changed at a time.

    The projection and the candidates are ablated for TRAK and D-TRAK, gradients of length one for
    DAS. Sources: D-TRAK (K); DAS, Sec. 5 (the others).

    Args:
        readout: the profile's.
        projection: the profile's.
        ks: numbers of timesteps that are tried.
        dims: of a random projection.
        shares: of the train images that are candidates.

    Yields:
        Name of the ablation, setting, variant.
    """
    bases = {method: replace(readout, **read) for method, read in READOUTS.items()}
    kernels = {method: base for method, base in bases.items() if method != DAS}
    for method, base in bases.items():
        for number in ks:
            at = replace(base, timesteps=uniform_timesteps(number))
            yield f"K, {method}", str(number), Variant(at, projection)
    for method, base in bases.items():
        for damping in DAMPINGS[::2]:
            variant = Variant(base, projection, dampings=(damping,))
            yield f"damping, {method}", f"{damping:g}", variant
    for method, base in kernels.items():
        for size in dict.fromkeys([*map(Projection, dims), projection]):
            yield f"projection, {method}", str(size.dim) if size else "none", Variant(base, size)
    for method, base in bases.items():
        for setting, parts in (("all", ()), ("up-blocks", ("up_blocks",))):
            variant = Variant(replace(base, parts=parts), projection)
            yield f"up-blocks only, {method}", setting, variant
    for setting, unit_norm in (("no", False), ("yes", True)):
        variant = Variant(replace(bases[DAS], unit_norm=unit_norm), projection)
        yield f"length one, {DAS}", setting, variant
    for method, base in kernels.items():
        for share in shares:
            yield f"candidates, {method}", f"{share:g}", Variant(base, projection, share)


def record(
    readout: Readout,
    projection: Projection | None = None,
    *,
    ks: Sequence[int],
    dims: Sequence[int],
    shares: Sequence[float],
) -> dict[str, Any]:
    """What is written beside a `table` with the same arguments.

    Args:
        readout: as in `variants`.
        projection: as in `variants`.
        ks: as in `variants`.
        dims: as in `variants`.
        shares: as in `variants`.

    Returns:
        Parameters for `Store.save`: what all methods share, and what each of them differentiates.
    """
    common = {name: value for name, value in asdict(readout).items() if name not in READ_LOSS}
    grid = {"projection_dim": projection.dim if projection else 0, "ks": ks, "dims": dims}
    return common | grid | {"shares": shares, "methods": READOUTS}


def candidates(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    share: float,
) -> Bool[Tensor, "query train"]:
    """True for the `share` of the train images, at least one, that raw pixels (cosine) rank first
    for a query; of equals, the first.

    Args:
        queries: pixels in [-1, 1].
        train: pixels in [-1, 1].
        share: above 0, at most 1.

    Returns:
        Which train images are candidates, for every query.
    """
    order = pixel_scores(queries, train, kind="cosine").argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(order, dtype=torch.bool).scatter_(
        1, order[:, : max(1, round(share * len(train)))], True
    )


def tuned_scores(
    bench: Bench,
    products: Mapping[str, Products],
    readout: Readout,
    share: float = 1.0,
    *,
    dampings: Sequence[float] = DAMPINGS,
) -> tuple[float, dict[str, Float[Tensor, "query train"]]]:
    """The one of `dampings` that the bench chooses for validation queries, and the scores at it.

    Args:
        bench: images, model, and how a damping is chosen.
        products: of the readout, by kind.
        readout: gradients of DAS's output are solved with its residual.
        share: of the train images, those that are scored; the others get 0.
        dampings: those that may be chosen.

    Returns:
        The damping, and the scores of each kind of queries.
    """
    near = {
        which: candidates(bench.images(which), bench.images("train"), share).to(bench.device)
        for which in WHICH
    }
    formula: Callable[..., Tensor] = trak.trak_scores
    if readout.model_output == READOUTS[DAS]["model_output"]:
        residual = das.das_residual(bench.errors(readout.timesteps)[0])
        formula = partial(das.das_released_scores, residual=residual)
    path = {
        damping: scores * near["val"]
        for damping, scores in trak.solved(formula, products["val"], dampings).scores.items()
    }
    damping = bench.choose(path, "val").damping
    found = {which: trak.solved(formula, products[which], [damping]).scores for which in WHICH}
    return damping, {which: found[which][damping] * near[which] for which in WHICH}


def table(
    bench: Bench,
    readout: Readout,
    projection: Projection | None = None,
    *,
    ks: Sequence[int],
    dims: Sequence[int],
    shares: Sequence[float],
    results: Store,
) -> pd.DataFrame:
    """One row per ablation, setting and kind of queries, "val" and "gen", with the columns of
    `nda.evidence.truth.lds_row`.

    Each row has its own damping, chosen by `tuned_scores`, but where the damping is ablated. A
    killed run goes on by the same call, from the inner products in the bench's store.

    Args:
        bench: images, model, and how a damping is chosen.
        readout: the profile's; each method has its own output and `unit_norm`.
        projection: the profile's.
        ks: as in `variants`.
        dims: as in `variants`.
        shares: as in `variants`.
        results: masks and losses.

    Returns:
        The rows, in the order of `variants`.
    """
    known = {which: truths(results, which) for which in WHICH}
    tried = list(variants(readout, projection, ks=ks, dims=dims, shares=shares))
    alike: dict[Readout, list[Variant]] = {}  # variants that share their gradients
    for variant in dict.fromkeys(variant for _, _, variant in tried):
        alike.setdefault(variant.readout, []).append(variant)
    rows: dict[tuple[Variant, str], dict[str, float]] = {}
    for shared, members in tqdm(alike.items(), desc="ablations", unit="gradient", leave=False):
        wanted = list(dict.fromkeys(variant.projection for variant in members))
        products = bench.collect(shared, wanted)
        for variant in members:
            _, scores = tuned_scores(
                bench,
                products[variant.projection],
                shared,
                variant.share,
                dampings=variant.dampings,
            )
            rows |= {(variant, which): lds_row(scores[which], known[which]) for which in WHICH}
    found = (
        {"ablation": name, "setting": to, "queries": which} | rows[v, which]
        for name, to, v in tried
        for which in WHICH
    )
    return pd.DataFrame(found)
