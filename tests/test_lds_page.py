"""The numbers of the LDS page, computed again from the results on disk by code that shares none with the module: numpy and scipy alone.

Without `NDA_BOOK` it is the page of the tiny profile; `make book` sets it to the repository and so checks the real one.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup
from safetensors.numpy import load_file
from scipy.stats import spearmanr

from nda.methods import METHODS

HALF = {"val": slice(1, None, 2), "gen": slice(None)}
KEYS = {method.label: key for key, method in METHODS.items()}
RETRAINED = ("empirical_influence", "datamodel")  # fitted on the page


@pytest.fixture(scope="module")
def home(request):
    return Path(os.environ["NDA_BOOK"]) if os.environ.get("NDA_BOOK") else request.getfixturevalue("tiny_home")


@pytest.fixture(scope="module")
def page(home):
    return json.loads((home / "book/runs/10_lds.ipynb").read_text())


@pytest.fixture(scope="module")
def results(home, page):
    folder = home / "data/results" / page["metadata"]["papermill"]["parameters"]["profile"]
    return {path.relative_to(folder).with_suffix("").as_posix(): load_file(path) for path in folder.rglob("*.safetensors")}


def tables(page):
    """Every table of the page as `{(block, row): [cells]}`, with its header."""
    for cell in page["cells"]:
        for output in cell.get("outputs", []):
            soup = BeautifulSoup("".join(output.get("data", {}).get("text/html", "")), "html.parser")
            if soup.tbody:
                rows, block = {}, ""
                for line in soup.tbody.find_all("tr"):
                    *blocks, name = [th.get_text() for th in line.find_all("th")]
                    block = blocks[0] if blocks else block
                    rows[block, name] = [td.get_text() for td in line.find_all("td")]
                yield [th.get_text() for th in soup.thead.find_all("th")], rows


def centred(values):
    return values - values.mean(-1, keepdims=True)


def mean_lds(effects, losses):
    rows = [spearmanr(effects[:, q], -losses[:, q]).statistic for q in range(losses.shape[1])]
    return 100 * np.mean(np.nan_to_num(rows))  # a constant side orders nothing


def truth(results, queries):
    """Losses `[subset, seed, query]` of the reported queries."""
    return results[f"losses/report-{queries}"]["value"].astype(float)[:, :, HALF[queries]].mean(3)


@pytest.mark.parametrize("kind", ["plain", "centred"])
def test_scores_and_gains(page, results, kind):
    transform = centred if kind == "centred" else np.asarray
    found = [rows for header, rows in tables(page) if "95 % interval of gain" in header][kind == "centred"]
    seen = 0
    for queries in HALF:
        losses = transform(truth(results, queries).mean(1))
        effects = {
            k: results[f"effects/{k}-{queries}"]["value"].astype(float)[:, HALF[queries]]
            for k in METHODS
            if f"effects/{k}-{queries}" in results
        }
        reference = mean_lds(transform(effects["pixel_dot"]), losses)
        for (block, label), cells in found.items():
            if block == queries and label in KEYS and KEYS[label] not in RETRAINED:
                score = mean_lds(transform(effects.pop(KEYS[label])), losses)
                assert float(cells[0]) == pytest.approx(score, abs=0.051), label
                low, high = map(float, cells[1].strip("[]").split(","))
                assert low - 0.11 <= score <= high + 0.11 or len(losses) < 20, (
                    label
                )  # of few subsets a percentile interval may miss the value
                assert float(cells[2]) == pytest.approx(score - reference, abs=0.051), label
                seen += 1
        assert not effects, f"not in the table: {', '.join(effects)}"
    assert seen >= 20


def test_ceilings(page, results):
    found = next(rows for header, rows in tables(page) if "ceiling, %" in header)
    for queries in HALF:
        for kind, transform in {"plain": np.asarray, "centred": centred}.items():
            losses = transform(truth(results, queries))
            one, two = losses[:, 0], losses[:, 1]
            assert losses.shape[1] == 2
            rho = max(0.0, -mean_lds(one, two) / 100)
            assert float(found[kind, queries][0]) == pytest.approx(100 * 2 * rho / (1 + rho), abs=0.051)


def test_references_are_fitted_on_select_alone(page, results):
    """Empirical influence by its definition: with an image or without it."""
    found = [rows for header, rows in tables(page) if "95 % interval of gain" in header][0]
    label = METHODS["empirical_influence"].label
    for queries in HALF:
        if (queries, label) not in found:
            continue
        masks = {family: results[f"masks/{family}"]["value"] for family in ("select", "report")}
        losses = results[f"losses/select-{queries}"]["value"].astype(float)[:, :, HALF[queries]].mean((1, 3))
        scores = np.stack([losses[~keep].mean(0) - losses[keep].mean(0) for keep in masks["select"].T], 1)  # [query, train]
        effects = masks["report"].astype(float) @ scores.T
        assert float(found[queries, label][0]) == pytest.approx(mean_lds(effects, truth(results, queries).mean(1)), abs=0.051)
