"""Draw patch_posterior.svg, the figure of the page "The method": from a noisy query patch to its
posterior mass per training image.

Run `python book/figures/patch_posterior.py`; it rewrites the SVG beside it. The images are small
line drawings, made here; the weights are computed from them with the patch posterior of that page,
over the 3 x 3 patches that lie inside the images.
"""

from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageDraw

from nda.schedule import sigma, signal

TIMESTEP, TOP_K, NOISE_SEED = 200, 2, 229
SIDE, PATCH = 12, 3  # pixels
QUERY_CORNER = (1, 8)  # row and column of the upper left pixel of patch u

ANGLES = np.linspace(0, 2 * np.pi, 40)
QUERY_STROKE = [(2.5, 2.8), (9.3, 2.8), (5.2, 10)]  # x and y in pixels: a 7
TRAIN_STROKES = [
    [(2.2, 3.3), (8.6, 2.3), (5.6, 10.2)],  # another 7
    [(2.8, 2.6), (8.8, 2.4), (3.2, 9.4), (9.4, 9.6)],  # a 2
    list(zip(6 + 2.9 * np.cos(ANGLES), 6 + 3.9 * np.sin(ANGLES), strict=True)),  # a 0
]

WIDTH, HEIGHT = 896, 580
COLUMNS = (28, 230, 456, 726)  # left edges
TITLES = ("Add noise", "Compare", "Softmax", "Sum")
SUBTITLES = (
    "to the query",
    "with every training patch",
    "over all patches of all images",
    "per training image",
)
SCORE = "score of an image = c(u, image) summed over all query patches u, averaged over timesteps"
TOP, NOISY_TOP, ROW_HEIGHT = (
    66,
    282,
    156,
)  # of the query and training image 1; of the noisy query; per training image
QUERY_CELL, TRAIN_CELL = 12, 10  # size of a pixel in the drawing
QUERY_COLOUR, TRAIN_COLOURS = "#a3007d", ("#0072b2", "#c24e00", "#00805e")
HEAD = f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" \
width="{WIDTH}" height="{HEIGHT}"
 role="img" aria-label="From a noisy query patch to a score per training image">
