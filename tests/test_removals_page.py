"""The numbers of the page about removals, computed again from the results on disk by code that
shares none with the module: numpy and scipy alone.
"""

import csv
import json
import re

import numpy as np
import pytest
from bs4 import BeautifulSoup
from safetensors.numpy import load_file
from scipy import stats

from nda.methods import METHODS

MEASURES = ("image", "features", "loss", "output")
NULL = METHODS["random"].label


@pytest.fixture(scope="module")
def page(checked_home):
    return json.loads((checked_home / "book/runs/12_counterfactuals.ipynb").read_text())


@pytest.fixture(scope="module")
def results(checked_home, page):
    return checked_home / "data/results" / page["metadata"]["papermill"]["parameters"]["profile"]


@pytest.fixture(scope="module")
def models(results):
    with (results / "counterfactual/models.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def changes(results):
    """`[model, query]` of every measure, from images, losses, outputs and features."""
    kept = {
        name: load_file(results / f"counterfactual/{name}.safetensors")["value"].astype(float)
        for name in ("images", "losses", "outputs", "features")
    }
    apart = (kept["images"] - kept["images"][0]) / 127.5
    return {
        "image": np.sqrt((apart**2).mean((2, 3, 4))),
        "features": 1 - kept["features"],
        "loss": kept["losses"] - kept["losses"][0],
        "output": kept["outputs"],
    }


@pytest.fixture(scope="module")
def said(page):
    """What the page has glued into its sentences."""
    found = {}
    for cell in page["cells"]:
        for output in cell.get("outputs", []):
            if name := output.get("metadata", {}).get("scrapbook", {}).get("name"):
                text = output["data"]["application/papermill.record/text/plain"]
                found[name] = "".join(text).strip("'")
    return found


def tables(page):
    for cell in page["cells"]:
        for output in cell.get("outputs", []):
            soup = BeautifulSoup(
                "".join(output.get("data", {}).get("text/html", "")), "html.parser"
            )
            if soup.tbody:
                header = [th.get_text() for th in soup.thead.find_all("th")]
                rows = [
                    [cell.get_text() for cell in line.find_all(["th", "td"])]
                    for line in soup.tbody.find_all("tr")
                ]
                yield header, rows


def compared(page, number):
    """Of the tables with p-values, in their order: the numbers by label and measure."""
    header = ["", *(f"{measure} x 100" for measure in MEASURES)]
    _, rows = [table for table in tables(page) if table[0] == header][number]
    return {
        (label, measure): [float(x) for x in re.findall(r"[-+]?\d+\.?\d*(?:e-\d+)?", cell)]
        for label, *cells in rows
        for measure, cell in zip(MEASURES, cells, strict=True)
    }


def arms(models):
    names = dict.fromkeys((one["family"], one["arm"]) for one in models)
    return [arm for family, arm in names if family == f"removed-{arm}" and arm != "random"]


def of(models, changes, family, measure):
    return changes[measure][[i for i, one in enumerate(models) if one["family"] == family]]


@pytest.mark.parametrize("measure", MEASURES)
def test_more_than_random(page, models, changes, measure):
    source, found = np.random.default_rng(0), compared(page, 0)
    for arm in arms(models):
        own = of(models, changes, f"removed-{arm}", measure).diagonal()
        random = of(models, changes, "removed-random", measure)[:, : len(own)]
        draws, queries = random.shape
        more, low, high, p = found[METHODS[arm].label, measure]
        assert more == pytest.approx(100 * (own.mean() - random.mean()), abs=0.006)
        if draws < 8:  # too few for an interval that two bootstraps agree on
            continue
        resampled = []
        for _ in range(4000):
            q, d = source.integers(queries, size=queries), source.integers(draws, size=draws)
            resampled.append((own[q] - random[d].mean(0)[q]).mean())
        width = high - low
        assert [low, high] == pytest.approx(
            100 * np.quantile(resampled, [0.025, 0.975]), abs=0.1 * width + 0.01
        )
        together = np.concatenate([own[None], random])
        picks = source.integers(draws + 1, size=(10_000, queries))
        chance = together[picks, np.arange(queries)].mean(1)
        assert p == pytest.approx((chance >= own.mean()).mean(), abs=0.02)


@pytest.mark.parametrize("measure", MEASURES)
def test_against_nda(page, models, changes, measure):
    reference = of(models, changes, "removed-nda_two_scale", measure).diagonal()
    found = compared(page, 1)
    assert set(found) == {
        (METHODS[arm].label, m) for arm in arms(models) if arm != "nda_two_scale" for m in MEASURES
    }
    for arm in set(arms(models)) - {"nda_two_scale"}:
        own = of(models, changes, f"removed-{arm}", measure).diagonal()
        more, *_, p = found[METHODS[arm].label, measure]
        theirs = stats.permutation_test(
            (own, reference),
            lambda a, b: (a - b).mean(),
            permutation_type="samples",
            n_resamples=np.inf,
        )
        assert more == pytest.approx(100 * theirs.statistic, abs=0.006)
        assert p == pytest.approx(theirs.pvalue, rel=0.06)  # printed with two digits


@pytest.mark.parametrize("measure", MEASURES)
def test_specificity(page, models, changes, measure):
    found, source = compared(page, 2), np.random.default_rng(1)
    for arm in arms(models):
        every = of(models, changes, f"removed-{arm}", measure)
        every = every[:, : len(every)]
        off = ~np.eye(len(every), dtype=bool)
        more, _, _, p = found[METHODS[arm].label, measure]
        # every query has as many others, so that means of means are means
        assert more == pytest.approx(100 * (every.diagonal().mean() - every[off].mean()), abs=0.006)
        dealt = np.argsort(source.random((10_000, len(every))), axis=1)
        chance = every[dealt, np.arange(len(every))].mean(1)
        assert p == pytest.approx((chance >= every.diagonal().mean() - 1e-12).mean(), abs=0.02)


@pytest.mark.parametrize("measure", ["loss", "output"])
def test_which_measure_goes_with_the_image(said, models, changes, measure):
    gone = [i for i, one in enumerate(models) if one["family"].startswith("removed-")]
    first, second = changes[measure][gone], changes["image"][gone]
    assert float(said[f"with_{measure}"]) == pytest.approx(
        stats.pearsonr(first.ravel(), second.ravel()).statistic
    )
    centred = [(values - values.mean(0)).ravel() for values in (first, second)]
    assert float(said[f"within_{measure}"]) == pytest.approx(stats.pearsonr(*centred).statistic)


def test_luck_and_the_same_seed(said, models, changes):
    kept = of(models, changes, "kept", "image")
    assert (kept[0] == 0).all() and (of(models, changes, "kept", "output")[0] == 0).all()
    assert float(said["luck"]) == pytest.approx(kept[1:].mean())


def test_medians_stand_beside_the_papers(page, models, changes):
    _, rows = next(table for table in tables(page) if "times random" in table[0])
    found = {}
    for row in rows:
        dataset = row[0] if len(row) == 4 else dataset
        found[dataset, row[-3]] = [float(x) for x in row[-2:]]
    targets = 1 + max(int(one["target"]) for one in models)
    random = np.median(of(models, changes, "removed-random", "image")[:, :targets])
    assert found["here", NULL] == [pytest.approx(random, abs=6e-4), 1]
    for arm in arms(models):
        own = np.median(of(models, changes, f"removed-{arm}", "image").diagonal())
        expected = [pytest.approx(own, abs=6e-4), pytest.approx(own / random, abs=6e-3)]
        assert found["here", METHODS[arm].label] == expected
    assert found["CIFAR-2", METHODS["d_trak"].label] == [
        pytest.approx(8.97 / 3072**0.5, abs=6e-4),
        pytest.approx(8.97 / 4.71, abs=6e-4),
    ]


def test_classes_that_went_and_that_switched(page, results, models):
    part = {
        name: load_file(results / f"counterfactual/{name}.safetensors")["value"]
        for name in ("masks", "classes")
    }
    made = json.loads((results / "counterfactual/models.json").read_text())["parameters"]
    labels = np.array(made["labels"])
    _, rows = next(table for table in tables(page) if "class switched, %" in table[0])
    found = {name: [float(x) for x in cells] for name, *cells in rows}
    for arm in ("random", *arms(models)):
        here = [i for i, one in enumerate(models) if one["family"] == f"removed-{arm}"]
        gone = [np.bincount(labels[~part["masks"][i]]).max() for i in here]
        switched = part["classes"][here] != part["classes"][0]
        targets = 1 + max(int(one["target"]) for one in models)
        switched = switched[:, :targets] if arm == "random" else switched.diagonal()
        share = 100 * np.mean(gone) / int(models[here[0]]["k"])
        assert found[METHODS[arm].label] == pytest.approx([share, 100 * switched.mean()], abs=0.51)


def test_the_order_of_the_lds(page, results, models, changes):
    truth = load_file(results / "losses/report-gen.safetensors")["value"].astype(float)
    losses = truth.mean((1, 3))
    header, rows = next(table for table in tables(page) if "LDS, gen, %" in table[0])
    for name, lds, more, _ in rows:
        arm = next(arm for arm in arms(models) if METHODS[arm].label == name)
        effects = load_file(results / f"effects/{arm}-gen.safetensors")["value"].astype(float)
        each = [
            stats.spearmanr(effects[:, q], -losses[:, q]).statistic for q in range(losses.shape[1])
        ]
        assert float(lds) == pytest.approx(100 * np.nan_to_num(each).mean(), abs=0.006)
        own = of(models, changes, f"removed-{arm}", "image").diagonal()
        random = of(models, changes, "removed-random", "image")[:, : len(own)].mean()
        assert float(more) == pytest.approx(100 * (own.mean() - random), abs=0.006)
