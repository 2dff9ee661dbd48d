"""What a setting does to TRAK, D-TRAK and DAS: LDS tables with one setting changed at a time. Inner
products are made once and kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from time import perf_counter

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from nda.errors import InputError
from nda.evidence import tuning
from nda.evidence.truth import lds_row
from nda.model import outputs
from nda.model.lean import UNet2DModel
from nda.model.outputs import uniform_timesteps
from nda.rivals import das, trak
from nda.rivals.gradients import Readout, features
from nda.rivals.kernel import Kernel, gram
from nda.rivals.pixels import pixel_scores
from nda.rivals.projection import Projection
from nda.store import Store, digest

KINDS = ("val", "gen")
DAS, DAS_OUTPUT = "DAS as released", "output_mean"
METHODS = {"TRAK": "loss", "D-TRAK": "output_norm", DAS: DAS_OUTPUT}  # what each differentiates


@dataclass(frozen=True)
class Variant:
    """A method with its settings. share: of the train images, those nearest to the query, which
    alone are scored. dampings: that it may choose from."""

    readout: Readout
    projection: Projection | None = None
    share: float = 1.0
    dampings: tuple[float, ...] = tuning.DAMPINGS

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

    ks: numbers of timesteps that are tried. dims: of a random projection. shares: of the train
    images that are candidates. The projection and the candidates are ablated for TRAK and D-TRAK,
    gradients of length one for DAS. Sources: D-TRAK (K); DAS, Sec. 5 (the others).
    """
    plain = replace(
        readout, timesteps=tuple(readout.timesteps), parts=tuple(readout.parts)
    )  # with a hash
    bases = {
        method: replace(plain, model_output=output, unit_norm=method == DAS)
        for method, output in METHODS.items()
    }
    kernels = {method: base for method, base in bases.items() if method != DAS}
    for method, base in bases.items():
        for number in ks:
            yield (
                f"K, {method}",
                str(number),
                Variant(replace(base, timesteps=uniform_timesteps(number)), projection),
            )
    for method, base in bases.items():
        for damping in tuning.DAMPINGS[::2]:
            yield (
                f"damping, {method}",
                f"{damping:g}",
                Variant(base, projection, dampings=(damping,)),
            )
    for method, base in kernels.items():
        for size in dict.fromkeys([*map(Projection, dims), projection]):
            yield f"projection, {method}", str(size.dim) if size else "none", Variant(base, size)
    for method, base in bases.items():
        for setting, parts in (("all", ()), ("up-blocks", ("up_blocks",))):
            yield (
                f"up-blocks only, {method}",
                setting,
                Variant(replace(base, parts=parts), projection),
            )
    for setting, unit_norm in (("no", False), ("yes", True)):
        yield (
            f"length one, {DAS}",
            setting,
            Variant(replace(bases[DAS], unit_norm=unit_norm), projection),
        )
    for method, base in kernels.items():
        for share in shares:
            yield f"candidates, {method}", f"{share:g}", Variant(base, projection, share)


def candidates(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    share: float,
) -> Bool[Tensor, "query train"]:
    """True for the `share` of the train images, at least one, that raw pixels (cosine) rank first
    for a query; of equals, the first."""
    order = pixel_scores(queries, train, kind="cosine").argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(order, dtype=torch.bool).scatter_(
        1, order[:, : max(1, round(share * len(train)))], True
    )


def inner_products(
    model: UNet2DModel, readout: Readout, projections: Sequence[Projection | None], store: Store
) -> dict[Projection | None, dict[str, Tensor]]:
    """Under each projection, `trak.gram` of the store's `train`, `val` and `gen` with `train`, by
    kind; for DAS also `residual`.

    They are kept as `parts/gradients/…` with the sha256 of weights and images, and made anew if
    anything differs. Those that are missing share one pass over the gradients, which holds the
    features of the train images and of one other kind at a time.
    """
    inputs, setting = (
        store.sha256("train", *KINDS),
        {
            "readout": asdict(readout),
            "weights": digest(model.state_dict()),
        },
    )
    parameters = {p: setting | {"projection": asdict(p) if p else None} for p in projections}
    names = {p: _name(readout, p) for p in projections}
    missing, started = (
        [p for p in projections if not store.matches(names[p], parameters[p], inputs)],
        perf_counter(),
    )
    if missing:
        for p, value in _made(model, readout, missing, store).items():
            store.delete(names[p])
            store.save(
                names[p],
                value,
                parameters=parameters[p],
                inputs=inputs,
                seconds=perf_counter() - started,
            )
    return {p: store.load(name) for p, name in names.items()}


