"""What a claim is held against, and what can be found."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from math import isnan
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from nda.errors import InputError
from nda.evidence.outcomes import Outcomes
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


def elsewhere(profile: str, rule: Rule) -> Rule:
    """A claim about other images or another model.

    Args:
        profile: of the confirmation; its results are beside those of the benchmark.
        rule: what is asked there.

    Returns:
        The rule, without printed numbers, which are not about this.
    """

    def found(evidence: Evidence) -> Finding:
        results = Store(evidence.results.folder.parent / profile, role="results")
        if "losses/report-val" not in results:
            raise Missing(f"the results of {profile} are not shipped yet")
        there = Evidence(results, evidence.published, resamples=evidence.resamples)
        return replace(rule(there), printed="")

    return found


def text(ruled: str) -> Rule:
    """Something that the book computes and glues in when it is built.

    Args:
        ruled: in words, with glued numbers.

    Returns:
        The rule, without a verdict; see `not_comparable`.
    """
    return lambda evidence: Finding((Part("", ruled, ""),))


def points(difference: float, ends: tuple[float, float]) -> str:
    """A difference in words, with a second decimal where one end would else look like zero.

    Args:
        difference: in percentage points.
        ends: of its interval.

    Returns:
        For example "+1.2 points [0.3, 2.1]".
    """
    digits = 2 if min(map(abs, ends)) < 0.05 else 1
    return f"{difference:+.{digits}f} points {interval(*ends, digits=digits)}"
