"""The one table that matters, for the first page of the book and for the README."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from nda.methods import METHODS
from nda.report.said import interval
from nda.report.style import label

HEADLINE = (
    "random",
    "pixel_dot",
    "efficientnet_cosine",
    "gradient_cosine",
    "nda_imagewise",
    "nda_two_scale",
    "rfi_gated",
    "trak",
    "d_trak",
    "das",
    "ekfac",
)


def headline(
    summaries: Mapping[str, pd.DataFrame], ceilings: Mapping[str, Sequence[float]]
) -> pd.DataFrame:
    """The one table that matters: a few methods, what they need, and how well they predict.

    Args:
        summaries: by the name of the queries ("val", "gen"), a table of `nda.evidence.lds.summary`.
        ceilings: by the same names, (value, low, high) in percent.

    Returns:
        A row per method of `HEADLINE` that is in the tables, and the ceiling; cells are text.
    """
    kinds = {"val": "held-out", "gen": "generated"}
    columns: dict[str, dict[str, str]] = {}
    seen: dict[str, str] = {}
    for which, summary in summaries.items():
        ceiling, low, high = ceilings[which]
        scores = summary.set_index("method").to_dict("index")
        shown, shares = f"{kinds[which]}: LDS, %", f"{kinds[which]}: of ceiling, %"
        columns[shown], columns[shares] = {}, {}
        for row in [row for row in HEADLINE if row in scores]:
            lds = scores[row]
            seen[label(row)] = METHODS[row].needs
            columns[shown][label(row)] = f"{lds['lds']:.1f} {interval(lds['low'], lds['high'])}"
            columns[shares][label(row)] = f"{100 * lds['lds'] / (ceiling or np.nan):.0f}"
        columns[shown]["Ceiling"] = f"{ceiling:.1f} {interval(low, high)}"
    return pd.DataFrame(columns | {"looks at": seen}).fillna("")


def markdown(table: pd.DataFrame) -> str:
    """A table of text as Markdown.

    Args:
        table: a row per line; its index is the first column.

    Returns:
        Lines of a pipe table; the columns between the first and the last are set to the right.
    """
    lines = [["", *table.columns], ["---", *["---:"] * (table.shape[1] - 1), "---"]]
    lines += [[str(name), *cells] for name, cells in zip(table.index, table.values, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
