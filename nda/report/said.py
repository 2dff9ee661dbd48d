"""What the sentences of the book say: numbers and words, computed in a notebook and glued into its
prose.

A page reads them by `{glue:text}` with a format, for example ``{glue:text}`nda_val:.1f` ``, and
another page by ``{glue:text}`runs/10_lds.ipynb::nda_val:.1f` ``. A word needs the format `s`.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from nda.methods import METHODS
from nda.report.style import label

RECORD = "application/papermill.record/"  # where the book looks for what a notebook has glued
# Rows of a table of scores that some page asks for; not every profile has runs with ten timesteps.
ASKED = (*METHODS, "trak-k10", "d_trak-k10", "das-k10", "ekfac-k10")


def say(**values: Any) -> None:
    """Give values to the sentences of the book, each under its name.

    Shows nothing. It writes what `myst_nb.glue(name, value, display=False)` writes, without the
    second that importing Sphinx would take. Outside IPython it does nothing.

    Args:
        **values: numbers, words, or anything that shows itself as HTML, such as a table.
    """
    try:
        from IPython import get_ipython
    except ImportError:  # an installation without notebooks
        return
    shell = get_ipython()  # type: ignore[no-untyped-call]
    for name, value in values.items() if shell else ():
        data = {f"{RECORD}text/plain": repr(_plain(value))}
        if hasattr(value, "_repr_html_"):
            data[f"{RECORD}text/html"] = f'<div class="glued">{value._repr_html_()}</div>'
        shell.display_pub.publish(data, {"scrapbook": {"name": name, "mime_prefix": RECORD}})


def _plain(value: Any) -> Any:
    """A number that prints as one, whatever holds it."""
    return value.item() if isinstance(value, Tensor | np.generic) else value


class Inline:
    """A figure as HTML with its pixels inside, so that another page can glue it."""

    def __init__(self, figure: Figure, alt: str) -> None:
        """Render the figure.

        Args:
            figure: as `nda.report.pictures` and `nda.report.plots` make them.
            alt: what it shows, in words.
        """
        pixels = base64.b64encode(figure._repr_png_()).decode()  # type: ignore[attr-defined]
        self.html = f'<img alt="{alt}" src="data:image/png;base64,{pixels}">'

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return "a picture"


def versus(low: float, high: float) -> str:
    """How something compares, in words, from the interval of its paired difference.

    The words fit between two names: "TRAK is not shown to differ from NDA".

    Args:
        low: lower end of the interval of the first minus the second.
        high: its upper end.

    Returns:
        "ahead of", "behind", or "not shown to differ from" if zero is inside.
    """
    return "ahead of" if low > 0 else "behind" if high < 0 else "not shown to differ from"


def interval(low: float, high: float, *, digits: int = 1) -> str:
    """An interval as a sentence shows it, without a line break.

    Args:
        low: its lower end.
        high: its upper end.
        digits: after the point.

    Returns:
        For example "[-5.5, 4.8]".
    """
    return f"[{low:.{digits}f},\u00a0{high:.{digits}f}]"


def listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them.

    Args:
        names: any number of them.

    Returns:
        For example "TRAK, DAS and GAS"; "none" for an empty list.
    """
    *head, last = names or ["none"]
    return f"{', '.join(head)} and {last}" if head else last


