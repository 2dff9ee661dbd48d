"""Rules for claims about maps, proponents and planted queries."""

from scipy.stats import binomtest

from nda.report.findings.evidence import AHEAD, Evidence, Finding, Missing, Part, Rule, verdict
from nda.report.said import interval


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
