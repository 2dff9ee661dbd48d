"""What a profile offers to a method: images, the model and its checkpoints, and what methods share,
kept so that none of it is computed twice."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property, partial
from time import perf_counter
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module

from nda.errors import InputError
from nda.model.outputs import denoising_losses
from nda.rivals.blocks import Gradients
from nda.rivals.gradients import Readout
from nda.rivals.inner_products import Products, Side, Source, collect
from nda.rivals.kernel import Choice
from nda.rivals.projection import Projection
from nda.store import Store, digest_json


class Scored(NamedTuple):
    """What a method that looks into the bench returns: its scores, or those of every damping it was
    asked for; and all the seconds that it would take by itself."""

    scores: Any  # [query, train], or {damping: [query, train]}
    seconds: float


class Bench:
    """The images, the model and the parameters of a profile, for methods to look at.

    Everything is loaded when it is first asked for. What several methods share, such as the inner
    products of gradients, is kept in `store` and in memory.

    Args:
        store: the working store of the profile, with `train`, `val`, `gen`; for methods that look
            into a model also `model` and its checkpoints.
        parameters: of the profile, by the names that notebooks give them.
        device: where images and models go.
        choose: how a damping is chosen: given the scores of every damping and the name of the
            queries, it returns the `Choice`. See `nda.evidence.tuning.chooser`.
        block: images in a block, if gradients are those that were made by blocks; see
            `nda.rivals.blocks`.
    """

    def __init__(
        self,
        store: Store,
        parameters: Mapping[str, Any],
        *,
        device: torch.device | str = "cpu",
        choose: Callable[[Mapping[float, Tensor], str], Choice] | None = None,
        block: int | None = None,
    ):
        self.block = block
        self.store, self.parameters = store.used_as("working"), parameters
        self.device = torch.device(device)
        self.choices: dict[str, Choice] = {}  # by method and settings
        self._choose = choose
        self._made: dict[Hashable, tuple[Any, float]] = {}

    @classmethod
    def of_images(cls, parameters: Mapping[str, Any], **images: Tensor) -> "Bench":
        """A bench of images in memory, for methods that look at nothing else.

        Args:
            parameters: of the methods' settings.
            **images: by kind, for example `train` and `val`, on one device.

        Returns:
            A bench without a model or a folder.
        """
        device = next(iter(images.values())).device
        bench = cls(Store("nowhere", role="working"), parameters, device=device)
        bench._made = {("images", kind): (values, 0.0) for kind, values in images.items()}
        return bench

    def images(self, kind: str) -> Float[Tensor, "image chan row col"]:
        """The images called "train", "val" or "gen", in [-1, 1].

        Args:
            kind: their name in the store.

        Returns:
            Them, on the device.
        """

        def load() -> Tensor:
            return self.store.load(kind, "image chan row col").to(self.device)

        return self.once(("images", kind), load)[0]

    def choose(self, path: Mapping[float, Float[Tensor, "query train"]], which: str) -> Choice:
        """The damping of a path of scores.

        Args:
            path: scores of every damping.
            which: the queries that they are of.

        Returns:
            The choice.

        Raises:
            InputError: if the bench was given no way to choose.
        """
        if self._choose is None:
            raise InputError(
                "bench cannot choose a damping; pass choose=nda.evidence.tuning.chooser(results)"
            )
        return self._choose(path, which)

    @property
    def checkpoints(self) -> list[str]:
        """Names of the weights that were kept on the way, the last of them `model`."""
        parts = self._recipe.checkpoints[:-1]
        return [f"model-{round(100 * part)}" for part in parts] + ["model"]

    def model(self, weights: str = "model") -> Module:
        """The model, ready to evaluate.

        Args:
            weights: one of `checkpoints`.

        Returns:
            It, on the device.
        """

        def load() -> Module:
            from nda.model.unet import load_model

            shape = self.images("train").shape
            return load_model(self.store.load(weights), self._recipe, shape, self.device)

        return self.once(("model", weights), load)[0]

    @cached_property
    def _recipe(self) -> Any:
        from nda.model.unet import Recipe  # with diffusers, which takes seconds to import

        return Recipe.parse(self.store.info("model")["parameters"]["recipe"])

    def collect(
        self, readout: Readout, projections: Sequence[Projection | None], weights: str = "model"
    ) -> dict[Projection | None, dict[str, Products]]:
        """Inner products of train images, validation and generated queries, for as long as the
        caller needs them.

        Args:
            readout: what is differentiated.
            projections: of the gradients; all share one pass.
            weights: one of `checkpoints`.

        Returns:
            By projection and kind; see `nda.rivals.inner_products.collect`.
        """
        sides = {kind: Side(self.images(kind), readout) for kind in ("train", "val", "gen")}
        made = None
        if self.block:
            blocks = Gradients(self.store.folder, self.block, self.device.type)
            made = partial(blocks.features, readout, weights)
        ask: dict[str, Any] = {"store": self.store, "name": weights, "made": made}
        return collect(self.model(weights), sides, projections, **ask)

    def products(self, which: str, source: Source) -> Products:
        """Inner products of a source, which stay in memory for the next method that needs them.

        Args:
            which: the queries, or "train".
            source: what is differentiated.

        Returns:
            Those of the queries with the train images.
        """
        make = partial(self.collect, source.readout, [source.projection], source.weights)
        return self.once(source, make)[0][source.projection][which]

    def journey(
        self, steps: int
    ) -> tuple[Float[Tensor, "query step chan row col"], tuple[int, ...], float]:
        """The generated queries as the model foresaw them at every step of the sampler.

        Args:
            steps: of the sampler.

        Returns:
            Clean images, timesteps of the steps, and the seconds that it took.
        """
        from nda.model import sampling

        numbers = range(len(self.images("gen")))
        made = partial(sampling.journey, self.model(), numbers, steps=steps)
        (clean, times), seconds = self.once(("journey", steps), made)
        return clean, times, seconds

    def once(self, key: Hashable, make: Callable[[], Any]) -> tuple[Any, float]:
        """What methods share in memory.

        Args:
            key: its name.
            make: what makes it, called the first time.

        Returns:
            It, and the seconds that making it took.
        """
        if key not in self._made:
            started, value = perf_counter(), make()
            self._made[key] = value, perf_counter() - started
        return self._made[key]

    def errors(
        self, timesteps: Sequence[int], weights: str = "model"
    ) -> tuple[Float[Tensor, "train timestep"], float]:
        """The model's squared errors on the train images, kept, and the seconds that they took.

        Args:
            timesteps: at which it predicts the noise.
            weights: one of `checkpoints`.

        Returns:
            Errors per pixel, and seconds.
        """
        name = f"parts/errors-{weights}-k{len(timesteps)}-{digest_json(list(timesteps))[:8]}"
        errors = self.store.kept(
            name,
            partial(
                denoising_losses, self.model(weights), self.images("train"), timesteps=timesteps
            ),
            axes="train timestep",
            parameters={"timesteps": list(timesteps)},
            inputs=self.store.sha256("train", weights),
        )
        return errors.to(self.device), self.store.info(name)["seconds"]

    def inputs(self, *which: str, model: bool) -> dict[str, str]:
        """The sha256 of what scores are computed from.

        Args:
            which: the queries.
            model: whether the model is looked into.

        Returns:
            Of train images and queries, by name; of a model also `"model"` and its `"recipe"`.
        """
        found = self.store.sha256("train", *which)
        if model:
            recipe = digest_json(self.store.info("model")["parameters"]["recipe"])
            found |= self.store.sha256("model") | {"recipe": recipe}
        return found
