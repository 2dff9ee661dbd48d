"""The ground truth, a task at a time: retrain on one subset with one seed, keep query losses."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import torch
from jaxtyping import Float
from torch import Tensor

from nda import fanout
from nda.errors import InputError, pick_device
from nda.model import outputs, training, unet
from nda.store import Store


@dataclass(frozen=True)
class Member:
    """One retrained model."""

    family: str
    subset: int
    train_seed: int

    @property
    def name(self) -> str:
        """Its name in the store."""
        return f"members/{self.family}-{self.subset:03d}-{self.train_seed}"


@dataclass(frozen=True)
class Plan:
    """All retrainings of a profile. `folder` is its working store, with `train`, `val`, `gen`,
    `masks/*` and `model`."""

    folder: Path
    train_seeds: dict[str, Sequence[int]]  # of each family, in the order of training
    timesteps: Sequence[int]
    noise_seeds: Sequence[int]
    device: str = "auto"

    def members(self) -> list[Member]:
        """Every task, by family and seed; the position in this list is the number that `python -m
        nda retrain --task` takes."""
        if not all(self.train_seeds.values()):
            raise InputError(f"every family needs at least one train seed, not {self.train_seeds}")
        store = Store(self.folder)
        subsets = {family: len(store.load(f"masks/{family}")) for family in self.train_seeds}
        return [
            Member(f, m, s)
            for f, seeds in self.train_seeds.items()
            for s in seeds
            for m in range(subsets[f])
        ]

    def settings(self, member: Member) -> tuple[dict, dict[str, str]]:
        """The parameters and inputs that a member's result depends on; the recipe is that of the
        full model."""
        store = Store(self.folder)
        parameters = {
            "recipe": store.info("model")["parameters"]["recipe"],
            "timesteps": list(self.timesteps),
            "noise_seeds": list(self.noise_seeds),
        }
        return asdict(member) | parameters, store.sha256(
            "train", "val", "gen", f"masks/{member.family}"
        )

    def done(self, member: Member) -> bool:
        """Whether this member's losses are in the store, from the present settings and inputs."""
        return Store(self.folder).matches(member.name, *self.settings(member))

    def retrain(self, member: Member) -> None:
        """Train on the member's subset; write its losses, `val` and `gen` `[query, timestep]`."""
        started, store = perf_counter(), Store(self.folder)
        parameters, inputs = self.settings(member)
        device = pick_device(self.device)
        keep = store.load(f"masks/{member.family}")[member.subset]
        recipe = unet.Recipe.parse(parameters["recipe"])
        train = store.load("train").to(device)
        state = f"{member.name}-state"
        if not store.matches(state, parameters, inputs):
            store.delete(state)
        for checkpoint in training.train(
            train,
            recipe,
            keep=keep,
            train_seed=member.train_seed,
            state=store.load(state) if state in store else None,
        ):
            if checkpoint.share < 1:
                store.save(state, checkpoint.state, parameters=parameters, inputs=inputs)
        model = unet.load_model(checkpoint.weights, recipe, train.shape, device)
        losses = {
            queries: outputs.denoising_losses(
                model,
                store.load(queries).to(device),
                timesteps=self.timesteps,
                noise_seeds=self.noise_seeds,
            )
            for queries in ("val", "gen")
        }
        store.delete(member.name)
        store.save(
            member.name,
            losses,
            parameters=parameters,
            inputs=inputs,
            seconds=perf_counter() - started,
            notes={"precision": checkpoint.precision},
        )
        store.delete(state)

    def run(self, *, workers: int, task: int | None = None) -> int:
        """Retrain all members that are not done, or just number `task`; returns how many were
        trained."""
        members = self.members()
        if task is not None and not 0 <= task < len(members):
            raise InputError(f"task must be in 0…{len(members) - 1}, not {task}")
        chosen = members if task is None else [members[task]]
        return fanout.run(self.retrain, chosen, done=self.done, workers=workers, label="retraining")

    def losses(
        self, family: str, queries: str, groups: int
    ) -> Float[Tensor, "subset seed query group"]:
        """The finished members' losses as one tensor: means over `groups` equal groups of
        neighbouring timesteps."""
        store, times = Store(self.folder), len(self.timesteps)
        if groups < 1 or times % groups:
            raise InputError(f"timestep_groups must divide the {times} timesteps, not {groups}")
        members = [member for member in self.members() if member.family == family]
        missing = [member.name for member in members if not self.done(member)]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(members)} {family} models are not trained yet,"
                f" {missing[0]} first; run 03_subset_models"
            )
        stacked = torch.stack([store.load(member.name)[queries] for member in members])
        seeds = len(self.train_seeds[family])
        stacked = stacked.unflatten(2, (groups, -1)).mean(3)
        return (
            stacked.unflatten(0, (seeds, -1)).movedim(0, 1).contiguous()
        )  # members are ordered [seed, subset]
