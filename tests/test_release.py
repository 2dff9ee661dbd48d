"""A small made-up profile is shipped: what is copied, how precisely, what its page says."""

import hashlib
import re

import pytest
import torch
from made_up import MADE, RECIPE, save_effects, save_losses
from safetensors.torch import load as load_tensors

from nda import rng
from nda.__main__ import main
from nda.artefact import release
from nda.artefact.release import ship
from nda.data.pixels import levels
from nda.errors import InputError
from nda.store import Store

CHECKPOINTS = ["model-5", "model-25", "model-50"]
SHIPPED = ["gen", "model", *CHECKPOINTS]


def weights(name):
    source = rng.generator("shipping", name)
    return {
        "conv.weight": torch.randn(4, 3, generator=source),
        "conv.bias": torch.randn(4, generator=source),
    }


def pixels():
    """Every level of an image file, as `nda.model.sampling.sample` makes them."""
    return torch.arange(256).reshape(4, 1, 8, 8).float() / 127.5 - 1


@pytest.fixture
def home(tmp_path, monkeypatch):
    """NDA_HOME with all that the pipeline of a profile leaves behind; the data set was a folder."""
    monkeypatch.setenv("NDA_HOME", str(tmp_path))
    store, results = Store.working("made-up"), Store.results("made-up")
    made = {"recipe": RECIPE, "train_seed": 7, "data": "0" * 64}
    used = {"train": MADE["train"]}
    for name in ("model", *CHECKPOINTS):
        store.save(name, weights(name), parameters=made, inputs=used, seconds=1234.5)
    store.save("model-loss", torch.rand(5), axes="step", parameters=made)
    store.save("model-state", weights("state"), parameters=made)
    store.save(
        "gen",
        pixels(),
        axes="image chan row col",
        parameters={"n_gen": 4},
        inputs=store.sha256("model"),
        seconds=6.0,
    )
    data = {
        "dataset": str(tmp_path / "faces"),
        "size": 8,
        "origin": "image folder faces",
        "pool_sha256": "f00d",
    }
    for family, seeds, took in (("select", [0], 4321.0), ("report", [0, 1], 98765.4)):
        results.save(
            f"masks/{family}",
            torch.eye(3) > 0,
            axes="subset train",
            parameters=data | {"family": family},
        )
        for which in ("val", "gen"):
            losses = torch.rand(3, len(seeds), 4, 2)
            save_losses(results, family, which, losses, seconds=took, **store.sha256("gen"))
    for method, took in (("nda", 11.0), ("trak", 22.0), ("random", None)):
        changed = store.sha256("model") if method == "trak" else {}
        save_effects(results, method, "val", torch.rand(3, 4), seconds=took, **changed)
    return tmp_path


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_model_is_exact_and_its_checkpoints_have_16_bits(home):
    page = ship("made-up")
    results = Store.results("made-up")
    assert page == home / "data/results/made-up/PROVENANCE.md"
    # no loss curve, no state of a training
    assert [name for name in results.names() if "/" not in name] == sorted(SHIPPED)
    for name in ("model", *CHECKPOINTS):
        found = results.load(name)
        assert found.keys() == weights(name).keys()
        for key, value in weights(name).items():
            assert found[key].dtype == (torch.float32 if name == "model" else torch.float16)
            assert torch.equal(found[key], value if name == "model" else value.half())
        assert (
            results.info(name)["parameters"]["recipe"] == RECIPE
            and results.info(name)["seconds"] == 1234.5
        )


def test_checkpoints_can_be_left_out(home, capsys):
    assert main(["ship", "--profile", "made-up", "--without-checkpoints"]) == 0
    page = home / "data/results/made-up/PROVENANCE.md"
    assert capsys.readouterr().out.strip() == str(page)
    names = Store.results("made-up").names()
    assert {"model", "gen"} <= set(names) and not set(CHECKPOINTS) & set(names)


def test_generated_queries_are_exact_in_a_byte_per_pixel(home):
    ship("made-up")
    found = Store.results("made-up").load("gen", "image chan row col")
    assert found.dtype == torch.uint8 and found.flatten().tolist() == list(range(256))
    assert torch.equal(found / 127.5 - 1, pixels())


def test_levels_of_pixels_that_are_a_little_off():
    assert levels(torch.tensor([-1.0, -0.9999, 0.9999, 1.0, 0.0039])).tolist() == [
        0,
        0,
        255,
        255,
        128,
    ]


def test_everything_shipped_can_be_loaded_with_all_else(home):
    """A result that was computed from the working `gen` or `model` is not stale beside the shipped
    ones."""
    ship("made-up")
    results = Store.results("made-up")
    for name in results.names():
        results.load(name)


def test_the_page_names_every_file_with_its_sha256(home):
    page = ship("made-up").read_text()
    folder = home / "data/results/made-up"
    payloads = {path for path in folder.rglob("*") if path.suffix in (".safetensors", ".csv")}
    assert len(payloads) == len(SHIPPED) + 2 + 4 + 3
    rows = dict(re.findall(r"^\| (\S+) \| .* \| (\w{64}) \|$", page, re.M))
    digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in payloads}
    assert rows == {
        path.relative_to(folder).with_suffix("").as_posix(): sha256
        for path, sha256 in digests.items()
    }


