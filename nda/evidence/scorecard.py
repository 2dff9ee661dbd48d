"""Anybody's attribution matrix against the retrained models of a profile: what `python -m nda
score` prints."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import frexp, nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Num
from torch import Tensor

from nda.errors import InputError
from nda.evidence import lds
from nda.evidence.records import check_results, recorded_effects
from nda.evidence.truth import Truth, find_results, group_effects
from nda.methods import recorded
from nda.store import Store

NULL, YOURS = "random", "yours"
# standard deviations of the bootstrap, which on `small` are 1.7 times those of random scores
CLEARLY = 3
ABOUT = {
    "summary": (
        "Your LDS with its 95 % interval; the null, which is random scores; the ceiling; your share"
        " of the ceiling. All in percent."
    ),
    "by_timestep": "Your LDS against the losses of these timesteps alone, and the ceiling there.",
    "against": (
        "The LDS of every method that is shipped, and yours minus theirs with the 95 % interval of"
        " that difference."
    ),
}


@dataclass(frozen=True)
class Report:
    """What `score` finds, in percent; print it to read it.

    Attributes:
        summary: rows `plain` and `centred`; the LDS with its interval, the null's, the seed
            ceiling's, and the share LDS / ceiling (NaN where the ceiling is 0).
        by_timestep: one row per group of timesteps, columns (`plain` | `centred`, `LDS` |
            `ceiling`).
        against: one row per method that is recorded, in the order of the catalogue, columns
            (`plain` | `centred`, `LDS` of that method | `difference`, yours minus theirs | `low` |
            `high`).
        source: the folder of the results that the scores were held against.
        silent: queries whose scores are the same for every train image; their LDS is zero.
    """

    summary: pd.DataFrame
    by_timestep: pd.DataFrame
    against: pd.DataFrame
    source: Path
    silent: int = 0

    def __str__(self) -> str:
        """Where the truth is from, and the three tables with one decimal, each under its title."""
        parts = [f"Held against the retrained models in {self.source}."]
        if self.silent:
            parts.append(
                f"Of {self.silent} queries the scores are the same for every train image; they rank"
                " nothing, and their LDS is zero."
            )
        for name, about in ABOUT.items():
            table = getattr(self, name).rename_axis(index=None).round(1) + 0.0  # no "-0.0"
            parts.append(f"{about}\n{table.to_string(float_format='{:.1f}'.format, na_rep='-')}")
        return "\n\n".join(parts)


def load_scores(path: Path | str) -> Float[Tensor, "query train"]:
    """The matrix in a `.npy` file as float64, not yet checked against any profile. Nothing is
    unpickled.

    Args:
        path: of the file.

    Returns:
        The scores.

    Raises:
        InputError: unless it is a two-dimensional array of real numbers.
    """
    try:
        with Path(path).open("rb") as file:
            values = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist; write your scores there with numpy.save"
        ) from None
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}); name a file written by numpy.save"
        ) from None
    except Exception:  # of a damaged header, anything: MemoryError and TokenError for two
        raise InputError(
            f"{path} is not a .npy file of plain numbers (no .npz, pickle or text); write it with"
            " numpy.save"
        ) from None
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise InputError(
            f"{path} must hold a matrix [query, train] of real numbers, not {values.dtype} of shape"
            f" {values.shape}"
        )
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))


def score(
    scores: Num[Tensor, "query train"],
    which: str,
    results: Store | str,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Report:
    """Judge scores by the `report` subsets among the results, as the LDS page judges its methods.
    All methods meet the same resamples of subsets and queries.

    Args:
        scores: higher = keeping the train image lowers the query's loss; one row for every query,
            though only those in `REPORT` count. Centring is over those, too.
        which: "val" or "gen", the queries that were scored.
        results: a results store, or the name of a profile (see `nda.evidence.truth.find_results`).
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        Three tables.

    Raises:
        InputError: for scores of another shape, transposed or with entries that are not finite, and
            if there are no results, or they lack the masks, the losses or the null's effects.
    """
    store = find_results(results) if isinstance(results, str) else results
    if isinstance(results, str) and not any(store.names()):
        raise InputError(
            f"profile {results!r} has no results in {store.folder}; name one that has been run,"
            " such as small, whose results come with the book"
        )
    check_results(store)
    truth = Truth.load(store, "report", which)
    _check(scores, (truth.n_queries, truth.masks.shape[1]), which)
    if truth.n_queries == truth.masks.shape[1]:
        _check_direction(scores, Truth.load(store, "select", which, "all"))
    effects = {YOURS: truth.effects(_scaled(scores)).float().double()}  # as the others are kept
    effects |= recorded_effects(store, truth)
    store.info(f"effects/{NULL}-{which}")
    kinds = {"plain": truth, "centred": truth.centred()}
    tables = [_tables(effects, kind, resamples=resamples, seed=seed) for kind in kinds.values()]
    summary = [table[0] for table in tables]
    labels = {name: method.label for name, method in recorded(store, which).items()}
    by_timestep, against = (
        pd.concat([table[i] for table in tables], axis=1, keys=list(kinds)).rename(index=labels)
        for i in (1, 2)
    )
    rows = pd.DataFrame(summary, index=list(kinds))
    silent = int((scores == scores[:, :1]).all(1).sum())
    return Report(rows, by_timestep, against, store.folder, silent)


def _check(scores: Tensor, shape: tuple[int, int], which: str) -> None:
    if scores.shape != shape:
        wanted = (
            f"scores must be [query={shape[0]}, train={shape[1]}] for the {which} queries, not"
            f" {tuple(scores.shape)}"
        )
        if scores.shape == shape[::-1]:
            raise InputError(f"{wanted}; they look transposed, pass scores.T")
        raise InputError(
            f"{wanted}; give one row for every query, also for those that are not reported, and one"
            " column for every train image"
        )
    if scores.is_complex() or scores.dtype == torch.bool:
        raise InputError(f"scores must be real numbers, not {scores.dtype}; convert them to float")
    bad = (~scores.isfinite()).nonzero().tolist()
    if bad:
        raise InputError(
            f"scores have {len(bad)} NaN or infinite entries, the first at query {bad[0][0]}, train"
            f" image {bad[0][1]}; every entry must be a finite number"
        )


def _check_direction(scores: Float[Tensor, "query train"], truth: Truth) -> None:
    """Refuse a square matrix if on `select` its transpose predicts the losses far better."""
    both = {
        name: group_effects(_scaled(s), truth.masks)
        for name, s in (("given", scores), ("turned", scores.T))
    }
    draws = lds.bootstrap(both, truth.mean, resamples=200, seed=0)
    found = [draws["turned"], draws["turned"] - draws["given"]]
    if all(values.mean() > CLEARLY * values.std() for values in found):
        raise InputError(
            "scores look transposed: on the `select` subsets scores.T predicts the losses far"
            " better; pass scores.T"
        )


def _scaled(scores: Tensor) -> Tensor:
    """Scores times a power of two, the largest near 1, so that every effect fits into float32."""
    exponent = frexp(scores.abs().max().item())[1]
    return scores.double() * 2.0 ** -max(exponent, -1000)


def _tables(
    effects: Mapping[str, Float[Tensor, "subset query"]],
    truth: Truth,
    *,
    resamples: int,
    seed: int,
) -> tuple[pd.Series, pd.DataFrame, pd.DataFrame]:
    """A row of the summary, and the plain or the centred half of the other two tables."""
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    rows = truth.summary(effects, reference=YOURS, **options).set_index("method")
    values, ceiling = rows[["lds", "low", "high"]].T, truth.ceiling(**options)
    names = [
        f"{prefix}{end}" for prefix in ("", "null ", "ceiling ") for end in ("LDS", "low", "high")
    ]
    summary = dict(zip(names, [*values[YOURS], *values[NULL], *ceiling], strict=True))
    summary["share of ceiling"] = 100 * summary["LDS"] / ceiling[0] if ceiling[0] else nan
    groups = truth.by_timestep()
    by_timestep = {
        "LDS": [100 * group.lds(effects[YOURS]).mean().item() for group in groups.values()],
        "ceiling": [100 * group.seed_ceiling()[1] for group in groups.values()],
    }
    theirs = rows.drop(YOURS)  # their gain is theirs minus yours
    against = {
        "LDS": theirs["lds"],
        "difference": 0 - theirs["gain"],
        "low": 0 - theirs["gain_high"],
        "high": 0 - theirs["gain_low"],
    }
    return (
        pd.Series(summary),
        pd.DataFrame(by_timestep, pd.Index(list(groups), name="timesteps")),
        pd.DataFrame(against),
    )