<style>text {{ font: 16px system-ui, -apple-system, "Segoe UI", Roboto, \
"Helvetica Neue", Arial, sans-serif; fill: #1a1a1a }}
.title {{ font-size: 18px; font-weight: 600 }} .note {{ font-size: 15px; fill: #555 }} \
.number {{ font-size: 15px }}
.sum {{ font-size: 17px; font-weight: 600 }}</style>
<marker id="tip" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">
<path d="M0 0L8 4L0 8z" fill="context-stroke"/></marker>"""


def rasterise(stroke, width=1.5, oversampling=16):
    """Draw a line with round ends as an image with pixels in [-1, 1]."""
    canvas = Image.new("L", (SIDE * oversampling, SIDE * oversampling))
    pen, radius = ImageDraw.Draw(canvas), width * oversampling / 2
    points = [(x * oversampling, y * oversampling) for x, y in stroke]
    pen.line(points, fill=255, width=int(2 * radius), joint="curve")
    for x, y in (points[0], points[-1]):
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)
    return (
        np.asarray(canvas, float).reshape(SIDE, oversampling, SIDE, oversampling).mean((1, 3))
        / 127.5
        - 1
    )


def posterior(noisy_patch, patches):
    """Softmax over all patches of all images; [image, patch, row, col] to [image, patch]."""
    logits = -((noisy_patch - signal(TIMESTEP) * patches) ** 2).sum((2, 3)) / (
        2 * sigma(TIMESTEP) ** 2
    )
    return np.exp(logits) / np.exp(logits).sum()


def rect(x, y, width, height, fill, more=""):
    """Draw a filled rectangle."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:.4g}" height="{height:g}" fill="{fill}"{more}/>'
    )


def text(x, y, content, style="", anchor="start"):
    """Write text; y is its baseline."""
    return f'<text x="{x:.1f}" y="{y:g}" class="{style}" text-anchor="{anchor}">{content}</text>'


def arrow(x, y, to_x, to_y, colour="#777"):
    """Draw a straight arrow."""
    return (
        f'<path d="M{x:g} {y:g}L{to_x:g} {to_y:g}" stroke="{colour}" '
        f'stroke-width="1.6" marker-end="url(#tip)"/>'
    )


def bar(x, y, weight, scale, colour, height=18, style="number", more=""):
    """Draw a bar with its number to the right."""
    length = max(2, weight * scale)
    return [
        rect(x, y, length, height, colour, more),
        text(x + length + 6, y + height / 2 + 5, f"{weight:.2f}", style),
    ]


def picture(image, x, y, cell, corners=(), colour=""):
    """Draw an image, with frames around the patches at `corners`."""
    yield f'<g transform="translate({x} {y})" shape-rendering="crispEdges">'
    yield rect(0, 0, image.shape[1] * cell, image.shape[0] * cell, "#000")
    for (row, col), value in np.ndenumerate(np.rint((image.clip(-1, 1) + 1) / 2 * 255).astype(int)):
        if value:
            yield rect(col * cell, row * cell, cell, cell, "#" + f"{value:02x}" * 3)
    yield "</g>"
    for row, col in corners:
        for stroke, width in (("#fff", 5), (colour, 3)):
            style = f' stroke="{stroke}" stroke-width="{width}"'
            yield rect(x + col * cell, y + row * cell, PATCH * cell, PATCH * cell, "none", style)


def query_column(query, noisy):
    """Column 1: the query, noise, the noisy query with patch u, arrows to the training images."""
    left, size = COLUMNS[0], SIDE * QUERY_CELL
    middle = left + size / 2
    yield from picture(query, left, TOP, QUERY_CELL)
    yield text(middle, TOP + size + 22, "query x", anchor="middle")
    yield arrow(middle, TOP + size + 32, middle, NOISY_TOP - 8)
    yield text(middle + 10, NOISY_TOP - 18, "+ noise", "note")
    yield from picture(noisy, left, NOISY_TOP, QUERY_CELL, [QUERY_CORNER], QUERY_COLOUR)
    yield text(middle, NOISY_TOP + size + 22, "noisy query, patch u", anchor="middle")
    start = (
        left + (QUERY_CORNER[1] + PATCH) * QUERY_CELL + 6,
        NOISY_TOP + (QUERY_CORNER[0] + PATCH / 2) * QUERY_CELL,
    )
    for number in range(len(TRAIN_STROKES)):
        yield arrow(
            *start, COLUMNS[1] + 6, TOP + number * ROW_HEIGHT + SIDE * TRAIN_CELL / 2, QUERY_COLOUR
        )


def train_row(number, image, patches, weights, scale):
    """Columns 2 to 4 for one training image: its best patches, their weights, the sum of these."""
    colour, top, left = TRAIN_COLOURS[number], TOP + number * ROW_HEIGHT, COLUMNS[1] + 16
    size, best = SIDE * TRAIN_CELL, np.argsort(-weights)[:TOP_K]
    yield from picture(
        image, left, top, TRAIN_CELL, [divmod(index, SIDE - PATCH + 1) for index in best], colour
    )
    yield text(left + size / 2, top + size + 17, f"training image {number + 1}", "note", "middle")
    yield arrow(left + size + 8, top + size / 2, COLUMNS[2] - 12, top + size / 2)
    left = COLUMNS[2]
    for rank, index in enumerate(best):
        y = top + 4 + 42 * rank
        yield from picture(patches[index], left, y, TRAIN_CELL, [(0, 0)], colour)
        yield from bar(left + 40, y + 6, weights[index], scale, colour)
    y = top + 8 + 42 * TOP_K
    yield text(left + 32, y + 14, "rest", "note", "end")
    yield from bar(
        left + 40,
        y,
        weights.sum() - weights[best].sum(),
        scale,
        colour,
        style="note",
        more=' opacity=".3"',
    )
    yield arrow(COLUMNS[3] - 45, top + 47, COLUMNS[3] - 12, top + 47)
    yield from bar(COLUMNS[3], top + 34, weights[best].sum(), 150, colour, height=26, style="sum")
    yield text(COLUMNS[3], top + 82, f"c(u, {number + 1})")


def drawing():
    """Yield the SVG's elements."""
    query, train = rasterise(QUERY_STROKE), [rasterise(stroke) for stroke in TRAIN_STROKES]
    noise = np.random.default_rng(NOISE_SEED).standard_normal(query.shape)
    noisy = signal(TIMESTEP) * query + sigma(TIMESTEP) * noise
    patches = sliding_window_view(train, (PATCH, PATCH), axis=(1, 2)).reshape(
        len(train), -1, PATCH, PATCH
    )  # row by row
    weights = posterior(sliding_window_view(noisy, (PATCH, PATCH))[QUERY_CORNER], patches)
    yield HEAD
    yield rect(0, 0, WIDTH, HEIGHT, "#fff")
    for number, (left, title, subtitle) in enumerate(
        zip(COLUMNS, TITLES, SUBTITLES, strict=True), 1
    ):
        yield text(left, 26, f"{number}&#8194;{title}", "title")
        yield text(left, 46, subtitle, "note")
    yield from query_column(query, noisy)
    for number, image in enumerate(train):
        yield from train_row(number, image, patches[number], weights[number], 140 / weights.max())
    yield rect(COLUMNS[0], HEIGHT - 42, WIDTH - 2 * COLUMNS[0], 1, "#bbb")
    yield text(COLUMNS[0], HEIGHT - 15, SCORE)
    yield "</svg>\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text("\n".join(drawing()), encoding="utf-8")
