"""Verdicts on what papers claim, each computed from the results of a profile by a rule.

A rule takes the `Evidence` and returns a `Finding`. Where a result is not there it raises
`Missing`, whose message is the reason why a claim was not looked at.
"""

from nda.report.findings.evidence import (
    AGREES,
    AHEAD,
    ALIKE,
    BEHIND,
    DISAGREES,
    NOT_COMPARABLE,
    NOT_DONE,
    NOT_SHOWN,
    VERDICTS,
    Evidence,
    Finding,
    Missing,
    Part,
    Rule,
    cheaper,
    elsewhere,
    not_comparable,
    not_done,
    text,
    together,
    verdict,
)
from nda.report.findings.pictures import maps, shared_proponents, traced
from nda.report.findings.removals import (
    output_rather_than_loss,
    overestimates,
    removal,
    removal_versus,
)
from nda.report.findings.scores import (
    ahead,
    below_ceiling,
    by_timestep,
    costs,
    easier,
    order,
    spread,
)
from nda.report.findings.settings import carries_over, setting, windows

__all__ = [
    "AGREES",
    "AHEAD",
    "ALIKE",
    "BEHIND",
    "DISAGREES",
    "Evidence",
    "Finding",
    "Missing",
    "NOT_COMPARABLE",
    "NOT_DONE",
    "NOT_SHOWN",
    "Part",
    "Rule",
    "VERDICTS",
    "ahead",
    "below_ceiling",
    "by_timestep",
    "carries_over",
    "cheaper",
    "costs",
    "easier",
    "elsewhere",
    "maps",
    "not_comparable",
    "not_done",
    "order",
    "output_rather_than_loss",
    "overestimates",
    "removal",
    "removal_versus",
    "setting",
    "shared_proponents",
    "spread",
    "text",
    "together",
    "traced",
    "verdict",
    "windows",
]
