"""What methods show of the same generated images: the train images that each ranks first and last,
where they disagree, and from where NDA says that pixels come."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nda.data.pixels import levels
from nda.errors import InputError, check_choice
from nda.evidence.ranks import spearman
from nda.methods import CLIP, EFFICIENTNET, METHODS
from nda.nonparametric.config import NDAConfig
from nda.nonparametric.patches import shared_noise
from nda.nonparametric.provenance import provenance
from nda.store import Store

NDA = "nda_two_scale"  # whose settings the maps have


def record(store: Store, results: Store, rows: Sequence[int], methods: Sequence[str]) -> list[str]:
    """Keep among the results what the page of the gallery shows.

    `gallery/queries` are the images in 8 bits. `gallery/<method>` are the methods' scores of them,
    and `gallery/maps` NDA's posterior at the timestep in the middle of those that it uses: at every
    position of a query its `entropy` in nats, the train `image` with the largest share, that share
    as `mass`, and the `source` (row, column) of the patch there. No train image is kept.

    Args:
        store: the working store, with `train`, `gen` and `scores/<method>-gen`.
        results: the results store.
        rows: numbers of the generated queries.
        methods: names of runs of the catalogue. An embedding whose weights were not on the machine
            has no scores, and is left out.

    Returns:
        The methods that are there.

    Raises:
        InputError: for queries that do not exist, a method that is not in the catalogue, or one
            whose scores are missing.
    """
    store, results = store.used_as("working"), results.used_as("results")
    found = [name for name in methods if _scored(store, name)]
    rows, gen = list(rows), store.load("gen", "image chan row col")
    if not rows or not all(0 <= row < len(gen) for row in rows):
        raise InputError(
            f"rows must be numbers of the generated queries, 0 to {len(gen) - 1}, not {rows}"
        )
    made = {"rows": rows, "recipe": store.info("model")["parameters"]["recipe"]}
    made |= store.info("gen")["parameters"] | store.sha256("model", "gen")
    results.kept(
        "gallery/queries",
        partial(levels, gen[rows]),
        axes="query chan row col",
        parameters=made,
        inputs={},  # named above: the gallery may be of another model than the other results
    )
    asked = store.sha256("train") | results.sha256("gallery/queries")
    for name in found:
        scores = f"scores/{name}-gen"
        results.kept(
            f"gallery/{name}",
            store.load(scores, "query train")[rows].float,
            axes="query train",
            parameters=store.info(scores)["parameters"] | {"rows": rows},
            inputs=asked | store.sha256(scores),
            seconds=None,
        )
    look = _middle(store.info(f"scores/{NDA}-gen")["parameters"]["settings"])
    results.kept(
        "gallery/maps",
        partial(maps, gen[rows], store.load("train"), **look),
        parameters=look,
        inputs=asked,
    )
    return found


def _scored(store: Store, name: str) -> bool:
    """Whether there are scores of a run; False only for an embedding."""
    key = name.split("-")[0]
    check_choice("gallery_methods", key, tuple(METHODS))
    scored = f"scores/{name}-gen" in store
    if not scored and METHODS[key].needs not in (CLIP, EFFICIENTNET):
        raise InputError(
            f"gallery_methods: scores/{name}-gen is missing in {store.folder}; run the notebook of"
            f" {name} first (python -m nda run)"
        )
    return scored


def _middle(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How NDA looks at the timestep in the middle, at its first scale."""
    config = NDAConfig.parse(settings)
    timestep = list(config.scales)[len(config.scales) // 2]
    look = {"timestep": timestep, "patch": config.scales[timestep][0].patch}
    return look | {"borders": config.borders, "noise_seed": config.noise_seed}


def maps(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    *,
    timestep: int,
    patch: int,
    borders: str,
    noise_seed: int,
) -> dict[str, Tensor]:
    """Who explains each pixel best: `nda.nonparametric.provenance` of many queries, in few bits.

    Args:
        queries: pixels in [-1, 1].
        train: pixels in [-1, 1].
        timestep: 0…999.
        patch: side of the window in pixels.
        borders: "match" or "zero".
        noise_seed: names the noise image.

    Returns:
        `entropy`, `mass` and `image`, all `[query, grid_row, grid_col]`, and `source`
        `[query, grid_row, grid_col, 2]`.
    """
    noise = shared_noise(queries, timestep, noise_seed)
    look: dict[str, Any] = {"timestep": timestep, "patch": patch, "borders": borders}
    found = [provenance(query, train, few=1, noise=noise, **look) for query in queries]
    return {
        "entropy": torch.stack([one.entropy for one in found]).half(),
        "mass": torch.stack([one.mass[..., 0] for one in found]).half(),
        "image": torch.stack([one.image[..., 0] for one in found]).int(),
        "source": torch.stack([one.source[..., 0, :] for one in found]).short(),
    }


def patchwork(
    train: Float[Tensor, "train chan row col"],
    image: Int[Tensor, "grid_row grid_col"],
    source: Int[Tensor, "grid_row grid_col 2"],
) -> Float[Tensor, "chan grid_row grid_col"]:
    """A query put together from the train pixels that explain it best: at each position the middle
    of the one patch that weighs most there.

    Args:
        train: pixels in [-1, 1].
        image: the train image at each position, of `maps`.
        source: the row and column in it.

    Returns:
        An image in [-1, 1].
    """
    row, col = source.long().unbind(-1)
    return train[image.long(), :, row, col].movedim(-1, 0)


def extremes(
    scores: Float[Tensor, "query train"], n: int
) -> tuple[Int[Tensor, "query n"], Int[Tensor, "query n"]]:
    """Proponents and opponents: the train images that a method ranks first and last.

    Args:
        scores: higher = keeping the train image lowers the query's loss.
        n: how many of each.

    Returns:
        Numbers of the proponents, highest first, and of the opponents, lowest first. Of equal
        scores the image that comes first is the higher.

    Raises:
        InputError: if there are not twice as many train images.
    """
    n_train = scores.shape[1]
    if not 1 <= n <= n_train // 2:
        raise InputError(
            f"n must be between 1 and {n_train // 2}, half of the {n_train} train images, not {n}"
        )
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return order[:, :n], order.flip(1)[:, :n]


def shared(
    scores: Float[Tensor, "query train"], others: Float[Tensor, "query train"], n: int
) -> Int[Tensor, "query"]:
    """How many of the first `n` proponents two methods have in common.

    Args:
        scores: of one method.
        others: of another one, on the same queries.
        n: how many proponents of each.

    Returns:
        A number from 0 to `n` for each query.
    """
    both = [extremes(values, n)[0] for values in (scores, others)]
    return (both[0][:, :, None] == both[1][:, None, :]).sum((1, 2))


def disagreements(
    scores: Float[Tensor, "query train"], others: Float[Tensor, "query train"], n: int
) -> pd.DataFrame:
    """Where two methods disagree most, by a rule that needs no eye: first the queries with the
    fewest common images among the first `n`; of equal ones, those with the lower rank correlation
    over all train images.

    Args:
        scores: of one method.
        others: of another one, on the same queries.
        n: how many proponents of each.

    Returns:
        A row per query, the strongest disagreement first: `query`, its position, `shared` and
        `correlation`.
    """
    found = {"shared": shared(scores, others, n), "correlation": spearman(scores.T, others.T)}
    table = pd.DataFrame({"query": range(len(scores)), **{k: v.numpy() for k, v in found.items()}})
    return table.sort_values(["shared", "correlation", "query"], ignore_index=True)
