"""One palette and one label per method, everywhere."""

import io
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from nda.methods import METHODS

INK = "#333333"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "savefig.dpi": 110,
    "figure.dpi": 110,
    "axes.grid": False,
    "legend.frameon": False,
}


def label(method: str) -> str:
    """The name of a method for a reader.

    Args:
        method: its key.

    Returns:
        Its label.
    """
    return METHODS[method].label


class Picture(Figure):
    """A figure that shows itself as the value of a notebook cell, without pyplot's global state."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def canvas(
    width: float, height: float, rows: int = 1, columns: int = 1, **settings: Any
) -> tuple[Figure, np.ndarray]:
    """An empty figure in the book's style.

    Args:
        width: in inches.
        height: in inches.
        rows: of panels.
        columns: of panels.
        settings: more for matplotlib's `Figure.subplots`.

    Returns:
        The figure, and its axes `[row, column]`.
    """
    with mpl.rc_context(STYLE):
        figure = Picture(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **settings)
    return figure, axes


def show(axes: Axes, image: Float[Tensor, "chan row col"], title: str = "") -> None:
    """One image, pixels as squares, no ticks.

    Args:
        axes: where to draw.
        image: pixels in [-1, 1]; one channel is shown grey.
        title: above it.
    """
    pixels = ((image.float().cpu() + 1) / 2).clamp(0, 1).movedim(0, 2).numpy()
    axes.imshow(
        pixels if pixels.shape[2] == 3 else pixels[..., 0],
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    axes.set_title(title, fontsize=9)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
