"""Known answers: what any method says about queries that are made of train images (`plants`)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from nda.errors import InputError
from nda.evidence.plants import NOBODY, Planted, plant
from nda.methods import CLIP, EFFICIENTNET, IMAGES, NOTHING, Method
from nda.nonparametric.config import NDAConfig
from nda.nonparametric.provenance import local_scores, pixel_masses
from nda.rivals.bench import Bench

Scorer = Callable[[Tensor, Tensor], Tensor]  # (queries, train) -> scores[query, train]
Mapper = Callable[[Tensor, Tensor], Tensor]  # (queries, train) -> masses[query, row, col, train]
DATA_ONLY = (NOTHING, IMAGES, EFFICIENTNET, CLIP)
THRESHOLDS = (0.25, 0.5, 0.75)  # of a pixel's mass, above which it counts for an image
MAPPED = ("transplants", "mosaics", "ideal samples")  # cases in which images own parts of a query
FLAT = 0.1  # range of the pixels of a window, in [-1, 1], below which nothing is drawn in it
LEVEL = 0.95  # of the strangers whose largest share is below that of a verdict


def suite(
    method: Method | Scorer,
    train: Float[Tensor, "train chan row col"],
    held_out: Float[Tensor, "held_out chan row col"],
    *,
    parameters: Mapping[str, Any] | None = None,
    maps: Mapper | None = None,
    count: int = 16,
    planted: Sequence[Planted] | None = None,
) -> pd.DataFrame:
    """Ask a method questions whose answers are known.

    Args:
        method: one of the catalogue that sees only images, or any function of (queries, train) that
            returns `scores[query, train]`.
        train: pixels in [-1, 1].
        held_out: other images of the same shape.
        parameters: of a profile, for a method of the catalogue.
        maps: a function of (queries, train) that returns `masses[query, row, col, train]`, which
            sum to 1 over train; those of NDA are known.
        count: queries of each kind.
        planted: of `plant`, if several methods are asked the same; else it is called.

    Returns:
        A row for each kind of queries; the columns are those of `figures`, and `caught`: the share
        of queries whose first image is an answer and has a larger share than that of 95 % of the
        strangers. All but `rank` and `queries` in percent.

    Raises:
        InputError: for images that do not go together, a method that opens a model, or scores of
            another shape or that are not finite.
    """
    if isinstance(method, Method):
        maps = maps or mapper(method, parameters or {})
        method = scorer(method, parameters or {})
    asked = planted or plant(train, held_out, count)
    scores = method(torch.cat([one.queries for one in asked]), train)
    n_queries = sum(len(one.queries) for one in asked)
    if scores.shape != (n_queries, len(train)) or not torch.isfinite(scores).all():
        raise InputError(
            f"method must return finite scores [query={n_queries}, train={len(train)}], not"
            f" {tuple(scores.shape)} with {int((~torch.isfinite(scores)).sum())} that are not"
        )
    copies = twins(train)
    by_kind = scores.cpu().double().split([len(one.queries) for one in asked])
    strangers = [s for one, s in zip(asked, by_kind, strict=True) if one.case == "strangers"]
    verdict = largest_share(gathered(torch.cat(strangers), copies, "amax")).quantile(LEVEL)
    rows = []
    for one, values in zip(asked, by_kind, strict=True):
        shown = maps if one.case in MAPPED else None
        masses = shown and shown(one.queries, train).cpu().double()
        rows.append(figures(one, values, copies, masses, verdict.item()))
    return pd.DataFrame(rows)


def scorer(method: Method, parameters: Mapping[str, Any]) -> Scorer:
    """A method of the catalogue as a function of images alone.

    Args:
        method: one that opens no model.
        parameters: of a profile, by the names that notebooks give them.

    Returns:
        A function of (queries, train) that returns scores.

    Raises:
        InputError: for a method that needs more than images.
    """
    if method.needs not in DATA_ONLY:
        raise InputError(
            f"method {method.key} needs {method.needs}, which planted queries have not; choose one"
            " that sees only images"
        )
    settings = method.settings(parameters)
    if method.takes == "images":
        return partial(method.function, **settings)

    def score(queries: Tensor, train: Tensor) -> Tensor:
        bench = Bench.of_images(parameters, val=queries, train=train)
        return method.function(bench, "val", **settings).scores

    return score


def mapper(method: Method, parameters: Mapping[str, Any]) -> Mapper | None:
    """The maps of a method of the catalogue.

    Args:
        method: the method.
        parameters: of a profile.

    Returns:
        A function of (queries, train), or None for a method without maps.
    """
    if method.family != "nda":
        return None
    config = NDAConfig.parse(method.settings(parameters))
    return partial(pixel_masses, config=config)


def twins(train: Float[Tensor, "train chan row col"]) -> Int[Tensor, "train"]:
    """Which train images are the same: to name either of them is right.

    Args:
        train: the images.

    Returns:
        A number for each image, the same for the same pixels.
    """
    return train.flatten(1).cpu().unique(dim=0, return_inverse=True)[1]


def gathered(
    values: Float[Tensor, "*query train"], copies: Int[Tensor, "train"], reduce: str
) -> Float[Tensor, "*query picture"]:
    """Scores or masses of different pictures, twins taken together.

    Args:
        values: of every train image.
        copies: of `twins`.
        reduce: "amax" for scores, "sum" for masses.

    Returns:
        Values of every picture.
    """
    made = values.new_zeros(*values.shape[:-1], int(copies.max()) + 1)
    where = copies.expand_as(values)
    return made.scatter_reduce(-1, where, values, reduce, include_self=False)


def largest_share(scores: Float[Tensor, "query picture"]) -> Float[Tensor, "query"]:
    """The largest score's share of all, each taken from the least; of equal scores nobody has any.

    Args:
        scores: of every picture.

    Returns:
        Between 0 and 1.
    """
    above = scores - scores.amin(1, keepdim=True)
    return above.amax(1) / above.sum(1).clamp_min(torch.finfo(above.dtype).tiny)


def figures(
    asked: Planted,
    scores: Float[Tensor, "query train"],
    copies: Int[Tensor, "train"],
    masses: Float[Tensor, "query row col train"] | None,
    verdict: float,
) -> dict[str, Any]:
    """What a method is worth on one kind of queries.

    Equal scores never help: an answer that ties with another image is not the first, and its rank
    counts the tie as half.

    Args:
        asked: the queries and their answers.
        scores: the method's.
        copies: of `twins`.
        masses: the method's maps, if it has any.
        verdict: the largest share that says more than a stranger's.

    Returns:
        `recall_1`: is an answer ahead of everything else? `recall_4`: the share of the answers
        among the first four. `rank`: the mean number of images, itself counted, that are in front
        of an answer and are none. `iou` of the map of every answer with its pixels, at the best of
        `THRESHOLDS`, which is `threshold`. `share`: mean mass of the owners at their pixels, and
        `known`, what it was when they were drawn. `largest` and `largest_95`: median and 95 %
        quantile of the largest share.
    """
    pictures = gathered(scores, copies, "amax")
    shares = largest_share(pictures)
    row: dict[str, Any] = {"case": asked.case, "kind": asked.kind, "queries": len(scores)}
    row |= {"largest": 100 * shares.median().item()}
    row |= {"largest_95": 100 * shares.quantile(LEVEL).item()}
    if not asked.answers.shape[1]:
        return row
    answer = torch.zeros_like(pictures, dtype=torch.bool).scatter_(1, copies[asked.answers], True)
    place, rank = _places(pictures, answer, among=True), _places(pictures, answer, among=False)
    first = rank.amin(1) < 1.5
    row |= {"recall_1": 100 * first.double().mean().item()}
    row |= {"rank": rank[answer].mean().item()}
    among = (place <= 4).sum(1) / answer.sum(1)
    row |= {"recall_4": 100 * among.mean().item()}
    row |= {"caught": 100 * (first & (shares > verdict)).double().mean().item()}
    if masses is not None:
        maps = gathered(masses, copies, "sum")
        owned = asked.owner != NOBODY
        own = maps.gather(3, copies[asked.owner.clamp_min(0)][..., None])[..., 0]
        row |= {"share": 100 * own[owned].mean().item()}
        row |= {"known": 100 * asked.known[owned].mean().item()}
    if masses is not None and asked.case != "ideal samples":  # they have no parts, only pixels
        found = {at: _overlap(maps, copies, asked, at) for at in THRESHOLDS}
        row["threshold"] = max(found, key=lambda at: found[at])
        row["iou"] = 100 * found[row["threshold"]]
    return row


def explain(
    asked: Planted, train: Float[Tensor, "train chan row col"], config: NDAConfig, side: int
) -> dict[str, float]:
    """What one posterior sees of planted queries, to tell why a method that averages over many
    misses them.

    Args:
        asked: the queries.
        train: pixels in [-1, 1].
        config: of one timestep and one window of odd side.
        side: of the square of `nda.nonparametric.provenance.local_scores`.

    Returns:
        In percent: recall@1 by the `mean` of the masses over the query and by their `best` place,
        and what `by_place` says.
    """
    masses, copies = pixel_masses(asked.queries, train, config), twins(train)
    best = local_scores(asked.queries, train, config, side=side)
    readings = {"mean": masses.mean((1, 2)), "best": best}
    recall = {
        name: figures(asked, scores.cpu().double(), copies, None, 0.0)["recall_1"]
        for name, scores in readings.items()
    }
    (term,) = config.terms()
    return recall | by_place(asked, masses, term.scale.patch)


def by_place(
    asked: Planted, masses: Float[Tensor, "query row col train"], patch: int
) -> dict[str, float]:
    """Where the owners' masses are, to see why some are lost.

    Args:
        asked: the queries.
        masses: of windows of one side, as `pixel_masses` gives them.
        patch: that side, odd.

    Returns:
        Mean mass of the owner, in percent, at pixels whose window is all of one owner and has
        something drawn in it (`inside`), or is `flat`, and at those whose window reaches across an
        `edge`. NaN where there are none.
    """
    owner, half = asked.owner[:, None].double(), patch // 2
    pool = partial(F.max_pool2d, kernel_size=patch, stride=1, padding=half)
    inside = (pool(owner) == -pool(-owner))[:, 0]
    pixels = asked.queries.cpu().double()
    flat = (pool(pixels) + pool(-pixels)).amax(1) < FLAT
    own = masses.cpu().double().gather(3, asked.owner.clamp_min(0)[..., None])[..., 0]
    owned = asked.owner != NOBODY
    places = {"inside": inside & ~flat, "flat": inside & flat, "edge": ~inside}
    return {name: 100 * own[owned & where].mean().item() for name, where in places.items()}


def _places(scores: Tensor, answer: Tensor, *, among: bool) -> Float[Tensor, "query picture"]:
    """Ranks of the answers, among all pictures or all that are no answers; infinite elsewhere."""
    rivals = torch.ones_like(answer) if among else ~answer
    ranks = torch.full_like(scores, torch.inf)
    for query, column in answer.nonzero().tolist():
        others, own = scores[query][rivals[query]], scores[query, column]
        equal = (others == own).sum() - (1 if among else 0)
        ranks[query, column] = 1 + (others > own).sum() + equal / 2
    return ranks


def _overlap(maps: Tensor, copies: Tensor, asked: Planted, threshold: float) -> float:
    """Mean over queries and answers of the intersection of pixels over their union."""
    found = []
    owner = torch.where(asked.owner == NOBODY, NOBODY, copies[asked.owner.clamp_min(0)])
    for query, answers in enumerate(copies[asked.answers].tolist()):
        for picture in set(answers):
            said, true = maps[query, :, :, picture] > threshold, owner[query] == picture
            found.append(((said & true).sum() / (said | true).sum()).item())
    return sum(found) / len(found)