def test_the_page_says_how_it_was_made(home):
    page = ship("made-up").read_text()
    expected = [
        "| data | `faces` at 8 x 8: image folder faces |",
        "| sha256 of the pool's pixels | f00d |",
        "| train seeds | full model 7, select models [0], report models [0, 1] |",
        "| timesteps of the losses | 10, 500 |",
        "| noise seeds of the losses | [3] |",
        "epochs 4, lr 0.001",
        f"torch {torch.__version__.split('+')[0]}",
        "| full model | 1,234.5 |",
        "| generated queries | 6.0 |",
        "| select models, one core each, added up | 4,321.0 |",
        "| report models, one core each, added up | 98,765.4 |",
        "| scores of all methods, added up; what methods share counts for each | 33.0 |",
    ]
    for line in expected:
        assert line in page, line
    assert re.search(
        r"^\| commit when this page was written \| ([0-9a-f]{40}|unknown) \|$", page, re.M
    )


def test_the_page_has_no_path_of_this_machine(home):
    page = ship("made-up").read_text()
    assert str(home) not in page and not re.search(r"(?<![\w.>)])/\w+/", page)


def test_twice_gives_the_same_files(home, monkeypatch):
    ship("made-up")
    before = files(home)
    monkeypatch.setattr("nda.store.datetime", Later)
    ship("made-up")
    assert files(home) == before


class Later:
    @staticmethod
    def now(_):
        from datetime import UTC, datetime, timedelta

        return datetime.now(UTC) + timedelta(days=1)


def again(store, name, value):
    """A working result computed anew by the same recipe, on another machine."""
    info = store.info(name)
    store.delete(name)
    inputs = store.sha256("model") if name == "gen" else info["inputs"]
    store.save(name, value, axes=info["axes"], parameters=info["parameters"], inputs=inputs)


def follow(store, results):
    """Losses and effects computed anew from the present model and generated queries."""
    for name in (n for n in results.names() if n.startswith(("losses/", "effects/"))):
        info, value = results.info(name), load_tensors(results.read(name))["value"]
        known = {n: sha for n, sha in store.sha256("gen", "model").items() if n in info["inputs"]}
        kept = {key: info[key] for key in ("axes", "parameters", "seconds")}
        results.delete(name)
        results.save(name, value, inputs=info["inputs"] | known, **kept)


@pytest.mark.parametrize("name", ["model", "model-25", "gen"])
def test_what_was_computed_anew_is_shipped_anew(home, name):
    page = ship("made-up").read_text()
    store, results = Store.working("made-up"), Store.results("made-up")
    before = results.info(name)["sha256"]
    assert before in page
    if name == "gen":
        again(store, name, pixels().flip(0))
    else:
        again(store, name, {key: tensor + 1 for key, tensor in store.load(name).items()})
    if name == "model":
        again(store, "gen", pixels())
    if name != "model-25":  # what was computed from the old one does not belong to the new one
        with pytest.raises(InputError, match=f"another {name}"):
            ship("made-up")
        follow(store, results)
    page = ship("made-up").read_text()
    assert before not in page and results.info(name)["sha256"] in page
    stage = {"model": "full model", "gen": "generated queries"}
    assert name not in stage or f"| {stage[name]} | not measured |" in page
    if name != "gen":
        assert torch.allclose(
            results.load(name)["conv.bias"].float(), weights(name)["conv.bias"] + 1, atol=1e-2
        )


def test_corrections_are_on_the_page(home):
    assert "corrected" not in ship("made-up").read_text()
    results = Store.results("made-up")
    said = {"date": "2026-01-02", "reason": "no damping"}
    for name in ("effects/trak-val", "effects/nda-val", "model"):
        results.correct(name, parameters=results.info(name)["parameters"] | {"d": 1}, **said)
    page = release.provenance("made-up", results)
    assert "Sidecars were corrected after the files had been written." in page
    assert "| 2026-01-02 | no damping | 3, effects/…, model |" in page


def test_results_that_do_not_belong_together_are_not_shipped(home):
    results = Store.results("made-up")
    results.delete("effects/nda-val")
    save_effects(results, "nda", "val", torch.rand(3, 4), train="0" * 64)
    with pytest.raises(InputError, match="effects/nda-val .* another train"):
        ship("made-up")
    assert not (results.folder / "PROVENANCE.md").exists()


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("model", "model is missing in .*: run notebook 02_diffusion_model first"),
        ("gen", "gen is missing in .*: run notebook 02_diffusion_model first"),
        (
            "losses/report-val",
            "losses/report-val is missing in .*: run notebook 03_subset_models first",
        ),
        ("masks/report", "masks/report is missing in .*: run notebook 01_data first"),
    ],
)
def test_what_is_missing_names_its_notebook(home, missing, reason):
    (Store.results if "/" in missing else Store.working)("made-up").delete(missing)
    with pytest.raises(InputError, match=reason):
        ship("made-up")
    assert not (home / "data/results/made-up/PROVENANCE.md").exists()


def test_the_command_prints_the_path_of_the_page(home, capsys):
    assert main(["ship", "--profile", "made-up"]) == 0
    assert capsys.readouterr().out == f"{home / 'data/results/made-up/PROVENANCE.md'}\n"
    assert main(["ship", "--profile", "nope"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("nda: model is missing in ") and message.count("\n") == 1
    assert not (home / "data/results/nope").exists()


def test_notes_written_by_hand_end_the_page(home):
    before = ship("made-up").read_text()
    (home / "data/results/made-up/NOTES.md").write_text("## Notes\n\nThrown away once.\n")
    assert ship("made-up").read_text() == before + "\n## Notes\n\nThrown away once.\n"
