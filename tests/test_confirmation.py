"""What was written down before the truths of the confirmation were made is what is used."""

import runpy

import pytest

from nda import methods
from nda.artefact import notebooks
from nda.errors import InputError
from nda.places import REPOSITORY
from nda.store import Store

FROZEN = Store.shipped("confirmation")
CONFIRM = runpy.run_path(str(REPOSITORY / "benchmarks/confirm.py"))


@pytest.mark.parametrize("profile", CONFIRM["PROFILES"])
def test_settings_are_those_that_were_frozen(profile):
    CONFIRM["check"](profile)


def test_a_changed_setting_is_noticed(monkeypatch):
    fixed = methods.METHODS["rfi"].fixed | {"damping": 1e-2}
    changed = methods.replace(methods.METHODS["rfi"], fixed=fixed)
    monkeypatch.setitem(methods.METHODS, "rfi", changed)
    with pytest.raises(InputError, match="settings of rfi for digits are not those"):
        CONFIRM["check"]("digits")


def test_methods_have_the_settings_of_the_benchmark():
    """All but the augmentation, which follows the model, was chosen on CIFAR-2."""
    for profile in CONFIRM["PROFILES"]:
        given, small = (notebooks.parameters(name) for name in (profile, "small"))
        for method in CONFIRM["methods"]():
            here, there = method.settings(given), method.settings(small)
            different = {name for name in here if here[name] != there[name]}
            assert different <= {"flips"}, method.name
            assert method.tried(given) == method.tried(small)


def test_the_changelog_has_their_hash():
    said = (REPOSITORY / "CHANGELOG.md").read_text()
    assert FROZEN.sha256("settings")["settings"] in said


def test_a_profile_that_is_like_another_has_its_parameters():
    small, digits = notebooks.profile("small"), notebooks.profile("digits")
    other = {"profile", "dataset", "report_subsets", "select_subsets", "flips"}
    assert {name for name in small if small[name] != digits[name]} == other
    assert small.keys() == digits.keys()
