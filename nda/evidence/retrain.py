"""The ground truth, a task at a time: retrain on what a mask keeps, with one seed, and keep the
losses of the queries."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from nda import fanout
from nda.checks import pick_device
from nda.errors import InputError
from nda.model import outputs, training, unet
from nda.model.lean import UNet2DModel
from nda.store import Store, digest_json


@dataclass(frozen=True)
class Member:
    """One retrained model.

    Attributes:
        family: the masks are `masks/<family>`, random halves or any others.
        subset: the row of the masks that says what the model sees.
        train_seed: its seed.
    """

    family: str
    subset: int
    train_seed: int

    @property
    def name(self) -> str:
        """Its name in the store."""
        return f"members/{self.family}-{self.subset:03d}-{self.train_seed}"


@dataclass(frozen=True)
class Plan:
    """Retrainings on any masks: every row with every seed of its family.

    Attributes:
        notebook: that runs such a plan.
        folder: the working store, with `train`, the queries and `masks/<family>`; and `model`, if
            the recipe is that of the full model.
        train_seeds: of each family, in the order of training.
        timesteps: at which losses are measured.
        noise_seeds: of the losses.
        device: where models are trained.
        which: the queries whose losses are measured, by name.
        recipe: how the models are made; default, like `model`.
    """

    notebook: ClassVar[str] = "03_subset_models"
    folder: Path
    train_seeds: Mapping[str, Sequence[int]]
    timesteps: Sequence[int]
    noise_seeds: Sequence[int]
    device: str = "auto"
    which: Sequence[str] = ("val", "gen")
    recipe: Mapping[str, Any] | None = None

    def members(self) -> list[Member]:
        """Every task, by family and seed; the position in this list is the number that the command
        takes as `--task`.

        Returns:
            The tasks.

        Raises:
            InputError: for a family without seeds, or if its masks are missing.
        """
        if not all(self.train_seeds.values()):
            raise InputError(f"every family needs at least one train seed, not {self.train_seeds}")
        store = Store(self.folder)
        subsets = {family: len(store.load(f"masks/{family}")) for family in self.train_seeds}
        return [
            Member(family, subset, seed)
            for family, seeds in self.train_seeds.items()
            for seed in seeds
            for subset in range(subsets[family])
        ]

    def made_by(self) -> dict[str, Any]:
        """How the models are made.

        Returns:
            The recipe, as a sidecar holds it.
        """
        recipe = self.recipe or Store(self.folder).info("model")["parameters"]["recipe"]
        return asdict(unet.Recipe.parse(recipe))

    def settings(self, member: Member) -> tuple[dict[str, Any], dict[str, str]]:
        """What a member's result depends on.

        Args:
            member: the task.

        Returns:
            Its parameters and inputs.
        """
        store, recipe = Store(self.folder), self.made_by()
        parameters = {
            "recipe": recipe,
            "timesteps": list(self.timesteps),
            "noise_seeds": list(self.noise_seeds),
        }
        inputs = store.sha256("train", *self.which, f"masks/{member.family}")
        return asdict(member) | parameters, inputs | {"recipe": digest_json(recipe)}

    def done(self, member: Member) -> bool:
        """Whether this member's losses are in the store, from the present settings and inputs.

        Args:
            member: the task.

        Returns:
            Whether there is nothing to do.
        """
        return Store(self.folder).matches(member.name, *self.settings(member))

    def retrain(self, member: Member) -> None:
        """Train on what the mask keeps and write what is measured of the model.

        Args:
            member: the task.
        """
        store, notes = Store(self.folder), dict[str, Any]()
        parameters, inputs = self.settings(member)

        def make() -> dict[str, Tensor]:
            return self.measure(self._trained(member, notes))

        store.kept(member.name, make, parameters=parameters, inputs=inputs, notes=notes)
        store.delete(f"{member.name}-state")

    def measure(self, model: UNet2DModel) -> dict[str, Tensor]:
        """What is kept of a retrained model.

        Args:
            model: it.

        Returns:
            The losses `[noise, query, timestep]` of all queries, by their name.
        """
        store = Store(self.folder)
        measure = partial(outputs.denoising_losses, model, timesteps=self.timesteps)
        found = {}
        for which in self.which:
            queries = store.load(which).to(pick_device(self.device))
            each = [measure(queries, noise_seeds=[seed]) for seed in self.noise_seeds]
            found[which] = torch.stack(each)
        return found

    def _trained(self, member: Member, notes: dict[str, Any]) -> UNet2DModel:
        """The retrained model; on the way its state is saved, from which a killed run goes on."""
        store, device = Store(self.folder), pick_device(self.device)
        parameters, inputs = self.settings(member)
        name = f"{member.name}-state"
        if not store.matches(name, parameters, inputs):
            store.delete(name)
        train, recipe = store.load("train").to(device), unet.Recipe.parse(parameters["recipe"])
        for checkpoint in training.train(
            train,
            recipe,
            keep=store.load(f"masks/{member.family}")[member.subset],
            train_seed=member.train_seed,
            state=store.load(name) if name in store else None,
        ):
            if checkpoint.share < 1:
                store.save(name, checkpoint.state, parameters=parameters, inputs=inputs)
        notes["precision"] = checkpoint.precision
        return unet.load_model(checkpoint.weights, recipe, train.shape, device)

    def run(
        self,
        *,
        workers: int = 2,
        task: int | None = None,
        engine: str = "loky",
        scheduler: str | None = None,
    ) -> int:
        """Retrain all members that are not done, or one.

        Args:
            workers: processes of one thread each.
            task: its number among `members`; default, all.
            engine: as of `nda.fanout.run`.
            scheduler: as of `nda.fanout.run`.

        Returns:
            How many were trained.
        """
        chosen = fanout.one_of(self.members(), task)
        where: dict[str, Any] = {"workers": workers, "engine": engine, "scheduler": scheduler}
        return fanout.run(self.retrain, chosen, done=self.done, label="retraining", **where)

    def finished(self, members: Sequence[Member]) -> list[dict[str, Tensor]]:
        """What was measured of members.

        Args:
            members: some of the tasks.

        Returns:
            What `measure` returned, in their order.

        Raises:
            InputError: if some of them are not done.
        """
        missing = [member.name for member in members if not self.done(member)]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(members)} models are not trained yet, {missing[0]} first;"
                f" run notebook {self.notebook} or nda retrain"
            )
        return [Store(self.folder).load(member.name) for member in members]

    def measured(
        self, family: str, which: str
    ) -> Float[Tensor, "subset seed noise query timestep"]:
        """The finished members' losses, as they were measured.

        Args:
            family: of the masks.
            which: name of the queries.

        Returns:
            The losses.

        Raises:
            InputError: if some members are not done.
        """
        found = self.finished([member for member in self.members() if member.family == family])
        stacked = torch.stack([one[which] for one in found])
        seeds = len(self.train_seeds[family])  # members are ordered [seed, subset]
        return stacked.unflatten(0, (seeds, -1)).movedim(0, 1)

    def losses(
        self, family: str, which: str, groups: int
    ) -> Float[Tensor, "subset seed query group"]:
        """The finished members' losses: means over noises and over equal groups of neighbouring
        timesteps.

        Args:
            family: of the masks.
            which: name of the queries.
            groups: how many there are.

        Returns:
            The losses.

        Raises:
            InputError: if the timesteps are not as many equal groups, or some members are not done.
        """
        times = len(self.timesteps)
        if groups < 1 or times % groups:
            raise InputError(f"timestep_groups must divide the {times} timesteps, not {groups}")
        measured = self.measured(family, which).mean(2)
        return measured.unflatten(3, (groups, -1)).mean(4).contiguous()

    def record(self, family: str, which: str, results: Store) -> dict[str, Any]:
        """What is written beside a family's losses.

        Args:
            family: of the masks.
            which: name of the queries.
            results: the results store, with the same masks.

        Returns:
            Parameters, inputs and seconds for `Store.save`; seconds are those of all members, which
            measure all queries.
        """
        store = Store(self.folder)
        members = [member for member in self.members() if member.family == family]
        inputs = store.sha256("train", which) | {"recipe": digest_json(self.made_by())}
        return {
            "parameters": {
                "timesteps": list(self.timesteps),
                "noise_seeds": list(self.noise_seeds),
                "seeds": list(self.train_seeds[family]),
            },
            "inputs": results.used_as("results").sha256(f"masks/{family}") | inputs,
            "seconds": sum(store.info(member.name)["seconds"] for member in members),
        }
