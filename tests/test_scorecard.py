"""Scoring a stranger's matrix, against scipy in loops and through the command."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made_up import save_effects, save_losses
from scipy.stats import spearmanr

from nda import rng
from nda.__main__ import main, parser
from nda.data.subsets import keep_masks
from nda.errors import InputError
from nda.evidence import lds, scorecard
from nda.evidence.truth import CHOOSE, Truth, group_effects
from nda.methods import METHODS
from nda.store import Store

QUERIES, TRAIN, SUBSETS = 60, 40, 30
TIMESTEPS = [10, 30, 200, 250, 900, 999]
SPANS = ["10-30", "200-250", "900-999"]
# in the order of METHODS
SHIPPED = {"val": ["random", "nda", "d_trak"], "gen": ["random", "nda", "journey_trak", "d_trak"]}
REPORTED = {"val": range(1, QUERIES, 2), "gen": range(QUERIES)}
RESAMPLES = 200


def normal(*shape, name):
    return torch.randn(*shape, generator=rng.generator("scoring", name), dtype=torch.float64)


def truth(which):
    """What the losses follow, but for noise: scores of every query."""
    return normal(QUERIES, TRAIN, name=f"truth {which}")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with results of a profile `small`, whose losses follow `truth`, plus a swing that
    all queries share, plus noise."""
    home = tmp_path_factory.mktemp("home")
    results = Store(home / "data/results/small")
    labels = torch.arange(TRAIN) % 2
    for family in ("report", "select"):
        masks = keep_masks(labels, SUBSETS, family=family)
        results.save(f"masks/{family}", masks, axes="subset train")
        for which in REPORTED:
            signal = -(masks.double() @ truth(which).T)[:, None, :, None]
            swing, noise = (
                normal(SUBSETS, 1, 1, 3, name="swing"),
                normal(SUBSETS, 2, QUERIES, 3, name=f"{family} {which}"),
            )
            losses = (signal + 4 * swing + torch.tensor([2.0, 5.0, 12.0]) * noise).float()
            save_losses(results, family, which, losses, timesteps=TIMESTEPS)
    for which, methods in SHIPPED.items():
        for method in reversed(methods):
            effects = results.load("masks/report").double() @ shipped(method, which).T.double()
            save_effects(results, method, which, effects.float())
    return home


@pytest.fixture
def results(home):
    return Store(home / "data/results/small")


def shipped(method, which):
    """The scores behind the shipped effects: the null, good methods, and a better one."""
    skill = {"random": 0, "nda": 0.5, "journey_trak": 0.7, "d_trak": 3}[method]
    return (normal(QUERIES, TRAIN, name=f"{method} {which}") + skill * truth(which)).float()


def mine(which="val"):
    return normal(QUERIES, TRAIN, name="mine") + truth(which)


def loop(effects, losses, columns, *, centred):
    """Mean Spearman correlation over the reported queries, in percent, by scipy, one subset and one
    query at a time."""
    effects, losses = (
        np.array(values, dtype=float)[:, list(columns)] for values in (effects, losses)
    )
    if centred:
        for values in (effects, losses):
            for row in values:
                row -= sum(row) / len(row)
    return 100 * np.mean(
        [spearmanr(e, -loss).statistic for e, loss in zip(effects.T, losses.T, strict=True)]
    )


# ---- the three tables


@pytest.mark.parametrize("which", REPORTED)
@pytest.mark.parametrize("centred", [False, True])
def test_every_lds_is_scipys(results, which, centred):
    report = scorecard.score(mine(which), which, results, resamples=5)
    kind = "centred" if centred else "plain"
    masks, losses = (
        results.load(name).double() for name in ("masks/report", f"losses/report-{which}")
    )
    mean = losses.mean((1, 3))
    options = {"columns": REPORTED[which], "centred": centred}
    ours = torch.stack(
        [torch.stack([row[mask].sum() for row in mine(which)]) for mask in masks.bool()]
    )
    assert report.summary.loc[kind, "LDS"] == pytest.approx(loop(ours, mean, **options), abs=1e-9)
    for group, span in enumerate(SPANS):
        value = report.by_timestep.loc[span, (kind, "LDS")]
        assert value == pytest.approx(loop(ours, losses[..., group].mean(1), **options), abs=1e-9)
    for method in SHIPPED[which]:
        theirs = loop(masks @ shipped(method, which).double().T, mean, **options)
        row = report.against.loc[METHODS[method].label, kind]
        assert row["LDS"] == pytest.approx(theirs, abs=1e-9)
        assert row["difference"] == pytest.approx(
            report.summary.loc[kind, "LDS"] - theirs, abs=1e-9
        )
    assert (
        report.summary.loc[kind, "null LDS"]
        == report.against.loc[METHODS["random"].label, (kind, "LDS")]
    )


