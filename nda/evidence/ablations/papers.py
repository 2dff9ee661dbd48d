"""What the papers say of their methods, held against the effects that are recorded here."""

import pandas as pd
from torch import Tensor

from nda.evidence.lds import interval
from nda.evidence.records import recorded_effects
from nda.evidence.truth import REPORT, Truth
from nda.store import Store

COLUMNS = ["claim", "run", "queries", "difference", "low", "high"]
FEW = "ten timesteps against D-TRAK's hundred"
EASY = "validation above generated"


def claims(results: Store, *, resamples: int = 2000) -> pd.DataFrame:
    """Two claims of DAS, each as a difference of LDS on `report` with its 95 % interval, in
    percentage points: that with ten timesteps it is as good as D-TRAK with a hundred, and that
    validation queries are easier than generated ones.

    Both sides of a difference meet the same resamples of subsets; of queries, where they are of one
    kind.

    Args:
        results: masks, losses and effects; of a run that is not there the numbers are none.
        resamples: of the bootstrap.

    Returns:
        One row per claim, run and kind of queries.
    """
    known = {which: Truth.load(results, "report", which) for which in REPORT}
    effects = {which: recorded_effects(results, truth) for which, truth in known.items()}
    draws: dict[str, dict[str, Tensor]] = {}  # [resample]
    plain: dict[str, dict[str, float]] = {}
    for which, truth in known.items():
        draws[which] = truth.bootstrap(effects[which], resamples=resamples)
        plain[which] = {run: truth.lds(e).mean().item() for run, e in effects[which].items()}
    pairs = [
        (FEW, run, which, (which, run), (which, "d_trak"))
        for run in ("das-k10", "das_code-k10")
        for which in REPORT
    ]
    pairs += [
        (EASY, run, "both", ("val", run), ("gen", run))
        for run in ("trak", "d_trak", "das", "das_code")
    ]
    rows = []
    for claim, run, which, (of, ours), (against, theirs) in pairs:
        values = [float("nan")] * 3
        if ours in plain[of] and theirs in plain[against]:
            ends = interval(draws[of][ours] - draws[against][theirs])
            values = [plain[of][ours] - plain[against][theirs], *ends]
        rows.append([claim, run, which, *(100 * value for value in values)])
    return pd.DataFrame(rows, columns=COLUMNS)
