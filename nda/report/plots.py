"""Arrays in, matplotlib figures out."""

import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from torch import Tensor

from nda.methods import METHODS, Method
from nda.report.style import INK, canvas, label

QUIET = {"color": "#bbbbbb", "linewidth": 1, "zorder": 0}


def masks(
    keep: Bool[Tensor, "subset train"], labels: Float[Tensor, "train"], classes: Sequence[str]
) -> Figure:
    """Which train images each subset keeps, sorted by class.

    Args:
        keep: True where a subset keeps an image.
        labels: the class of each train image.
        classes: the names of the classes.

    Returns:
        The figure.
    """
    order = labels.argsort(stable=True)
    figure, axes = canvas(8, 0.5 + 0.13 * len(keep))
    panel = axes[0, 0]
    panel.imshow(
        keep[:, order].numpy(),
        cmap=mpl.colors.ListedColormap(["#f2efe9", METHODS["nda"].colour]),
        aspect="auto",
        interpolation="nearest",
    )
    edges = np.flatnonzero(np.diff(labels[order].numpy())) + 0.5
    for edge in edges:
        panel.axvline(edge, color="white", linewidth=1.5)
    bounds = np.concatenate([[-0.5], edges, [len(labels) - 0.5]])
    present = [classes[i] for i in labels.unique().tolist()]
    panel.set_xticks((bounds[1:] + bounds[:-1]) / 2, present)
    panel.set(xlabel="train image, grouped by class", ylabel="subset", yticks=[0, len(keep) - 1])
    return figure


def training(curve: Float[Tensor, "step"], window: int = 20) -> Figure:
    """Training loss per step, with a running mean.

    Args:
        curve: the losses.
        window: steps in the running mean.

    Returns:
        The figure.
    """
    figure, axes = canvas(6.5, 2.8)
    values = curve.numpy()
    smooth = pd.Series(values).rolling(window, min_periods=1).mean()
    axes[0, 0].plot(values, color="#c9d8dd", linewidth=0.8, label="one step")
    axes[0, 0].plot(smooth, color=METHODS["nda"].colour, label=f"mean of {window} steps")
    axes[0, 0].set(xlabel="training step", ylabel="noise-prediction loss", yscale="log")
    axes[0, 0].legend(loc="upper right")
    return figure


def signal_by_timestep(table: pd.DataFrame) -> Figure:
    """Mean loss, its spread over subsets and the seed ceiling, by timestep.

    Args:
        table: columns timestep, loss, spread, ceiling.

    Returns:
        The figure.
    """
    figure, axes = canvas(8, 2.7, 1, 2)
    left, right = axes[0]
    times, dots = table["timestep"], {"marker": "o", "markersize": 4}
    left.plot(times, table["loss"], color=INK, label="mean", **dots)
    pale = METHODS["pixel_dot"].colour
    left.plot(times, table["spread"], color=pale, label="s.d. over subsets", **dots)
    left.set(xlabel="timestep of the loss", ylabel="loss", yscale="log")
    left.legend()
    right.axhline(0, color="#bbbbbb", linewidth=1)
    right.plot(times, 100 * table["ceiling"], color=METHODS["nda"].colour, **dots)
    right.set(xlabel="timestep of the loss", ylabel="agreement of seeds, %")
    return figure


def scaling(tables: Mapping[str, pd.DataFrame], *, ylabel: str) -> Figure:
    """One log-log panel per table, one line per column.

    Args:
        tables: by the panel's title; the named index of a table is the abscissa.
        ylabel: what the columns measure.

    Returns:
        The figure.
    """
    figure, axes = canvas(3.1 * len(tables), 2.9, 1, len(tables), sharey=True)
    keys = ("nda", "pixel_dot", "nda_coarse", "nda_two_scale")
    nda, pixels, coarse, both = (METHODS[key].colour for key in keys)
    colours = (nda, pixels, "#7a7a7a", coarse, both)
    for panel, (title, values) in zip(axes[0], tables.items(), strict=True):
        for colour, name in zip(colours, values, strict=False):
            panel.plot(values.index, values[name], "o-", color=colour, markersize=4, label=name)
        panel.set(xscale="log", yscale="log", xlabel=values.index.name, title=title)
        if values.index.max() < 1000 * values.index.min():  # the values fit side by side
            panel.xaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
            panel.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
            panel.set_xticks(list(values.index))
        panel.legend(fontsize=8)
    axes[0, 0].set_ylabel(ylabel)
    return figure


