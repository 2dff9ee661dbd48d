"""Inner products of many sources of features, each made once, measured and forgotten: all that the
scores of `nda.rivals.trak` need."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nda.errors import InputError
from nda.model.lean import UNet2DModel
from nda.rivals.gradients import Readout, features
from nda.rivals.kernel import Kernel, gram, norms
from nda.rivals.projection import Projection
from nda.store import Store, digest

Source = str | int


class Products:
    """Inner products, norms, kernels, seconds of several sources; a source is a readout of a model
    with some weights, under a name.

    images: of each kind, `"train"` among them. `cross[source, kind]` will be `gram` of the kind's
    features with the train features, `norms[source, kind]` their norms, `kernels[source]` the
    decomposed kernel of the train images, `seconds[source, kind]` the time. store: where all that
    is kept, as `parts/products/…`, so that a killed run goes on by the same calls; what was made
    with other readouts, projections, weights or images is made anew.
    """

    def __init__(
        self,
        images: Mapping[str, Float[Tensor, "image chan row col"]],
        *,
        projection: Projection | None = None,
        store: Store | None = None,
    ):
        if "train" not in images:
            raise InputError(
                f"images must have a kind called 'train', not only {', '.join(images)}"
            )
        self.images, self.projection, self.store = dict(images), projection, store
        self.cross: dict[tuple[Source, str], Tensor] = {}
        self.norms: dict[tuple[Source, str], Tensor] = {}
        self.kernels: dict[Source, Kernel] = {}
        self.seconds: dict[tuple[Source, str], float] = {}
        self._bytes: dict[tuple[Source, str], int] = {}  # of the features
        self._kept: dict[Source, Callable[[], Tensor]] = {}  # features of the train images

    def collect(
        self, source: Source, model: UNet2DModel, readout: Readout, *, keep: bool = False
    ) -> None:
        """Add a source for all images. keep: its train features stay in memory, for
        `collect_queries`."""
        own: list[Tensor] = []

        def train() -> Tensor:
            if not own:
                own.append(
                    features(model, self.images["train"], readout, projection=self.projection)
                )
            return own[0]

        for kind in sorted(self.images, key=lambda kind: kind != "train"):
            self._add(source, kind, self.images[kind], model, readout, train)
        if keep:
            self._kept[source] = train

    def collect_queries(
        self,
        source: Source,
        model: UNet2DModel,
        readout: Readout,
        queries: Mapping[str, Tensor],
        *,
        train: Source,
    ) -> None:
        """Add a source that has features of its own for some queries and those of the source
        `train`, which was kept, for the train images.

        queries: as the images of `nda.rivals.gradients.features`, also with a clean image at each
        timestep (Journey-TRAK).
        """
        if train not in self._kept:
            raise InputError(
                f"the train features of {train!r} were not kept; collect that source with keep=True"
                " first"
            )
        self.cross[source, "train"], self.norms[source, "train"] = (
            self.cross[train, "train"],
            self.norms[train, "train"],
        )
        self.seconds[source, "train"], self._bytes[source, "train"] = (
            self.seconds[train, "train"],
            self._bytes[train, "train"],
        )
        self.kernels[source] = self.kernels[train]
        for kind, images in queries.items():
            self._add(source, kind, images, model, readout, self._kept[train])

    def _add(
        self,
        source: Source,
        kind: str,
        images: Tensor,
        model: UNet2DModel,
        readout: Readout,
        train: Callable[[], Tensor],
    ) -> None:
        """The products of one kind with the train features, from the store if they are there."""
        name = f"parts/products/{source}-k{len(readout.timesteps)}-{kind}"
        made: dict[str, Any] = {
            "readout": asdict(readout),
            "projection": asdict(self.projection) if self.projection else None,
        }
        made |= {
            "weights": digest(model.state_dict()),
            "images": digest({"own": images, "train": self.images["train"]}),
        }
        if self.store and self.store.matches(name, made, {}):
            found = {key: value.to(images.device) for key, value in self.store.load(name).items()}
            kernel = Kernel(found["cross"]) if kind == "train" else None
        else:
            against = None if kind == "train" else train()  # not on this kind's clock
            started = perf_counter()
            own = (
                train()
                if against is None
                else features(model, images, readout, projection=self.projection)
            )
            found = {
                "cross": gram(own, against),
                "norms": norms(own),
            }  # among themselves if there is nothing to go against
            if kernel := Kernel(found["cross"]) if against is None else None:
                kernel.leverage(1.0)  # decomposes, on this clock
            found |= {
                "seconds": torch.tensor(perf_counter() - started, dtype=torch.float64),
                "bytes": torch.tensor(own.nbytes),
            }
            if self.store:
                self.store.delete(name)
                self.store.save(name, found, parameters=made)
        if kernel:
            self.kernels[source] = kernel
        self.cross[source, kind], self.norms[source, kind] = found["cross"], found["norms"]
        self.seconds[source, kind], self._bytes[source, kind] = (
            found["seconds"].item(),
            int(found["bytes"]),
        )

    def cost(self, sources: Sequence[Source], kind: str) -> float:
        """Seconds that all `sources` took together, for train images and those of one kind."""
        return sum(
            self.seconds.get((source, of), 0.0) for source in sources for of in ("train", kind)
        )

    def memory(self, sources: Sequence[Source], kind: str) -> dict[str, float]:
        """Megabytes of the features of the largest source, one being held at a time, and of the
        inner products of all."""
        pairs = [
            (source, of)
            for source in sources
            for of in ("train", kind)
            if (source, of) in self.cross
        ]
        held = max(
            sum(self._bytes[pair] for pair in pairs if pair[0] == source) for source in sources
        )
        return {
            "features, MB": round(held / 1e6, 1),
            "products, MB": round(sum(self.cross[pair].nbytes for pair in pairs) / 1e6, 1),
        }
