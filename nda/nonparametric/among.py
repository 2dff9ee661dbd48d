"""Exact NDA among the candidates of a query, with the mass outside of them estimated.

A posterior's masses are shares of a sum over all train images. The candidates' part of the sum is
computed in full. The rest is estimated from a random sample of the other images: their weights,
times how many others there are for each that was drawn. Dividing by the estimated sum is what
self-normalised importance sampling does (Niedoba et al., 2024; GoldDiff). Its error is measured by
the jackknife: the sample is drawn in groups, and we look how far the result moves when each group
is left out. What no sample can show is a single image outside that has most of the mass; that is
for the recall of the candidates to answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from nda import rng
from nda.data.bank import floats
from nda.errors import InputError, check_positive
from nda.nonparametric.config import NDAConfig
from nda.nonparametric.partial import Partial, merge, partial_scores

GROUPS = 8  # of the sample
BLOCK = 256  # images that are looked at together


@dataclass(frozen=True)
class Among:
    """What was found about a query.

    Attributes:
        images: numbers of the candidates, sorted.
        scores: of the candidates, among all train images, by estimate.
        errors: standard errors of these estimates.
        outside: mass of all other images, between 0 and 1.
        outside_error: standard error of it.
        drawn: numbers of the other images that were looked at.
        drawn_scores: of these.
    """

    images: Int[Tensor, "candidate"]
    scores: Float[Tensor, "candidate"]
    errors: Float[Tensor, "candidate"]
    outside: float
    outside_error: float
    drawn: Int[Tensor, "drawn"]
    drawn_scores: Float[Tensor, "drawn"]

    def everywhere(self, masses: Float[Tensor, "train"]) -> Float[Tensor, "train"]:
        """A score for every train image. Those that are no candidates have an estimate, which is
        proportional to the root of their coarse mass. The factor is that of the images that were
        drawn. The root is there since coarse masses, of a nearest patch without noise, are more
        uneven than scores; it was chosen on `select` subsets of the benchmark.

        Args:
            masses: of all train images, as `nda.nonparametric.pooled.Index.masses` gives them.

        Returns:
            The scores.
        """
        roots = masses.sqrt().to(self.scores)
        drawn = roots[self.drawn].sum().clamp_min(torch.finfo(roots.dtype).tiny)
        scores = roots * (self.drawn_scores.sum() / drawn)
        scores[self.images] = self.scores
        return scores


def scores_among(
    query: Float[Tensor, "chan row col"],
    train: UInt8[Tensor, "train chan row col"] | Float[Tensor, "train chan row col"],
    candidates: Int[Tensor, "candidate"],
    config: NDAConfig,
    *,
    sample: int = 512,
    seed: int = 0,
) -> Among:
    """NDA of one query with its candidates and a random sample of all other images.

    Args:
        query: pixels in [-1, 1].
        train: in 256 levels or in [-1, 1]; may be mapped from a file, since few of them are read.
        candidates: numbers of train images.
        config: all choices of the method.
        sample: how many of the other images are looked at; if that is all of them, nothing is
            estimated.
        seed: of the sample.

    Returns:
        Scores, and how sure they are.

    Raises:
        InputError: for candidates that are not different numbers of train images, or a sample that
            is too small.
    """
    check_positive("sample", sample)
    some = candidates.sort().values
    different = len(some.unique()) == len(some) and len(some) > 0
    if not different or some[0] < 0 or some[-1] >= len(train):
        raise InputError(
            f"candidates must be different numbers of the {len(train)} train images, at least one"
        )
    rest = len(train) - len(some)
    drawn = _drawn(len(train), some, sample, seed)
    if len(drawn) < min(rest, 2 * GROUPS):
        raise InputError(f"sample must be at least {2 * GROUPS}, so that its error can be measured")
    inside = _looked(query, train, some, config)
    if not rest:
        scores = inside.scores()[0]
        return Among(some, scores, torch.zeros_like(scores), 0.0, 0.0, drawn, scores[:0])
    seen = _looked(query, train, drawn, config)
    whole = _completed(inside, [part.log_total for part in seen.posteriors], rest / len(drawn))
    scores = inside.within(whole).scores()[0]
    outside, error, errors = _outside(inside, whole), 0.0, torch.zeros_like(scores)
    if len(drawn) < rest:
        left = _without_each(inside, seen, query, train, rest)
        finite = 1 - len(drawn) / rest  # a sample of nearly all is nearly sure
        errors = _jackknife(torch.stack([inside.within(one).scores()[0] for one in left]), finite)
        alone = torch.tensor([_outside(inside, one) for one in left])
        error = _jackknife(alone[:, None], finite).item()
    drawn, others = seen.posteriors[0].images, seen.within(whole).scores()[0]
    return Among(some, scores, errors, outside, error, drawn, others)


def _drawn(count: int, candidates: Tensor, sample: int, seed: int) -> Int[Tensor, "drawn"]:
    """Images that are no candidates, in an order of their own."""
    other = torch.ones(count, dtype=torch.bool)
    other[candidates] = False
    order = torch.randperm(count, generator=rng.generator("outside", seed))
    return order[other[order]][:sample]


def _looked(query: Tensor, train: Tensor, images: Tensor, config: NDAConfig) -> Partial:
    parts = [
        partial_scores(query[None], _pixels(train[few]).to(query), config, images=few.tolist())
        for few in images.split(BLOCK)
    ]
    return merge(parts)


def _pixels(images: Tensor) -> Tensor:
    return floats(images) if images.dtype == torch.uint8 else images


def _completed(inside: Partial, drawn: Sequence[Tensor], factor: float) -> Partial:
    """The totals of all images: the candidates', and `factor` times those that were drawn."""
    found = []
    for own, log_total in zip(inside.posteriors, drawn, strict=True):
        others = log_total + torch.tensor(factor).to(log_total).log()
        found.append(replace(own, log_total=torch.logaddexp(own.log_total, others)))
    return replace(inside, posteriors=tuple(found))


def _without_each(
    inside: Partial, seen: Partial, query: Tensor, train: Tensor, rest: int
) -> list[Partial]:
    """The totals of all images, as they would be without each group of the sample."""
    images, config = seen.posteriors[0].images, seen.config
    if config.top_k is not None:  # an image's share then is not all that it adds to the total
        seen = _looked(query, train, images, replace(config, top_k=None))
    order = torch.randperm(len(images), generator=rng.generator("groups"))
    found = []
    for group in order.tensor_split(GROUPS):
        stay = torch.ones(len(images), dtype=torch.bool)
        stay[group] = False
        drawn = [
            part.log_total + part.log_share[:, :, stay].logsumexp(2).to(part.log_total)
            for part in seen.posteriors
        ]
        found.append(_completed(inside, drawn, rest / int(stay.sum())))
    return found


def _outside(inside: Partial, whole: Partial) -> float:
    """Mass that is not the candidates', averaged over positions and terms."""
    mass = torch.zeros((), dtype=torch.float64)
    parts = zip(inside.config.terms(), inside.posteriors, whole.posteriors, strict=True)
    for term, own, every in parts:
        mass += term.weight * (1 - (own.log_total - every.log_total).double().exp()).mean()
    return mass.item()


def _jackknife(values: Float[Tensor, "group any"], finite: float) -> Float[Tensor, "any"]:
    """Standard errors from the results without each group."""
    return values.std(0, correction=0) * (finite * (len(values) - 1)) ** 0.5
