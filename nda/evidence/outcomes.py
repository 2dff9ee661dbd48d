"""What removals did: how far every model is from the full one on every query, and tables of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from nda.errors import InputError, check_choice
from nda.evidence import chance
from nda.store import Store

MEASURES = {
    "image": "change of the image, RMS",
    "features": "change of its features, 1 − cosine",
    "loss": "change of the query's loss",
    "output": "change of the output, mean square",
}
"""What is measured of a model on a query; all are 0 for the full model, and grow with the change.
Pixels are in [-1, 1], losses and outputs means over pixels and timesteps."""
PARTS = ("masks", "images", "losses", "outputs", "features", "classes")


@dataclass(frozen=True)
class Outcomes:
    """All models of a counterfactual experiment, and all queries as they draw them.

    Attributes:
        models: a row per model, the full one first: `family`, `arm`, `k` images taken away,
            `target` (the query that they were taken away for, or -1), `seed`, `seconds`.
        masks: True = kept.
        images: the queries as each model draws them, 0…255.
        changes: by the name of a measure, see `MEASURES`.
        classes: what a classifier takes every image for.
    """

    models: pd.DataFrame
    masks: Bool[Tensor, "model train"]
    images: UInt8[Tensor, "model query chan row col"]
    changes: Mapping[str, Float[Tensor, "model query"]]
    classes: Int[Tensor, "model query"]

    @classmethod
    def load(cls, results: Store) -> "Outcomes":
        """From what notebook 09 has written.

        Args:
            results: a results store.

        Returns:
            The outcomes.

        Raises:
            InputError: if they are missing, or if the files do not belong together.
        """
        models = results.used_as("results").load("counterfactual/models")
        parts = {name: results.load(f"counterfactual/{name}") for name in PARTS}
        made = results.info("counterfactual/models")["inputs"]
        for name, part in parts.items():
            others = results.info(f"counterfactual/{name}")["inputs"] != made
            if others or len(part) != len(models):
                raise InputError(
                    f"counterfactual/{name} in {results.folder} is of another model, truth or"
                    " design than counterfactual/models there; delete that folder and run"
                    " 09_counterfactual again"
                )
        losses, images = parts["losses"].double(), parts["images"]
        changes = {
            "image": rms(images, images[0]),
            "features": 1 - parts["features"].double(),
            "loss": losses - losses[0],
            "output": parts["outputs"].double(),
        }
        return cls(models, parts["masks"], images, changes, parts["classes"])

    @property
    def arms(self) -> list[str]:
        """The methods whose first `k` images were taken away, in the order of training."""
        pairs = dict.fromkeys(zip(self.models["family"], self.models["arm"], strict=True))
        return [arm for family, arm in pairs if family == f"removed-{arm}" and arm != "random"]

    @property
    def k(self) -> int:
        """How many images every arm takes away, less those of the removal curve."""
        return int(self.models["k"][self.rows("removed-random")[0]])

    def rows(self, family: str) -> list[int]:
        """The models of a family.

        Args:
            family: "full"; "kept", whose models see all images; "removed-random" or "removed-"
                with an arm, with "-" and a `k` for the removal curve; "uncoupled-" with an arm.

        Returns:
            Their rows.

        Raises:
            InputError: if there is no such family.
        """
        check_choice("family", family, tuple(dict.fromkeys(self.models["family"])))
        return self.models.index[self.models["family"] == family].tolist()

    def each(self, family: str, measure: str) -> Float[Tensor, "model query"]:
        """What a family did to all queries.

        Args:
            family: see `rows`.
            measure: one of `MEASURES`.

        Returns:
            A row per model of the family.

        Raises:
            InputError: for another family or measure.
        """
        check_choice("measure", measure, tuple(MEASURES))
        return self.changes[measure][self.rows(family)]

    def own(self, family: str, measure: str) -> Float[Tensor, "target"]:
        """What removals did to the queries that they were made for.

        Args:
            family: see `rows`.
            measure: one of `MEASURES`.

        Returns:
            A value per model of the family; its queries are the first ones of all.

        Raises:
            InputError: for another family or measure.
        """
        return self.each(family, measure).diagonal()


def rms(
    images: UInt8[Tensor, "*model query chan row col"],
    original: UInt8[Tensor, "query chan row col"],
) -> Float[Tensor, "*model query"]:
    """Root mean square of the change of a pixel's value; times √values it is the papers' L2.

    Args:
        images: 0…255.
        original: 0…255.

    Returns:
        The changes, of pixels in [-1, 1].
    """
    change = (images.double() - original.double()) / 127.5
    return change.square().mean((-3, -2, -1)).sqrt()


def tables(
    outcomes: Outcomes, measure: str, *, reference: str, resamples: int = 10_000, seed: int = 0
) -> dict[str, pd.DataFrame]:
    """The three comparisons of every arm.

    Args:
        outcomes: of all models.
        measure: one of `MEASURES`.
        reference: the arm that the others are compared with.
        resamples: of bootstraps and permutations.
        seed: of both.

    Returns:
        A row per arm: `random`, see `chance.against_random`; `reference`, see `chance.against`;
        `specific`, see `chance.specificity`.

    Raises:
        InputError: for another measure or reference, or if there is no random removal.
    """
    check_choice("reference", reference, tuple(outcomes.arms))
    options = {"resamples": resamples, "seed": seed}
    random = outcomes.each("removed-random", measure)
    every = {arm: outcomes.each(f"removed-{arm}", measure) for arm in outcomes.arms}
    own = {arm: outcomes.own(f"removed-{arm}", measure) for arm in every}
    rows = {
        "random": {
            arm: chance.against_random(values, random, **options) for arm, values in own.items()
        },
        "reference": {
            arm: chance.against(values, own[reference], **options)
            for arm, values in own.items()
            if arm != reference
        },
        "specific": {
            arm: chance.specificity(values[:, : len(values)], **options)
            for arm, values in every.items()
        },
    }
    return {name: pd.DataFrame(found).T for name, found in rows.items()}


def curve(outcomes: Outcomes, measure: str) -> pd.DataFrame:
    """The removal curve.

    Args:
        outcomes: of all models.
        measure: one of `MEASURES`.

    Returns:
        Columns `arm`, `k` and `change`, the mean over the queries that have a curve; of the random
        arm over its sets, too. Empty if no other `k` was tried.
    """
    models, rows = outcomes.models, []
    removed = models["family"].str.startswith("removed-")
    others = models[removed & (models["k"] != outcomes.k)]
    queries = 1 + int(others["target"].max()) if len(others) else 0
    for arm in others["arm"].unique():
        for k in [*others["k"].unique(), outcomes.k]:
            family = f"removed-{arm}" + ("" if k == outcomes.k else f"-{k}")
            each = outcomes.each(family, measure)[:, :queries]
            values = each if arm == "random" else each[:queries].diagonal()
            rows.append((arm, int(k), values.mean().item()))
    return pd.DataFrame(rows, columns=["arm", "k", "change"]).sort_values(["arm", "k"])


def medians(outcomes: Outcomes, published: pd.DataFrame) -> pd.DataFrame:
    """The median changes of the images, beside those that papers print.

    Args:
        outcomes: of all models.
        published: columns `dataset`, `method`, `l2` and `values`, how many an image has.

    Returns:
        Columns `dataset`, `method`, `RMS` and `times random`.
    """
    arms = {arm: outcomes.own(f"removed-{arm}", "image") for arm in outcomes.arms}
    targets = 1 + int(outcomes.models["target"].max())
    images = {"random": outcomes.each("removed-random", "image")[:, :targets], **arms}
    rows = [("here", arm, values.quantile(0.5).item()) for arm, values in images.items()]
    ours = pd.DataFrame(rows, columns=["dataset", "method", "RMS"])
    theirs = published.assign(RMS=published["l2"] / published["values"] ** 0.5)
    both = pd.concat([ours, theirs])[["dataset", "method", "RMS"]]
    random = both[both["method"] == "random"].set_index("dataset")["RMS"]
    return both.assign(**{"times random": both["RMS"] / both["dataset"].map(random)})


def classes(outcomes: Outcomes, labels: Int[Tensor, "train"]) -> pd.DataFrame:
    """How lopsided removals are, and how often a picture then shows another class.

    Args:
        outcomes: of all models.
        labels: the class of each train image.

    Returns:
        A row per arm, random removals first: `share` of the removed images that are of their most
        frequent class, and `switched`, the share of the queries whose class is another than before;
        means over models, from 0 to 1.
    """
    kinds, rows = labels.unique(), {}
    targets = 1 + int(outcomes.models["target"].max())
    switched = (outcomes.classes != outcomes.classes[0]).double()
    for arm in ("random", *outcomes.arms):
        models = outcomes.rows(f"removed-{arm}")
        gone = ~outcomes.masks[models]
        counts = torch.stack([(gone & (labels == kind)).sum(1) for kind in kinds], 1)
        share = (counts.amax(1) / gone.sum(1)).mean()
        seen = switched[models][:, :targets] if arm == "random" else switched[models].diagonal()
        rows[arm] = {"share": share.item(), "switched": seen.mean().item()}
    return pd.DataFrame(rows).T
