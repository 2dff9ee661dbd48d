"""Arrays in, matplotlib figures out: one palette and one label per method, everywhere."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from nda.methods import METHODS

INK = "#333333"

STYLE: dict[Any, Any] = {
    "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": INK, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "savefig.dpi": 110,
    "figure.dpi": 110, "axes.grid": False, "legend.frameon": False,
}  # fmt: skip


def label(method: str) -> str:
    """The name of a method for a reader."""
    return METHODS[method].label


class Picture(Figure):
    """A figure that shows itself as the value of a notebook cell, without pyplot's global state."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **settings: Any) -> tuple[Figure, np.ndarray]:
    """An empty figure of `width` x `height` inches in the book's style, and its axes `[row, column]`."""
    with mpl.rc_context(STYLE):
        figure = Picture(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **settings)
    return figure, axes


def show(axes: Axes, image: Float[Tensor, "chan row col"], title: str = "") -> None:
    """One image in [-1, 1], pixels as squares, no ticks."""
    pixels = ((image.float().cpu() + 1) / 2).clamp(0, 1).movedim(0, 2).numpy()
    axes.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def grid(images: Float[Tensor, "image chan row col"], titles: Sequence[str] = (), *, columns: int = 10) -> Figure:
    """Images in rows of `columns`, with optional titles."""
    rows = -(-len(images) // columns)
    figure, axes = canvas(0.85 * columns, (1.05 if titles else 0.85) * rows, rows, columns)
    for place in axes.flat:
        place.set_axis_off()
    for i, image in enumerate(images):
        axes.flat[i].set_axis_on()
        show(axes.flat[i], image, titles[i] if titles else "")
    return figure


def masks(keep: Bool[Tensor, "subset train"], labels: Float[Tensor, "train"], classes: Sequence[str]) -> Figure:
    """Which train images each subset keeps, sorted by class."""
    order = labels.argsort(stable=True)
    figure, axes = canvas(8, 0.5 + 0.13 * len(keep))
    place = axes[0, 0]
    place.imshow(
        keep[:, order].numpy(), cmap=mpl.colors.ListedColormap(["#f2efe9", METHODS["nda"].colour]), aspect="auto", interpolation="nearest"
    )
    edges = np.flatnonzero(np.diff(labels[order].numpy())) + 0.5
    for edge in edges:
        place.axvline(edge, color="white", linewidth=1.5)
    bounds = np.concatenate([[-0.5], edges, [len(labels) - 0.5]])
    present = [classes[i] for i in labels.unique().tolist()]
    place.set_xticks((bounds[1:] + bounds[:-1]) / 2, present)
    place.set(xlabel="train image, grouped by class", ylabel="subset", yticks=[0, len(keep) - 1])
    return figure


def training(curve: Float[Tensor, "step"], window: int = 20) -> Figure:
    """Training loss per step, with a running mean."""
    figure, axes = canvas(6.5, 2.8)
    values = curve.numpy()
    smooth = pd.Series(values).rolling(window, min_periods=1).mean()
    axes[0, 0].plot(values, color="#c9d8dd", linewidth=0.8, label="one step")
    axes[0, 0].plot(smooth, color=METHODS["nda"].colour, label=f"mean of {window} steps")
    axes[0, 0].set(xlabel="training step", ylabel="noise-prediction loss", yscale="log")
    axes[0, 0].legend(loc="upper right")
    return figure


def signal_by_timestep(table: pd.DataFrame) -> Figure:
    """Mean loss, its spread over subsets and the seed ceiling, by timestep (columns timestep, loss, spread, ceiling)."""
    figure, axes = canvas(8, 2.7, 1, 2)
    axes[0, 0].plot(table["timestep"], table["loss"], color=INK, marker="o", markersize=4, label="mean")
    axes[0, 0].plot(
        table["timestep"], table["spread"], color=METHODS["pixel_dot"].colour, marker="o", markersize=4, label="s.d. over subsets"
    )
    axes[0, 0].set(xlabel="timestep of the loss", ylabel="loss", yscale="log")
    axes[0, 0].legend()
    axes[0, 1].axhline(0, color="#bbbbbb", linewidth=1)
    axes[0, 1].plot(table["timestep"], 100 * table["ceiling"], color=METHODS["nda"].colour, marker="o", markersize=4)
    axes[0, 1].set(xlabel="timestep of the loss", ylabel="agreement of seeds, %")
    return figure


def proponents(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    scores: Float[Tensor, "query train"],
    *,
    top: int = 7,
    unit: str = "{:.1f}",
) -> Figure:
    """Each row: a query, then the train images with the highest scores, then the lowest."""
    figure, axes = canvas(0.9 * (top + 2), 1.12 * len(queries), len(queries), top + 2)
    for row, query, values in zip(axes, queries, scores, strict=True):
        best = values.topk(top).indices.tolist() + [int(values.argmin())]
        show(row[0], query, "query")
        row[0].spines[:].set(visible=True, color=METHODS["nda"].colour, linewidth=2)
        for place, index in zip(row[1:], best, strict=True):
            show(place, train[index], unit.format(values[index].item()))
        row[-1].spines[:].set(visible=True, color="#9a9a9a", linewidth=1, linestyle=":")
    return figure


def maps(images: Sequence[Float[Tensor, "row col"]], titles: Sequence[str], *, unit: str, cmap: str = "magma") -> Figure:
    """Heat maps that share one colour scale, labelled with its unit."""
    figure, axes = canvas(1.75 * len(images) + 0.6, 2.1, 1, len(images))
    top = max(float(image.max()) for image in images)
    for place, image, title in zip(axes[0], images, titles, strict=True):
        drawn = place.imshow(image.cpu().numpy(), cmap=cmap, vmin=0, vmax=top, interpolation="nearest")
        place.set_title(title, fontsize=9)
        place.set(xticks=[], yticks=[])
    figure.colorbar(drawn, ax=list(axes[0]), label=unit, shrink=0.8)
    return figure


def sources(
    query: Float[Tensor, "chan row col"],
    train: Float[Tensor, "train chan row col"],
    images: Sequence[int],
    *,
    masses: Float[Tensor, "row col train"],
    entropy: Float[Tensor, "row col"],
    used: Sequence[Float[Tensor, "row col"]],
) -> Figure:
    """Above: a query, then train images, clear where they are used; below: entropy, then the mass of each image, at the query's pixels."""
    figure, axes = canvas(1.35 * (len(images) + 1) + 0.8, 3.3, 2, len(images) + 1)
    show(axes[0, 0], query, "query")
    top = float(masses[..., list(images)].max())
    for place, index, weights in zip(axes[0, 1:], images, used, strict=True):
        show(place, train[index], f"image {index}: {float(weights.sum()):.0f} px")
        cover = np.zeros((*weights.shape, 4)) + 0.5
        cover[..., 3] = 0.9 * (1 - weights.cpu().numpy() / float(weights.max()))
        place.imshow(cover, interpolation="nearest")
    options = {"interpolation": "nearest", "vmin": 0}
    unsure = axes[1, 0].imshow(entropy.cpu().numpy(), cmap="viridis", vmax=np.log(len(train)), **options)
    for place, index in zip(axes[1, 1:], images, strict=True):
        share = place.imshow(100 * masses[..., index].cpu().numpy(), cmap="magma", vmax=100 * top, **options)
    for place in axes[1]:
        place.set(xticks=[], yticks=[])
    figure.colorbar(unsure, ax=axes[1, 0], location="bottom", label="entropy, nats", shrink=0.9)
    figure.colorbar(share, ax=list(axes[1, 1:]), location="bottom", label="mass, %", shrink=0.5)
    return figure


def scaling(tables: Mapping[str, pd.DataFrame], *, ylabel: str) -> Figure:
    """One log-log panel per table, whose index is the abscissa (named), with one line per column."""
    figure, axes = canvas(3.1 * len(tables), 2.9, 1, len(tables), sharey=True)
    colours = (METHODS["nda"].colour, METHODS["pixel_dot"].colour, "#7a7a7a", METHODS["nda_coarse"].colour, METHODS["nda_two_scale"].colour)
    for place, (title, values) in zip(axes[0], tables.items(), strict=True):
        for colour, name in zip(colours, values, strict=False):
            place.plot(values.index, values[name], "o-", color=colour, markersize=4, label=name)
        place.set(xscale="log", yscale="log", xlabel=values.index.name, title=title)
        place.xaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
        place.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        place.set_xticks(list(values.index))
        place.legend(fontsize=8)
    axes[0, 0].set_ylabel(ylabel)
    return figure


def bars(groups: Mapping[str, Float[Tensor, "item"]], *, xlabel: str, ylabel: str) -> Figure:
    """One panel of bars per group, on a common scale."""
    figure, axes = canvas(2.6 * len(groups), 2.3, 1, len(groups), sharey=True)
    for place, (title, values) in zip(axes[0], groups.items(), strict=True):
        place.bar(range(len(values)), values.cpu().numpy(), color=METHODS["nda"].colour)
        place.set(title=title, xlabel=xlabel)
    axes[0, 0].set_ylabel(ylabel)
    return figure


def intervals(tables: Mapping[str, pd.DataFrame], ceilings: Mapping[str, Sequence[float]], *, columns: int = 2) -> Figure:
    """One panel per table of `nda.lds.summary`, methods from top to bottom, the seed ceiling dashed in its interval; all in percent."""
    methods = [m for m in METHODS if any((table["method"] == m).any() for table in tables.values())]
    count = len(methods)
    rows = -(-len(tables) // columns)
    figure, axes = canvas(4.1 * columns, rows * (1.0 + 0.22 * count), rows, columns, sharex=True, sharey=True)
    for place, (title, table) in zip(axes.flat, tables.items(), strict=True):
        for row in table.itertuples():
            height, colour = methods.index(str(row.method)), METHODS[str(row.method)].colour
            place.plot([row.low, row.high], [height, height], color=colour, linewidth=2.5, solid_capstyle="butt")
            place.plot(row.lds, height, "o", color=colour, markersize=7)
        place.axvline(0, color="#bbbbbb", linewidth=1, zorder=0)
        ceiling, low, high = ceilings[title]
        place.axvspan(low, high, color="#f0eee8", zorder=-1)
        place.axvline(ceiling, color=INK, linestyle="--", linewidth=1, zorder=0)
        place.set_title(title, loc="left")
        place.annotate("ceiling", (ceiling, 1.02), xycoords=("data", "axes fraction"), ha="center", fontsize=8)
        place.set_ylim(count - 0.5, -0.5)
    for place in axes[-1]:
        place.set_xlabel("LDS, %")
    axes[0, 0].set_yticks(range(count), [label(method) for method in methods])
    return figure


def brackets(low: Iterable[float], high: Iterable[float]) -> list[str]:
    """Intervals as a table shows them, with one decimal; no line ends inside."""
    return [f"[{a:.1f},\u00a0{b:.1f}]" for a, b in zip(low, high, strict=True)]


def table(tables: Mapping[str, pd.DataFrame], ceilings: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """Tables of `nda.lds.summary` for a reader: one block of rows per table, intervals in brackets, the seed ceiling last."""

    blocks = {}
    for name, values in tables.items():
        columns = {
            "LDS, %": values["lds"].map("{:.1f}".format),
            "95 % interval": brackets(values["low"], values["high"]),
            "gain, %": values["gain"].map("{:+.1f}".format),
            "95 % interval of gain": brackets(values["gain_low"], values["gain_high"]),
        }
        ceiling, low, high = ceilings[name]
        columns["of ceiling, %"] = (100 * values["lds"] / ceiling).map("{:.0f}".format) if ceiling > 0 else ""
        block = pd.DataFrame(columns).set_axis([label(method) for method in values["method"]])
        last = {"LDS, %": f"{ceiling:.1f}", "95 % interval": brackets([low], [high])}
        blocks[name] = pd.concat([block, pd.DataFrame(last, index=["Seed ceiling"])]).fillna("")
    return pd.concat(blocks)


def scatter(effects: Float[Tensor, "subset"], losses: Float[Tensor, "subset"], *, xlabel: str, ylabel: str) -> Figure:
    """Predicted effect against true loss, one point per retrained model."""
    figure, axes = canvas(3.6, 2.9)
    axes[0, 0].plot(effects.numpy(), losses.numpy(), "o", color=METHODS["nda"].colour, markersize=5)
    axes[0, 0].set(xlabel=xlabel, ylabel=ylabel)
    return figure
