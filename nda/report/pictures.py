"""Images in rows, with what is said of them."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from nda.methods import METHODS, Method
from nda.report.style import INK, canvas, label, show


def grid(
    images: Float[Tensor, "image chan row col"], titles: Sequence[str] = (), *, columns: int = 10
) -> Figure:
    """Images in rows.

    Args:
        images: pixels in [-1, 1].
        titles: one above each image, or none.
        columns: images in a row.

    Returns:
        The figure.
    """
    rows = -(-len(images) // columns)
    figure, axes = canvas(0.85 * columns, (1.05 if titles else 0.85) * rows, rows, columns)
    for panel in axes.flat:
        panel.set_axis_off()
    for i, image in enumerate(images):
        axes.flat[i].set_axis_on()
        show(axes.flat[i], image, titles[i] if titles else "")
    return figure


def proponents(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    scores: Float[Tensor, "query train"],
    *,
    top: int = 7,
    unit: str = "{:.1f}",
) -> Figure:
    """Each row: a query, then the train images with the highest scores, then the lowest.

    Args:
        queries: one row each.
        train: the images that are scored.
        scores: of every query for every train image.
        top: how many of the highest.
        unit: the format in which a score stands above its image.

    Returns:
        The figure.
    """
    figure, axes = canvas(0.9 * (top + 2), 1.12 * len(queries), len(queries), top + 2)
    for row, query, values in zip(axes, queries, scores, strict=True):
        best = values.topk(top).indices.tolist() + [int(values.argmin())]
        show(row[0], query, "query")
        row[0].spines[:].set(visible=True, color=METHODS["nda"].colour, linewidth=2)
        for panel, index in zip(row[1:], best, strict=True):
            show(panel, train[index], unit.format(values[index].item()))
        row[-1].spines[:].set(visible=True, color="#9a9a9a", linewidth=1, linestyle=":")
    return figure


def maps(
    images: Sequence[Float[Tensor, "row col"]],
    titles: Sequence[str],
    *,
    unit: str,
    cmap: str = "magma",
) -> Figure:
    """Heat maps that share one colour scale.

    Args:
        images: the maps, of numbers from 0 up.
        titles: one above each map.
        unit: what the scale measures; its label.
        cmap: matplotlib's name of the colours.

    Returns:
        The figure.
    """
    figure, axes = canvas(1.75 * len(images) + 0.6, 2.1, 1, len(images))
    top = max(float(image.max()) for image in images)
    for panel, image, title in zip(axes[0], images, titles, strict=True):
        drawn = panel.imshow(
            image.cpu().numpy(), cmap=cmap, vmin=0, vmax=top, interpolation="nearest"
        )
        panel.set_title(title, fontsize=9)
        panel.set(xticks=[], yticks=[])
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
    """Above: a query, then train images, clear where they are used; below: entropy, then the mass
    of each image, at the query's pixels.

    Args:
        query: the image that is explained.
        train: the images that explain it.
        images: the numbers of the train images to show.
        masses: of every train image at every position of the query, from 0 to 1.
        entropy: of these masses, in nats.
        used: for each of `images`, the mass of its positions (`used_pixels`).

    Returns:
        The figure.
    """
    figure, axes = canvas(1.35 * (len(images) + 1) + 0.8, 3.3, 2, len(images) + 1)
    show(axes[0, 0], query, "query")
    top = float(masses[..., list(images)].max())
    for panel, index, weights in zip(axes[0, 1:], images, used, strict=True):
        show(panel, train[index], f"image {index}: {float(weights.sum()):.0f} px")
        cover = np.zeros((*weights.shape, 4)) + 0.5
        cover[..., 3] = 0.9 * (1 - weights.cpu().numpy() / float(weights.max()))
        panel.imshow(cover, interpolation="nearest")
    options = {"interpolation": "nearest", "vmin": 0}
    unsure = axes[1, 0].imshow(
        entropy.cpu().numpy(), cmap="viridis", vmax=np.log(len(train)), **options
    )
    for panel, index in zip(axes[1, 1:], images, strict=True):
        share = panel.imshow(
            100 * masses[..., index].cpu().numpy(), cmap="magma", vmax=100 * top, **options
        )
    for panel in axes[1]:
        panel.set(xticks=[], yticks=[])
    figure.colorbar(unsure, ax=axes[1, 0], location="bottom", label="entropy, nats", shrink=0.9)
    figure.colorbar(share, ax=list(axes[1, 1:]), location="bottom", label="mass, %", shrink=0.5)
    return figure


def first_proponents(
    query: Float[Tensor, "chan row col"],
    train: Float[Tensor, "train chan row col"],
    scores: Mapping[str, Float[Tensor, "train"]],
    *,
    top: int = 7,
) -> Figure:
    """One row per method: the query, then the train images that it scores highest, by their
    numbers, and dotted the lowest.

    Args:
        query: the image that is explained.
        train: the images that are scored.
        scores: of this query, by a method's key, or by any other name of a row.
        top: how many of the highest.

    Returns:
        The figure.
    """
    figure, axes = canvas(0.9 * (top + 2) + 1.7, 1.06 * len(scores), len(scores), top + 2)
    for row, (method, values) in zip(axes, scores.items(), strict=True):
        show(row[0], query)
        name = label(method) if method in METHODS else method
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        colour = METHODS[method].colour if method in METHODS else INK
        row[0].spines[:].set(visible=True, color=colour, linewidth=2)
        shown = [*values.topk(top).indices.tolist(), int(values.argmin())]
        for panel, index in zip(row[1:], shown, strict=True):
            show(panel, train[index], str(index))
        row[-1].spines[:].set(visible=True, color="#9a9a9a", linewidth=1, linestyle=":")
    return figure


def gallery(
    query: Float[Tensor, "chan row col"],
    train: Float[Tensor, "train chan row col"],
    shown: Mapping[str, tuple[Sequence[int], Sequence[int]]],
    *,
    methods: Mapping[str, Method] = METHODS,
) -> Figure:
    """One row per method: its proponents of a query, strongest first, and its opponents. A frame
    marks what the method of the first row names too, on the same side.

    Args:
        query: the image that is explained.
        train: the images that explain it.
        shown: by the name of a method, the numbers of proponents and opponents.
        methods: by these names.

    Returns:
        The figure.
    """
    n = len(next(iter(shown.values()))[0])
    widths = [2, *[1] * n, 0.4, *[1] * n]
    figure, axes = canvas(
        7.6, 0.65 * len(shown) + 0.3, len(shown), 2 * n + 2, gridspec_kw={"width_ratios": widths}
    )
    large = figure.add_subplot(axes[0, 0].get_gridspec()[:, 0])
    show(large, query, "query")
    sides = slice(1, n + 1), slice(n + 2, None)
    for panel in axes[:, [0, n + 1]].flat:
        panel.remove()
    first = [set(map(int, numbers)) for numbers in next(iter(shown.values()))]
    for row, (name, both) in zip(axes, shown.items(), strict=True):
        for side, numbers, same in zip(sides, both, first, strict=True):
            for panel, number in zip(row[side], map(int, numbers), strict=True):
                show(panel, train[number])
                panel.set_xlabel(str(number), fontsize=7, labelpad=2)
                if number in same:
                    colour = methods[next(iter(shown))].colour
                    panel.spines[:].set(visible=True, color=colour, linewidth=2)
        words = {"rotation": 0, "ha": "right", "va": "center", "fontsize": 9}
        row[1].set_ylabel(methods[name].label, color=methods[name].colour, **words)
    for side, title in zip(sides, ("proponents", "opponents"), strict=True):
        axes[0, side][n // 2].set_title(title, fontsize=10)
    return figure


def origins(
    queries: Float[Tensor, "query chan row col"],
    entropy: Float[Tensor, "query grid_row grid_col"],
    mass: Float[Tensor, "query grid_row grid_col"],
    patchworks: Float[Tensor, "query chan grid_row grid_col"] | None = None,
) -> Figure:
    """One column per query: the query, put together from train pixels if these are there, how
    unsure its pixels are, and the share of the image that explains each best.

    Args:
        queries: pixels in [-1, 1].
        entropy: of the shares of the train images, in nats.
        mass: the largest share, from 0 to 1.
        patchworks: the queries made of train pixels, in [-1, 1].

    Returns:
        The figure.
    """
    pictures = {"query": queries} | ({} if patchworks is None else {"train\npixels": patchworks})
    scales = {"entropy,\nnats": (entropy, "viridis"), "best\nshare, %": (100 * mass, "magma")}
    rows = len(pictures) + len(scales)
    figure, axes = canvas(1.05 * len(queries) + 1.5, 1.1 * rows, rows, len(queries))
    for row, images in zip(axes, pictures.values(), strict=False):
        for panel, image in zip(row, images, strict=True):
            show(panel, image)
    for row, (values, cmap) in zip(axes[len(pictures) :], scales.values(), strict=True):
        top = float(values.max())
        for panel, value in zip(row, values.float().cpu().numpy(), strict=True):
            drawn = panel.imshow(value, cmap=cmap, vmin=0, vmax=top, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
        figure.colorbar(drawn, cax=row[-1].inset_axes((1.06, 0, 0.06, 1)))
    for row, name in zip(axes, [*pictures, *scales], strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    return figure


def redrawn(
    images: Float[Tensor, "query column chan row col"],
    columns: Sequence[tuple[str, str]],
    titles: Sequence[str] = (),
) -> Figure:
    """A row per query: the same picture as several models draw it.

    Args:
        images: pixels in [-1, 1].
        columns: name and colour of every model; neighbours of one name share it.
        titles: one left of each row, or none.

    Returns:
        The figure.
    """
    queries, models = images.shape[:2]
    figure, axes = canvas(0.86 * models + 0.5, 0.84 * queries + 0.5, queries, models)
    for i, row in enumerate(axes):
        for j, panel in enumerate(row):
            show(panel, images[i, j])
            panel.spines[:].set(visible=True, color=columns[j][1], linewidth=1.5)
        if titles:
            row[0].set_ylabel(titles[i], rotation=0, ha="right", va="center", fontsize=9)
    names = [name for name, _ in columns]
    for first in (j for j in range(models) if names[j] not in names[:j]):
        middle = first + (names.count(names[first]) - 1) // 2
        title = names[first].replace(", ", ",\n").replace(" ", "\n", "," not in names[first])
        axes[0, middle].set_title(title, color=columns[first][1], fontsize=9)
    return figure
