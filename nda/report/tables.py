"""Numbers for a reader."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from nda.methods import METHODS, Method
from nda.report.said import interval, versus
from nda.report.style import label


def brackets(low: Iterable[float], high: Iterable[float], *, digits: int = 1) -> list[str]:
    """Intervals as a table shows them; no line ends inside.

    Args:
        low: lower ends.
        high: upper ends.
        digits: after the point.

    Returns:
        One text per interval.
    """
    return [interval(*ends, digits=digits) for ends in zip(low, high, strict=True)]


def table(
    tables: Mapping[str, pd.DataFrame],
    ceilings: Mapping[str, Sequence[float]],
    methods: Mapping[str, Method] = METHODS,
) -> pd.DataFrame:
    """Tables of `nda.evidence.lds.summary` for a reader: one block of rows per table, intervals in
    brackets, the seed ceiling last.

    Args:
        tables: by the name of their block.
        ceilings: value, low and high of each.
        methods: by their names in the tables.

    Returns:
        The table.
    """
    blocks = {}
    for name, values in tables.items():
        columns = {
            "LDS, %": values["lds"].map("{:.1f}".format),
            "95 % interval": brackets(values["low"], values["high"]),
            "gain, %": values["gain"].map("{:+.1f}".format),
            "95 % interval of gain": brackets(values["gain_low"], values["gain_high"]),
        }
        ceiling, low, high = ceilings[name]
        columns["of ceiling, %"] = (
            (100 * values["lds"] / ceiling).map("{:.0f}".format) if ceiling > 0 else ""
        )
        block = pd.DataFrame(columns).set_axis([methods[name].label for name in values["method"]])
        last = {"LDS, %": f"{ceiling:.1f}", "95 % interval": brackets([low], [high])}
        blocks[name] = pd.concat([block, pd.DataFrame(last, index=["Seed ceiling"])]).fillna("")
    return pd.concat(blocks)


def settings_in_use(rows: pd.DataFrame, which: str) -> pd.DataFrame:
    """A table of ablations for a reader: what each setting scores, and its paired difference to the
    setting in use. The verdict is "a hint" where the interval of the difference has zero inside.

    Args:
        rows: of the `table` of a module in `nda.evidence.ablations`.
        which: the queries.

    Returns:
        One row per ablation and setting.
    """
    found = rows[rows["queries"] == which].set_index(["ablation", "setting"])
    words = {"ahead of": "ahead", "behind": "behind", "not shown to differ from": "a hint"}
    ends = list(zip(found["gain_low"], found["gain_high"], strict=True))
    columns = {
        "select": found["select"].map("{:.1f}".format),
        "report": found["report"].map("{:.1f}".format),
        "95 % interval": brackets(found["low"], found["high"]),
        "centred": found["report_centred"].map("{:.1f}".format),
        "gain": found["gain"].map("{:+.1f}".format),
        "95 % interval of gain": brackets(found["gain_low"], found["gain_high"]),
        "verdict": [words[versus(*pair)] if any(pair) else "in use" for pair in ends],
    }
    return pd.DataFrame(columns, found.index)


def agreement(scores: Mapping[str, Float[Tensor, "query train"]]) -> pd.DataFrame:
    """Spearman's rank correlation of every two methods' scores over the train images, the mean over
    queries; ties share their mean rank. A query whose scores are all the same counts as 0.

    Args:
        scores: by a method's key, or by any other name of a row.

    Returns:
        The correlations, one row and one column per method.
    """
    ranks = [torch.from_numpy(rankdata(values.cpu().numpy(), axis=1)) for values in scores.values()]
    centred = [rank - rank.mean(1, keepdim=True) for rank in ranks]
    units = torch.stack([F.normalize(rank, dim=1) for rank in centred])  # [method, query, train]
    names = [label(name) if name in METHODS else name for name in scores]
    means = torch.einsum("aqt,bqt->ab", units, units) / units.shape[1]
    return pd.DataFrame(means.numpy(), names, names)


def differences(
    tables: Mapping[tuple[str, str], pd.DataFrame], methods: Mapping[str, Method] = METHODS
) -> pd.DataFrame:
    """Tables of `nda.evidence.lds.summary` for a reader: each method's difference to their
    reference with its interval, one column per table.

    Args:
        tables: by the title of their column.
        methods: by their names in the tables, in their order.

    Returns:
        The table.
    """
    columns = {}
    for name, values in tables.items():
        ends = brackets(values["gain_low"], values["gain_high"])
        cells = [f"{gain:+.1f} {both}" for gain, both in zip(values["gain"], ends, strict=True)]
        columns[name] = pd.Series(cells, values["method"])
    every = pd.DataFrame(columns)
    return (
        every.reindex([name for name in methods if name in every.index])
        .rename(index={name: method.label for name, method in methods.items()})
        .rename_axis(None)
        .fillna("not run")
    )


def gains(rows: pd.DataFrame, index: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Paired differences for a reader, with their intervals.

    Args:
        rows: columns gain, gain_low, gain_high and those named by the other two.
        index: what names a row of the table.
        columns: what names a column.

    Returns:
        The table, in the order of `rows`.
    """
    ends = brackets(rows["gain_low"], rows["gain_high"])
    cells = [f"{gain:+.1f} {both}" for gain, both in zip(rows["gain"], ends, strict=True)]
    wide = rows.assign(cell=cells).set_index([*index, *columns])["cell"].unstack([*columns])
    order = [rows[[*names]].drop_duplicates() for names in (index, columns)]
    keys = [[*frame.itertuples(index=False, name=None)] for frame in order]
    keys = [[key[0] for key in found] if len(found[0]) == 1 else found for found in keys]
    return wide.loc[keys[0], keys[1]]