@pytest.mark.parametrize("which", REPORTED)
@pytest.mark.parametrize("kind", ["plain", "centred"])
def test_intervals_share_their_resamples(results, which, kind):
    """Every interval from draws that are made here, of differences too."""
    part = list(REPORTED[which])
    losses = results.load(f"losses/report-{which}").double().mean(3)[:, :, part]
    masks = results.load("masks/report")
    effects = {"yours": group_effects(mine(which), masks).float()[:, part].double()}
    effects |= {m: results.load(f"effects/{m}-{which}")[:, part].double() for m in SHIPPED[which]}
    if kind == "centred":
        effects, losses = (
            {m: e - e.mean(1, keepdim=True) for m, e in effects.items()},
            losses - losses.mean(2, keepdim=True),
        )
    draws = lds.bootstrap(effects, losses.mean(1), resamples=RESAMPLES, seed=3)
    report = scorecard.score(mine(which), which, results, resamples=RESAMPLES, seed=3)
    row = report.summary.loc[kind]
    percent = {name: [100 * v for v in lds.interval(values)] for name, values in draws.items()}
    assert row[["low", "high"]].tolist() == pytest.approx(percent["yours"])
    assert row[["null low", "null high"]].tolist() == pytest.approx(percent["random"])
    ceiling = lds.ceiling_summary(losses, resamples=RESAMPLES, seed=3)
    assert row[["ceiling LDS", "ceiling low", "ceiling high"]].tolist() == pytest.approx(ceiling)
    assert row["share of ceiling"] == pytest.approx(100 * row["LDS"] / row["ceiling LDS"])
    for method in SHIPPED[which]:
        wanted = [100 * v for v in lds.interval(draws["yours"] - draws[method])]
        assert report.against.loc[METHODS[method].label, kind][
            ["low", "high"]
        ].tolist() == pytest.approx(wanted)


def test_the_better_method_has_the_positive_difference(results):
    against = scorecard.score(mine(), "val", results, resamples=RESAMPLES).against
    for kind in ("plain", "centred"):
        null, better = (
            against.loc[METHODS["random"].label, kind],
            against.loc[METHODS["d_trak"].label, kind],
        )
        assert 0 < null["low"] < null["difference"] < null["high"]
        assert better["difference"] < 0 and better["low"] < better["high"]


@pytest.mark.parametrize("centred", [False, True])
def test_the_ceiling_of_a_group_is_that_of_its_two_seeds(results, centred):
    table = scorecard.score(mine(), "val", results, resamples=5).by_timestep[
        "centred" if centred else "plain"
    ]
    losses = results.load("losses/report-val").double()
    for group, span in enumerate(SPANS):
        c = (
            loop(-losses[:, 0, :, group], losses[:, 1, :, group], REPORTED["val"], centred=centred)
            / 100
        )
        assert table.loc[span, "ceiling"] == pytest.approx(100 * 2 * c / (1 + c))


@pytest.mark.parametrize(
    ("which", "method"), [(which, method) for which in SHIPPED for method in SHIPPED[which]]
)
def test_a_shipped_methods_own_matrix_gives_its_row(results, method, which):
    report = scorecard.score(shipped(method, which), which, results, resamples=RESAMPLES)
    for kind in ("plain", "centred"):
        row = report.against.loc[METHODS[method].label, kind]
        assert row["LDS"] == report.summary.loc[kind, "LDS"]
        assert row[["difference", "low", "high"]].tolist() == [0, 0, 0]


def test_nothing_is_printed_as_minus_zero():
    table = pd.DataFrame({"LDS": [-0.04, 0.04, -0.06]})
    printed = str(scorecard.Report(table, table, table, Path()))
    assert "-0.0" not in printed and "-0.1" in printed


def test_queries_that_rank_nothing_are_counted(results):
    scores = mine()
    assert "rank nothing" not in str(scorecard.score(scores, "val", results, resamples=5))
    scores[:3] = 1.5
    report = scorecard.score(scores, "val", results, resamples=5)
    assert report.silent == 3 and "\n\nOf 3 queries the scores are the same" in str(report)


