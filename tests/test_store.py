"""The store gives back what was saved, or refuses; a write that fails leaves what was there."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nda import rng
from nda.errors import InputError
from nda.places import home
from nda.store import COPIED, NOTEBOOKS, Store, digest_json

REPOSITORY = Path(__file__).resolve().parent.parent
TENSOR = torch.randn(3, 4, generator=rng.generator("store"))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "data")


def leftovers(store: Store) -> list[str]:
    return [
        path.name
        for path in store.folder.rglob("*")
        if path.name not in ("x.json", "x.safetensors")
    ]


# ---- round trips


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int64, torch.float32, torch.float64, torch.bfloat16]
)
def test_tensor(store, dtype):
    value = (TENSOR * 3).to(dtype).T  # not contiguous
    store.save(
        "a/b", value, axes="query train", parameters={"k": (1, 2)}, inputs={"x": "0"}, seconds=1.5
    )
    back, info = store.load("a/b", axes="query train"), store.info("a/b")
    assert back.dtype == dtype and torch.equal(back, value)
    assert (
        info["parameters"] == {"k": [1, 2]}
        and info["shape"] == [4, 3]
        and info["dtype"] == str(dtype)
    )
    assert (
        info["axes"] == "query train"
        and info["seconds"] == 1.5
        and info["inputs"] == {"x": "0"}
        and "torch" in info["versions"]
    )
    assert store.names() == ["a/b"] and "a/b" in store and "a" not in store


@pytest.mark.parametrize("value", [torch.tensor(2.5), torch.zeros(0, 3)])
def test_scalar_and_empty_tensor(store, value):
    store.save("x", value, axes="a b"[: 2 * value.ndim])
    assert torch.equal(store.load("x"), value)


def test_dictionary_of_tensors(store):
    weights = {"layer.weight": TENSOR, "steps": torch.tensor(3)}
    store.save("model", weights)
    back = store.load("model")
    assert back.keys() == weights.keys() and all(
        torch.equal(back[k], v) for k, v in weights.items()
    )


CELLS = st.lists(
    st.tuples(
        st.floats(), st.integers(-(2**60), 2**60), st.sampled_from(["null", "NA", 'é, "x"', "n/a"])
    )
)


@given(CELLS.filter(len))
def test_table(tmp_path_factory, rows):
    store = Store(tmp_path_factory.mktemp("table"))
    table = pd.DataFrame(rows, columns=["lds", "n", "method"])
    store.save("t", table)
    pd.testing.assert_frame_equal(store.load("t"), table, check_exact=True)


# ---- refusals


def test_other_parameters(store):
    store.save("x", TENSOR, axes="a b", parameters={"lr": 1, "seed": 0})
    store.save("x", TENSOR + 1, axes="a b", parameters={"lr": 1, "seed": 0})
    with pytest.raises(InputError, match=r"other parameters \(lr, new\)"):
        store.save("x", TENSOR, axes="a b", parameters={"lr": 2, "seed": 0, "new": 1})
    assert torch.equal(store.load("x"), TENSOR + 1)
    store.delete("x")
    assert store.names() == [] and not list(store.folder.iterdir())


def test_other_inputs(store):
    store.save("x", TENSOR, axes="a b", inputs={"train": "1", "val": "2"})
    store.save("x", TENSOR + 1, axes="a b", inputs={"val": "2", "train": "1"})
    with pytest.raises(InputError, match=r"x in .* from other inputs \(model, train\); delete"):
        store.save("x", TENSOR, axes="a b", inputs={"train": "3", "val": "2", "model": "4"})
    assert torch.equal(store.load("x"), TENSOR + 1)


@pytest.mark.parametrize("axes", ["", "a", "a b c"])
def test_axes_that_do_not_fit(store, axes):
    with pytest.raises(InputError, match="axes"):
        store.save("x", TENSOR, axes=axes)
    assert "x" not in store


def test_axes_that_were_not_saved(store):
    store.save("x", TENSOR, axes="query train")
    with pytest.raises(InputError, match="'query train', not 'train query'"):
        store.load("x", axes="train query")


@pytest.mark.parametrize(
    "change", [lambda b: b[:-1], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""]
)
def test_changed_bytes(store, change):
    store.save("x", TENSOR, axes="a b")
    file = store.folder / "x.safetensors"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(InputError, match="sha256"):
        store.load("x")
    file.unlink()
    with pytest.raises(InputError, match="sha256"):
        store.load("x")


def test_changed_input(store):
    store.save("train", TENSOR, axes="a b")
    store.save("scores", TENSOR, axes="a b", inputs=store.sha256("train"))
    assert store.matches("scores", {}, store.sha256("train"))
    store.load("scores")
    store.save("train", TENSOR + 1, axes="a b")
    assert not store.matches("scores", {}, store.sha256("train"))
    with pytest.raises(InputError, match="another train"):
        store.load("scores")


def test_what_was_computed_from_the_original_is_not_stale_beside_a_copy(store):
    inputs = {COPIED.format("gen"): "0" * 64}
    store.save("gen", TENSOR.half(), axes="a b", inputs=inputs)
    assert store.sha256("gen") == {"gen": "0" * 64}
    store.save("losses", TENSOR, axes="a b", inputs=store.sha256("gen"))
    assert torch.equal(store.load("losses"), TENSOR)
    store.delete("gen")
    store.save("gen", TENSOR.half(), axes="a b", inputs={COPIED.format("gen"): "1" * 64})
    with pytest.raises(InputError, match="another gen"):
        store.load("losses")


@pytest.mark.parametrize("name", ["masks/report", "gen", "losses"])
def test_missing_names_the_notebook(store, name):
    for use in (store.load, store.info, store.sha256):
        with pytest.raises(
            InputError, match=f"{name} is missing.*notebook {NOTEBOOKS[name.split('/')[0]]}"
        ):
            use(name)
    assert not store.matches(name, {}, {})


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe"])
def test_broken_sidecar(store, text):
    store.save("x", TENSOR, axes="a b")
    (store.folder / "x.json").write_bytes(text)
    for use in (store.load, store.info, lambda name: store.save(name, TENSOR, axes="a b")):
        with pytest.raises(InputError, match="sidecar of x"):
            use("x")


def test_a_correction_is_marked_and_leaves_the_result(store):
    store.save("x", TENSOR, axes="a b", parameters={"unit_norm": False}, inputs={"train": "1"})
    before, file = store.info("x"), store.folder / "x.safetensors"
    payload = file.read_bytes()
    said = {"date": "2026-01-02", "reason": "it was not so"}
    assert not store.correct("x", parameters={"unit_norm": False}, **said)
    assert store.info("x") == before  # nothing to put right
    for wrong in (True, False):
        assert store.correct("x", parameters={"unit_norm": True, "k": (1, 2)}, **said) == wrong
        assert store.info("x") == before | {
            "parameters": {"unit_norm": True, "k": [1, 2]},
            "corrected": said,
        }
    store.correct("x", parameters={"unit_norm": True, "k": [1, 2]}, date="2027", reason="again")
    assert store.info("x")["corrected"] == said and file.read_bytes() == payload
    assert torch.equal(store.load("x", "a b"), TENSOR) and not leftovers(store)


def test_the_two_stores_of_a_profile_are_told_apart(tmp_path):
    working, results = Store.working("p"), Store.results("p")
    assert working.used_as("working") is working and results.used_as("results") is results
    assert Store.shipped("p").used_as("results") and Store(tmp_path).used_as("working")
    with pytest.raises(InputError, match=r"a working store, but a results .*Store\.results"):
        working.used_as("results")
    with pytest.raises(InputError, match=r"a results store, but a working .*Store\.working"):
        results.used_as("working")


def test_the_digest_of_a_mapping_depends_on_values_and_not_on_their_order():
    one = {"epochs": 2, "unet": {"a": [1, 2], "b": 0.5}}
    assert digest_json(one) == digest_json({"unet": {"b": 0.5, "a": (1, 2)}, "epochs": 2})
    others = [one | {"epochs": 3}, one | {"unet": {"a": [2, 1], "b": 0.5}}, {}]
    assert len({digest_json(values) for values in [one, *others]}) == 4


# ---- writes that fail


def test_full_disk(store, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    store.save("x", TENSOR, axes="a b")
    monkeypatch.setattr(os, "fsync", full)
    for name in ("x", "new"):
        with pytest.raises(InputError, match="No space left on device"):
            store.save(name, TENSOR + 1, axes="a b")
    assert torch.equal(store.load("x"), TENSOR) and store.names() == ["x"] and not leftovers(store)


@pytest.mark.parametrize("failing", [1, 2])
def test_error_while_files_are_replaced(store, monkeypatch, failing):
    """Of the two moves, data then sidecar, one fails: the result is then missing, never a new half
    beside an old one."""
    store.save("x", TENSOR, axes="a b")
    moves, move = [], os.replace

    def replace(*paths):
        moves.append(paths)
        if len(moves) == failing:
            raise OSError(errno.EIO, "Input/output error")
        move(*paths)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(InputError, match="Input/output error"):
        store.save("x", TENSOR + 1, axes="a b")
    monkeypatch.undo()
    assert "x" not in store and not leftovers(store)
    store.save("x", TENSOR + 2, axes="a b")
    assert torch.equal(store.load("x"), TENSOR + 2)


def test_killed_between_data_and_sidecar(store):
    store.save("x", TENSOR, axes="a b")
    script = """if True:
        import os, signal, sys, torch
        from nda.store import Store
        move = os.replace
        kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
        os.replace = lambda a, b: kill() if str(b).endswith(".json") else move(a, b)
        Store(sys.argv[1]).save("x", torch.zeros(3, 4), axes="a b")"""
    killed = subprocess.run([sys.executable, "-c", script, store.folder], cwd=REPOSITORY)
    assert killed.returncode == -signal.SIGKILL
    assert "x" not in store and store.names() == []
    with pytest.raises(InputError, match="missing"):
        store.load("x")
    store.save("x", TENSOR, axes="a b")
    assert torch.equal(store.load("x"), TENSOR)


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="could not write"):
        Store(tmp_path / "file" / "data").save("x", TENSOR, axes="a b")


# ---- places


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("NDA_HOME", str(tmp_path))
    assert home() == tmp_path
    assert Store.working("p").folder == tmp_path / "data" / "p"
    assert Store.results("p").folder == tmp_path / "data" / "results" / "p"
    monkeypatch.delenv("NDA_HOME")
    monkeypatch.chdir(tmp_path)
    assert home() == REPOSITORY


def test_sidecar_is_plain_json_that_others_may_read(store):
    store.save("x", TENSOR, axes="a b", parameters={"name": "ᾱ"})
    (store.folder / "plain").touch()
    assert {path.stat().st_mode for path in store.folder.iterdir()} == {
        (store.folder / "plain").stat().st_mode
    }
    assert json.loads((store.folder / "x.json").read_text(encoding="utf-8"))["parameters"] == {
        "name": "ᾱ"
    }


def test_shipped_results_are_the_repositorys_wherever_the_home_is(tmp_path, monkeypatch):
    monkeypatch.setenv("NDA_HOME", str(tmp_path))
    assert (
        Store.shipped("small").folder
        == REPOSITORY / "data/results/small"
        != Store.results("small").folder
    )
    published = Store.shipped("published").load("cifar2")
    assert set(published["queries"]) == {"val", "gen"} and published["lds"].between(-5, 50).all()


def test_a_page_is_written_whole_or_not_at_all(store, monkeypatch):
    store.write("PAGE.md", "one\n")
    store.write("PAGE.md", "two\n")
    assert (store.folder / "PAGE.md").read_text() == "two\n"
    monkeypatch.setattr(
        os,
        "fsync",
        lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")),
    )
    with pytest.raises(InputError, match="No space left"):
        store.write("PAGE.md", "three\n")
    assert (store.folder / "PAGE.md").read_text() == "two\n" and len(
        list(store.folder.iterdir())
    ) == 1


def test_kept_results_are_made_once_and_replaced_if_they_do_not_match(tmp_path):
    store, calls = Store(tmp_path), []

    def keep(value, **changed):
        made = {"axes": "train", "parameters": {"k": 1}, "inputs": {"a": "1"}} | changed
        return store.kept(
            "parts/x", lambda: calls.append(value) or torch.tensor([value]), **made
        ).item()

    assert [
        keep(1),
        keep(2),
        keep(3, parameters={"k": 2}),
        keep(4, parameters={"k": 2}, inputs={}),
        keep(5),
    ] == [1, 1, 3, 4, 5]
    assert calls == [1, 3, 4, 5] and store.info("parts/x")["seconds"] >= 0
    for seconds in (7.0, None):
        assert keep(6, inputs={"a": str(seconds)}, seconds=seconds) == 6
        assert store.info("parts/x")["seconds"] == seconds
    assert keep(5) == 5
    with pytest.raises(ZeroDivisionError):
        store.kept("parts/y", lambda: 1 / 0, axes="train", parameters={}, inputs={})
    assert "parts/y" not in store and keep(6) == 5
