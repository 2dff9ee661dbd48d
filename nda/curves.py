"""How a method is set and what it finds: damping paths, spectra, first proponents of several methods and how far they agree."""

from collections.abc import Mapping

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy.stats import rankdata
from torch import Tensor

from nda.figures import INK, brackets, canvas, label, show
from nda.methods import METHODS

QUIET = {"color": "#bbbbbb", "linewidth": 1, "zorder": 0}


def damping_paths(paths: Mapping[str, pd.DataFrame], *, columns: int = 3) -> Figure:
    """One panel per method: LDS in percent against the relative damping, which is the index of its table.

    Column `select`, solid, with its best damping marked: the choice. Column `report`, dashed, with its best damping hollow: the oracle
    that papers use, shown and not used.
    """
    columns = min(columns, len(paths))
    rows = -(-len(paths) // columns)
    figure, axes = canvas(3.4 * columns + 0.4, 2.5 * rows + 0.4, rows, columns, sharey=True)
    for place, (method, path) in zip(axes.flat, paths.items(), strict=False):
        colour = METHODS[method].colour
        place.axhline(0, **QUIET)
        place.plot(path.index, path["report"], "--", color=INK, linewidth=1, label="report, not used")
        place.plot(path["report"].idxmax(), path["report"].max(), "o", markerfacecolor="white", color=INK, label="oracle, not used")
        place.plot(path.index, path["select"], color=colour, linewidth=2, label="select")
        place.plot(path["select"].idxmax(), path["select"].max(), "o", color=colour, markersize=8, label="chosen")
        place.set(xscale="log", xlabel="damping / mean eigenvalue")
        place.set_title(label(method), fontsize=10)
    for place in axes.flat[len(paths) :]:
        place.set_axis_off()
    for row in axes:
        row[0].set_ylabel("LDS, %")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    return figure


def spectra(eigenvalues: Mapping[str, Float[Tensor, "eigen"]]) -> Figure:
    """Eigenvalues of each method's curvature, from the largest to the smallest, on logarithmic axes; their mean is dotted."""
    figure, axes = canvas(5.6, 3.1)
    place = axes[0, 0]
    for method, values in eigenvalues.items():
        ordered = values.flatten().sort(descending=True).values.cpu().numpy()
        colour = METHODS[method].colour
        place.plot(range(1, len(ordered) + 1), ordered, color=colour, linewidth=2, label=label(method))
        place.axhline(ordered.mean(), color=colour, linestyle=":", linewidth=1.5, label="its mean")
    top = max(float(values.max()) for values in eigenvalues.values())
    place.set(xscale="log", yscale="log", ylim=(1e-10 * top, 3 * top), xlabel="rank of the eigenvalue", ylabel="eigenvalue")
    place.yaxis.set_major_locator(mpl.ticker.LogLocator(numticks=6))
    place.legend(fontsize=9)
    return figure


def first_proponents(
    query: Float[Tensor, "chan row col"],
    train: Float[Tensor, "train chan row col"],
    scores: Mapping[str, Float[Tensor, "train"]],
    *,
    top: int = 7,
) -> Figure:
    """One row per method: the query, then the train images that it scores highest, by their numbers, and dotted the lowest.

    scores: of this query, by a method's key, or by any other name of a row.
    """
    figure, axes = canvas(0.9 * (top + 2) + 1.7, 1.06 * len(scores), len(scores), top + 2)
    for row, (method, values) in zip(axes, scores.items(), strict=True):
        show(row[0], query)
        name = label(method) if method in METHODS else method
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        row[0].spines[:].set(visible=True, color=METHODS[method].colour if method in METHODS else INK, linewidth=2)
        for place, index in zip(row[1:], [*values.topk(top).indices.tolist(), int(values.argmin())], strict=True):
            show(place, train[index], str(index))
        row[-1].spines[:].set(visible=True, color="#9a9a9a", linewidth=1, linestyle=":")
    return figure


def agreement(scores: Mapping[str, Float[Tensor, "query train"]]) -> pd.DataFrame:
    """Spearman's rank correlation of every two methods' scores over the train images, the mean over queries; ties share their mean rank.

    scores: by a method's key, or by any other name of a row. A query whose scores are all the same counts as 0.
    """
    ranks = [torch.from_numpy(rankdata(values.cpu().numpy(), axis=1)) for values in scores.values()]
    units = torch.stack([F.normalize(rank - rank.mean(1, keepdim=True), dim=1) for rank in ranks])  # [method, query, train]
    names = [label(name) if name in METHODS else name for name in scores]
    return pd.DataFrame((torch.einsum("aqt,bqt->ab", units, units) / units.shape[1]).numpy(), names, names)


def differences(tables: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """Tables of `nda.lds.summary` for a reader: each method's difference to their reference with its interval, one column per table."""
    columns = {}
    for name, values in tables.items():
        intervals = brackets(values["gain_low"], values["gain_high"])
        cells = [f"{gain:+.1f} {interval}" for gain, interval in zip(values["gain"], intervals, strict=True)]
        columns[name] = pd.Series(cells, values["method"])
    every = pd.DataFrame(columns)
    return every.reindex([method for method in METHODS if method in every.index]).rename(index=label).rename_axis(None).fillna("not run")


def heat(tables: Mapping[str, pd.DataFrame], *, xlabel: str, unit: str) -> Figure:
    """Tables of numbers as colours, side by side, with the numbers in the cells; one scale around 0 for all."""
    rows, widths = max(map(len, tables.values())), [table.shape[1] for table in tables.values()]
    figure, axes = canvas(2.4 + 0.55 * sum(widths), 1.1 + 0.24 * rows, 1, len(tables), sharey=True, width_ratios=widths)
    limit = max(1e-9, *(float(table.abs().to_numpy().max()) for table in tables.values()))
    for place, (title, table) in zip(axes[0], tables.items(), strict=True):
        image = place.imshow(table, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
        place.set_xticks(range(table.shape[1]), table.columns, rotation=45, ha="right", fontsize=8)
        place.set_yticks(range(len(table)), table.index, fontsize=9)
        place.set_xlabel(xlabel)
        place.set_title(title, fontsize=10)
        place.tick_params(length=0)
        for (row, column), value in np.ndenumerate(table.to_numpy()):
            colour = "white" if abs(value) > 0.6 * limit else INK
            place.text(column, row, f"{np.round(value) + 0.0:.0f}", ha="center", va="center", fontsize=8, color=colour)  # + 0.0: no "-0"
    figure.colorbar(image, ax=axes, label=unit, pad=0.02)
    return figure


def settings(rows: pd.DataFrame, *, columns: int = 3) -> Figure:
    """One panel per `ablation`: LDS on `report` with its interval against the settings, `val` full and `gen` hollow; grey, what `select`
    says of `val`. rows: of `nda.ablations.table`."""
    names = list(dict.fromkeys(rows["ablation"]))
    columns = min(columns, len(names))
    figure, axes = canvas(3.4 * columns, 2.7 * -(-len(names) // columns), -(-len(names) // columns), columns, sharey=True)
    for place, name in zip(axes.flat, names, strict=False):
        for kind, shift in (("val", -0.12), ("gen", 0.12)):
            found = rows[(rows["ablation"] == name) & (rows["queries"] == kind)].reset_index()
            where, colour = found.index + shift, METHODS["nda" if kind == "val" else "nda_coarse"].colour
            place.vlines(where, found["low"], found["high"], color=colour, linewidth=2)
            place.plot(where, found["report"], "o", color=colour, markersize=6, label=f"{kind}, report")
            if kind == "val":
                place.plot(found.index, found["select"], "_", color=INK, markersize=12, label="val, select")
                place.set_xticks(found.index, found["setting"], fontsize=8, rotation=30 if found["setting"].str.len().max() > 5 else 0)
                place.set_xlim(-0.6, len(found) - 0.4)
        place.axhline(0, **QUIET)
        place.set_title(name, fontsize=10)
    for place in axes.flat[len(names) :]:
        place.set_axis_off()
    for row in axes:
        row[0].set_ylabel("LDS, %")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return figure
