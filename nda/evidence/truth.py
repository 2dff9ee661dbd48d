"""What retraining says, and how predictions are held against it."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nda.errors import InputError
from nda.evidence import lds
from nda.methods import Result
from nda.store import Store

# Settings are chosen on validation queries of even number and reported on those of odd number;
# generated queries are only reported on.
CHOOSE = slice(0, None, 2)
REPORT = {"val": slice(1, None, 2), "gen": slice(None)}


def group_effects(
    scores: Float[Tensor, "query train"], masks: Bool[Tensor, "subset train"]
) -> Float[Tensor, "subset query"]:
    """Predicted effect of each subset on each query: the sum of its members' scores (TRAK;
    datamodels)."""
    if scores.ndim != 2 or masks.ndim != 2 or scores.shape[1] != masks.shape[1]:
        hint = (
            "; it looks transposed"
            if scores.ndim == masks.ndim == 2 and scores.shape[0] == masks.shape[1]
            else ""
        )
        raise InputError(
            f"scores must be [query, train={masks.shape[-1]}], not {tuple(scores.shape)}{hint}"
        )
    if not torch.isfinite(scores).all():
        raise InputError(
            "scores have NaN or infinite entries; the method that made them failed on some image"
        )
    return masks.cpu().double() @ scores.cpu().double().T


def record(result: Result, *, store: Store, results: Store) -> None:
    """Keep what a method found: `scores/<name>` in the working store and `effects/<name>`
    `[subset, query]`, on the `report` masks, among the results, each with the record that the
    method has written.

    Args:
        result: of `nda.methods.Method.score`.
        store: the working store.
        results: the results store, with `masks/report`.
    """
    made: dict[str, Any] = {"parameters": result.parameters, "seconds": result.seconds}
    effects = group_effects(result.scores, results.load("masks/report", "subset train"))
    store.save(
        f"scores/{result.name}", result.scores, axes="query train", inputs=result.inputs, **made
    )
    results.save(
        f"effects/{result.name}",
        effects.float(),
        axes="subset query",
        inputs={**results.sha256("masks/report"), **result.inputs},
        **made,
    )


FAMILIES = ("select", "report")


def lds_row(
    scores: Float[Tensor, "query train"], queries: str, results: Store, *, resamples: int = 1000
) -> dict[str, float]:
    """LDS in percent of all "val" or "gen" `queries` on `select` and `report`, plain and centred,
    each on its half of the validation queries; `report` with its interval."""
    row: dict[str, float] = {}
    for family, part in (
        ("select", CHOOSE if queries == "val" else slice(None)),
        ("report", REPORT[queries]),
    ):
        losses = (
            results.load(f"losses/{family}-{queries}", "subset seed query group")[:, :, part]
            .double()
            .mean((1, 3))
        )
        effects = group_effects(scores[part], results.load(f"masks/{family}", "subset train"))
        for kind, (e, truth) in {
            "": (effects, losses),
            "_centred": (lds.centre(effects), lds.centre(losses)),
        }.items():
            row[family + kind] = lds.lds(e, truth).mean().item()
            if family == "report":
                row["low" + kind], row["high" + kind] = lds.interval(
                    lds.bootstrap({"": e}, truth, resamples=resamples)[""]
                )
    return {name: 100 * value for name, value in row.items()}
