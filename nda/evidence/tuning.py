"""Choose a damping on the `select` subsets, report it on the `report` subsets, and show what the
oracle would have chosen."""

from collections.abc import Callable, Mapping

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from nda.errors import InputError
from nda.evidence import lds
from nda.evidence.truth import CHOOSE, FAMILIES, REPORT, group_effects
from nda.methods import METHODS
from nda.rivals.kernel import Choice
from nda.store import Store


def lds_path(
    path: Mapping[float, Float[Tensor, "query train"]], queries: str, results: Store
) -> pd.DataFrame:
    """Mean LDS in percent of every damping's scores of the `queries` called "val" or "gen": columns
    `select` and `report`, index damping.

    Truth is the mean of `losses/<family>-<queries>` over seeds and timesteps, groups are
    `masks/<family>`. Each column has its own half of the validation queries; Journey-TRAK, which
    has only generated ones, chooses on all of them. Raises InputError.
    """
    if not path:
        raise InputError(
            "path is empty; pass the scores of at least one damping, for example"
            " nda.rivals.kernel.damping_path(…)"
        )
    columns = {}
    for family in FAMILIES:
        part = CHOOSE if (family, queries) == ("select", "val") else REPORT[queries]
        masks = results.load(f"masks/{family}", "subset train")
        truth = (
            results.load(f"losses/{family}-{queries}", "subset seed query group")[:, :, part]
            .double()
            .mean((1, 3))
        )
        columns[family] = [
            100 * lds.lds(group_effects(scores[part], masks), truth).mean().item()
            for scores in path.values()
        ]
    return pd.DataFrame(columns, pd.Index(list(path), name="damping", dtype=float))


def chosen(path: pd.DataFrame) -> float:
    """The damping with the best LDS on `select`; of equals, the first."""
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
        table = lds_path(path, which, results)
        on = "choosing half of val" if which == "val" else f"all of {which}"
        return Choice(chosen(table), f"select, {on}", table)

    return choose


def _best(path: pd.DataFrame, family: str) -> int:
    return int(path[family].to_numpy().argmax())


def choices(paths: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """One row per method and queries: the damping chosen on `select` with its LDS, and beside it
    the oracle's, chosen on `report` itself.

    paths: tables of `lds_path` by (method, queries). The oracle is what D-TRAK's tables show; it
    sees the answers and is for comparison.
    """
    rows = {}
    for (method, queries), path in paths.items():
        dampings, (here, oracle) = path.index.tolist(), (_best(path, family) for family in FAMILIES)
        rows[METHODS[method].label if method in METHODS else method, queries] = {
            "damping": f"{dampings[here]:.0e}",
            "LDS on select, %": f"{path['select'].iloc[here]:.1f}",
            "LDS on report, %": f"{path['report'].iloc[here]:.1f}",
            "oracle damping, not used": f"{dampings[oracle]:.0e}",
            "oracle LDS on report, %": f"{path['report'].iloc[oracle]:.1f}",
        }
    return pd.DataFrame(rows).T
