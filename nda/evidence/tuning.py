"""Choose a damping on the `select` subsets, report it on the `report` subsets, and show what the
oracle would have chosen."""

from collections.abc import Callable, Mapping

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from nda.errors import InputError
from nda.evidence.truth import FAMILIES, Truth, truths
from nda.methods import METHODS
from nda.rivals.kernel import Choice
from nda.store import Store


def lds_path(
    path: Mapping[float, Float[Tensor, "query train"]], truths: Mapping[str, Truth]
) -> pd.DataFrame:
    """Mean LDS of every damping's scores, on `select` and on `report`.

    Args:
        path: the scores of all queries by damping.
        truths: of `nda.evidence.truth.truths`, about these queries. Each family has its own half
            of the validation queries; Journey-TRAK, which has only generated ones, chooses on all.

    Returns:
        Columns `select` and `report`, in percent, index damping.

    Raises:
        InputError: if there is no damping, or if scores do not fit.
    """
    if not path:
        raise InputError(
            "path is empty; pass the scores of at least one damping, for example"
            " nda.rivals.kernel.damping_path(…)"
        )
    columns = {
        family: [100 * truth.lds(truth.effects(s)).mean().item() for s in path.values()]
        for family, truth in truths.items()
    }
    return pd.DataFrame(columns, pd.Index(list(path), name="damping", dtype=float))


def chosen(path: pd.DataFrame) -> float:
    """The damping with the best LDS on `select`; of equals, the first.

    Args:
        path: a table of `lds_path`.

    Returns:
        The damping.
    """
    return path.index.tolist()[_best(path, "select")]


def chooser(results: Store) -> Callable[[Mapping[float, Tensor], str], Choice]:
    """How a bench chooses a damping: by the best LDS on the `select` subsets, for the choosing half
    of the validation queries, or for all generated ones.

    Args:
        results: masks and losses.

    Returns:
        A function of the scores of every damping and the name of their queries, for
        `nda.rivals.bench.Bench`.
    """

    def choose(path: Mapping[float, Float[Tensor, "query train"]], which: str) -> Choice:
        table = lds_path(path, truths(results, which))
        on = "choosing half of val" if which == "val" else f"all of {which}"
        return Choice(chosen(table), f"select, {on}", table)

    return choose


def _best(path: pd.DataFrame, family: str) -> int:
    return int(path[family].to_numpy().argmax())


def choices(paths: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """One row per method and kind of queries: the damping chosen on `select` with its LDS, and
    beside it the oracle's, chosen on `report` itself. The oracle is what D-TRAK's tables show; it
    sees the answers and is for comparison.

    Args:
        paths: tables of `lds_path` by (method, which), the latter "val" or "gen".

    Returns:
        The choices, for a reader.
    """
    rows = {}
    for (method, which), path in paths.items():
        dampings, (here, oracle) = path.index.tolist(), (_best(path, family) for family in FAMILIES)
        rows[METHODS[method].label if method in METHODS else method, which] = {
            "damping": f"{dampings[here]:.0e}",
            "LDS on select, %": f"{path['select'].iloc[here]:.1f}",
            "LDS on report, %": f"{path['report'].iloc[here]:.1f}",
            "oracle damping, not used": f"{dampings[oracle]:.0e}",
            "oracle LDS on report, %": f"{path['report'].iloc[oracle]:.1f}",
        }
    return pd.DataFrame(rows).T