def say_scores(
    summaries: Mapping[tuple[str, str], pd.DataFrame],
    ceilings: Mapping[tuple[str, str], Sequence[float]],
    against: Mapping[tuple[str, str], pd.DataFrame],
    rows: Sequence[str] = ASKED,
) -> None:
    """Give all that a table of scores holds to the sentences of the book.

    For the case `("plain", "val")` and the row `das` the names are `das_val` (the LDS),
    `das_val_interval`, `das_val_share` (of the ceiling), `das_val_gain` (to the reference of
    `summaries`), `das_val_difference` with its `das_val_apart` (to that of `against`), and the word
    `das_val_versus` for the latter. Those of `("centred", "val")` start with `das_val_centred`.
    `ahead_val`, `behind_val` and `undecided_val` list the methods by that word.

    Args:
        summaries: by (kind, which), a table of `nda.evidence.lds.summary`.
        ceilings: by the same keys, (value, low, high) in percent.
        against: like `summaries`, with another reference.
        rows: names of all rows that a sentence may ask for; one that is not in a table is said to
            be "nan" and "not run".
    """
    said: dict[str, Any] = {}
    for (kind, which), summary in summaries.items():
        ending = which if kind == "plain" else f"{which}_{kind}"
        said[f"ceiling_{ending}"] = ceilings[kind, which][0]
        said[f"ceiling_{ending}_interval"] = interval(*ceilings[kind, which][1:])
        scores, apart = _by_method(summary), _by_method(against[kind, which])
        for row in rows:
            found = _row(scores[row], apart[row]) if row in scores else _absent()
            found["share"] = 100 * found[""] / (ceilings[kind, which][0] or np.nan)
            said |= {f"{_slug(row)}_{ending}_{name}".rstrip("_"): v for name, v in found.items()}
        said |= {f"{name}_{ending}": names for name, names in _sorted(apart).items()}
    say(**said)


def _sorted(apart: Mapping[Any, Mapping[str, float]]) -> dict[str, str]:
    """Which methods are ahead, behind and not shown to differ, in the order of the tables."""
    places = {"ahead of": "ahead", "behind": "behind", "not shown to differ from": "undecided"}
    found: dict[str, list[str]] = {place: [] for place in places.values()}
    for row in (row for row in METHODS if row in apart and row != "random"):
        ends = apart[row]["gain_low"], apart[row]["gain_high"]
        if any(ends):  # the method that all are held against differs by nothing at all
            name, comma, kind = label(row).partition(", ")
            found[places[versus(*ends)]].append(f"{name} ({kind})" if comma else name)
    return {place: listed(names) for place, names in found.items()}


def _by_method(summary: pd.DataFrame) -> dict[Any, dict[Any, float]]:
    return summary.set_index("method").to_dict("index")


def _row(score: Mapping[str, float], apart: Mapping[str, float]) -> dict[str, Any]:
    return {
        "": score["lds"],
        "interval": interval(score["low"], score["high"]),
        "gain": score["gain"],
        "difference": apart["gain"],
        "apart": interval(apart["gain_low"], apart["gain_high"]),
        "versus": versus(apart["gain_low"], apart["gain_high"]),
    }


def _absent() -> dict[str, Any]:
    numbers = dict.fromkeys(("", "gain", "difference"), np.nan)
    return numbers | dict.fromkeys(("interval", "apart", "versus"), "not run")


def say_settings(rows: pd.DataFrame) -> None:
    """Give a table of ablations to the sentences of the book.

    For the ablation "top_k" on validation queries the names are `top_k_val_most` and
    `top_k_val_least`, the best and the worst LDS on `report`, with their settings
    `top_k_val_most_at` and `top_k_val_least_at`, the distance `top_k_val_span`, what the choice on
    `select` is worth, `top_k_val_chosen`, with `top_k_val_chosen_at`, and one name for each
    setting, such as `top_k_val_is_3`. That setting's difference to the one in use is
    `top_k_val_is_3_gain`, with its interval `top_k_val_is_3_apart` and the word
    `top_k_val_is_3_versus`. In names of ablations everything but letters and digits becomes an
    underscore: "K, TRAK" is `k_trak`.

    Args:
        rows: a row per setting and kind of queries, columns ablation, setting, queries, select,
            report, gain, gain_low and gain_high, in percent.
    """
    said: dict[str, Any] = {}
    for (ablation, which), group in rows.groupby(["ablation", "queries"]):
        stem, values = f"{_slug(ablation)}_{which}", group.set_index("setting")["report"]
        chosen: Any = group.set_index("setting")["select"].idxmax()
        picks: dict[str, Any] = {
            "most": values.idxmax(),
            "least": values.idxmin(),
            "chosen": chosen,
        }
        for name, at in picks.items():
            said |= {f"{stem}_{name}": values.loc[at], f"{stem}_{name}_at": str(at)}
        said[f"{stem}_span"] = values.max() - values.min()
        for row in group.to_dict("records"):
            ends, name = (row["gain_low"], row["gain_high"]), f"{stem}_is_{_slug(row['setting'])}"
            said |= {name: row["report"], f"{name}_gain": row["gain"]}
            said |= {f"{name}_apart": interval(*ends), f"{name}_versus": versus(*ends)}
    say(**said)