def test_a_random_matrix_is_near_zero_and_the_sign_counts(results):
    for kind, row in scorecard.score(
        normal(QUERIES, TRAIN, name="null"), "val", results, resamples=1000
    ).summary.iterrows():
        assert abs(row["LDS"]) < 10 and row["low"] < 0 < row["high"], kind
    good, bad = (
        scorecard.score(sign * truth("val"), "val", results, resamples=5).summary["LDS"]
        for sign in (1, -1)
    )
    assert (good > 50).all() and (bad < -50).all()


def test_only_reported_queries_count(results):
    before = scorecard.score(mine(), "val", results, resamples=20)
    changed = mine()
    changed[CHOOSE["val"]] = 100 * normal(QUERIES // 2, TRAIN, name="other")
    after = scorecard.score(changed, "val", results, resamples=20)
    for table in ("summary", "by_timestep", "against"):
        pd.testing.assert_frame_equal(
            getattr(before, table), getattr(after, table), check_exact=True
        )
    changed[1] = normal(TRAIN, name="reported")
    assert (
        scorecard.score(changed, "val", results, resamples=20)
        .summary["LDS"]
        .ne(before.summary["LDS"])
        .all()
    )


def test_all_generated_queries_count(results):
    before = scorecard.score(mine("gen"), "gen", results, resamples=5).summary["LDS"]
    for query in (0, 1):
        changed = mine("gen")
        changed[query] *= -1
        assert scorecard.score(changed, "gen", results, resamples=5).summary["LDS"].ne(before).all()


@pytest.mark.parametrize("which", REPORTED)
def test_methods_are_in_the_books_order(results, which):
    assert scorecard.score(mine(which), which, results, resamples=5).against.index.tolist() == [
        METHODS[m].label for m in SHIPPED[which]
    ]


@pytest.mark.parametrize("value", [0.0, 0.1, 7.0, 5e-324, 1.7e308])
def test_a_constant_matrix_scores_zero(results, value):
    report = scorecard.score(
        torch.full((QUERIES, TRAIN), value, dtype=torch.float64), "val", results, resamples=5
    )
    assert (report.summary[["LDS", "low", "high"]] == 0).all(axis=None)


def test_scores_common_to_all_queries_are_nothing_when_centred(results):
    summary = scorecard.score(
        truth("val")[:1].expand(QUERIES, TRAIN), "val", results, resamples=5
    ).summary
    assert (
        summary.loc["centred", ["LDS", "low", "high"]].tolist() == [0, 0, 0]
        and summary.loc["plain", "LDS"] != 0
    )


@pytest.mark.parametrize("scale", [2.0**-1020, 2.0**-200, 2.0**900, 2.0**1000])
def test_the_scale_does_not_matter(results, scale):
    one, other = (scorecard.score(s, "val", results, resamples=5) for s in (mine(), scale * mine()))
    pd.testing.assert_frame_equal(one.summary, other.summary, check_exact=True)


def test_scores_may_be_whole_numbers_or_carry_a_gradient(results):
    whole = (10 * mine()).round()
    reports = [
        scorecard.score(s, "val", results, resamples=5)
        for s in (whole, whole.int(), whole.clone().requires_grad_())
    ]
    for other in reports[1:]:
        pd.testing.assert_frame_equal(reports[0].summary, other.summary, check_exact=True)


def test_a_ceiling_of_zero_has_no_shares(tmp_path, results):
    """Seeds that contradict each other."""
    bad = Store(tmp_path)
    bad.save("masks/report", results.load("masks/report"), axes="subset train")
    save_effects(bad, "random", "val", results.load("effects/random-val"))
    opposed = (
        normal(SUBSETS, 1, QUERIES, 2, name="opposed")
        * torch.tensor([1.0, -1.2])[None, :, None, None]
    )
    save_losses(bad, "report", "val", opposed, timesteps=[5, 6])
    report = scorecard.score(mine(), "val", bad, resamples=5)
    assert (report.summary["ceiling LDS"] == 0).all() and report.summary[
        "share of ceiling"
    ].isna().all()
    assert str(report).splitlines()[4].endswith(" -")


# ---- bad input

SCORES = torch.zeros(QUERIES, TRAIN)
HOLES = SCORES.index_put(
    (torch.tensor([3, 3, 9]), torch.tensor([5, 8, 0])),
    torch.tensor([float("nan"), float("inf"), float("nan")]),
)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (
            SCORES.T,
            rf"\[query={QUERIES}, train={TRAIN}\] for the val .*\({TRAIN}, {QUERIES}\).*transposed",
        ),
        (SCORES[1::2], rf"\[query={QUERIES}, train={TRAIN}\].*not reported"),
        (SCORES[:, 1:], rf"\[query={QUERIES}, train={TRAIN}\].*one column for every train image"),
        (SCORES[0], r"scores must be \["),
        (SCORES[:0], r"scores must be \["),
        (HOLES, "scores have 3 NaN or infinite entries, the first at query 3, train image 5"),
        (SCORES.bool(), "real numbers"),
        (SCORES.to(torch.complex64), "real numbers"),
    ],
)
def test_bad_scores(results, scores, reason):
    with pytest.raises(InputError, match=reason):
        scorecard.score(scores, "val", results)


