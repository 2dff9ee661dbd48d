"""From gradients to kernels: the inner products of features, made once for every source, kept, and
the features forgotten. All that gradient-based scores need.

A source is what is differentiated, at some weights: a `Readout`, a model and a projection. Its
inner products are those of every kind of image with the train images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module

from nda.errors import InputError
from nda.rivals.gradients import Readout, features
from nda.rivals.kernel import Kernel, gram, norms
from nda.rivals.projection import Projection
from nda.store import Store, digest, digest_json


@dataclass(frozen=True)
class Source:
    """What is differentiated, how its gradient is projected, and the name of the weights."""

    readout: Readout
    projection: Projection | None = None
    weights: str = "model"

    @classmethod
    def parse(cls, projection_dim: int, **readout: Any) -> "Source":
        """From the settings of a method.

        Args:
            projection_dim: 0 for no projection.
            readout: fields of `nda.rivals.gradients.Readout`.

        Returns:
            The source, of the final weights.
        """
        return cls(Readout(**readout), Projection(projection_dim) if projection_dim else None)


class Side(NamedTuple):
    """Images of one kind and what is differentiated for them; images may be clean ones at each
    timestep of the readout."""

    images: Float[Tensor, "image *timestep chan row col"]
    readout: Readout


@dataclass(frozen=True, eq=False)
class Products:
    """Inner products of the queries' features with those of the train images, and norms.

    kernel: of the train images. seconds: what it took, for train images and queries. held: bytes of
    the features of both, which are gone.
    """

    cross: Float[Tensor, "query train"]
    norms: Float[Tensor, "query"]
    train_norms: Float[Tensor, "train"]
    kernel: Kernel
    seconds: float
    held: int


# features [example, dim] of a kind under a projection, and the seconds that they took
Made = Callable[[str, Projection | None], tuple[Tensor, float]]


class _Pass:
    """Features of several kinds under several projections. Those of the train images stay, of the
    others one kind is held at a time."""

    def __init__(
        self,
        model: Module,
        sides: Mapping[str, Side],
        projections: Sequence[Projection | None],
        made: Made | None,
    ):
        self.model, self.sides, self.projections, self.made = model, sides, projections, made
        self.elsewhere = 0.0  # seconds that features took where they were made
        self.held: dict[str, dict[Projection | None, Tensor]] = {}
        self.kernels: dict[Projection | None, Kernel] = {}

    def features(self, kind: str) -> dict[Projection | None, Tensor]:
        """By projection; one pass over the gradients makes all."""
        if kind not in self.held:
            self.held = {name: held for name, held in self.held.items() if name == "train"}
            made = self.made
            self.held[kind] = self._fetched(kind, made) if made else self._features(kind)
        return self.held[kind]

    def _fetched(self, kind: str, made: Made) -> dict[Projection | None, Tensor]:
        found = {}
        for projection in self.projections:
            found[projection], seconds = made(kind, projection)
            self.elsewhere += seconds
        return found

    def _features(self, kind: str) -> dict[Projection | None, Tensor]:
        images, readout = self.sides[kind]
        made = features(self.model, images, readout, projection=self._several)
        every = made.shape[1] - sum(p.dim for p in self.projections if p)  # parameters
        parts = made.split([p.dim if p else every for p in self.projections], 1)
        return dict(zip(self.projections, parts, strict=True))

    def _several(self, vectors: Float[Tensor, "example param"]) -> Float[Tensor, "example dim"]:
        return torch.cat([p(vectors) if p else vectors for p in self.projections], 1)

    def products(self, kind: str, projection: Projection | None) -> dict[str, Tensor]:
        """What is kept of a kind's features."""
        # the train features are not on the clock of the queries
        against = None if kind == "train" else self.features("train")[projection]
        started = perf_counter() + self.elsewhere
        own = self.features(kind)[projection]
        made = {"cross": gram(own, against), "norms": norms(own), "held": torch.tensor(own.nbytes)}
        if against is None:
            self.kernels[projection] = Kernel(made["cross"])
            self.kernels[projection].leverage(1.0)  # decomposes, on this clock
        seconds = torch.tensor(perf_counter() + self.elsewhere - started, dtype=torch.float64)
        return made | {"seconds": seconds}


def collect(
    model: Module,
    sides: Mapping[str, Side],
    projections: Sequence[Projection | None] = (None,),
    *,
    store: Store,
    name: str,
    made: Made | None = None,
) -> dict[Projection | None, dict[str, Products]]:
    """Products of every kind of image with the train images, under each projection.

    They are kept in `store`, so that a killed run goes on by the same call; what was made with
    other readouts, projections, weights or images is made anew. All that is missing shares one pass
    over the gradients, in which the features of the train images and of one other kind are held at
    a time.

    Args:
        model: called as `model(noisy, timesteps).sample`.
        sides: images and readout of each kind, `"train"` among them.
        projections: of the features; None for none.
        store: where the products are kept, as `parts/products/…`.
        name: of the weights, in the names there.
        made: gives the features of a kind under a projection, and the seconds that they took, where
            they have been made elsewhere (`nda.rivals.blocks`); default: they are made here.

    Returns:
        Products by projection and kind, `"train"` too.

    Raises:
        InputError: without train images, or for features that are not finite.
    """
    if "train" not in sides:
        raise InputError(f"sides must have a kind called 'train', not only {', '.join(sides)}")
    weights, train = digest(model.state_dict()), sides["train"]
    kinds = sorted(sides, key=lambda kind: kind != "train")
    jobs = {}
    for kind in kinds:
        images = digest({"own": sides[kind].images, "train": train.images})
        readouts = {"readout": asdict(sides[kind].readout), "train readout": asdict(train.readout)}
        for p in projections:
            how: dict[str, Any] = {"projection": asdict(p) if p else None}
            how |= readouts | {"weights": weights, "images": images}
            jobs[kind, p] = f"parts/products/{source_name(name, train.readout, p)}/{kind}", how
    missing = [job for job, (file, how) in jobs.items() if not store.matches(file, how, {})]
    needed = [p for p in projections if any(p == lost for _, lost in missing)]
    work = _Pass(model, sides, needed, made)
    kept = {}
    for (kind, p), (file, how) in jobs.items():
        parts = store.kept(file, partial(work.products, kind, p), parameters=how, inputs={})
        kept[kind, p] = {part: value.to(train.images.device) for part, value in parts.items()}
    return {
        p: _joined({kind: kept[kind, p] for kind in kinds}, work.kernels.get(p))
        for p in projections
    }


def _joined(kept: Mapping[str, Mapping[str, Tensor]], kernel: Kernel | None) -> dict[str, Products]:
    """With what queries need of the train images."""
    train = kept["train"]
    kernel = kernel or Kernel(train["cross"])
    found = {}
    for kind, own in kept.items():
        both = [own] if kind == "train" else [train, own]
        found[kind] = Products(
            own["cross"],
            own["norms"],
            train["norms"],
            kernel,
            sum(side["seconds"].item() for side in both),
            sum(int(side["held"]) for side in both),
        )
    return found


def source_name(weights: str, readout: Readout, projection: Projection | None) -> str:
    """A source's name on disk, for a reader, and with a digest that no two sources share.

    Args:
        weights: their name.
        readout: what is differentiated.
        projection: of the gradients.

    Returns:
        The name.
    """
    parts = [weights, readout.model_output, f"k{len(readout.timesteps)}"]
    parts += ["unit"] * readout.unit_norm + list(readout.parts)
    parts += [f"d{projection.dim}"] if projection else []
    every = [asdict(readout), asdict(projection) if projection else None]
    return "-".join([*parts, digest_json(every)[:8]])