def say_changes(rows: pd.DataFrame) -> None:
    """Give a table of single changes of RFI to the sentences of the book.

    `worse`, `better` and `undecided` list the changes, judged with the gate: a change is worse if
    the interval of its gain is below zero for any kind of queries, and better if it is above zero
    for one and below for none. Of RFI as it is, `gate_pixels_val` is the gain of the gate "pixels"
    over its own, with `..._ends` and the word `..._versus`.

    Args:
        rows: of `ablations/beyond`, columns choice, value, gate, queries, lds and the gains.
    """
    name = rows["choice"] + " " + rows["value"].astype(str)
    changed = rows[(rows["gate"] == "features") & (rows["choice"] != "as it is")]
    by_change = changed.groupby(name[changed.index], sort=False)
    worse, better = by_change["gain_high"].min() < 0, by_change["gain_low"].max() > 0
    found = {"worse": worse, "better": better & ~worse, "undecided": ~(worse | better)}
    said: dict[str, Any] = {what: listed([*are[are].index]) for what, are in found.items()}
    for row in rows[rows["choice"] == "as it is"].to_dict("records"):
        stem, ends = (
            f"gate_{_slug(row['gate'])}_{row['queries']}",
            (row["gain_low"], row["gain_high"]),
        )
        said |= {stem: row["gain"], f"{stem}_ends": interval(*ends)}
        said[f"{stem}_versus"] = versus(*ends)
    say(**said)


def say_known(rows: pd.DataFrame, ending: str = "") -> None:
    """Give a table of known answers to the sentences of the book.

    For NDA as scored on exact copies the names start with `nda_as_scored_exact`: for example
    `nda_as_scored_exact_recall_1`. The largest shares are said of strangers alone.

    Args:
        rows: of `nda.evidence.planted.suite`, with columns method and reading.
        ending: of all names, for a second table.
    """
    said: dict[str, Any] = {}
    for row in rows.to_dict("records"):
        stem = _slug(" ".join(row.pop(name) for name in ("method", "reading", "kind")))
        figures: tuple[str, ...] = ("recall_1", "iou", "share", "known", "caught")
        if row["case"] == "strangers":
            figures = ("largest", "largest_95")
        values = {name: row[name] for name in figures if pd.notna(row.get(name))}
        said |= {f"{stem}_{name}{ending}": value for name, value in values.items()}
    say(**said)


def _slug(name: Any) -> str:
    return re.sub(r"\W+", "_", str(name).lower()).strip("_")


def say_trace(cost: pd.DataFrame, index: pd.DataFrame) -> None:
    """Give what `benchmarks/trace.py` measured to the sentences of the book.

    Args:
        cost: a row for each size of a folder, ascending.
        index: a row for each suspect that was compared with all images.
    """
    small, large, sums = cost.iloc[0], cost.iloc[-1], index.sum()
    say(smallest=int(small["images"]), plain_times=small["ratio"], times=large["ratio"])
    say(folder=int(large["images"]), folder_wall=large["wall, s"], folder_gb=large["memory, GB"])
    say(asked=len(index), of=index["images"].iloc[0], near=100 * sums["found"] / sums["top"])
    say(owners=int(sums["owners"]), owners_found=int(sums["owners found"]))
