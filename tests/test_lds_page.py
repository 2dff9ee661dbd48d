"""The numbers of the LDS page, computed again from the results on disk by code that shares none
with the module: numpy and scipy alone.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup
from safetensors.numpy import load_file
from scipy.stats import rankdata

from nda.methods import METHODS

ROOT = Path(__file__).parent.parent
HALF = {"val": slice(1, None, 2), "gen": slice(None)}
CENTRING = {"plain": np.asarray, "centred": lambda values: values - values.mean(-1, keepdims=True)}
RETRAINED = ("empirical_influence", "datamodel")  # fitted on the page


@pytest.fixture(scope="module")
def page(checked_home):
    return json.loads((checked_home / "book/runs/10_lds.ipynb").read_text())


@pytest.fixture(scope="module")
def results(checked_home, page):
    folder = checked_home / "data/results" / page["metadata"]["papermill"]["parameters"]["profile"]
    return {
        path.relative_to(folder).with_suffix("").as_posix(): load_file(path)
        for path in folder.rglob("*.safetensors")
    }


@pytest.fixture(scope="module")
def labels(checked_home, page):
    """The name of every run, recorded or fitted on the page, with its label; `d_trak-k10` is
    D-TRAK with the K that its sidecar says."""
    profile = page["metadata"]["papermill"]["parameters"]["profile"]
    found = {key: METHODS[key].label for key in RETRAINED}
    for file in (checked_home / "data/results" / profile / "effects").glob("*.json"):
        said = json.loads(file.read_text())["parameters"]
        extra = [f"{name}\u00a0=\u00a0{value}" for name, value in said["variant"].items()]
        name = file.stem.rsplit("-", 1)[0]
        found[name] = ", ".join([METHODS[said["method"]].label, *extra])
    return found


def tables(page):
    """Every table of the page as `{(block, row): [cells]}`, with its header."""
    for cell in page["cells"]:
        for output in cell.get("outputs", []):
            soup = BeautifulSoup(
                "".join(output.get("data", {}).get("text/html", "")), "html.parser"
            )
            if soup.tbody:
                rows, block = {}, ""
                for line in soup.tbody.find_all("tr"):
                    *blocks, name = [th.get_text() for th in line.find_all("th")]
                    block = blocks[0] if blocks else block
                    rows[block, name] = [td.get_text() for td in line.find_all("td")]
                yield [th.get_text() for th in soup.thead.find_all("th")], rows


def mean_lds(effects, losses):
    """Mean over queries of Pearson's correlation of ranks, in percent; a constant side orders
    nothing."""
    ranks = [rankdata(values, axis=0) for values in (effects, -losses)]
    ours, true = (values - values.mean(0) for values in ranks)
    norms = np.linalg.norm(ours, axis=0) * np.linalg.norm(true, axis=0)
    return 100 * ((ours * true).sum(0) / np.maximum(norms, 1e-9)).mean()


def scores_table(page, kind):
    return [rows for header, rows in tables(page) if "95 % interval of gain" in header][
        kind == "centred"
    ]


def ends(cell):
    return np.array([float(end) for end in cell.strip("[]").split(",")])


def difference(page, kind, which, label):
    """Of a method to NDA at two scales: the number and its interval."""
    found = next(
        rows
        for header, rows in tables(page)
        if header == ["", "plain", "centred", "plain", "centred", "", "val", "val", "gen", "gen"]
    )
    return found["", label][
        [("plain", "val"), ("centred", "val"), ("plain", "gen"), ("centred", "gen")].index(
            (kind, which)
        )
    ].split(" ", 1)


def truth(results, which):
    """Losses `[subset, seed, query]` of the reported queries."""
    return results[f"losses/report-{which}"]["value"].astype(float)[:, :, HALF[which]].mean(3)


def ceiling(losses):
    """Of the mean of two seeds: Spearman-Brown."""
    one, two = losses[:, 0], losses[:, 1]
    assert losses.shape[1] == 2
    rho = max(0.0, -mean_lds(one, two) / 100)
    return 100 * 2 * rho / (1 + rho)


@pytest.mark.parametrize("kind", CENTRING)
def test_scores_gains_and_shares(page, results, labels, kind):
    transform, found, seen = CENTRING[kind], scores_table(page, kind), 0
    names = {label: name for name, label in labels.items()}
    for which in HALF:
        losses = transform(truth(results, which))
        best, losses = ceiling(losses), losses.mean(1)
        effects = {
            k: results[f"effects/{k}-{which}"]["value"].astype(float)[:, HALF[which]]
            for k in labels
            if f"effects/{k}-{which}" in results
        }
        reference, nda = (
            mean_lds(transform(effects[key]), losses) for key in ("pixel_dot", "nda_two_scale")
        )
        for (block, label), cells in found.items():
            if block == which and names.get(label, RETRAINED[0]) not in RETRAINED:
                score = mean_lds(transform(effects.pop(names[label])), losses)
                assert float(cells[0]) == pytest.approx(score, abs=0.051), label
                low, high = ends(cells[1])
                # of few subsets a percentile interval may miss the value
                assert low - 0.11 <= score <= high + 0.11 or len(losses) < 20, label
                assert float(cells[2]) == pytest.approx(score - reference, abs=0.051), label
                assert float(difference(page, kind, which, label)[0]) == pytest.approx(
                    score - nda, abs=0.051
                ), label
                assert (not best and not cells[4]) or float(cells[4]) == pytest.approx(
                    100 * score / best, abs=0.51
                ), label
                seen += 1
        assert not effects, f"not in the table: {', '.join(effects)}"
    assert seen >= 20


@pytest.mark.parametrize("which", HALF)
@pytest.mark.parametrize("kind", CENTRING)
def test_intervals(page, results, kind, which):
    """By a bootstrap of our own, other draws and fewer: ends agree within a fifth of the interval's
    width, twice what chance allows."""
    transform, source, draws = CENTRING[kind], np.random.default_rng(0), []
    losses = transform(truth(results, which).mean(1))
    if len(losses) < 20:
        pytest.skip("an interval from a handful of subsets has no steady ends")
    keys = ("pixel_dot", "nda_two_scale", "d_trak")
    effects = [
        transform(results[f"effects/{key}-{which}"]["value"].astype(float)[:, HALF[which]])
        for key in keys
    ]
    for _ in range(300):
        rows, columns = (source.integers(n, size=n) for n in losses.shape)
        draws.append(
            [mean_lds(values[rows][:, columns], losses[rows][:, columns]) for values in effects]
        )
    draws = np.array(draws)
    gains, to_nda = (
        draws - draws[:, [keys.index(reference)]] for reference in ("pixel_dot", "nda_two_scale")
    )
    for key, own, gain, apart in zip(keys, draws.T, gains.T, to_nda.T, strict=True):
        cells = scores_table(page, kind)[which, METHODS[key].label]
        for cell, values in (
            (cells[1], own),
            (cells[3], gain),
            (difference(page, kind, which, METHODS[key].label)[1], apart),
        ):
            low, high = np.percentile(values, [2.5, 97.5])
            np.testing.assert_allclose(
                ends(cell), [low, high], atol=0.1 + (high - low) / 5, err_msg=key
            )


def test_ceilings(page, results):
    found = next(rows for header, rows in tables(page) if "ceiling, %" in header)
    for which in HALF:
        for kind, transform in CENTRING.items():
            value = float(found[kind, which][0])
            assert value == pytest.approx(ceiling(transform(truth(results, which))), abs=0.051)
            assert float(scores_table(page, kind)[which, "Seed ceiling"][0]) == value


def test_costs_are_those_of_the_sidecars(page, checked_home, labels):
    names = {label: name for name, label in labels.items()}
    profile = page["metadata"]["papermill"]["parameters"]["profile"]
    folder = checked_home / "data/results" / profile / "effects"
    found = next(rows for header, rows in tables(page) if "needs" in header and "K" in header)
    for (_, label), (_, steps, *seconds) in found.items():
        for which, cell in zip(HALF, seconds, strict=True):
            made = folder / f"{names[label]}-{which}.json"
            if made.exists():
                info = json.loads(made.read_text())
                assert cell == f"{info['seconds']:.1f}"
                assert steps == str(len(info["parameters"]["settings"].get("timesteps", ())) or "")
            else:
                assert cell == "not run" or names[label] in RETRAINED


def test_published_numbers_stand_beside_ours(page):
    names = {METHODS[key].label: key for key in METHODS}
    with (ROOT / "data/results/published/cifar2.csv").open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["timesteps"] or 0))
    # of several K the largest
    theirs = {(row["method"], row["queries"]): float(row["lds"]) for row in rows}
    found = next(rows for header, rows in tables(page) if "paper, %" in header)
    ours, seen = scores_table(page, "plain"), 0
    for (_, label), cells in found.items():
        for which, paper, here in zip(HALF, cells[::2], cells[1::2], strict=True):
            assert paper == (
                f"{theirs[names[label], which]:.1f}" if (names[label], which) in theirs else ""
            )
            assert here == (ours[which, label][0] if (which, label) in ours else "")
            seen += bool(paper and here)
    assert seen >= 10


def ridge(losses, masks):
    """Minus the coefficients `[query, train]`, each query with the penalty of the least
    leave-one-out error."""
    kept, values = masks - masks.mean(0), losses - losses.mean(0)
    fits = []
    for penalty in (0.1, 1.0, 10.0):
        solve = np.linalg.solve(kept.T @ kept + penalty * np.eye(kept.shape[1]), kept.T)
        hat = kept @ solve + 1 / len(kept)
        left_out = (values - kept @ solve @ values) / (1 - np.diag(hat))[:, None]
        fits.append(((left_out**2).mean(0), solve @ values))
    best = np.argmin([error for error, _ in fits], axis=0)
    return -np.stack([fits[penalty][1][:, query] for query, penalty in enumerate(best)])


def without(losses, masks):
    """Mean loss of models without an image minus that of models with it, `[query, train]`."""
    keep = masks.astype(bool)
    return np.stack([losses[~k].mean(0) - losses[k].mean(0) for k in keep.T], 1)


@pytest.mark.parametrize(("key", "fit"), [("empirical_influence", without), ("datamodel", ridge)])
def test_references_are_fitted_on_select_alone(page, results, key, fit):
    masks = {
        family: results[f"masks/{family}"]["value"].astype(float) for family in ("select", "report")
    }
    if key == "datamodel" and len(masks["select"]) < 16:
        pytest.skip(
            "so few equations leave effects that are equal but for rounding, and ranks that hang"
            " on it"
        )
    for which in HALF:
        row = scores_table(page, "plain").get((which, METHODS[key].label))
        if row:
            losses = (
                results[f"losses/select-{which}"]["value"]
                .astype(float)[:, :, HALF[which]]
                .mean((1, 3))
            )
            effects = masks["report"] @ fit(losses, masks["select"]).T
            assert float(row[0]) == pytest.approx(
                mean_lds(effects, truth(results, which).mean(1)), abs=0.051
            )
