"""Where the pixels of a query come from, and which pixels of a train image were used: the posterior
itself, not its sums."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from nda.errors import InputError
from nda.nonparametric.config import NDAConfig
from nda.nonparametric.patches import Posterior, Windows, noised, patch_posterior
from nda.schedule import sigma, signal


@dataclass(frozen=True)
class Provenance:
    """The posterior of one query at one timestep and scale, over all patches of all train images;
    nothing is cut to a top k.

    masses: of each train image at each position; they sum to 1 over the images. entropy: of these
    masses at each position, in nats: 0 if one image explains it, log(train) if any image does as
    well. image, mass, source: the images with the largest masses at each position, the masses, and
    the position (row, column) of the one patch of that image that weighs most.
    """

    masses: Float[Tensor, "grid_row grid_col train"]
    entropy: Float[Tensor, "grid_row grid_col"]
    image: Int[Tensor, "grid_row grid_col few"]
    mass: Float[Tensor, "grid_row grid_col few"]
    source: Int[Tensor, "grid_row grid_col few 2"]


def provenance(
    query: Float[Tensor, "chan row col"],
    train: Float[Tensor, "train chan row col"],
    *,
    few: int = 3,
    **options: Any,
) -> Provenance:
    """Who explains each pixel of the query.

    Args:
        query: one image, pixels in [-1, 1].
        train: pixels in [-1, 1], of the query's dtype and device.
        few: how many images are named at each position.
        options: those of `nda.nonparametric.patches.patch_posterior` (timestep, patch, coarse,
            borders, noise, …), except top_k and rows.

    Returns:
        Maps whose rows and columns are positions of windows, which are pixels, one
        fewer per axis for an even patch.

    Raises:
        InputError: if `few` is out of range, or as `patch_posterior` does.
    """
    if isinstance(few, bool) or not isinstance(few, int) or not 1 <= few <= len(train):
        raise InputError(
            f"few must be between 1 and the number of train images {len(train)}, not {few!r}"
        )
    windows, posterior = _posterior(query, train, options)
    masses = posterior.masses[0]  # [position, train]
    mass, image = masses.topk(few, dim=1)
    source = heaviest(query, train, image, **options)
    entropy = entropies(masses)
    rows_cols = torch.stack([source // windows.grid[1], source % windows.grid[1]], -1)
    maps = [
        values.unflatten(0, windows.grid) for values in (masses, entropy, image, mass, rows_cols)
    ]
    return Provenance(*maps)


def heaviest(
    query: Float[Tensor, "chan row col"],
    train: Float[Tensor, "train chan row col"],
    image: Int[Tensor, "position few"],
    **options: Any,
) -> Int[Tensor, "position few"]:
    """The patch that weighs most in each of some train images.

    Args:
        query: one image, pixels in [-1, 1].
        train: pixels in [-1, 1], of the query's dtype and device.
        image: numbers of train images at each position of the query.
        options: those of `provenance`.

    Returns:
        Positions in these images, row-major.
    """
    named = {k: v for k, v in options.items() if k in ("patch", "coarse", "borders")}
    windows = Windows(train.shape[2], train.shape[3], **named)
    timestep, kinds = options["timestep"], windows.kinds().to(train.device)
    (x,) = windows.take(noised(query[None], timestep, options.get("noise")))
    source = torch.zeros_like(image)
    for n in image.unique().tolist():
        wanted = image == n  # [position, few]
        at = wanted.any(1).nonzero()[:, 0]
        (y,) = windows.take(signal(timestep) * train[[n]])
        nearness = x[at] @ y.T - y.square().sum(1) / 2
        best = nearness.where(kinds[at][:, None] == kinds, -torch.inf).argmax(1)
        source[at] = torch.where(wanted[at], best[:, None], source[at])
    return source


def entropies(masses: Float[Tensor, "*position train"]) -> Float[Tensor, "*position"]:
    """Of masses that sum to 1 over the train images.

    Args:
        masses: at each position.

    Returns:
        In nats.
    """
    return -(masses * masses.clamp_min(torch.finfo(masses.dtype).tiny).log()).sum(-1)


def used_pixels(
    query: Float[Tensor, "chan row col"],
    train: Float[Tensor, "train chan row col"],
    image: int,
    **options: Any,
) -> Float[Tensor, "grid_row grid_col"]:
    """Which patches of a train image the query uses: the mass of each of its positions, summed over
    the query's positions.

    Args:
        query: one image, pixels in [-1, 1].
        train: pixels in [-1, 1], of the query's dtype and device.
        image: number of the train image.
        options: those of `provenance`.

    Returns:
        A map that sums to the image's score at this timestep and scale with `top_k=None`.

    Raises:
        InputError: if there is no such image, or as `patch_posterior` does.
    """
    if isinstance(image, bool) or not isinstance(image, int) or not 0 <= image < len(train):
        raise InputError(f"image must be an integer between 0 and {len(train) - 1}, not {image!r}")
    windows, posterior = _posterior(query, train, options)
    everywhere = torch.arange(windows.positions, device=train.device)
    logits = _logits(query, train[image], windows, options, everywhere)
    masses = (logits - posterior.log_total[0, :, None]).exp()  # [query position, image position]
    return masses.sum(0).unflatten(0, windows.grid).to(train.dtype)


def pixel_masses(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    config: NDAConfig,
    *,
    covered: bool = False,
) -> Float[Tensor, "query row col train"]:
    """Who explains each pixel of the queries, in the mean over timesteps, scales and noise that
    `config` says; nothing is cut to a top k.

    A mass belongs to a window. By default a pixel has the mass of the window around it. At the edge
    of what was taken from one image these windows reach across. `covered` asks for each pixel
    whether any window that has it is explained.

    Args:
        queries: pixels in [-1, 1].
        train: pixels in [-1, 1], of the queries' dtype and device.
        config: of the scores that these maps explain. With `top_k=None` and odd windows the mean of
            a map over its pixels is the score.
        covered: give a pixel the largest mass of all windows that have it.

    Returns:
        Masses; they sum to 1 over the train images, unless `covered`. An even window has its middle
        between pixels, and a pixel then has the mean of the windows beside it.

    Raises:
        InputError: as `nda.nonparametric.patches.patch_posterior` does.
    """
    bank = torch.cat([train, train.flip(-1)]) if config.flips else train
    height, width = train.shape[2:]
    total = train.new_zeros(len(queries), height, width, len(train))
    for term in config.terms():
        options = config.options(queries, term) | {"top_k": None}
        masses = patch_posterior(queries, bank, **options).masses
        both = torch.stack(masses.split(len(train), dim=2)).sum(0)  # [query, position, train]
        windows = Windows(height, width, term.scale.patch, term.scale.coarse, config.borders)
        maps = both.mT.unflatten(2, windows.grid)
        total += term.weight * _on_pixels(maps, windows, covered).movedim(1, 3)
    return total


def local_scores(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    config: NDAConfig,
    *,
    side: int,
) -> Float[Tensor, "query train"]:
    """Where each train image explains most: its largest mean mass in any square of a query. The
    scores of NDA are means over the whole query, in which a small part counts for little.

    Args:
        queries: pixels in [-1, 1].
        train: pixels in [-1, 1], of the queries' dtype and device.
        config: as of `pixel_masses`.
        side: of the square, in pixels.

    Returns:
        Scores between 0 and 1.

    Raises:
        InputError: for a square that the queries have not, or as `pixel_masses` does.
    """
    if not 1 <= side <= min(queries.shape[2:]):
        raise InputError(f"side must be from 1 to {min(queries.shape[2:])} pixels, not {side!r}")
    maps = (pixel_masses(query[None], train, config).movedim(3, 1) for query in queries)
    return torch.cat([F.avg_pool2d(one, side, stride=1).amax((2, 3)) for one in maps])


def _on_pixels(
    maps: Float[Tensor, "query train grid_row grid_col"], windows: Windows, covered: bool
) -> Float[Tensor, "query train row col"]:
    """Masses of windows, given to pixels."""
    if covered:
        first, last = windows.patch - 1 - windows.before, windows.before + 1 - windows.patch % 2
        return F.max_pool2d(F.pad(maps, [first, last] * 2), windows.patch, stride=1)
    if windows.patch % 2:
        return maps
    return F.avg_pool2d(F.pad(maps, [1] * 4, mode="replicate"), 2, stride=1)


def _posterior(query: Tensor, train: Tensor, options: dict[str, Any]) -> tuple[Windows, Posterior]:
    named = {k: v for k, v in options.items() if k in ("patch", "coarse", "borders")}
    posterior = patch_posterior(query[None], train, **options, top_k=None)
    return Windows(train.shape[2], train.shape[3], **named), posterior


def _logits(
    query: Tensor,
    image: Tensor,
    windows: Windows,
    options: dict[str, Any],
    positions: Int[Tensor, "u"],
) -> Float[Tensor, "u position"]:
    """-d²/2σ² of the query's patches at `positions`; -inf where patches may not meet."""
    timestep = options["timestep"]
    noisy = noised(query[None], timestep, options.get("noise"))
    (x,), (y,) = windows.take(noisy), windows.take(signal(timestep) * image[None])
    kinds = windows.kinds().to(image.device)
    distance = torch.stack([(y - patch).square().sum(1) for patch in x[positions]])
    logits = -distance / (2 * sigma(timestep) ** 2 * options.get("temperature", 1.0))
    return torch.where(kinds[positions][:, None] == kinds, logits, -torch.inf)
