"""Gradients by blocks of images, each of them a task of its own; `nda.rivals.bench.Bench` makes
inner products of them when all are there."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nda.checks import pick_device
from nda.errors import InputError, check_positive
from nda.rivals.gradients import Readout, features
from nda.rivals.inner_products import Source, source_name
from nda.rivals.projection import Projection
from nda.store import Store

KINDS = ("train", "val", "gen")


class Block(NamedTuple):
    """Some images of one kind: the first of them, and what is differentiated for them."""

    source: Source
    kind: str
    start: int


@dataclass(frozen=True)
class Gradients:
    """Features of a store's images under its models, `size` images at a time.

    Attributes:
        folder: of the working store, with images and models. Blocks are kept there under
            `parts/blocks/`, and may be deleted when their inner products are there.
        size: images in a block. Features depend on it to rounding.
        device: where gradients are taken.
    """

    folder: Path
    size: int
    device: str = "auto"

    def tasks(self, sources: Sequence[Source]) -> list[Block]:
        """Every block of train images, validation and generated queries.

        Args:
            sources: what is differentiated.

        Returns:
            Blocks in their order; the position in this list is the number of the task.
        """
        check_positive("block", self.size)
        counts = {kind: Store(self.folder).info(kind)["shape"][0] for kind in KINDS}
        return [
            Block(source, kind, start)
            for source in sources
            for kind, count in counts.items()
            for start in range(0, count, self.size)
        ]

    def done(self, block: Block) -> bool:
        """Whether a block's features are there.

        Args:
            block: one of `tasks`.

        Returns:
            Whether there is nothing to do.
        """
        return Store(self.folder).matches(self._name(block), *self._made(block))

    def look(self, block: Block) -> None:
        """Write a block's features.

        Args:
            block: one of `tasks`.
        """
        from nda.model import unet  # with diffusers, which takes seconds to import

        def make() -> Float[Tensor, "example dim"]:
            images = store.load(block.kind).to(place)[block.start : block.start + self.size]
            recipe = unet.Recipe.parse(store.info("model")["parameters"]["recipe"])
            weights = store.load(block.source.weights)
            model = unet.load_model(weights, recipe, images.shape, place)
            return features(model, images, readout, projection=block.source.projection)

        store, place, readout = Store(self.folder), pick_device(self.device), block.source.readout
        parameters, inputs = self._made(block)
        made: dict[str, Any] = {"parameters": parameters, "inputs": inputs}
        store.kept(self._name(block), make, axes="example dim", **made)

    def features(
        self, readout: Readout, weights: str, kind: str, projection: Projection | None
    ) -> tuple[Float[Tensor, "example dim"], float]:
        """All features of one kind of images.

        Args:
            readout: what is differentiated.
            weights: name of the model's.
            kind: "train", "val" or "gen".
            projection: of the features.

        Returns:
            Features, and the seconds that all blocks took, added up.

        Raises:
            InputError: if a block is missing.
        """
        source, store = Source(readout, projection, weights), Store(self.folder)
        blocks = [block for block in self.tasks([source]) if block.kind == kind]
        for block in blocks:
            if not self.done(block):
                raise InputError(
                    f"{self._name(block)} is missing in {self.folder}; make the gradients of all"
                    " blocks first, with nda attribute"
                )
        names = [self._name(block) for block in blocks]
        found = torch.cat([store.load(name) for name in names])
        return found.to(pick_device(self.device)), sum(store.info(n)["seconds"] for n in names)

    def _made(self, block: Block) -> tuple[dict[str, Any], dict[str, str]]:
        store = Store(self.folder)
        recipe = store.info("model")["parameters"]["recipe"]
        parameters = asdict(block.source) | {"block": self.size, "recipe": recipe}
        return parameters, store.sha256(block.kind, block.source.weights)

    def _name(self, block: Block) -> str:
        source = source_name(block.source.weights, block.source.readout, block.source.projection)
        return f"parts/blocks/{source}-{self.size}/{block.kind}-{block.start}"
