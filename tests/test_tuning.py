"""Choosing on one family and reporting on the other, against the definition."""

import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from nda import rng
from nda.errors import InputError
from nda.evidence import tuning
from nda.evidence.truth import FAMILIES, truths
from nda.store import Store

SUBSETS, SEEDS, QUERIES, TIMES, TRAIN = 6, 2, 4, 2, 8


def draw(name, *shape):
    return torch.randn(*shape, generator=rng.generator("selection", name))


@pytest.fixture
def results(tmp_path):
    store = Store(tmp_path)
    for family in FAMILIES:
        store.save(
            f"masks/{family}", draw(f"masks {family}", SUBSETS, TRAIN) > 0, axes="subset train"
        )
        losses = draw(f"losses {family}", SUBSETS, SEEDS, QUERIES, TIMES)
        store.save(f"losses/{family}-val", losses, axes="subset seed query group")
    return store


def test_path_is_the_mean_lds_of_each_family(results):
    path = {damping: draw(f"scores {damping}", QUERIES, TRAIN) for damping in (0.1, 1.0)}
    table = tuning.lds_path(path, truths(results, "val"))
    assert list(table.index) == [0.1, 1.0]
    for family in FAMILIES:
        masks = results.load(f"masks/{family}").double()
        losses = results.load(f"losses/{family}-val").double().mean((1, 3))
        for damping, scores in path.items():
            # even validation queries choose, odd ones report
            half = {"select": [0, 2], "report": [1, 3]}[family]
            each = [spearmanr(masks @ scores[q].double(), -losses[:, q]).statistic for q in half]
            assert table.loc[damping, family] == pytest.approx(100 * sum(each) / 2)


def test_an_empty_path_is_an_error(results):
    with pytest.raises(InputError, match="path is empty"):
        tuning.lds_path({}, truths(results, "val"))


def test_the_choice_never_sees_the_report_subsets():
    path = pd.DataFrame(
        {"select": [1.0, 3.0, 3.0], "report": [9.0, 2.0, 4.0]}, index=[0.1, 1.0, 10.0]
    )
    assert tuning.chosen(path) == 1.0  # the first of equals
    row = tuning.choices({("trak", "val"): path}).loc[("TRAK", "val")]
    assert row.tolist() == ["1e+00", "3.0", "2.0", "1e-01", "9.0"]
    assert tuning.chosen(path.assign(report=[0.0, 0.0, 99.0])) == 1.0
