"""Verdicts on what papers claim, each computed from the results of a profile by a rule.

A rule takes the `Evidence` and returns a `Finding`. Where a result is not there it raises
`Missing`, whose message is the reason why a claim was not looked at.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isnan
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import binomtest, rankdata
from torch import Tensor

from nda.errors import InputError
from nda.evidence import lds, outcomes
from nda.evidence.outcomes import MEASURES, Outcomes
from nda.evidence.records import recorded_effects
from nda.evidence.truth import Truth
from nda.methods import METHODS, WHICH
from nda.report.said import interval
from nda.store import Store

AGREES, DISAGREES, NOT_SHOWN = "agrees", "disagrees", "not shown"
NOT_COMPARABLE, NOT_DONE = "not comparable", "not done"
VERDICTS = (AGREES, DISAGREES, NOT_SHOWN, NOT_COMPARABLE, NOT_DONE)
AHEAD, BEHIND, ALIKE = 1, -1, 0  # the side on which a paper sees the first of two things
NAMES = {"val": "held-out", "gen": "generated"}
CHEAPER = 2  # so many times the cost, before one thing is called cheaper than another
LUCK = 1 / 40  # of true zeros lie below a 95 % interval
REASONS = {
    "counterfactual": "the retrainings are not shipped yet",
    "gallery": "the scores of the gallery are not shipped yet",
    "known": "the answers to planted queries are not shipped yet",
    "effects": "it was not run",
}


class Missing(InputError):
    """A result is not there; the message says why."""


@dataclass(frozen=True)
class Part:
    """One number of a finding. name: of the queries or the setting, or nothing. found: in words.
    verdict: one of `VERDICTS`, some with a colon and the reason."""

    name: str
    found: str
    verdict: str


@dataclass(frozen=True)
class Finding:
    """What was found. seconds: of one core that it took, if that was recorded. printed: the paper's
    own numbers, if there are any."""

    parts: tuple[Part, ...]
    seconds: float | None = None
    printed: str = ""


def verdict(low: float, high: float, side: int) -> str:
    """What the interval of a difference says of a claim about its sign.

    Args:
        low: lower end of the interval.
        high: its upper end.
        side: `AHEAD` if the claim is that the difference is above zero, `BEHIND` if below, `ALIKE`
            if it is zero, which no interval can show.

    Returns:
        "agrees", "disagrees" or, if zero is inside or at an end, "not shown".

    Raises:
        InputError: for ends that are not numbers.
    """
    if isnan(low) or isnan(high):
        raise InputError(f"an interval needs two numbers, not {low} and {high}")
    if side == BEHIND:
        low, high = -high, -low
    if low > 0:
        return AGREES if side else DISAGREES
    return DISAGREES if high < 0 else NOT_SHOWN


def cheaper(cost: float, other: float) -> str:
    """What two costs, which have no intervals, say of the claim that the first is lower.

    Args:
        cost: of the first.
        other: of the second, in the same unit.

    Returns:
        "agrees" if the second is `CHEAPER` times the first or more, "disagrees" if the first is
        `CHEAPER` times the second or more, else "not shown".
    """
    if other >= CHEAPER * cost:
        return AGREES
    return DISAGREES if cost >= CHEAPER * other else NOT_SHOWN


class Evidence:
    """The results of a profile beside the papers' numbers; what takes time is computed once.

    Args:
        results: of the profile.
        published: of the papers.
        resamples: of every bootstrap.
    """

    def __init__(self, results: Store, published: Store, *, resamples: int = 2000):
        self.results, self.published, self.resamples = results, published, resamples

    def load(self, name: str) -> Any:
        """One of the results.

        Args:
            name: of the result.

        Returns:
            The result.

        Raises:
            Missing: if it is not there.
        """
        if name not in self.results:
            kind = name.split("/")[0]
            raise Missing(REASONS.get(kind, f"the table {name} is not shipped yet"))
        return self.results.load(name)

    def seconds(self, names: Iterable[str]) -> float | None:
        """What results took together.

        Args:
            names: of the results.

        Returns:
            Seconds of one core; None if one of them was not measured.
        """
        each = [self.results.info(name)["seconds"] for name in names]
        return None if None in each or not each else sum(each)

    @cached_property
    def truths(self) -> dict[str, Truth]:
        """Of `report`, by the name of the queries."""
        return {which: Truth.load(self.results, "report", which) for which in WHICH}

    @cached_property
    def effects(self) -> dict[str, dict[str, Tensor]]:
        """By queries and run, those of the references that are fitted to `select` among them."""
        found = {}
        for which, truth in self.truths.items():
            found[which] = recorded_effects(self.results, truth)
            select = Truth.load(self.results, "select", which, "all")
            for method in (m for m in METHODS.values() if m.takes == "losses"):
                scores = method.function(select.mean, select.masks)
                found[which][method.key] = truth.effects(scores)
        return found

    @cached_property
    def draws(self) -> dict[str, dict[str, Tensor]]:
        """Bootstrap draws of the LDS in percent, by queries and run."""
        made = {
            which: truth.bootstrap(self.effects[which], resamples=self.resamples)
            for which, truth in self.truths.items()
        }
        return {which: {run: 100 * d for run, d in of.items()} for which, of in made.items()}

    def lds(self, run: str, which: str) -> tuple[float, Float[Tensor, "resample"]]:
        """LDS of a run on `report`.

        Args:
            run: its name, such as "d_trak-k10".
            which: "val" or "gen".

        Returns:
            The value and its bootstrap draws, in percent.

        Raises:
            Missing: if it was not run.
        """
        if run not in self.effects[which]:
            raise Missing(REASONS["effects"])
        value = 100 * self.truths[which].lds(self.effects[which][run]).mean().item()
        return value, self.draws[which][run]

    def printed(self, run: str, which: str) -> float | None:
        """The LDS that a paper prints for CIFAR-2.

        Args:
            run: as in `lds`; without a variant, methods with gradients have 100 timesteps.
            which: "val" or "gen".

        Returns:
            In percent, if it is printed.
        """
        key, _, k = run.partition("-k")
        table = self.published.load("cifar2")
        rows = table[(table["method"] == key) & (table["queries"] == which)]
        rows = rows[rows["timesteps"].isna() | (rows["timesteps"] == int(k or 100))]
        return rows["lds"].iloc[0] if len(rows) else None

    @cached_property
    def outcomes(self) -> Outcomes:
        """Of removals."""
        self.load("counterfactual/models")
        return Outcomes.load(self.results)

    def setting(self, table: str, ablation: str, setting: str, **where: str) -> pd.Series:
        """A row of a table of ablations.

        Args:
            table: "nda", "gradients" or "curvature".
            ablation: its name.
            setting: its name.
            where: other columns, such as `queries="val"`.

        Returns:
            The row, with the paired difference to the setting in use.

        Raises:
            Missing: if the table or the row is not there, or has no such difference.
        """
        rows = self.load(f"ablations/{table}")
        if "gain" not in rows:
            raise Missing("the shipped table has no paired differences yet")
        for column, value in {"ablation": ablation, "setting": setting, **where}.items():
            rows = rows[rows[column].astype(str) == value]
        rows = rows.dropna(subset="gain")
        if rows.empty:
            raise Missing(f"{ablation}: {setting} is not in the shipped table")
        return rows.iloc[0]


Rule = Callable[[Evidence], Finding]


def not_done(reason: str) -> Rule:
    """A claim that was not looked at.

    Args:
        reason: why.

    Returns:
        The rule.
    """
    return lambda evidence: Finding((Part("", "–", f"{NOT_DONE}: {reason}"),))


def not_comparable(reason: str, rule: Rule) -> Rule:
    """A claim about something that is another thing here.

    Args:
        reason: why it is.
        rule: what was found.

    Returns:
        The rule, with another verdict.
    """

    def found(evidence: Evidence) -> Finding:
        finding = rule(evidence)
        said = f"{NOT_COMPARABLE}: {reason}"
        return replace(finding, parts=tuple(replace(p, verdict=said) for p in finding.parts))

    return found


def together(*rules: Rule) -> Rule:
    """Several findings as one.

    Args:
        rules: of each.

    Returns:
        The rule; it took as long as the longest, since the parts share what they are made from.
    """

    def found(evidence: Evidence) -> Finding:
        findings = [rule(evidence) for rule in rules]
        took = [f.seconds for f in findings if f.seconds is not None]
        parts = tuple(part for finding in findings for part in finding.parts)
        printed = ", ".join(f.printed for f in findings if f.printed)
        return Finding(parts, max(took) if len(took) == len(findings) else None, printed)

    return found


def text(ruled: str) -> Rule:
    """Something that the book computes and glues in when it is built.

    Args:
        ruled: in words, with glued numbers.

    Returns:
        The rule, without a verdict; see `not_comparable`.
    """
    return lambda evidence: Finding((Part("", ruled, ""),))


# ---- the LDS


def ahead(run: str, other: str, side: int | None = None, which: Sequence[str] = WHICH) -> Rule:
    """One method against another.

    Args:
        run: the name of its run.
        other: of the other's.
        side: on which the paper sees the first; None: that of its printed numbers.
        which: the queries.

    Returns:
        The rule.
    """

    def found(evidence: Evidence) -> Finding:
        parts, printed = [], []
        for name in which:
            (ours, draws), (theirs, others) = (evidence.lds(r, name) for r in (run, other))
            read = [evidence.printed(r, name) for r in (run, other)]
            in_print, claimed = [value for value in read if value is not None], side
            if len(in_print) == 2:
                printed.append("{:.1f} against {:.1f} %".format(*in_print) + f" {NAMES[name]}")
                claimed = int(np.sign(in_print[0] - in_print[1])) if side is None else side
            if claimed is None:
                raise InputError(f"side must be given: no paper prints both {run} and {other}")
            parts.append(_part(name, ours, theirs, lds.interval(draws - others), claimed))
        took = evidence.seconds(_files(evidence, (run, other), which))
        return Finding(tuple(parts), took, ", ".join(printed))

    return found


def _part(name: str, ours: float, theirs: float, ends: tuple[float, float], side: int) -> Part:
    said = f"{ours:.1f} against {theirs:.1f} %, {_points(ours - theirs, ends)}"
    return Part(NAMES[name], said, verdict(*ends, side))


def _points(difference: float, ends: tuple[float, float]) -> str:
    """With a second decimal where one end would else look like zero."""
    digits = 2 if min(map(abs, ends)) < 0.05 else 1
    return f"{difference:+.{digits}f} points {interval(*ends, digits=digits)}"


def _files(evidence: Evidence, runs: Iterable[str], which: Iterable[str]) -> list[str]:
    """The results that an LDS comes from, beside the retrained models of `report`."""
    every = [(f"effects/{run}-{name}", name) for run in runs for name in which]
    names = [f if f in evidence.results else f"losses/select-{name}" for f, name in every]
    return list(dict.fromkeys(names))


def easier(runs: Sequence[str]) -> Rule:
    """Whether validation queries have a higher LDS than generated ones.

    Args:
        runs: names of runs.

    Returns:
        The rule.
    """

    def found(evidence: Evidence) -> Finding:
        parts = []
        for run in runs:
            (val, draws), (gen, others) = (evidence.lds(run, which) for which in WHICH)
            part = _part("val", val, gen, lds.interval(draws - others), AHEAD)
            parts.append(replace(part, name=METHODS[run].label))
        return Finding(tuple(parts), evidence.seconds(_files(evidence, runs, WHICH)))

    return found


def order(k: int, without: Sequence[str] = ()) -> Rule:
    """Whether methods come out in the order of the printed table of CIFAR-2.

    Args:
        k: the timesteps of methods with gradients, in print and here.
        without: methods that the paper does not have.

    Returns:
        The rule: Spearman's correlation of the two orders, with its interval.
    """
    left_out = {*without, *(m.key for m in METHODS.values() if m.takes == "losses")}

    def found(evidence: Evidence) -> Finding:
        parts, runs = (
            [],
            [key + f"-k{k}" * (k != 100) * m.opens_model for key, m in METHODS.items()],
        )
        for which in WHICH:
            here = [
                r for r in runs if r in evidence.effects[which] and r.split("-")[0] not in left_out
            ]
            here = [run for run in here if evidence.printed(run, which) is not None]
            theirs = [evidence.printed(run, which) for run in here]
            plain, draws = zip(*(evidence.lds(run, which) for run in here), strict=True)
            rho = _spearman(np.array(plain)[:, None], theirs)[0]
            ends = lds.interval(torch.from_numpy(_spearman(torch.stack(draws).numpy(), theirs)))
            said = f"rank correlation {rho:.2f} {interval(*ends, digits=2)} of {len(here)} methods"
            parts.append(Part(NAMES[which], said, verdict(*ends, AHEAD)))
        return Finding(tuple(parts), evidence.seconds(_files(evidence, here, WHICH[1:])))

    return found


def _spearman(values: np.ndarray, other: Sequence[float | None]) -> np.ndarray:
    """Of every column `[method, resample]` with one more."""
    ranks, theirs = rankdata(values, axis=0), rankdata(np.array(other, dtype=float))
    ranks, theirs = ranks - ranks.mean(0), theirs - theirs.mean()
    return theirs @ ranks / np.sqrt((ranks**2).sum(0) * (theirs**2).sum())


def below_ceiling(run: str) -> Rule:
    """Whether there is something left to explain.

    Args:
        run: the name of a run.

    Returns:
        The rule; shown if the two intervals do not touch.
    """

    def found(evidence: Evidence) -> Finding:
        parts = []
        for which, truth in evidence.truths.items():
            value, draws = evidence.lds(run, which)
            top, low, high = truth.ceiling(resamples=evidence.resamples)
            least, most = lds.interval(draws)
            said = f"{value:.1f} {interval(least, most)} of {top:.1f} % {interval(low, high)}"
            parts.append(Part(NAMES[which], said, verdict(low - most, high - least, AHEAD)))
        return Finding(tuple(parts), evidence.seconds(_files(evidence, [run], WHICH)))

    return found


def by_timestep(run: str) -> Rule:
    """Which losses a run explains.

    Args:
        run: its name.

    Returns:
        The rule, without a verdict.
    """

    def found(evidence: Evidence) -> Finding:
        effects, groups = evidence.effects["val"].get(run), evidence.truths["val"].by_timestep()
        if effects is None:
            raise Missing(REASONS["effects"])
        parts = [
            Part(f"timesteps {name}", f"{100 * group.lds(effects).mean():.1f} %", "")
            for name, group in list(groups.items())[:: len(groups) - 1 or 1]
        ]
        return Finding(tuple(parts), evidence.seconds([f"effects/{run}-val"]))

    return found


def spread() -> Rule:
    """How far halves of the train set move the loss.

    Returns:
        The rule, without a verdict.
    """

    def found(evidence: Evidence) -> Finding:
        parts = []
        for which, truth in evidence.truths.items():
            share = 100 * (truth.mean.std(0) / truth.mean.mean(0)).mean().item()
            said = f"the loss of a query varies by {share:.1f} % between halves (one deviation)"
            parts.append(Part(NAMES[which], said, ""))
        return Finding(tuple(parts), evidence.seconds(["losses/report-val"]))

    return found


def costs(run: str, other: str) -> Rule:
    """Which of two runs takes less time.

    Args:
        run: the name of one, of which a paper says that it is the cheaper.
        other: of the other.

    Returns:
        The rule, for all queries of one kind.
    """

    def found(evidence: Evidence) -> Finding:
        parts = []
        for which in WHICH:
            files = [f"effects/{name}-{which}" for name in (run, other)]
            if any(file not in evidence.results for file in files):
                raise Missing(REASONS["effects"])
            both = [evidence.results.info(file)["seconds"] for file in files]
            if None in both:
                raise Missing("its time was not recorded")
            said = "{:,.0f} against {:,.0f} seconds".format(*both)
            parts.append(Part(NAMES[which], said, cheaper(*both)))
        return Finding(tuple(parts), evidence.seconds(_files(evidence, (run, other), WHICH)))

    return found


# ---- settings


def setting(
    table: str,
    ablation: str,
    name: str,
    side: int | None = None,
    than: tuple[str, str] | None = None,
) -> Rule:
    """A setting against the one in use.

    Args:
        table: "nda", "gradients" or "curvature".
        ablation: its name.
        name: of the setting.
        side: on which the paper sees it; None: that of the numbers that DAS's paper prints.
        than: ablation and setting that the one in use has in print.

    Returns:
        The rule.
    """

    def found(evidence: Evidence) -> Finding:
        parts, printed = [], []
        for which in WHICH:
            row, claimed = evidence.setting(table, ablation, name, queries=which), side
            if than:
                known = evidence.published.load("das_ablations")
                known = known[known["queries"] == which].set_index(["ablation", "setting"])["lds"]
                ours, theirs = known[ablation, name], known[than]
                printed.append(f"{ours:.1f} against {theirs:.1f} % {NAMES[which]}")
                claimed = int(np.sign(ours - theirs)) if side is None else side
            if claimed is None:
                raise InputError(f"side must be given: no paper prints {ablation}: {name}")
            parts.append(_setting_part(NAMES[which], row, claimed))
        took = evidence.seconds([f"ablations/{table}"])
        return Finding(tuple(parts), took, ", ".join(printed))

    return found


def _setting_part(name: str, row: pd.Series, side: int) -> Part:
    ends = row["gain_low"], row["gain_high"]
    said = f"{row['report']:.1f} %, {_points(row['gain'], ends)}"
    return Part(name, said, verdict(*ends, side))


def windows(ablation: str) -> Rule:
    """Whether the best window grows with the timestep: at the first timestep in use the largest
    window has to be behind the one in use, and at the last one the smallest.

    Args:
        ablation: "window" or "coarse window".

    Returns:
        The rule, on validation queries.
    """

    def found(evidence: Evidence) -> Finding:
        rows = evidence.load("ablations/nda")
        if "gain" not in rows:
            raise Missing("the shipped table has no paired differences yet")
        rows = rows[(rows["ablation"] == ablation) & (rows["queries"] == "val")]
        rows = rows.dropna(subset="gain").astype({"timestep": int, "setting": int})
        ends, parts = sorted(set(rows["timestep"])), []
        if len(ends) < 2:
            raise Missing("the shipped table has too few timesteps")
        for timestep, largest in {ends[0]: True, ends[-1]: False}.items():
            here = rows[rows["timestep"] == timestep].sort_values("setting")
            best = here.loc[here["select"].idxmax(), "setting"]
            row = here.iloc[-1 if largest else 0]
            part = _setting_part(f"timestep {timestep}, {row['setting']} px", row, BEHIND)
            parts.append(replace(part, found=f"{part.found} (chosen: {best} px)"))
        return Finding(tuple(parts), evidence.seconds(["ablations/nda"]))

    return found


def carries_over() -> Rule:
    """Whether what was chosen for NDA on validation queries holds on generated ones: of all other
    settings no more may be ahead of those in use than luck puts there, and more behind.

    Returns:
        The rule.
    """

    def found(evidence: Evidence) -> Finding:
        rows = evidence.load("ablations/nda")
        if "gain" not in rows:
            raise Missing("the shipped table has no paired differences yet")
        rows = rows[(rows["queries"] == "gen") & rows["timestep"].isna()]
        rows = rows[(rows["gain_low"] != 0) | (rows["gain_high"] != 0)]  # those not in use
        above, below = int((rows["gain_low"] > 0).sum()), int((rows["gain_high"] < 0).sum())
        said = f"of {len(rows)} other settings {above} are ahead of those in use, {below} behind"
        lucky = above <= LUCK * len(rows)
        word = (AGREES if below > above else NOT_SHOWN) if lucky else DISAGREES
        return Finding((Part(NAMES["gen"], said, word),), evidence.seconds(["ablations/nda"]))

    return found


# ---- removals


def removal(arm: str, measure: str, k: int | None = None) -> Rule:
    """Whether a method's removal changes its query more than a random one.

    Args:
        arm: the method.
        measure: of `nda.evidence.outcomes.MEASURES`.
        k: how many images, if it is another number than that of all arms.

    Returns:
        The rule.
    """
    families = [f"removed-{name}" + (f"-{k}" if k else "") for name in (arm, "random")]

    def found(evidence: Evidence) -> Finding:
        seen = _with(evidence, *families)
        own, random = seen.own(families[0], measure), seen.each(families[1], measure)
        row = outcomes.against_random(own, random, resamples=evidence.resamples)
        said = f"{100 * row['own']:.2f} against {100 * row['random']:.2f} at random, "
        return _removed(evidence, row, measure, said, AHEAD, families)

    return found


def removal_versus(arm: str, other: str, measure: str, side: int) -> Rule:
    """Whether one method's removal changes its query more than another's.

    Args:
        arm: one method.
        other: the other.
        measure: of `nda.evidence.outcomes.MEASURES`.
        side: on which the paper sees the first.

    Returns:
        The rule.
    """
    families = [f"removed-{name}" for name in (arm, other)]

    def found(evidence: Evidence) -> Finding:
        seen = _with(evidence, *families)
        own, others = (seen.own(family, measure) for family in families)
        row = outcomes.against(own, others, resamples=evidence.resamples)
        said = f"{100 * own.mean():.2f} against {100 * others.mean():.2f}, "
        return _removed(evidence, row, measure, said, side, families)

    return found


def _with(evidence: Evidence, *families: str) -> Outcomes:
    """The outcomes, if they have these families."""
    there = set(evidence.outcomes.models["family"])
    if absent := [family for family in families if family not in there]:
        raise Missing(f"no models of the family {absent[0]} were trained")
    return evidence.outcomes


def _removed(
    evidence: Evidence,
    row: dict[str, float],
    measure: str,
    said: str,
    side: int,
    families: Sequence[str],
) -> Finding:
    ends = row["low"], row["high"]
    both = interval(*(100 * end for end in ends), digits=2)
    said += f"{100 * row['more']:+.2f} {both} hundredths"
    models = evidence.outcomes.models
    took = models.loc[models["family"].isin(families), "seconds"].sum()
    return Finding((Part(MEASURES[measure], said, verdict(*ends, side)),), float(took))


def output_rather_than_loss() -> Rule:
    """Whether the change of a picture goes with that of the output more than with that of the loss.

    Returns:
        The rule; shown if the intervals of the two correlations do not touch.
    """

    def found(evidence: Evidence) -> Finding:
        changes = evidence.outcomes.changes
        image, pearson = changes["image"][1:], {}
        for measure in ("output", "loss"):
            both = changes[measure][1:], image
            pearson[measure] = outcomes.goes_with(*both, resamples=evidence.resamples)
        first, second = pearson["output"], pearson["loss"]
        word = verdict(first["low"] - second["high"], first["high"] - second["low"], AHEAD)
        said = [
            f"{r['pearson']:.2f} {interval(r['low'], r['high'], digits=2)} with the {measure}"
            for measure, r in pearson.items()
        ]
        took = float(evidence.outcomes.models["seconds"].sum())
        return Finding((Part("Pearson", ", ".join(said), word),), took)

    return found


def overestimates(run: str) -> Rule:
    """Whether influence says more often than it happens that a random removal lowers a loss.

    Args:
        run: the name of a run whose scores are in the gallery.

    Returns:
        The rule.
    """

    def found(evidence: Evidence) -> Finding:
        seen, scores = _with(evidence, "removed-random"), evidence.load(f"gallery/{run}")
        asked = [
            evidence.results.info(name)["parameters"]["rows"]
            for name in ("gallery/queries", "counterfactual/models")
        ]
        if asked[0] != asked[1]:
            raise Missing("the scores in the gallery are of other queries")
        gone = ~seen.masks[seen.rows("removed-random")]
        said = gone.double() @ scores.double().T < 0  # [model, query]
        happened = seen.each("removed-random", "loss") < 0
        shares = [100 * each.double().mean(0) for each in (said, happened)]
        row = outcomes.against(*shares, resamples=evidence.resamples)
        means = "{:.0f} % foreseen, {:.0f} % seen".format(*(share.mean() for share in shares))
        ends = row["low"], row["high"]
        return Finding((Part("", f"{means}, {interval(*ends)} apart", verdict(*ends, AHEAD)),))

    return found


# ---- pictures and planted queries


def maps() -> Rule:
    """How local NDA's posterior is.

    Returns:
        The rule, without a verdict.
    """

    def found(evidence: Evidence) -> Finding:
        mass = evidence.load("gallery/maps")["mass"]
        sure = 100 * (mass > 0.5).double().mean().item()
        said = f"one train image has more than half of the posterior at {sure:.0f} % of the pixels"
        return Finding((Part("", said, ""),), evidence.seconds(["gallery/maps"]))

    return found


def shared_proponents(run: str, other: str, top: int = 5) -> Rule:
    """How many proponents two methods share.

    Args:
        run: the name of a run whose scores are in the gallery.
        other: of another one.
        top: how many images count.

    Returns:
        The rule, without a verdict.
    """

    def found(evidence: Evidence) -> Finding:
        first, second = (evidence.load(f"gallery/{name}") for name in (run, other))
        best = [scores.argsort(dim=1, descending=True)[:, :top] for scores in (first, second)]
        common = (best[0][:, :, None] == best[1][:, None]).sum((1, 2)).double().mean().item()
        said = f"of the first {top} proponents they share {common:.1f}"
        return Finding((Part("", f"{said}, and {top**2 / first.shape[1]:.2f} by chance", ""),))

    return found


def traced(kind: str) -> Rule:
    """Whether NDA, read by place, names the source of a piece more often than chance does.

    Args:
        kind: of planted queries.

    Returns:
        The rule; the interval is Clopper and Pearson's.
    """

    def found(evidence: Evidence) -> Finding:
        rows = evidence.load("known").set_index(["method", "reading", "kind"])
        if ("nda", "local", kind) not in rows.index:
            raise Missing(f"{kind} was not planted")
        row, chance = rows.loc[("nda", "local", kind)], 100 / evidence.truths["val"].masks.shape[1]
        hits = round(row["recall_1"] / 100 * row["queries"])
        ends = binomtest(hits, int(row["queries"])).proportion_ci()
        low, high = (100 * end for end in (ends.low, ends.high))
        said = f"{row['recall_1']:.0f} % {interval(low, high)} of sources named, {chance:.1f} % by"
        said += f" chance, IoU of the map {row['iou']:.0f} %"
        word = verdict(low - chance, high - chance, AHEAD)
        return Finding((Part(kind, said, word),), evidence.seconds(["known"]))

    return found
