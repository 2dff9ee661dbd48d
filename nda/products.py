"""Inner products of many sources of features, each made once, measured and forgotten: all that the scores of `nda.trak` need."""

from collections.abc import Mapping, Sequence
from time import perf_counter

from diffusers import UNet2DModel
from jaxtyping import Float
from torch import Tensor

from nda import trak
from nda.checks import InputError
from nda.gradients import Readout, features
from nda.projection import Projection

Source = str | int


class Products:
    """Inner products, norms, kernels, seconds of several sources; a source is a readout of a model with some weights, under a name.

    images: of each kind, `"train"` among them. `cross[source, kind]` will be `gram` of the kind's features with the train features,
    `norms[source, kind]` their norms, `kernels[source]` the decomposed kernel of the train images, `seconds[source, kind]` the time.
    """

    def __init__(self, images: Mapping[str, Float[Tensor, "image chan row col"]], *, projection: Projection | None = None):
        if "train" not in images:
            raise InputError(f"images must have a kind called 'train', not only {', '.join(images)}")
        self.images, self.projection = dict(images), projection
        self.cross: dict[tuple[Source, str], Tensor] = {}
        self.norms: dict[tuple[Source, str], Tensor] = {}
        self.kernels: dict[Source, trak.Kernel] = {}
        self.seconds: dict[tuple[Source, str], float] = {}
        self._bytes: dict[tuple[Source, str], int] = {}  # of the features
        self._kept: dict[Source, Tensor] = {}

    def collect(self, source: Source, model: UNet2DModel, readout: Readout, *, keep: bool = False) -> None:
        """Add a source for all images. keep: its train features stay in memory, for `collect_queries`."""
        features_of_train = self._add(source, "train", self.images["train"], model, readout, None)
        for kind in self.images.keys() - {"train"}:
            self._add(source, kind, self.images[kind], model, readout, features_of_train)
        if keep:
            self._kept[source] = features_of_train

    def collect_queries(
        self, source: Source, model: UNet2DModel, readout: Readout, queries: Mapping[str, Tensor], *, train: Source
    ) -> None:
        """Add a source that has features of its own for some queries and those of the source `train`, which was kept, for the train images.

        queries: as the images of `nda.gradients.features`, also with a clean image at each timestep (Journey-TRAK).
        """
        if train not in self._kept:
            raise InputError(f"the train features of {train!r} were not kept; collect that source with keep=True first")
        self.cross[source, "train"], self.norms[source, "train"] = self.cross[train, "train"], self.norms[train, "train"]
        self.seconds[source, "train"], self._bytes[source, "train"] = self.seconds[train, "train"], self._bytes[train, "train"]
        self.kernels[source] = self.kernels[train]
        for kind, images in queries.items():
            self._add(source, kind, images, model, readout, self._kept[train])

    def _add(
        self, source: Source, kind: str, images: Tensor, model: UNet2DModel, readout: Readout, against: Tensor | None
    ) -> Float[Tensor, "image dim"]:
        started = perf_counter()
        own = features(model, images, readout, projection=self.projection)
        self.cross[source, kind] = trak.gram(own, against)  # among themselves if there is nothing to go against
        self.norms[source, kind], self._bytes[source, kind] = trak.norms(own), own.nbytes
        if against is None:
            self.kernels[source] = trak.Kernel(self.cross[source, kind])
            self.kernels[source].leverage(1.0)  # decomposes, on this clock
        self.seconds[source, kind] = perf_counter() - started
        return own

    def cost(self, sources: Sequence[Source], kind: str) -> float:
        """Seconds that all `sources` took together, for the train images and for those of one kind."""
        return sum(self.seconds.get((source, of), 0.0) for source in sources for of in ("train", kind))

    def memory(self, sources: Sequence[Source], kind: str) -> dict[str, float]:
        """Megabytes of the features of the largest source, one being held at a time, and of the inner products of all."""
        pairs = [(source, of) for source in sources for of in ("train", kind) if (source, of) in self.cross]
        held = max(sum(self._bytes[pair] for pair in pairs if pair[0] == source) for source in sources)
        return {"features, MB": round(held / 1e6, 1), "products, MB": round(sum(self.cross[pair].nbytes for pair in pairs) / 1e6, 1)}