def removals(parts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables of `nda.evidence.outcomes.tables` for a reader: one column per measure with the
    difference in hundredths of its unit, its interval and its p-value.

    Args:
        parts: by the name of the measure; rows are arms.

    Returns:
        The table.
    """
    columns = {}
    for measure, table in parts.items():
        ends = brackets(100 * table["low"], 100 * table["high"], digits=2)
        cells = zip(100 * table["more"], ends, table["p"], strict=True)
        columns[f"{measure} x 100"] = [
            f"{more:+.2f} {both}, p = {p:.2g}" for more, both, p in cells
        ]
    return pd.DataFrame(columns, [label(arm) for arm in next(iter(parts.values())).index])


def known_answers(
    tables: Mapping[str, pd.DataFrame],
    cases: Sequence[str],
    columns: Mapping[str, str],
    readings: Sequence[str] = ("as scored",),
    *,
    digits: int = 0,
) -> pd.DataFrame:
    """Tables of `nda.evidence.planted.suite` for a reader: one block of rows per table, the methods
    down, the kinds of queries across. What lacks a figure, for want of maps, is left out.

    Args:
        tables: by the title of their block, with columns method and reading.
        cases: that are shown.
        columns: figures that are shown, with what they are called.
        readings: of the methods; if there are several, they are named.
        digits: after the point.

    Returns:
        The table.
    """
    blocks = {}
    for title, rows in tables.items():
        rows = rows[rows["case"].isin(cases) & rows["reading"].isin(readings)]
        rows = rows.dropna(subset=list(columns)).rename(columns=columns)
        names = rows["method"].map(lambda key: METHODS[key].label)
        if len(readings) > 1:
            names += ", " + rows["reading"]
        index = rows.assign(method=names).set_index(["method", "kind"])
        blocks[title] = index[list(columns.values())].unstack(sort=False)
    both = pd.concat(blocks).map(f"{{:.{digits}f}}".format).replace("nan", "")
    if len(columns) == 1:
        both = both.droplevel(0, axis=1)
    unnamed: Any = [None, None]
    return both.rename_axis(unnamed).rename_axis(columns=unnamed[: both.columns.nlevels])