def stages(hours: pd.DataFrame, known: pd.DataFrame) -> Figure:
    """What runs cost, stage by stage from top to bottom, on a logarithmic axis; a dot is filled
    where it is known.

    Args:
        hours: by stage and profile; what is not above zero is not shown.
        known: the same shape: True where a stage has been run, False where it is extrapolated.

    Returns:
        The figure.
    """
    figure, axes = canvas(7.6, 1.2 + 0.24 * len(hours))
    panel, colours = axes[0, 0], (INK, METHODS["nda"].colour)
    for name, colour in zip(hours, colours, strict=True):
        for told, words, fill in ((True, "run", "full"), (False, "extrapolated", "none")):
            shown = hours[name].reset_index(drop=True)[known[name].to_numpy() == told]
            shown = shown[shown > 0]
            if len(shown):
                panel.plot(shown, shown.index, "o", color=colour, fillstyle=fill)
                panel.lines[-1].set_label(f"{name}, {words}")
    panel.set(xscale="log", xlabel="hours of one core, all tasks of the stage")
    panel.set_yticks(range(len(hours)), list(hours.index))
    panel.set_ylim(len(hours) - 0.5, -0.5)
    panel.grid(axis="x", alpha=0.3)
    panel.legend(fontsize=8)
    return figure


def bars(
    groups: Mapping[str, Float[Tensor, "item"]], *, xlabel: str, ylabel: str, method: str = "nda"
) -> Figure:
    """One panel of bars per group, on a common scale.

    Args:
        groups: the heights, by the panel's title.
        xlabel: what an item is.
        ylabel: what a height measures.
        method: the key of the one whose colour they have.

    Returns:
        The figure.
    """
    figure, axes = canvas(2.6 * len(groups), 2.3, 1, len(groups), sharey=True)
    for panel, (title, values) in zip(axes[0], groups.items(), strict=True):
        panel.bar(range(len(values)), values.cpu().numpy(), color=METHODS[method].colour)
        panel.set(title=title, xlabel=xlabel)
    axes[0, 0].set_ylabel(ylabel)
    return figure


def intervals(
    tables: Mapping[str, pd.DataFrame],
    ceilings: Mapping[str, Sequence[float]],
    methods: Mapping[str, Method] = METHODS,
    *,
    columns: int = 2,
) -> Figure:
    """One panel per table of `nda.evidence.lds.summary`, methods from top to bottom, the seed
    ceiling dashed in its interval; all in percent.

    Args:
        tables: by the title of their panel.
        ceilings: value, low and high of each; one that is NaN is not drawn.
        methods: by their names in the tables, in their order from top to bottom.
        columns: of panels.

    Returns:
        The figure.
    """
    names = [m for m in methods if any((table["method"] == m).any() for table in tables.values())]
    count = len(names)
    rows = -(-len(tables) // columns)
    figure, axes = canvas(
        4.1 * columns, rows * (1.0 + 0.22 * count), rows, columns, sharex=True, sharey=True
    )
    for panel, (title, table) in zip(axes.flat, tables.items(), strict=True):
        for row in table.itertuples():
            height, colour = names.index(str(row.method)), methods[str(row.method)].colour
            bar = {"linewidth": 2.5, "solid_capstyle": "butt"}
            panel.plot([row.low, row.high], [height, height], color=colour, **bar)
            panel.plot(row.lds, height, "o", color=colour, markersize=7)
        panel.axvline(0, **QUIET)
        ceiling, low, high = ceilings[title]
        panel.set_title(title, loc="left")
        if not math.isnan(ceiling):
            panel.axvspan(low, high, color="#f0eee8", zorder=-1)
            panel.axvline(ceiling, color=INK, linestyle="--", linewidth=1, zorder=0)
            at = {"xycoords": ("data", "axes fraction"), "ha": "center", "fontsize": 8}
            panel.annotate("ceiling", (ceiling, 1.02), **at)
        panel.set_ylim(count - 0.5, -0.5)
    for panel in axes[-1]:
        panel.set_xlabel("LDS, %")
    axes[0, 0].set_yticks(range(count), [methods[name].label for name in names])
    return figure


def scatter(
    effects: Float[Tensor, "subset"], losses: Float[Tensor, "subset"], *, xlabel: str, ylabel: str
) -> Figure:
    """Predicted effect against true loss, one point per retrained model.

    Args:
        effects: the predictions for one query.
        losses: what the retrained models lose on it.
        xlabel: what an effect is.
        ylabel: what a loss is.

    Returns:
        The figure.
    """
    figure, axes = canvas(3.6, 2.9)
    axes[0, 0].plot(effects.numpy(), losses.numpy(), "o", color=METHODS["nda"].colour, markersize=5)
    axes[0, 0].set(xlabel=xlabel, ylabel=ylabel)
    return figure


def _frame(figure: Figure, axes: np.ndarray, *, used: int) -> None:
    """What panels of LDS share: no empty ones, one label per row, one legend below all."""
    for panel in axes.flat[used:]:
        panel.set_axis_off()
    for row in axes:
        row[0].set_ylabel("LDS, %")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)


