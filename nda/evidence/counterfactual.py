"""Counterfactuals: take images away, train again, and let the model draw the same picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from nda import rng
from nda.checks import pick_device
from nda.errors import InputError, check_choice, check_positive
from nda.evidence.retrain import Member, Plan
from nda.methods import METHODS
from nda.model import outputs, sampling, unet
from nda.model.lean import UNet2DModel
from nda.rivals.embeddings import Encoder, embed
from nda.store import Store

RANDOM = "random"  # the arm that every other is compared with


def draw_queries(n_gen: int, n: int) -> list[int]:
    """Which generated queries are asked about, drawn by name before any score is looked at.

    Args:
        n_gen: how many there are.
        n: how many to draw; the first of them are the same whatever this is.

    Returns:
        Their numbers.

    Raises:
        InputError: if there are fewer than asked for.
    """
    check_positive("removal_queries", n)
    if n > n_gen:
        raise InputError(f"removal_queries must be at most the {n_gen} generated queries, not {n}")
    return torch.randperm(n_gen, generator=rng.generator("removal queries"))[:n].tolist()


def random_removals(n_train: int, k: int, draws: int) -> Bool[Tensor, "draw train"]:
    """Masks without `k` random train images. A larger `k` takes away those of a smaller one and
    more.

    Args:
        n_train: train images.
        k: how many are taken away.
        draws: how many masks.

    Returns:
        The masks, True = kept.

    Raises:
        InputError: if no image would be left or none be taken away.
    """
    orders = [
        torch.randperm(n_train, generator=rng.generator("random removal", draw))
        for draw in range(draws)
    ]
    return _without(torch.stack(orders), k)


def top_removals(scores: Float[Tensor, "query train"], k: int) -> Bool[Tensor, "query train"]:
    """Masks without the `k` images of highest score, one for each query; of equal scores, the image
    that comes first goes first.

    Args:
        scores: higher = keeping the train image lowers the query's loss.
        k: how many are taken away.

    Returns:
        The masks, True = kept. A class may be left without images.

    Raises:
        InputError: for scores that are not finite, or if no image would be left or none be taken
            away.
    """
    if not torch.isfinite(scores).all():
        raise InputError(
            "scores have NaN or infinite entries; the method that made them failed on some image"
        )
    return _without(scores.cpu().sort(dim=1, descending=True, stable=True).indices, k)


def _without(orders: Tensor, k: int) -> Tensor:
    n_train = orders.shape[1]
    if not 0 < k < n_train:
        raise InputError(
            f"k must take away at least one of the {n_train} train images and leave one, not {k}"
        )
    return torch.ones(orders.shape, dtype=torch.bool).scatter_(1, orders[:, :k], False)


@dataclass(frozen=True)
class Family:
    """Removals of one kind.

    Attributes:
        name: the masks are `masks/<name>`.
        arm: what chooses the images: a run of the catalogue, or "random"; "none" removes nothing.
        k: how many images are taken away.
        rows: numbers of the generated queries that a run chooses for, one mask each.
        draws: how many random sets.
        train_seeds: of the models.
    """

    name: str
    arm: str
    k: int
    rows: Sequence[int]
    draws: int
    train_seeds: Sequence[int]

    def masks(self, store: Store) -> Bool[Tensor, "subset train"]:
        """Draw them.

        Args:
            store: the working store, with `train` and `scores/<arm>-gen`.

        Returns:
            The masks, True = kept.

        Raises:
            InputError: if the scores are missing, or no image would be left or none be taken away.
        """
        n_train = len(store.load("train"))
        if self.arm == "none":
            return torch.ones(1, n_train, dtype=torch.bool)
        if self.arm == RANDOM:
            return random_removals(n_train, self.k, self.draws)
        return top_removals(store.load(f"scores/{self.arm}-gen")[list(self.rows)], self.k)


def families(parameters: Mapping[str, Any]) -> list[Family]:
    """All removals of a profile, in the order of training.

    Args:
        parameters: of the profile, by the names that notebooks give them.

    Returns:
        The full model's images with its seed and others; the arms and the random sets; those of
        other numbers of images; and those at another seed, if an arm is named for it.

    Raises:
        InputError: for an arm that is no method of the catalogue, a curve of another one, or one of
            too many queries.
    """
    arms, n = parameters["removal_arms"], parameters["removal_queries"]
    for arm in arms:
        check_choice("removal_arms", arm.split("-")[0], tuple(METHODS))
    for arm in parameters["curve_arms"]:
        check_choice("curve_arms", arm, arms)
    uncoupled = parameters["uncoupled_arm"]
    check_choice("uncoupled_arm", uncoupled, ["", *arms])
    rows, curve = draw_queries(parameters["n_gen"], n), parameters["curve_queries"]
    for name in ("removal_targets", "curve_queries"):
        if parameters[name] > n:
            raise InputError(
                f"{name} must be at most the {n} removal_queries, not {parameters[name]}"
            )
    k, seed = parameters["removal_k"], parameters["train_seed"]
    others = range(seed, seed + 1 + parameters["removal_seeds"])
    found = [Family("kept", "none", 0, (), 1, others)]
    for arm in (RANDOM, *arms):
        found.append(Family(f"removed-{arm}", arm, k, rows, parameters["removal_random"], [seed]))
    for other in parameters["curve_ks"]:
        for arm in (RANDOM, *parameters["curve_arms"]):
            name, draws = f"removed-{arm}-{other}", parameters["curve_random"]
            found.append(Family(name, arm, other, rows[:curve], draws, [seed]))
    for arm in (RANDOM, uncoupled) if uncoupled else ():
        found.append(Family(f"uncoupled-{arm}", arm, k, rows[:curve], curve, [seed + 1]))
    return found


@dataclass(frozen=True)
class Removals(Plan):
    """Retrainings without some images, each of which draws all queries again.

    Attributes:
        rows: numbers of the generated queries.
        targets: of these, the first that images are taken away for; the others are only drawn.
        sampling_steps: of the sampler.
    """

    notebook = "09_counterfactual"
    rows: Sequence[int] = ()
    targets: int = 0
    sampling_steps: int = 50

    def members(self) -> list[Member]:
        """Every task, by family and seed.

        Returns:
            The tasks.
        """
        masks = (f"masks/{family}" for family in self.train_seeds)
        aimed = [name for name in masks if "rows" in Store(self.folder).info(name)["parameters"]]
        return [
            member
            for member in super().members()
            if f"masks/{member.family}" not in aimed or member.subset < self.targets
        ]

    def settings(self, member: Member) -> tuple[dict[str, Any], dict[str, str]]:
        """What a member's result depends on: also the full model, with which it is compared.

        Args:
            member: the task.

        Returns:
            Its parameters and inputs.
        """
        parameters, inputs = super().settings(member)
        asked = {"rows": list(self.rows), "sampling_steps": self.sampling_steps}
        return parameters | asked, inputs | Store(self.folder).sha256("model")

    def measure(self, model: UNet2DModel) -> dict[str, Tensor]:
        """What is kept of a retrained model.

        Args:
            model: it.

        Returns:
            `images`: the queries, drawn from their own noise, as 8-bit `[query, chan, row, col]`.
            `losses` and `outputs`, `[query, timestep]`: its losses on the queries of the full
            model, and the squared difference of the two models' outputs.
        """
        queries, reference = self._reference()
        asked: Any = {"timesteps": self.timesteps, "noise_seeds": self.noise_seeds}
        return {
            "images": draw_again(model, self.rows, self.sampling_steps),
            "losses": outputs.denoising_losses(model, queries, **asked),
            "outputs": outputs.output_changes(model, reference, queries, **asked),
        }

    def original(self) -> dict[str, Tensor]:
        """The same of the full model itself.

        Returns:
            `images`, `losses` and `outputs`, as in `measure`; the outputs are zero.
        """
        return self.measure(self._reference()[1])

    def _reference(self) -> tuple[Tensor, UNet2DModel]:
        store, device = Store(self.folder), pick_device(self.device)
        queries = store.load("gen")[list(self.rows)].to(device)
        recipe = unet.Recipe.parse(self.made_by())
        return queries, unet.load_model(store.load("model"), recipe, queries.shape, device)


def draw_again(model: UNet2DModel, rows: Sequence[int], steps: int) -> Tensor:
    """Generated queries, each from its own noise, in 8 bits.

    Args:
        model: that draws them.
        rows: their numbers.
        steps: of the sampler.

    Returns:
        `[query, chan, row, col]`, 0…255.
    """
    images = sampling.sample(model, rows, steps=steps)
    return ((images + 1) * 127.5).round().to(torch.uint8).cpu()


def plan(folder: Path, parameters: Mapping[str, Any]) -> Removals:
    """The retrainings of a profile's counterfactuals. Their masks, `masks/<family>`, are drawn if
    they are not there.

    Args:
        folder: of the working store, with the full model, the generated queries and the scores.
        parameters: of the profile, by the names that notebooks give them.

    Returns:
        The plan.
    """
    store, every = Store(folder), families(parameters)
    for family in every:
        made: dict[str, Any] = {"arm": family.arm, "k": family.k}
        inputs = store.sha256("train")
        if family.arm in ("none", RANDOM):
            made["draws"] = family.draws
        else:
            made["rows"] = list(family.rows)
            inputs |= store.sha256(f"scores/{family.arm}-gen")
        make, axes = partial(family.masks, store), "subset train"
        store.kept(f"masks/{family.name}", make, axes=axes, parameters=made, inputs=inputs)
    return Removals(
        folder,
        {family.name: family.train_seeds for family in every},
        parameters["timesteps"],
        parameters["noise_seeds"],
        parameters["device"],
        ("gen",),
        rows=draw_queries(parameters["n_gen"], parameters["removal_queries"]),
        targets=parameters["removal_targets"],
        sampling_steps=parameters["sampling_steps"],
    )


def collect(plan: Removals) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """What the finished retrainings found. The first row is the full model itself.

    Args:
        plan: the plan, all of whose members are done.

    Returns:
        A table of the models: `family`, `arm`, `k` images taken away, `target` (the query that they
        were taken away for, or -1), `seed`, `seconds`. And by name `masks` `[model, train]`,
        `images` `[model, query, chan, row, col]` in 8 bits, and `losses` and `outputs`
        `[model, query]`, means over timesteps.

    Raises:
        InputError: if some members are not done.
    """
    store, members = Store(plan.folder), plan.members()
    found = [plan.original(), *plan.finished(members)]
    full = torch.ones(1, len(store.load("train")), dtype=torch.bool)
    masks = [full, *(store.load(f"masks/{m.family}")[m.subset, None] for m in members)]
    rows = [("full", "none", 0, -1, plan.train_seeds["kept"][0], store.info("model")["seconds"])]
    for member in members:
        made = store.info(f"masks/{member.family}")["parameters"]
        target = member.subset if "rows" in made else -1
        seconds = store.info(member.name)["seconds"]
        drawn = (made["arm"], made["k"], target, member.train_seed, seconds)
        rows.append((member.family, *drawn))
    columns = ["family", "arm", "k", "target", "seed", "seconds"]
    values = {name: torch.stack([one[name] for one in found]) for name in found[0]}
    values |= {name: values[name].mean(2) for name in ("losses", "outputs")}
    return pd.DataFrame(rows, columns=columns), {"masks": torch.cat(masks)} | values


def look(
    images: UInt8[Tensor, "model query chan row col"],
    train: Float[Tensor, "train chan row col"],
    labels: Int[Tensor, "train"],
    encoder: Encoder,
) -> tuple[Float[Tensor, "model query"], Int[Tensor, "model query"]]:
    """How a network that knows nothing of the models sees what they draw.

    Args:
        images: of which the first model's are those that the others are compared with, 0…255.
        train: in [-1, 1].
        labels: their classes.
        encoder: see `nda.rivals.embeddings`.

    Returns:
        The cosine of the features with those of the first model's image; and the class that a
        logistic regression of the train images' features finds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pixels = images.flatten(0, 1).float() / 127.5 - 1
    seen = F.normalize(embed(pixels, encoder), dim=1).unflatten(0, images.shape[:2])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(F.normalize(embed(train, encoder), dim=1).numpy(), labels.numpy())
    classes = torch.from_numpy(classifier.predict(seen.flatten(0, 1).numpy()))
    return (seen * seen[:1]).sum(2), classes.unflatten(0, images.shape[:2])
