"""The command line: what it refuses, with one sentence and exit code 2, before anything runs."""

import json
import os
import subprocess
import sys

import pytest

from nda.__main__ import main
from nda.artefact import notebooks
from nda.errors import InputError
from nda.model import unet

BAD = {
    "profile": ["run", "--profile", "nope"],
    "notebook": ["run", "--profile", "tiny", "--only", "77"],
    "start": ["run", "--profile", "tiny", "--from", "0"],
    "parameter": ["run", "--profile", "tiny", "-p", "n_trian=3"],
    "type": ["run", "--profile", "tiny", "-p", "n_train=many"],
    "bool for int": ["run", "--profile", "tiny", "-p", "n_train=true"],
    "pair": ["run", "--profile", "tiny", "-p", "n_train"],
    "yaml": ["run", "--profile", "tiny", "-p", "patches={"],
    "retrain without its inputs": ["retrain", "--profile", "tiny", "--task", "0"],
}


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NDA_HOME", str(tmp_path))
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("nda: ") and message.count("\n") == 1
    assert not list(tmp_path.rglob("*.ipynb")) and not list(tmp_path.rglob("*.safetensors"))


def test_a_value_that_is_no_yaml_is_named(capsys):
    assert main(["run", "--profile", "tiny", "-p", "patches=[1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("nda: -p patches has the value '[1', which is no YAML; give a number")


def test_bad_data_fails_its_notebook_with_exit_code_2(tmp_path):
    environment = os.environ | {"NDA_HOME": str(tmp_path)}
    command = [
        sys.executable,
        "-m",
        "nda",
        "run",
        "--profile",
        "tiny",
        "--only",
        "01",
        "-p",
        "dataset=nope",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "'nope'" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    executed = json.loads((tmp_path / "book/runs/01_data.ipynb").read_text())
    assert executed["metadata"]["papermill"]["exception"], "the executed copy is left to look at"
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_failed_notebook_is_exit_code_1(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        notebooks, "run", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("notebook 02 failed"))
    )
    assert main(["run", "--profile", "tiny"]) == 1
    assert "notebook 02 failed" in capsys.readouterr().err


def test_the_paper_profile_makes_the_papers_model():
    recipe = unet.Recipe.parse({"unet": notebooks.profile("paper")["unet"]})
    model = recipe.build(42, (3, 32, 32))
    assert sum(p.numel() for p in model.parameters()) == 38_307_203


def test_commands_start_without_diffusers():
    subprocess.run(
        [sys.executable, "-c", "import sys, nda.__main__; sys.exit('diffusers' in sys.modules)"],
        check=True,
    )


def test_find_is_unambiguous():
    assert notebooks.find("05") == "05_nda"
    with pytest.raises(InputError, match="no single notebook"):
        notebooks.find("0")


def test_a_number_names_all_of_its_pages():
    assert notebooks.numbered("07") == ["07a_gradients", "07b_kernels", "07c_das"]
    assert notebooks.numbered("08") == ["08_influence", "08b_settings"]
    assert notebooks.numbered("07b") == ["07b_kernels"] and notebooks.numbered("05") == ["05_nda"]
    for number in ("0", "77", ""):
        with pytest.raises(InputError, match="no single notebook"):
            notebooks.numbered(number)
