"""Rules for claims about settings, from the tables of ablations."""

from dataclasses import replace

import numpy as np
import pandas as pd

from nda.errors import InputError
from nda.methods import WHICH
from nda.report.findings.evidence import (
    AGREES,
    BEHIND,
    DISAGREES,
    NAMES,
    NOT_SHOWN,
    Evidence,
    Finding,
    Missing,
    Part,
    Rule,
    points,
    verdict,
)

LUCK = 1 / 40  # of true zeros lie below a 95 % interval


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
    said = f"{row['report']:.1f} %, {points(row['gain'], ends)}"
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
