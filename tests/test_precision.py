"""Training in bfloat16 only where the processor is made for it."""

import logging
from dataclasses import replace

import pytest
import torch
from tiny import IMAGES, TINY

from nda.model import precision, training

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def flags(monkeypatch):
    """Set what the processor says of itself."""

    def fake(**found: bool) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)

    return fake


@pytest.mark.parametrize(
    ("found", "has"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_f": True}, False),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "aarch64", "neon": True, "bf16": False}, False),
        ({"neon": True, "bf16": True}, True),
    ],
)
def test_the_processors_flags_decide(flags, found, has):
    flags(**found)
    assert precision.has_bfloat16(CPU) == has
    assert precision.choose(True, CPU) == ("bfloat16" if has else "float32")
    assert precision.choose(False, CPU) == "float32"


def test_a_torch_that_cannot_say_trains_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert precision.choose(True, CPU) == "float32"


@pytest.mark.parametrize("has", [True, False])
def test_a_gpu_is_asked_without_emulation(monkeypatch, has):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or has
    )
    assert precision.has_bfloat16(GPU) == has


def test_one_line_of_the_log_says_so(flags, caplog):
    flags(avx2=True)
    with caplog.at_level(logging.INFO):
        precision.choose(True, CPU)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "float32" in record.message
    caplog.clear()
    flags(amx_bf16=True)
    with caplog.at_level(logging.INFO):
        precision.choose(True, CPU)
    assert [record.message for record in caplog.records] == ["training in bfloat16 on cpu"]


def test_without_the_units_training_is_that_of_float32(flags):
    """To the bit, and the checkpoints say what was used."""
    last = {}
    for bf16, units in ((False, True), (True, True), (True, False)):
        flags(avx512_bf16=units)
        *_, last[bf16, units] = training.train(IMAGES, replace(TINY, bf16=bf16))
    used = {key: checkpoint.precision for key, checkpoint in last.items()}
    assert used == {(False, True): "float32", (True, True): "bfloat16", (True, False): "float32"}
    assert torch.equal(last[True, False].losses, last[False, True].losses)
    assert not torch.equal(last[True, True].losses, last[False, True].losses)
