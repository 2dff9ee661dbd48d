"""What a setting does to EK-FAC influence: an LDS table over the curvature that is fitted and the
measurement that is asked about. Fits and scores are made once and kept."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from nda.evidence.truth import gain_row, lds_row, truths
from nda.methods import METHODS, WHICH, Parameters
from nda.rivals import influence
from nda.rivals.bench import Bench
from nda.rivals.kfac import SHARING
from nda.store import Store

FITTED = {"mc": "Monte-Carlo", "empirical": "empirical"}
MEASURED = {"loss": "loss", "elbo_loss": "ELBO", "output_norm": "square"}
METHOD = METHODS["ekfac"]


def variants(parameters: Parameters) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every curvature with every measurement. The one in use, EK-FAC's in the catalogue, is the
    first.

    Source: Mlodozeniec et al. 2024, whose matrices and measurements these are.

    Args:
        parameters: of the profile; of timesteps there are as many as the ablated gradients have.

    Yields:
        Name of the ablation, setting, and what `nda.rivals.influence.curvature_scores` takes.
    """
    base = METHOD.varied(K=parameters["ablate_k"]).settings(parameters)
    for fisher, fitted in FITTED.items():
        for sharing in SHARING:
            for measurement, measured in MEASURED.items():
                changed = {"fisher": fisher, "sharing": sharing, "measurement": measurement}
                yield f"{fitted}, {sharing}", measured, base | changed


def record(parameters: Parameters) -> dict[str, Any]:
    """What is written beside a `table` of the same parameters.

    Args:
        parameters: of the profile.

    Returns:
        Parameters for `Store.save`.
    """
    tried = [[name, setting] for name, setting, _ in variants(parameters)]
    in_use = next(variants(parameters))[2]
    return {"in use": in_use, "dampings": METHOD.tried(parameters), "tried": tried}


def tuned_scores(
    bench: Bench, settings: Mapping[str, Any], dampings: Sequence[float]
) -> tuple[float, dict[str, Float[Tensor, "query train"]]]:
    """The damping that the bench chooses for validation queries, and the scores at it.

    Args:
        bench: images, model, and how a damping is chosen.
        settings: of `nda.rivals.influence.curvature_scores`.
        dampings: those that may be chosen.

    Returns:
        The damping, and the scores of each kind of queries.
    """
    path = influence.curvature_scores(bench, "val", dampings=dampings, **settings).scores
    damping = bench.choose(path, "val").damping
    asked = {"val": path}
    asked["gen"] = influence.curvature_scores(bench, "gen", dampings=[damping], **settings).scores
    return damping, {which: asked[which][damping] for which in WHICH}


def table(bench: Bench, *, results: Store) -> pd.DataFrame:
    """One row per curvature, measurement and kind of queries, "val" and "gen", with the columns of
    `nda.evidence.truth.lds_row` and `gain_row`.

    Each row has its own damping, chosen by `tuned_scores`. A killed run goes on by the same call,
    from the fits and scores in the bench's store.

    Args:
        bench: images, model, parameters, and how a damping is chosen.
        results: masks and losses.

    Returns:
        The rows, in the order of `variants`.
    """
    known = {which: truths(results, which) for which in WHICH}
    dampings, in_use, rows = METHOD.tried(bench.parameters), dict[str, Tensor](), []
    tried = list(variants(bench.parameters))
    for name, setting, settings in tqdm(tried, desc="curvatures", unit="setting", leave=False):
        _, scores = tuned_scores(bench, settings, dampings)
        in_use = in_use or scores
        for which, truth in known.items():
            row = lds_row(scores[which], truth) | gain_row(scores[which], in_use[which], truth)
            rows.append({"ablation": name, "setting": setting, "queries": which} | row)
    return pd.DataFrame(rows)
