"""Rules for claims about the LDS and about costs."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.stats import rankdata

from nda.errors import InputError
from nda.evidence import lds
from nda.methods import METHODS, WHICH
from nda.report.findings.evidence import (
    AHEAD,
    NAMES,
    REASONS,
    Evidence,
    Finding,
    Missing,
    Part,
    Rule,
    cheaper,
    points,
    verdict,
)
from nda.report.said import interval


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
    said = f"{ours:.1f} against {theirs:.1f} %, {points(ours - theirs, ends)}"
    return Part(NAMES[name], said, verdict(*ends, side))


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
