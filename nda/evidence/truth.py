"""What retraining says, and how predictions are held against it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nda.data.subsets import FAMILIES
from nda.errors import InputError
from nda.evidence import lds
from nda.store import Store

# Settings are chosen on validation queries of even number and reported on those of odd number;
# of generated queries all count for both.
CHOOSE = {"val": slice(0, None, 2), "gen": slice(None)}
REPORT = {"val": slice(1, None, 2), "gen": slice(None)}
PARTS = {"choose": CHOOSE, "report": REPORT, "all": dict.fromkeys(REPORT, slice(None))}
AXES = "subset seed query group"


def find_results(profile: str) -> Store:
    """The results of a profile that scores can be held against: those in `NDA_HOME` if it has
    retrained models, else those that come with the module.

    Args:
        profile: its name.

    Returns:
        The store; the one in `NDA_HOME` if there are results in neither place.
    """
    own, shipped = Store.results(profile), Store.shipped(profile)
    trained = [any(name.startswith("losses/") for name in s.names()) for s in (own, shipped)]
    return shipped if trained == [False, True] else own


def group_effects(
    scores: Float[Tensor, "query train"], masks: Bool[Tensor, "subset train"]
) -> Float[Tensor, "subset query"]:
    """Predicted effect of each subset on each query: the sum of its members' scores (TRAK;
    datamodels).

    Args:
        scores: higher = keeping the train image lowers the query's loss.
        masks: True = kept.

    Returns:
        The effects, in float64.

    Raises:
        InputError: for scores of another shape, or with entries that are not finite.
    """
    if scores.ndim != 2 or masks.ndim != 2 or scores.shape[1] != masks.shape[1]:
        hint = (
            "; it looks transposed"
            if scores.ndim == masks.ndim == 2 and scores.shape[0] == masks.shape[1]
            else ""
        )
        raise InputError(
            f"scores must be [query, train={masks.shape[-1]}], not {tuple(scores.shape)}{hint}"
        )
    if not torch.isfinite(scores).all():
        raise InputError(
            "scores have NaN or infinite entries; the method that made them failed on some image"
        )
    return masks.cpu().double() @ scores.cpu().double().T


@dataclass(frozen=True)
class Truth:
    """The losses of queries under models that were retrained on parts of the train set, and what
    predictions are worth against them.

    A part of the train set is a mask, and any masks will do: random halves (families `select` and
    `report`), all images but some, or whatever else was retrained.

    Attributes:
        family: name of the masks.
        which: "val" or "gen", the name of the queries.
        masks: `[subset, train]`, True = kept.
        losses: `[subset, seed, query, group]`, float64, of the queries that count; the groups are
            equal groups of neighbouring timesteps.
        rows: `[query]`, positions of these queries among all of their kind.
        n_queries: how many there are of that kind.
        timesteps: those that the losses were measured at.
        is_centred: whether each model's mean over the queries is removed, from the losses here and
            from all predictions that are held against them.
    """

    family: str
    which: str
    masks: Bool[Tensor, "subset train"]
    losses: Float[Tensor, "subset seed query group"]
    rows: Int[Tensor, "query"]
    n_queries: int
    timesteps: tuple[int, ...]
    is_centred: bool = False

    @classmethod
    def load(
        cls, results: Store | str, family: str, which: str, part: str | None = None
    ) -> "Truth":
        """The truth of one family of masks about one kind of queries.

        Args:
            results: a results store, or the name of a profile (see `find_results`).
            family: of the masks, for example "report".
            which: "val" or "gen".
            part: "choose", "report" or "all" of these queries. By default those that choose with
                the `select` masks, and those that are reported with any others.

        Returns:
            The truth.

        Raises:
            InputError: for other queries or another part, or if masks and losses are missing or do
                not belong together.
        """
        part = part or ("choose" if family == FAMILIES[0] else "report")
        if which not in REPORT or part not in PARTS:
            raise InputError(
                f"which must be one of {', '.join(REPORT)} and part one of {', '.join(PARTS)}, not"
                f" {which!r} and {part!r}"
            )
        store = find_results(results) if isinstance(results, str) else results.used_as("results")
        name = f"losses/{family}-{which}"
        masks, losses = store.load(f"masks/{family}", "subset train"), store.load(name, AXES)
        if len(masks) != len(losses):
            raise InputError(
                f"{name} in {store.folder} is of {len(losses)} subsets and masks/{family} of"
                f" {len(masks)}; delete that folder and copy or compute all of it again"
            )
        n_queries = losses.shape[2]
        rows = torch.arange(n_queries)[PARTS[part][which]]
        timesteps = tuple(store.info(name)["parameters"].get("timesteps", ()))
        counting = losses[:, :, rows].double()
        return cls(family, which, masks, counting, rows, n_queries, timesteps)

    @property
    def mean(self) -> Float[Tensor, "subset query"]:
        """The losses' mean over seeds and timesteps: what is to be predicted."""
        return self.losses.mean((1, 3))

    def effects(self, scores: Float[Tensor, "all train"]) -> Float[Tensor, "subset query"]:
        """What scores predict: the sum over the kept images, for the queries that count.

        Args:
            scores: of all queries of this kind, also of those that do not count.

        Returns:
            The effects, in float64.

        Raises:
            InputError: for scores of another shape, or with entries that are not finite.
        """
        if scores.ndim == 2 and len(scores) != self.n_queries:
            raise InputError(
                f"scores must have a row for each of the {self.n_queries} {self.which} queries, not"
                f" {len(scores)}; give all, whether they count or not"
            )
        return group_effects(scores[self.rows] if scores.ndim == 2 else scores, self.masks)

    def lds(self, predicted: Float[Tensor, "_ _"]) -> Float[Tensor, "query"]:
        """The LDS of each query, in [-1, 1]; that of a method is the mean.

        Args:
            predicted: effects `[subset, query]` of the queries that count, or the scores
                `[query, train]` of all queries.

        Returns:
            Spearman's rank correlation with minus the losses' means.

        Raises:
            InputError: for another shape, or one that both would have.
        """
        return lds.lds(self._effects(predicted), self.mean)

    def interval(
        self, predicted: Float[Tensor, "_ _"], *, resamples: int = 2000, seed: int = 0
    ) -> tuple[float, float]:
        """The 95 % interval of the mean LDS, in [-1, 1], by resampling subsets and queries.

        Args:
            predicted: as in `lds`.
            resamples: of the bootstrap.
            seed: of the bootstrap.

        Returns:
            Its ends.
        """
        return lds.interval(self.bootstrap({"": predicted}, resamples=resamples, seed=seed)[""])

    def bootstrap(
        self,
        predicted: Mapping[str, Float[Tensor, "_ _"]],
        *,
        resamples: int = 2000,
        seed: int = 0,
    ) -> dict[str, Float[Tensor, "resample"]]:
        """Draws of every method's mean LDS: see `nda.evidence.lds.bootstrap`.

        Args:
            predicted: by method, as in `lds`.
            resamples: how many; all methods meet the same.
            seed: of the resamples.

        Returns:
            The draws, in [-1, 1], by method.
        """
        effects = {method: self._effects(values) for method, values in predicted.items()}
        return lds.bootstrap(effects, self.mean, resamples=resamples, seed=seed)

    def summary(
        self,
        predicted: Mapping[str, Float[Tensor, "_ _"]],
        *,
        reference: str,
        draws: Mapping[str, Float[Tensor, "resample"]] | None = None,
        resamples: int = 2000,
        seed: int = 0,
    ) -> pd.DataFrame:
        """One row per method with its LDS, its interval and its gain over another: see
        `nda.evidence.lds.summary`.

        Args:
            predicted: by method, as in `lds`.
            reference: the method that the others are compared with.
            draws: of `bootstrap`, if the same predictions are compared with several references;
                else they are made, with `resamples` and `seed`.
            resamples: of the bootstrap; all methods meet the same.
            seed: of the bootstrap.

        Returns:
            The table, in percent.
        """
        effects = {method: self._effects(values) for method, values in predicted.items()}
        draws = draws or self.bootstrap(predicted, resamples=resamples, seed=seed)
        return lds.summary(effects, self.mean, draws, reference=reference)

    def seed_ceiling(self) -> tuple[float, float]:
        """How far the truth agrees with itself: see `nda.evidence.lds.seed_ceiling`.

        Returns:
            One seed against the mean of the others, and what the mean of all seeds would reach; NaN
            where there is one seed alone.
        """
        return lds.seed_ceiling(self.losses.mean(3)) if self._has_seeds else (math.nan,) * 2

    def ceiling(self, *, resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
        """The seed ceiling of the mean of all seeds, with its interval, in percent.

        Args:
            resamples: of the bootstrap.
            seed: of the bootstrap.

        Returns:
            The ceiling and the ends of its interval; NaN where there is one seed alone.
        """
        if not self._has_seeds:
            return (math.nan,) * 3
        return lds.ceiling_summary(self.losses.mean(3), resamples=resamples, seed=seed)

    @property
    def _has_seeds(self) -> bool:
        """Whether there are seeds that could agree."""
        return self.losses.shape[1] > 1

    def centred(self) -> "Truth":
        """This truth without each model's mean over the queries, which says nothing about single
        images; predictions that are held against it lose theirs, too.

        Returns:
            A truth.
        """
        losses = self.losses - self.losses.mean(2, keepdim=True)
        return replace(self, losses=losses, is_centred=True)

    def by_timestep(self) -> dict[str, "Truth"]:
        """The truth of each group of timesteps alone.

        Returns:
            A truth by the first and the last timestep of its group, for example "12-112".

        Raises:
            InputError: if the timesteps of the losses are not as many equal groups.
        """
        groups = self.losses.shape[3]
        if not self.timesteps or len(self.timesteps) % groups:
            raise InputError(
                f"the sidecar of the losses names {len(self.timesteps)} timesteps, which are not"
                f" {groups} equal groups; run notebook 03_subset_models again"
            )
        size = len(self.timesteps) // groups
        spans = [self.timesteps[i : i + size] for i in range(0, len(self.timesteps), size)]
        return {
            f"{span[0]}-{span[-1]}": replace(self, losses=group[..., None], timesteps=span)
            for span, group in zip(spans, self.losses.unbind(3), strict=True)
        }

    def _effects(self, predicted: Tensor) -> Float[Tensor, "subset query"]:
        """Effects that may be compared with the losses here."""
        given = predicted.shape == self.mean.shape
        if given and predicted.shape == (self.n_queries, self.masks.shape[1]):
            raise InputError(
                f"scores and effects would both be {tuple(predicted.shape)}; pass"
                " truth.effects(scores) to nda.evidence.lds"
            )
        effects = predicted.double() if given else self.effects(predicted)
        return lds.centre(effects) if self.is_centred else effects


def truths(results: Store | str, which: str) -> dict[str, Truth]:
    """The two truths of random halves, each about its own part of the queries.

    Args:
        results: a results store, or the name of a profile.
        which: "val" or "gen".

    Returns:
        A truth by family, `select` and `report`.
    """
    return {family: Truth.load(results, family, which) for family in FAMILIES}


def truth_inputs(results: Store) -> dict[str, str]:
    """What a table that is held against `truths` was computed from, for `Store.save`.

    Args:
        results: a results store.

    Returns:
        The sha256 of the masks and losses of random halves, by name.
    """
    masks = [f"masks/{family}" for family in FAMILIES]
    losses = [f"losses/{family}-{which}" for family in FAMILIES for which in REPORT]
    return results.sha256(*masks, *losses)


def lds_row(
    scores: Float[Tensor, "query train"], truths: Mapping[str, Truth], *, resamples: int = 1000
) -> dict[str, float]:
    """LDS on `select` and on `report`, plain and centred; `report` with its interval.

    Args:
        scores: of all queries.
        truths: of `truths`, about these queries.
        resamples: of the bootstrap.

    Returns:
        Columns of a table, in percent.
    """
    row: dict[str, float] = {}
    for family, plain in truths.items():
        for kind, truth in {"": plain, "_centred": plain.centred()}.items():
            effects = truth.effects(scores)
            row[family + kind] = truth.lds(effects).mean().item()
            if family == "report":
                row["low" + kind], row["high" + kind] = truth.interval(effects, resamples=resamples)
    return {name: 100 * value for name, value in row.items()}


def gain_row(
    scores: Float[Tensor, "query train"],
    in_use: Float[Tensor, "query train"] | None,
    truths: Mapping[str, Truth],
    *,
    resamples: int = 1000,
) -> dict[str, float]:
    """The paired difference to the setting in use, LDS on `report`, with its interval: both meet
    the same resamples, so that the luck that they share drops out.

    Args:
        scores: of all queries.
        in_use: those of the setting in use; None if there is none.
        truths: of `truths`, about these queries.
        resamples: of the bootstrap.

    Returns:
        Columns of a table, in percentage points; not a number without a setting in use.
    """
    columns = ["gain", "gain_low", "gain_high"]
    if in_use is None:
        return dict.fromkeys(columns, float("nan"))
    both = {"in use": in_use, "tried": scores}
    summary = truths["report"].summary(both, reference="in use", resamples=resamples)
    return dict(zip(columns, summary[columns].iloc[-1].tolist(), strict=True))