@pytest.fixture
def square(tmp_path, results):
    """Results with as many queries as train images."""
    store = Store(tmp_path / "square")
    for family in ("report", "select"):
        store.save(f"masks/{family}", results.load(f"masks/{family}"), axes="subset train")
        losses = results.load(f"losses/{family}-val")[:, :, :TRAIN]
        save_losses(store, family, "val", losses, timesteps=TIMESTEPS)
    save_effects(store, "random", "val", results.load("effects/random-val")[:, :TRAIN])
    return store


def test_a_transposed_square_matrix_is_refused_by_what_it_predicts(square):
    scores = mine()[:TRAIN]
    with pytest.raises(InputError, match="look transposed.*pass scores.T"):
        scorecard.score(scores.T, "val", square, resamples=5)
    others = [normal(TRAIN, TRAIN, name=f"square {draw}") for draw in range(100)]
    for accepted in (scores, -scores, -scores.T, torch.zeros(TRAIN, TRAIN), *others):
        scorecard._check_direction(accepted, Truth.load(square, "select", "val", "all"))
    scorecard.score(scores, "val", square, resamples=5)


def test_bad_queries_and_resamples(results):
    with pytest.raises(InputError, match="which must be one of val, gen .*not 'train'"):
        scorecard.score(SCORES, "train", results)
    with pytest.raises(InputError, match="resamples"):
        scorecard.score(SCORES, "val", results, resamples=0)


def test_results_without_a_null_or_with_other_timesteps(tmp_path, results):
    bad = Store(tmp_path)
    bad.save("masks/report", results.load("masks/report"), axes="subset train")
    save_losses(bad, "report", "val", results.load("losses/report-val"), timesteps=TIMESTEPS[:5])
    with pytest.raises(InputError, match="effects/random-val is missing"):
        scorecard.score(SCORES, "val", bad)
    save_effects(bad, "random", "val", results.load("effects/random-val"))
    with pytest.raises(InputError, match="5 timesteps"):
        scorecard.score(SCORES, "val", bad)


def test_results_that_do_not_belong_together_are_refused(tmp_path, home, results):
    shutil.copytree(results.folder, tmp_path / "mixed")
    mixed = Store(tmp_path / "mixed")
    mixed.delete("effects/nda-val")
    save_effects(mixed, "nda", "val", results.load("effects/nda-val"), train="0" * 64)
    with pytest.raises(InputError, match="effects/nda-val .* does not belong .* another train"):
        scorecard.score(mine(), "val", mixed)


# ---- files and the command


def saved(path, values):
    np.save(path, values, allow_pickle=True)
    return path


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f8", "g", "i8", ">i4", "u1", "u8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_real_matrices_are_read(tmp_path, dtype, order):
    values = np.arange(6, dtype=dtype).reshape(2, 3, order=order)
    loaded = scorecard.load_scores(saved(tmp_path / "a.npy", values))
    assert loaded.dtype == torch.float64 and loaded.tolist() == values.tolist()