def damping_paths(paths: Mapping[str, pd.DataFrame], *, columns: int = 3) -> Figure:
    """One panel per method: LDS in percent against the relative damping.

    Column `select`, solid, with its best damping marked: the choice. Column `report`, dashed, with
    its best damping hollow: the oracle that papers use, shown and not used.

    Args:
        paths: a table by a method's key; its index is the damping divided by the mean eigenvalue.
        columns: panels in a row.

    Returns:
        The figure.
    """
    columns = min(columns, len(paths))
    rows = -(-len(paths) // columns)
    figure, axes = canvas(3.4 * columns + 0.4, 2.5 * rows + 0.4, rows, columns, sharey=True)
    for panel, (method, path) in zip(axes.flat, paths.items(), strict=False):
        colour = METHODS[method].colour
        panel.axhline(0, **QUIET)
        select, report = path["select"], path["report"]
        oracle, chosen = (report.idxmax(), report.max()), (select.idxmax(), select.max())
        hollow = {"color": INK, "markerfacecolor": "white"}
        panel.plot(path.index, report, "--", color=INK, linewidth=1, label="report, not used")
        panel.plot(*oracle, "o", label="oracle, not used", **hollow)
        panel.plot(path.index, select, color=colour, linewidth=2, label="select")
        panel.plot(*chosen, "o", color=colour, markersize=8, label="chosen")
        panel.set(xscale="log", xlabel="damping / mean eigenvalue")
        panel.set_title(label(method), fontsize=10)
    _frame(figure, axes, used=len(paths))
    return figure


def spectra(eigenvalues: Mapping[str, Float[Tensor, "..."]]) -> Figure:
    """Eigenvalues of each method's curvature, from the largest to the smallest, on logarithmic
    axes; their mean is dotted.

    Args:
        eigenvalues: by a method's key, in any shape.

    Returns:
        The figure.
    """
    figure, axes = canvas(5.6, 3.1)
    panel = axes[0, 0]
    for method, values in eigenvalues.items():
        ordered = values.flatten().sort(descending=True).values.cpu().numpy()
        colour = METHODS[method].colour
        panel.plot(
            range(1, len(ordered) + 1), ordered, color=colour, linewidth=2, label=label(method)
        )
        panel.axhline(ordered.mean(), color=colour, linestyle=":", linewidth=1.5, label="its mean")
    top = max(float(values.max()) for values in eigenvalues.values())
    panel.set(
        xscale="log",
        yscale="log",
        ylim=(1e-10 * top, 3 * top),
        xlabel="rank of the eigenvalue",
        ylabel="eigenvalue",
    )
    panel.yaxis.set_major_locator(mpl.ticker.LogLocator(numticks=6))
    panel.legend(fontsize=9)
    return figure


def heat(tables: Mapping[str, pd.DataFrame], *, xlabel: str, unit: str, ylabel: str = "") -> Figure:
    """Tables of numbers as colours, side by side, with the numbers in the cells; one scale around 0
    for all.

    Args:
        tables: by the panel's title, all with the same rows.
        xlabel: what a column is.
        unit: what the numbers measure.
        ylabel: what a row is, unless its name says so.

    Returns:
        The figure.
    """
    rows, widths = max(map(len, tables.values())), [table.shape[1] for table in tables.values()]
    size = (2.4 + 0.55 * sum(widths), 1.1 + 0.24 * rows)
    figure, axes = canvas(*size, 1, len(tables), sharey=True, width_ratios=widths)
    limit = max(1e-9, *(float(table.abs().to_numpy().max()) for table in tables.values()))
    for panel, (title, table) in zip(axes[0], tables.items(), strict=True):
        image = panel.imshow(table, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
        panel.set_xticks(range(table.shape[1]), table.columns, rotation=45, ha="right", fontsize=8)
        panel.set_yticks(range(len(table)), table.index, fontsize=9)
        panel.set_xlabel(xlabel)
        panel.set_title(title, fontsize=10)
        panel.tick_params(length=0)
        for (row, column), value in np.ndenumerate(table.to_numpy()):
            colour = "white" if abs(value) > 0.6 * limit else INK
            text = f"{np.round(value) + 0.0:.0f}"  # + 0.0: no "-0"
            panel.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    axes[0, 0].set_ylabel(ylabel)
    figure.colorbar(image, ax=axes, label=unit, pad=0.02)
    return figure


def settings(rows: pd.DataFrame, *, columns: int = 3) -> Figure:
    """One panel per `ablation`: LDS on `report` with its interval against the settings, `val` dark
    and `gen` pale; a dash, what `select` says of `val`. Hollow points are not shown to differ from
    the setting in use, whose name is bold: zero is in the interval of their `gain`.

    Args:
        rows: of the `table` of a module in `nda.evidence.ablations`.
        columns: panels in a row.

    Returns:
        The figure.
    """
    names = list(dict.fromkeys(rows["ablation"]))
    columns = min(columns, len(names))
    rows_of_panels = -(-len(names) // columns)
    size = (3.4 * columns, 2.7 * rows_of_panels)
    figure, axes = canvas(*size, rows_of_panels, columns, sharey=True)
    for panel, name in zip(axes.flat, names, strict=False):
        for kind, shift in (("val", -0.12), ("gen", 0.12)):
            found = rows[(rows["ablation"] == name) & (rows["queries"] == kind)].reset_index()
            where = found.index + shift
            colour = METHODS["nda" if kind == "val" else "nda_coarse"].colour
            panel.vlines(where, found["low"], found["high"], color=colour, linewidth=2)
            panel.plot(
                where, found["report"], "o", color=colour, markersize=6, label=f"{kind}, report"
            )
            moved = (found["gain_low"] != 0) | (found["gain_high"] != 0)
            hint = moved & (found["gain_low"] <= 0) & (found["gain_high"] >= 0)
            if hint.any():
                panel.plot(where[hint], found["report"][hint], "o", color="white", markersize=3.5)
            if kind == "val":
                panel.plot(
                    found.index, found["select"], "_", color=INK, markersize=12, label="val, select"
                )
                turned = 30 if found["setting"].str.len().max() > 5 else 0
                panel.set_xticks(found.index, found["setting"], fontsize=8, rotation=turned)
                for tick, own in zip(panel.get_xticklabels(), ~moved, strict=True):
                    tick.set_fontweight("bold" if own else "normal")
                panel.set_xlim(-0.6, len(found) - 0.4)
        panel.axhline(0, **QUIET)
        panel.set_title(name, fontsize=10)
    _frame(figure, axes, used=len(names))
    return figure


def slopes(rows: pd.DataFrame) -> Figure:
    """How much of a predicted influence comes true, by the distance of the train images, with its
    interval: one panel per kind of queries. A diamond is the mean factor of a gate.

    Args:
        rows: of `nda.evidence.bands.slopes`, with the columns queries and gate; band is a name.

    Returns:
        The figure.
    """
    kinds = list(dict.fromkeys(rows["queries"]))
    figure, axes = canvas(3.6 * len(kinds), 2.8, 1, len(kinds), sharey=True)
    true, opened = METHODS["rfi"].colour, METHODS["rfi_gated"].colour
    for panel, kind in zip(axes[0], kinds, strict=True):
        found = rows[rows["queries"] == kind].reset_index()
        for height in (0, 1):
            panel.axhline(height, **QUIET)
        panel.vlines(found.index - 0.08, found["low"], found["high"], color=true, linewidth=2)
        panel.plot(found.index - 0.08, found["slope"], "o", color=true, label="comes true")
        panel.plot(found.index + 0.08, found["gate"], "D", color=opened, label="factor of the gate")
        panel.set_xticks(found.index, found["band"])
        panel.set(xlabel="third of the train images", xlim=(-0.5, len(found) - 0.5))
        panel.set_title(f"{kind} queries", fontsize=10)
    axes[0, 0].set_ylabel("true by predicted effect")
    axes[0, -1].legend(fontsize=8)
    return figure


def stand_ins(rows: pd.DataFrame, lines: Mapping[str, Mapping[str, float]]) -> Figure:
    """The LDS of methods that are asked about one model after another, with its interval: one panel
    per kind of queries, models from top to bottom.

    Args:
        rows: of `nda.evidence.proxies.table`.
        lines: by kind of queries, the LDS of methods that see no model, by their keys.

    Returns:
        The figure.
    """
    kinds, models, methods = (list(dict.fromkeys(rows[c])) for c in ("queries", "proxy", "method"))
    figure, axes = canvas(4.3 * len(kinds), 0.9 + 0.45 * len(models), 1, len(kinds), sharey=True)
    for panel, kind in zip(axes[0], kinds, strict=True):
        for place, method in enumerate(methods):
            found = rows[(rows["queries"] == kind) & (rows["method"] == method)]
            heights = found["proxy"].map(models.index) + 0.2 * (place - (len(methods) - 1) / 2)
            one = METHODS[method.partition("-")[0]]
            panel.hlines(heights, found["low"], found["high"], color=one.colour, linewidth=2)
            panel.plot(found["lds"], heights, "o", color=one.colour, markersize=5, label=one.label)
        for key, value in lines[kind].items():
            line = {"color": METHODS[key].colour, "linestyle": "--", "linewidth": 1.2}
            panel.axvline(value, label=METHODS[key].label, **line)
        panel.axvline(0, **QUIET)
        panel.set(xlabel="LDS, %", ylim=(len(models) - 0.5, -0.5))
        panel.set_title(f"{kind} queries", fontsize=10)
    axes[0, 0].set_yticks(range(len(models)), models)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)
    return figure


def boxes(
    panels: Mapping[str, Mapping[str, Float[Tensor, "..."]]], colours: Mapping[str, str]
) -> Figure:
    """One panel per measure with a box per group: quartiles, median, whiskers to 1.5 times the
    range between the quartiles; every value is a dot.

    Args:
        panels: values by the label of their group, by what they measure.
        colours: by the label of the group.

    Returns:
        The figure.
    """
    figure, axes = canvas(4.1 * len(panels), 0.9 + 0.42 * len(colours), 1, len(panels), sharey=True)
    for panel, (measure, groups) in zip(axes[0], panels.items(), strict=True):
        for height, (name, values) in enumerate(groups.items()):
            dots = values.flatten().numpy()
            # dots of a box stand below each other in the order of their values
            offsets = height + 0.5 * (np.argsort(np.argsort(dots)) / max(1, len(dots) - 1) - 0.5)
            panel.plot(dots, offsets, ".", color=colours[name], alpha=0.45, markersize=4)
            panel.boxplot(
                dots,
                positions=[height],
                orientation="horizontal",
                widths=0.66,
                showfliers=False,
                boxprops={"color": colours[name], "linewidth": 1.5},
                medianprops={"color": INK, "linewidth": 2},
                whiskerprops={"color": colours[name]},
                capprops={"color": colours[name]},
            )
        panel.set(xlabel=measure, ylim=(len(groups) - 0.5, -0.5))
    axes[0, 0].set_yticks(range(len(colours)), list(colours))
    return figure


def clouds(
    panels: Mapping[str, tuple[Float[Tensor, "..."], Float[Tensor, "..."]]], *, ylabel: str
) -> Figure:
    """One panel per pair of measures, a dot per model and query.

    Args:
        panels: abscissae and ordinates by what the abscissa measures.
        ylabel: what the ordinate measures.

    Returns:
        The figure.
    """
    figure, axes = canvas(3.9 * len(panels), 2.9, 1, len(panels), sharey=True)
    for panel, (xlabel, (x, y)) in zip(axes[0], panels.items(), strict=True):
        dots = {"color": METHODS["nda"].colour, "alpha": 0.25, "markersize": 5}
        panel.plot(x.flatten().numpy(), y.flatten().numpy(), ".", **dots)
        panel.set_xlabel(xlabel)
        panel.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
    axes[0, 0].set_ylabel(ylabel)
    return figure


def removal_curve(
    table: pd.DataFrame, names: Mapping[str, tuple[str, str]], *, luck: float, ylabel: str
) -> Figure:
    """The change of a query against the number of images that were taken away.

    Args:
        table: of `nda.evidence.outcomes.curve`.
        names: label and colour of every arm.
        luck: the change that another train seed makes; a dashed line.
        ylabel: what the change is.

    Returns:
        The figure.
    """
    figure, axes = canvas(5.2, 3.0)
    panel = axes[0, 0]
    for arm, rows in table.groupby("arm", sort=False):
        label_, colour = names[str(arm)]
        panel.plot(rows["k"], rows["change"], "o-", color=colour, markersize=5, label=label_)
    panel.axhline(luck, color=INK, linestyle="--", linewidth=1, label="another seed, nothing gone")
    panel.set(xlabel="train images taken away", ylabel=ylabel, xticks=sorted(table["k"].unique()))
    panel.set_ylim(bottom=0)
    panel.legend(fontsize=8)
    return figure
