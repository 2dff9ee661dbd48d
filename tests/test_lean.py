"""Importing the model leaves out most of diffusers, and takes nothing away from it."""

import subprocess
import sys

import pytest

from nda.model import lean

LEAVES_OUT = """
import sys
from nda.model import sampling, training, unet
for name in ("torchvision", "scipy", "diffusers.models.unets.unet_2d_condition",
             "diffusers.models.transformers.transformer_flux"):
    assert name not in sys.modules, name
assert "transformers.modeling_utils" not in sys.modules
"""
TAKES_NOTHING = """
import sys
from nda.model.lean import UNet2DModel
import diffusers
assert diffusers.UNet2DModel is UNet2DModel
assert diffusers.models.unets.unet_2d.UNet2DModel is UNet2DModel
from diffusers.models.unets import UNet2DConditionModel, UNet2DModel as again
assert again is UNet2DModel and diffusers.UNet2DConditionModel is UNet2DConditionModel
from diffusers.models.transformers import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel as again
assert again is FluxTransformer2DModel is diffusers.FluxTransformer2DModel
from diffusers import DDIMPipeline
assert not hasattr(diffusers.models.unets, "missing")
assert "__getattr__" not in vars(diffusers.models.unets)
"""


@pytest.mark.parametrize("code", [LEAVES_OUT, TAKES_NOTHING], ids=["leaves out", "takes nothing"])
def test_diffusers(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that counts how often it runs, in memory of `sys.modules` for this test alone."""
    folder = tmp_path / "sample_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .inner import value\nruns = value.append(1) or value")
    (folder / "inner.py").write_text("value = []")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in ("sample_package", "sample_package.inner"):
        sys.modules.pop(name, None)


def test_a_package_runs_once_and_when_it_is_asked(package):
    lean.postpone("sample_package")
    from sample_package.inner import value

    module = sys.modules["sample_package"]
    assert value == [] and not hasattr(module, "__warningregistry__") and value == []
    assert module.runs is value and value == [1]
    lean.postpone("sample_package")  # it is there
    assert sys.modules["sample_package"] is module and value == [1]


def test_a_package_that_fails_can_be_asked_again(package):
    good = (package / "__init__.py").read_text()
    (package / "__init__.py").write_text("import no_such_package")
    lean.postpone("sample_package")
    module = sys.modules["sample_package"]
    for _ in range(2):
        with pytest.raises(ImportError, match="no_such_package"):
            module.runs  # noqa: B018
    (package / "__init__.py").write_text(good + "\n")
    assert module.runs == [1]


def test_what_is_not_there_is_left_to_the_import(package):
    lean.postpone("sample_package.absent")
    assert "sample_package.absent" not in sys.modules
