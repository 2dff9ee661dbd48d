"""Rules for claims about what removal does."""

from collections.abc import Sequence

import torch

from nda.evidence import chance
from nda.evidence.outcomes import MEASURES, Outcomes
from nda.report.findings.evidence import AHEAD, Evidence, Finding, Missing, Part, Rule, verdict
from nda.report.said import interval


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
        row = chance.against_random(own, random, resamples=evidence.resamples)
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
        row = chance.against(own, others, resamples=evidence.resamples)
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
        The rule, over all models that had images taken away, as on page 12; shown if the intervals
        of the two correlations do not touch.
    """

    def found(evidence: Evidence) -> Finding:
        models = evidence.outcomes.models
        gone = torch.tensor(models["family"].str.startswith("removed-").to_numpy())
        changes = {name: values[gone] for name, values in evidence.outcomes.changes.items()}
        pearson = {}
        for measure in ("output", "loss"):
            both = changes[measure], changes["image"]
            pearson[measure] = chance.goes_with(*both, resamples=evidence.resamples)
        first, second = pearson["output"], pearson["loss"]
        word = verdict(first["low"] - second["high"], first["high"] - second["low"], AHEAD)
        said = [
            f"{r['pearson']:.2f} {interval(r['low'], r['high'], digits=2)} with the {measure}"
            for measure, r in pearson.items()
        ]
        took = float(models["seconds"][gone.numpy()].sum())
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
        row = chance.against(*shares, resamples=evidence.resamples)
        means = "{:.0f} % foreseen, {:.0f} % seen".format(*(share.mean() for share in shares))
        ends = row["low"], row["high"]
        return Finding((Part("", f"{means}, {interval(*ends)} apart", verdict(*ends, AHEAD)),))

    return found
