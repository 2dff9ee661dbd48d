"""What a setting does: LDS tables with one setting changed at a time. Every posterior is computed
once and kept in the store."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from nda.evidence.truth import REPORT, gain_row, lds_row, truths
from nda.nonparametric.config import NDAConfig, Scale
from nda.nonparametric.scores import nda_scores
from nda.store import Store


@dataclass(frozen=True)
class Ablation:
    """One row: which setting was changed, to what, the configuration that this makes, and the one
    in use that it is compared with, if there is one. `timestep` if it has a single one."""

    name: str
    setting: str
    config: NDAConfig
    in_use: NDAConfig | None
    timestep: int | None = None


def windows(
    base: NDAConfig, timesteps: Sequence[int], sides: Sequence[int], *, coarse: bool
) -> Iterator[Ablation]:
    """Every window at every timestep, alone, at the paper's `top_k`: what the window of a timestep
    is chosen from. In use is the window that `base` has there, if it has the timestep.

    Args:
        base: the configuration that all else is taken from, of this scale alone.
        timesteps: those that are tried.
        sides: windows that are tried, in pixels.
        coarse: at the coarse scale.

    Yields:
        The ablations.
    """
    name = "coarse window" if coarse else "window"
    for timestep in timesteps:
        alone = partial(_alone, base, timestep)
        in_use = alone(base.scales[timestep]) if timestep in base.scales else None
        for side in sides:
            yield Ablation(name, str(side), alone((Scale(side, coarse),)), in_use, timestep)


def _alone(base: NDAConfig, timestep: int, scales: Sequence[Scale]) -> NDAConfig:
    return replace(base, scales={timestep: scales}, top_k=NDAConfig.top_k)


def best_windows(rows: pd.DataFrame, *, coarse: bool = False) -> dict[int, int]:
    """The window of every timestep that is best on `select` for validation queries; of equals, the
    first.

    Args:
        rows: a `table` of `windows`.
        coarse: at the coarse scale.

    Returns:
        The side in pixels by timestep.
    """
    name = "coarse window" if coarse else "window"
    rows = rows[(rows["ablation"] == name) & (rows["queries"] == "val")]
    best = rows.loc[rows.groupby("timestep")["select"].idxmax()]
    return dict(zip(best["timestep"].astype(int), best["setting"].astype(int), strict=True))


def settings(
    full: NDAConfig,
    both: NDAConfig,
    coarse: NDAConfig,
    *,
    mixes: Sequence[float],
    windows: Mapping[int, int],
) -> Iterator[Ablation]:
    """One setting of NDA changed at a time: the timesteps and scales that are averaged, their mix,
    and what a posterior is made of.

    Args:
        full: the configuration of single scale that the profile reports.
        both: that of two scales.
        coarse: that of the coarse scale.
        mixes: weights of the full scale that are tried.
        windows: of every timestep up to which single scale is tried, in order, at the paper's
            `top_k`, since they are chosen before it.

    Yields:
        The ablations.
    """
    wide = replace(full, top_k=NDAConfig.top_k)
    for last in windows:
        upto = {t: (Scale(side),) for t, side in windows.items() if t <= last}
        yield Ablation("largest timestep", str(last), replace(wide, scales=upto), wide)
    for mix in mixes:
        mixed = {
            t: (replace(a, weight=mix), replace(b, weight=1 - mix))
            for t, (a, b) in both.scales.items()
        }
        yield Ablation("scale_mix", f"{mix:g}", replace(both, scales=mixed), both)
    scales = {"full": full, "coarse": coarse, "both": both, **_with_a_third(both)}
    for name, config in scales.items():
        yield Ablation("scales", name, config, both)
    for name, setting, config in _one_scale(full):
        yield Ablation(name, setting, config, full)


def _one_scale(full: NDAConfig) -> Iterator[tuple[str, str, NDAConfig]]:
    """What a posterior is made of."""
    for top_k in (1, 3, 10, 30, 100, None):
        yield "top_k", "all" if top_k is None else str(top_k), replace(full, top_k=top_k)
    for draws in (0, 1, 2, 4):
        yield "noise draws", str(draws) if draws else "none", replace(full, draws=draws)
    for seed in (1, 2, 3):
        yield "another noise", str(seed), replace(full, noise_seed=full.noise_seed + seed)
    for borders in ("match", "zero"):
        yield "borders", borders, replace(full, borders=borders)
    for flips in (False, True):
        yield "flips in the bank", "yes" if flips else "no", replace(full, flips=flips)
    for temperature in (0.1, 0.3, 1.0, 3.0, 10.0):
        yield "temperature", f"{temperature:g}", replace(full, temperature=temperature)


def _with_a_third(both: NDAConfig) -> dict[str, NDAConfig]:
    """Single pixels, or a window larger by four, as a third scale of a third of the weight."""
    pixels, larger = dict[int, tuple[Scale, ...]](), dict[int, tuple[Scale, ...]]()
    for timestep, scales in both.scales.items():
        # the others keep their mix
        third = sum(scale.weight for scale in scales) / 2
        pixels[timestep] = (Scale(1, weight=third), *scales)
        larger[timestep] = (*scales, Scale(scales[0].patch + 4, weight=third))
    return {"+ pixels": replace(both, scales=pixels), "+ larger": replace(both, scales=larger)}


def kept_scores(
    config: NDAConfig, which: str, store: Store, device: torch.device
) -> Float[Tensor, "query train"]:
    """`nda_scores` of the store's queries, put together from single timesteps and scales that are
    computed once and kept in `parts/`.

    Args:
        config: of NDA.
        which: "val" or "gen".
        store: the working store, with the images.
        device: where they are computed.

    Returns:
        The scores.
    """
    queries, train = (store.used_as("working").load(n).to(device) for n in (which, "train"))
    inputs = store.sha256("train", which)
    total = torch.zeros(len(queries), len(train), dtype=train.dtype)
    for timestep, scales in config.scales.items():
        weights = sum(scale.weight for scale in scales) * len(config.scales)
        for scale in (scale for scale in scales if scale.weight):
            part = replace(config, scales={timestep: (replace(scale, weight=1.0),)})
            make = partial(nda_scores, queries, train, part)
            name, made = f"parts/{_name(part)}-{which}", asdict(part)
            scores = store.kept(name, make, axes="query train", parameters=made, inputs=inputs)
            total += scale.weight / weights * scores
    return total


def _name(config: NDAConfig) -> str:
    (timestep, (scale,)), *_ = config.scales.items()
    changed = {
        k: v for k, v in asdict(config).items() if k != "scales" and v != getattr(NDAConfig, k)
    }
    rest = [f"{name}-{value}" for name, value in changed.items()]
    return "-".join([f"t{timestep}", f"{'coarse' if scale.coarse else 'full'}{scale.patch}", *rest])


def table(
    ablations: Sequence[Ablation], *, store: Store, results: Store, device: torch.device
) -> pd.DataFrame:
    """What each ablation scores, on both kinds of queries.

    Args:
        ablations: what is tried.
        store: the working store, with the images; every posterior is kept there.
        results: the results store, with the losses.
        device: where posteriors are computed.

    Returns:
        One row per ablation and kind of queries, with the columns of `lds_row` and of `gain_row`.
    """
    found: list[Mapping[str, Any]] = []
    known = {which: truths(results, which) for which in REPORT}
    for ablation in tqdm(ablations, desc="ablations", unit="setting", leave=False):
        said = {"ablation": ablation.name, "setting": ablation.setting}
        for which, truth in known.items():
            kept = partial(kept_scores, which=which, store=store, device=device)
            scores, base = kept(ablation.config), ablation.in_use
            names = said | {"timestep": ablation.timestep, "queries": which}
            gains = gain_row(scores, kept(base) if base else None, truth)
            found.append(names | lds_row(scores, truth) | gains)
    return pd.DataFrame(found)
