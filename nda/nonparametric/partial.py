"""Scores of blocks of train images, merged exactly."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from nda.errors import InputError
from nda.nonparametric.config import NDAConfig
from nda.nonparametric.patches import Posterior, patch_posterior
from nda.nonparametric.patches import merge as merge_posteriors

# Least logarithm of what is left of a block's sum. All weights that an engine leaves out are
# together below e^-32 of the sum, so that they are less than a thousandth of what is left.
KEPT = -25.0


@dataclass(frozen=True)
class Partial:
    """What a block of train images contributes to the scores: `merge` blocks, then read `scores`.
    Takes, per term of the configuration, query · position · train numbers of memory. `tensors` and
    `from_tensors` are for a `nda.store.Store`."""

    config: NDAConfig
    posteriors: tuple[Posterior, ...]
    shape: tuple[int, int]  # of the images, rows and columns
    queries: str  # sha256 of their pixels

    def scores(self) -> Float[Tensor, "query train"]:
        """The scores of the train images so far.

        Returns:
            In the order of their numbers.
        """
        terms, weight = self.config.terms(), self.config.weight
        parts = zip(terms, self.posteriors, strict=True)
        return torch.stack([weight(term, self.shape) * part.scores() for term, part in parts]).sum(
            0
        )

    def only(self, images: Int[Tensor, "some"], *, least: float = -torch.inf) -> "Partial | None":
        """The part that some of the images make.

        An engine leaves out what is far below the best of a block. So if the images that made
        almost all of a position's sum are dropped, what is left may lack weights that now count.

        Args:
            images: numbers of the images to keep; those that are not here are ignored.
            least: a logarithm of a sum of weights below which none counts.

        Returns:
            The same as computing it of these images alone, to rounding and but for sums below
            `least`; None if that cannot be had.
        """
        found = []
        for posterior in self.posteriors:
            there = torch.isin(posterior.images, images)
            if not there.any():
                return None
            share = posterior.log_share[:, :, there]
            left = share.logsumexp(2).clamp_min(-1e9)  # a number even where nothing is left
            counts = posterior.log_total > least - KEPT
            if (counts & (left < KEPT)).any():
                return None
            total = posterior.log_total + left
            found.append(Posterior(posterior.images[there], total, share - left[:, :, None]))
        return replace(self, posteriors=tuple(found))

    def total(self) -> "Partial":
        """What other blocks need to know of this one: its posteriors without any image, query ·
        position numbers per term.

        Returns:
            What `merge` and `within` take.
        """
        return replace(
            self,
            posteriors=tuple(
                replace(p, images=p.images[:0], log_share=p.log_share[:, :, :0])
                for p in self.posteriors
            ),
        )

    def within(self, total: "Partial") -> "Partial":
        """This block as a part of all blocks, so that `scores` are those that its images have among
        all. For more blocks than memory holds: merge their totals, then take one after the other.

        Args:
            total: the merged `total` of all blocks, this one's too.

        Returns:
            Its shares of the whole.
        """
        pairs = zip(self.posteriors, total.posteriors, strict=True)
        return replace(self, posteriors=tuple(own.within(every.log_total) for own, every in pairs))

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the configuration.

        Returns:
            Named tensors, from which `from_tensors` makes it again.
        """
        named = {
            f"{i}.{f.name}": getattr(p, f.name)
            for i, p in enumerate(self.posteriors)
            for f in fields(p)
            if f.name != "images"
        }
        return named | {
            "images": self.posteriors[0].images,
            "shape": torch.tensor(self.shape),
            "queries": torch.tensor(list(bytes.fromhex(self.queries))),
        }

    @classmethod
    def from_tensors(cls, config: NDAConfig, tensors: Mapping[str, Tensor]) -> "Partial":
        """The reverse of `tensors`.

        Args:
            config: the configuration.
            tensors: what `tensors` gave.

        Returns:
            The partial result.
        """
        found = [
            Posterior(tensors["images"], tensors[f"{i}.log_total"], tensors[f"{i}.log_share"])
            for i, _ in enumerate(config.terms())
        ]
        shape, queries = tuple(tensors["shape"].tolist()), bytes(tensors["queries"].tolist())
        return cls(config, tuple(found), shape, queries.hex())


def partial_scores(
    queries: Float[Tensor, "query chan row col"],
    train: Float[Tensor, "train chan row col"],
    config: NDAConfig,
    *,
    images: Sequence[int] | None = None,
    engine: str = "auto",
) -> Partial:
    """The part of `nda_scores` that a block of train images makes.

    Blocks can be computed apart, in any order, on other machines; images are appended to a finished
    run by merging a new block with it.

    Args:
        queries: pixels in [-1, 1].
        train: the block, of the queries' dtype and device.
        config: all choices of the method.
        images: numbers of the block's images in the whole train set; default: 0, 1, …
        engine: as of `nda.nonparametric.patches.patch_posterior`.

    Returns:
        What `merge` takes.

    Raises:
        InputError: if the numbers are not as many different integers as there are images.
    """
    numbers = torch.arange(len(train)) if images is None else torch.as_tensor(images)
    integers = numbers.shape == (len(train),) and not numbers.is_floating_point()
    if not integers or len(numbers.unique()) < len(train):
        raise InputError(
            f"images must be {len(train)} different integers, the numbers of this block's train"
            f" images, not {images!r}"
        )
    numbers, order = numbers.sort()
    bank = torch.cat([train[order], train[order].flip(-1)]) if config.flips else train[order]
    found = []
    for term in tqdm(list(config.terms()), desc="NDA", unit="posterior", leave=False):
        whole = patch_posterior(queries, bank, engine=engine, **config.options(queries, term))
        # a mirrored image's mass counts for its original
        share = torch.stack(whole.log_share.split(len(train), dim=2)).logsumexp(0)
        found.append(replace(whole, images=numbers.to(train.device), log_share=share))
    pixels = hashlib.sha256(queries.cpu().contiguous().numpy().tobytes()).hexdigest()
    return Partial(config, tuple(found), (train.shape[2], train.shape[3]), pixels)


def merge(partials: Sequence[Partial]) -> Partial:
    """One partial result from those of disjoint blocks, the same as computing all at once, to
    rounding.

    Args:
        partials: in any order.

    Returns:
        Their images in the order of their numbers.

    Raises:
        InputError: if an image is in two blocks, or if the blocks are of different runs.
    """
    if not partials:
        raise InputError("merge needs at least one partial result")
    runs = [(part.config, part.shape, part.queries) for part in partials]
    if any(run != runs[0] for run in runs):
        raise InputError(
            "the partial results are of different queries, configurations or image sizes; merge"
            " only parts of one run"
        )
    blocks = zip(*(part.posteriors for part in partials), strict=True)  # of each term
    return replace(partials[0], posteriors=tuple(map(merge_posteriors, blocks)))


def merge_tree(partials: Iterable[Partial]) -> Partial:
    """`merge` of many, as a tree: neighbours two by two, then their results. At any time there are
    at most log2(number) + 2, the sums are the same whoever made the parts, and rounding grows with
    the depth alone.

    Args:
        partials: in their order, one after the other; for example the `total` of each block.

    Returns:
        One partial result.
    """
    waiting: list[tuple[int, Partial]] = []  # level in the tree, and what waits there for another
    for part in partials:
        level = 0
        while waiting and waiting[-1][0] == level:
            part, level = merge([waiting.pop()[1], part]), level + 1
        waiting.append((level, part))
    while len(waiting) > 1:
        (_, last), (level, before) = waiting.pop(), waiting.pop()
        waiting.append((level, merge([before, last])))
    return merge([part for _, part in waiting])