GOOD = np.zeros((QUERIES, TRAIN))
FILES = {
    "transposed": (lambda path: saved(path, GOOD.T), "transposed"),
    "wrong shape": (
        lambda path: saved(path, GOOD[:, 1:]),
        rf"scores must be \[query={QUERIES}, train={TRAIN}\]",
    ),
    "NaN": (lambda path: saved(path, HOLES.numpy()), "3 NaN or infinite"),
    "vector": (lambda path: saved(path, GOOD[0]), r"matrix \[query, train\] .*float64 of shape"),
    "complex": (lambda path: saved(path, GOOD + 1j), "real numbers, not complex128"),
    "bool": (lambda path: saved(path, GOOD > 0), "real numbers, not bool"),
    "strings": (lambda path: saved(path, GOOD.astype(str)), "real numbers, not <U"),
    "dates": (lambda path: saved(path, GOOD.astype("M8[s]")), "real numbers, not datetime64"),
    "fields": (lambda path: saved(path, GOOD.astype([("a", "f8")])), "real numbers, not"),
    "objects": (lambda path: saved(path, GOOD.astype(object)), r"not a \.npy file"),
    "pickle": (lambda path: GOOD.dump(path), r"not a \.npy file"),
    "npz": (
        lambda path: (
            np.savez(path.with_suffix(".npz"), GOOD),
            path.with_suffix(".npz").rename(path),
        ),
        r"not a \.npy file",
    ),
    "text": (lambda path: path.write_text("0.1 0.2\n0.3 0.4\n"), r"not a \.npy file"),
    "empty": (lambda path: path.write_bytes(b""), r"not a \.npy file"),
    "cut off": (
        lambda path: path.write_bytes(saved(path, GOOD).read_bytes()[:-8]),
        r"not a \.npy file",
    ),
    "header": (
        lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x04\x00({[\n"),
        r"not a \.npy file",
    ),
    "missing": (lambda path: None, "does not exist"),
    "folder": (lambda path: path.mkdir(), "cannot be read"),
}


@pytest.mark.parametrize(("make", "reason"), FILES.values(), ids=FILES.keys())
def test_the_command_refuses_a_bad_file_with_one_sentence(
    home, tmp_path, monkeypatch, capsys, make, reason
):
    monkeypatch.setenv("NDA_HOME", str(home))
    make(tmp_path / "mine.npy")
    assert main(["score", str(tmp_path / "mine.npy"), "--profile", "small"]) == 2
    printed = capsys.readouterr()
    assert (
        printed.err.startswith("nda: ")
        and printed.err.count("\n") == 1
        and "Traceback" not in printed.err
    )
    assert re.search(reason, printed.err) and not printed.out


def test_a_pickle_is_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    with pytest.raises(InputError, match="not a .npy file"):
        scorecard.load_scores(saved(tmp_path / "mine.npy", np.array([[Bomb()]], dtype=object)))
    assert not (tmp_path / "exploded").exists()


def test_a_profile_without_results(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NDA_HOME", str(home))
    assert main(["score", str(saved(tmp_path / "mine.npy", GOOD)), "--profile", "nope"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"nda: profile 'nope' has no results in .*; name one .*\n", said)


def test_the_command_resamples_as_often_as_the_protocol_asks():
    assert parser().parse_args(["score", "mine.npy", "--profile", "small"]).resamples == 2000


@pytest.mark.parametrize("which", REPORTED)
def test_the_command_prints_the_three_tables(home, results, tmp_path, monkeypatch, capsys, which):
    monkeypatch.setenv("NDA_HOME", str(home))
    path = str(saved(tmp_path / "mine.npy", mine(which).numpy()))
    chosen = ["--queries", which] if which != "val" else []  # the default
    assert main(["score", path, "--profile", "small", *chosen, "--resamples", "50"]) == 0
    printed = capsys.readouterr()
    assert not printed.err
    report = scorecard.score(mine(which), which, results, resamples=50)
    assert printed.out == f"{report}\n"
    where, *blocks = [block.splitlines() for block in printed.out.strip().split("\n\n")]
    assert where == [f"Held against the retrained models in {results.folder}."]
    assert [block[0].endswith(".") for block in blocks] == [True] * 3
    assert blocks[0][2].split() == [
        "plain",
        *(f"{value:.1f}" for value in report.summary.loc["plain"]),
    ]
    assert [line.split()[0] for line in blocks[1][3:]] == SPANS
    assert [re.split(" {2,}", line)[0] for line in blocks[2][3:]] == [
        METHODS[m].label for m in SHIPPED[which]
    ]


def test_the_pages_snippet_chooses_on_select(home, results, monkeypatch):
    monkeypatch.setenv("NDA_HOME", str(home))
    page = (Path(__file__).parent.parent / "book/score.md").read_text()
    snippet = next(
        block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "select" in block
    )
    names = {"mine": {setting: setting * mine() for setting in (-1.0, 1.0)}}
    exec(snippet, names)
    assert names["best"] == 1.0
    effects = results.load("masks/select").double() @ mine().T
    wanted = loop(
        effects,
        results.load("losses/select-val").double().mean((1, 3)),
        range(0, QUERIES, 2),
        centred=False,
    )
    assert 100 * names["found"][1.0] == pytest.approx(wanted)
