"""Bad input is one sentence that names the argument."""

import pytest
import torch

from nda.checks import check_images, check_same_shape, pick_device
from nda.errors import InputError, check_timestep

GOOD = torch.zeros(2, 1, 4, 4)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        ([[0.0]], "not list"),
        (torch.zeros(4, 4), r"not \(4, 4\)"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "uint8"),
        (torch.zeros(0, 1, 4, 4), "empty"),
        (GOOD.index_fill(3, torch.tensor(1), float("nan")), "NaN"),
        (GOOD - float("inf"), "infinite"),
        (GOOD + 1.01, r"\[-1, 1\]"),
        (GOOD - 1.01, r"\[-1, 1\]"),
        (GOOD + 255, r"\[255, 255\]"),
    ],
)
def test_bad_images(images, reason):
    with pytest.raises(InputError, match=f"^pictures .*{reason}") as error:
        check_images(images, "pictures")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("edge", [-1.0, 1.0, 1.00005])
def test_the_edges_of_the_range_are_inside(edge):
    check_images(GOOD + edge, "pictures")


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        (torch.zeros(2, 3, 4, 4), "resize"),
        (GOOD[..., :3], "resize"),
        (GOOD.double(), "dtype"),
        (GOOD + 2, "^train"),
    ],
)
def test_queries_and_train_must_match(train, reason):
    check_same_shape(GOOD, GOOD[:1])
    with pytest.raises(InputError, match=reason):
        check_same_shape(GOOD, train)


@pytest.mark.parametrize("timestep", [-1, 1000, 1.0, True, "1", None])
def test_bad_timestep(timestep):
    check_timestep(0), check_timestep(999)
    with pytest.raises(InputError, match="timestep"):
        check_timestep(timestep)


def test_auto_falls_back_to_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "cpu extra"])
def test_unusable_device(name):
    with pytest.raises(InputError, match="device"):
        pick_device(name)