def _made(
    model: UNet2DModel, readout: Readout, projections: Sequence[Projection | None], store: Store
) -> dict[Projection | None, dict[str, Tensor]]:
    images = {kind: store.load(kind).to(next(model.parameters())) for kind in ("train", *KINDS)}
    found: dict[Projection | None, dict[str, Tensor]] = {p: {} for p in projections}
    train: dict[Projection | None, Tensor] = {}  # features

    def several(vectors: Tensor) -> Tensor:
        return torch.cat([p(vectors) if p else vectors for p in projections], 1)

    for kind, pixels in images.items():
        own = features(model, pixels, readout, projection=several)  # type: ignore[arg-type]
        every = own.shape[1] - sum(p.dim for p in projections if p)  # parameters
        seen = dict(
            zip(
                projections, own.split([p.dim if p else every for p in projections], 1), strict=True
            )
        )
        train = train or seen
        for p in projections:
            found[p][kind] = gram(seen[p], train[p])
        del own, seen  # before the next features are made
    if readout.model_output == DAS_OUTPUT:
        residual = das.das_residual(
            outputs.denoising_losses(model, images["train"], timesteps=readout.timesteps)
        )
        found = {p: products | {"residual": residual} for p, products in found.items()}
    return found


def _name(readout: Readout, projection: Projection | None) -> str:
    size = [f"d{projection.dim}"] if projection else []
    return "-".join(
        [
            f"parts/gradients/{readout.model_output}",
            f"k{len(readout.timesteps)}",
            *["unit"] * readout.unit_norm,
            *readout.parts,
            *size,
        ]
    )


def tuned_scores(
    products: Mapping[str, Tensor],
    near: Mapping[str, Bool[Tensor, "query train"]],
    results: Store,
    *,
    dampings: Sequence[float] = tuning.DAMPINGS,
) -> tuple[float, dict[str, Float[Tensor, "query train"]]]:
    """The one of `dampings` that is best on the `select` subsets for the choosing half of the
    validation queries, and the scores at it.

    products: of `inner_products`, DAS's if they have a residual. near: the candidates of each kind
    of queries; the others score 0.
    """
    kernel = Kernel(products["train"])
    method: Callable[..., Tensor] = das.das_scores if "residual" in products else trak.trak_scores
    rest = [kernel, products["residual"]] if "residual" in products else [kernel]
    path = {
        damping: scores * near["val"]
        for damping, scores in tuning.damping_path(
            method, products["val"], *rest, dampings=dampings
        )
    }
    damping = tuning.chosen(tuning.lds_path(path, "val", results))
    return damping, {
        kind: method(products[kind], *rest, damping=damping) * near[kind] for kind in KINDS
    }


def table(
    model: UNet2DModel,
    readout: Readout,
    projection: Projection | None = None,
    *,
    ks: Sequence[int],
    dims: Sequence[int],
    shares: Sequence[float],
    store: Store,
    results: Store,
) -> pd.DataFrame:
    """One row per ablation, setting and kind of queries, "val" and "gen", with the columns of
    `nda.evidence.truth.lds_row`.

    model, readout, projection: those of the profile, whose images are in `store`; each method has
    its own output and `unit_norm`. ks, dims, shares: as in `variants`. Each row has its own
    damping, chosen by `tuned_scores`, but where the damping is ablated. A killed run goes on by the
    same call, from the inner products in `store`. Raises InputError.
    """
    tried = list(variants(readout, projection, ks=ks, dims=dims, shares=shares))
    images = {kind: store.load(kind, "image chan row col") for kind in ("train", *KINDS)}
    alike: dict[Readout, list[Variant]] = {}  # variants that share their gradients
    for variant in dict.fromkeys(variant for _, _, variant in tried):
        alike.setdefault(variant.readout, []).append(variant)
    rows: dict[tuple[Variant, str], dict[str, float]] = {}
    for shared, members in tqdm(alike.items(), desc="ablations", unit="gradient", leave=False):
        products = inner_products(
            model, shared, list(dict.fromkeys(variant.projection for variant in members)), store
        )
        for variant in members:
            near = {
                kind: candidates(images[kind], images["train"], variant.share) for kind in KINDS
            }
            _, scores = tuned_scores(
                products[variant.projection], near, results, dampings=variant.dampings
            )
            rows |= {(variant, kind): lds_row(scores[kind], kind, results) for kind in KINDS}
    found = (
        {"ablation": name, "setting": to, "queries": kind} | rows[v, kind]
        for name, to, v in tried
        for kind in KINDS
    )
    return pd.DataFrame(found)
