"""The engine for GPUs, in Triton's interpreter on the CPU, against the definition. Triton reads
TRITON_INTERPRET when it is first imported, which conftest.py therefore sets before any test. The
interpreter takes tenths of a second per query and train image, so everything here is tiny."""

import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from nda import rng
from nda.errors import InputError
from nda.nonparametric import patches
from nda.nonparametric.patches import patch_posterior, patch_scores, shared_noise, triton
from nda.nonparametric.patches.memory import OutOfMemory, within_memory
from nda.schedule import signal

if find_spec("triton") is None:
    pytest.skip(
        "triton, which comes with torch on Linux, is not installed", allow_module_level=True
    )

from nda.nonparametric.patches import sweep


def random_images(*shape, name="triton"):
    """Uniform pixels in [-1, 1]."""
    return 2 * torch.rand(*shape, generator=rng.generator(name)) - 1


def assert_is_naive(queries, train, **options):
    """To 1e-5 of a mass, as all engines in float32; log_total relative to its size."""
    ours, naive = (
        patch_posterior(queries, train, **options, engine=e) for e in ("triton", "naive")
    )
    assert (ours.log_share.dtype, ours.log_total.dtype) == (torch.float32, torch.float64)
    assert (ours.masses - naive.masses).abs().max() <= 1e-5
    difference = (ours.log_total - naive.log_total).abs()
    assert (difference <= 1e-5 * (1 + naive.log_total.abs())).all()


@st.composite
def cases(draw):
    """A query, train images and settings of every kind."""
    rows, cols, chan = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 2))
    name = draw(st.integers(0, 99))
    query = random_images(1, chan, rows, cols, name=name)
    train = random_images(draw(st.integers(1, 2)), chan, rows, cols, name=-name - 1)
    kind = draw(st.sampled_from(["random", "constant", "levels", "near", "dark"]))
    if kind == "constant":  # all windows are alike
        query, train = query[..., :1, :1].expand_as(query), train[..., :1, :1].expand_as(train)
    elif kind == "levels":  # windows tie exactly, and distances are as large as they can be
        query, train = query.sign(), train.sign()
    elif kind == "near":  # a window far better than the others
        train = torch.cat([(query + 0.01 * train[:1]).clamp(-1, 1), train[1:]])
    elif kind == "dark":
        query, train = query - query, train - train
    patch = draw(st.integers(1, min(rows, cols)))
    timestep = draw(st.sampled_from([0, 50, 200, 500, 999]))
    options = {
        "patch": patch,
        "coarse": draw(st.booleans()) and patch % 2 == 0,
        "borders": draw(st.sampled_from(["match", "zero"])),
        "timestep": timestep,
        "top_k": draw(st.sampled_from([1, 2, 5, None])),
        "temperature": draw(st.sampled_from([0.5, 1, 3.0])),
        "noise": shared_noise(query, timestep, name) if draw(st.booleans()) else None,
    }
    return query.contiguous(), train.contiguous(), options


@settings(max_examples=20)
@given(cases())
def test_is_the_definition(case):
    query, train, options = case
    assert_is_naive(query, train, **options)


@pytest.mark.parametrize("borders", ["match", "zero"])
@pytest.mark.parametrize(
    ("patch", "coarse"), [(1, False), (3, False), (4, False), (2, True), (4, True)]
)
def test_is_the_definition_for_every_window(patch, coarse, borders):
    query, train = random_images(1, 1, 5, 6), random_images(2, 1, 5, 6, name="train")
    options = {"patch": patch, "coarse": coarse, "borders": borders, "top_k": 3}
    assert_is_naive(query, train, timestep=300, **options)


@pytest.mark.parametrize("rows", [range(0, 1), range(3, 5), range(4, 6)])
@pytest.mark.parametrize("coarse", [False, True])
def test_rows_of_the_query(coarse, rows):
    """The first row of a call is summed afresh, the next ones slide."""
    query, train = random_images(1, 1, 7, 4), random_images(1, 1, 7, 4, name="train")
    options = {"patch": 4, "coarse": coarse, "borders": "zero", "top_k": 4, "rows": rows}
    assert_is_naive(query, train, timestep=300, **options)


@pytest.mark.parametrize("top_k", [1, 7, 15])
def test_ties_at_the_border_of_the_top_k(top_k):
    """Pixels of 0 and 1: of equal weights as many count as there is room for."""
    query, train = random_images(1, 1, 4, 4), random_images(1, 1, 4, 4, name="train")
    query, train = (query > 0).float(), (train > 0).float()
    assert_is_naive(query, train, timestep=400, patch=1, borders="zero", top_k=top_k)


def test_many_windows_and_few_kept(monkeypatch):
    """More windows than top_k by an order of magnitude, at a timestep where all of them count."""
    monkeypatch.setattr(sweep, "COLUMNS", 16)
    query, train = random_images(1, 1, 13, 13), random_images(1, 1, 13, 13, name="train")
    options = {"timestep": 900, "patch": 1, "borders": "zero", "rows": range(2)}
    for top_k in (1, 10, 128):
        ours, conv = (
            patch_posterior(query, train, **options, top_k=top_k, engine=e)
            for e in ("triton", "conv")
        )
        torch.testing.assert_close(ours.masses, conv.masses, rtol=0, atol=1e-5)


SETTINGS = [{"patch": 3, "top_k": 2}, {"patch": 4, "coarse": True, "borders": "zero"}]


@pytest.mark.parametrize("options", SETTINGS)
def test_blocks_change_no_bit(options, monkeypatch):
    """Of queries, train images and columns."""
    queries, train = random_images(2, 1, 5, 6), random_images(3, 1, 5, 6, name="train")
    options = options | {"timestep": 100, "engine": "triton"}
    whole = patch_posterior(queries, train, **options)
    monkeypatch.setattr(sweep, "COLUMNS", 2)
    monkeypatch.setattr(triton, "IMAGES", 2)
    parts = [patch_posterior(query, train, **options) for query in queries.split(1)]
    for field in ("log_total", "log_share"):
        assert torch.equal(torch.cat([getattr(p, field) for p in parts]), getattr(whole, field))


def test_scores_of_images_that_nearly_cancel():
    """Noise-free queries near a train image, at the smallest timestep."""
    queries, train = random_images(1, 2, 6, 5), random_images(2, 2, 6, 5, name="train")
    train[:1] = (queries + 0.2 * random_images(1, 2, 6, 5, name="near")).clamp(-1, 1)
    options = {"timestep": 0, "patch": 5, "top_k": 2, "borders": "zero"}
    ours, exact = (
        patch_scores(q, t, **options, engine=e)
        for q, t, e in ((queries, train, "triton"), (queries.double(), train.double(), "conv"))
    )
    # the float32 product of the schedule and a pixel is part of the input
    assert (ours - exact).abs().max() < 1e-4 * signal(0) * exact.max()


# ---- the front door


def on_cuda(*shape, dtype=torch.float32):
    """Images on a GPU that need not be there."""
    with FakeTensorMode():
        return torch.empty(*shape, dtype=dtype, device="cuda")


def test_auto_is_triton_on_cuda_and_box_where_it_is_not_or_does_not_take_the_images(monkeypatch):
    assert patches._pick("auto", on_cuda(1, 3, 32, 32)) == "triton"
    assert patches._pick("auto", on_cuda(1, 3, 65, 32)) == "box"
    assert patches._pick("auto", on_cuda(1, 3, 32, 32, dtype=torch.float64)) == "box"
    monkeypatch.setattr(triton, "find_spec", lambda name: None)
    assert patches._pick("auto", on_cuda(1, 3, 32, 32)) == "box"


IMAGES = random_images(1, 1, 4, 4)


@pytest.mark.parametrize(
    ("change", "images", "reason"),
    [
        ({"find_spec": lambda name: None}, IMAGES, "not installed"),
        ({"interpreted": lambda: False}, IMAGES, "on a GPU but .* on cpu; choose 'fused'"),
        ({}, IMAGES.double(), "float32 images, not torch.float64"),
        ({}, torch.zeros(1, 1, 70, 4), "up to 64 x 64 pixels, not 70 x 4"),
    ],
)
def test_what_it_does_not_take_is_one_sentence(change, images, reason, monkeypatch):
    for name, value in change.items():
        monkeypatch.setattr(triton if name == "find_spec" else sweep, name, value)
    for function in (patch_posterior, patch_scores):
        with pytest.raises(InputError, match=reason) as error:
            function(images, images, timestep=100, patch=1, engine="triton")
        assert "\n" not in str(error.value)


class Broken:
    @property
    def active(self):
        raise RuntimeError("Failed to find C compiler.\nPlease specify one.")


class Old:
    active = SimpleNamespace(get_current_target=lambda: SimpleNamespace(backend="cuda", arch=61))


@pytest.mark.parametrize(("driver", "reason"), [(Broken(), "C compiler"), (Old(), "7.0, not 6.1")])
def test_a_gpu_that_cannot_be_used_is_one_warning(driver, reason, monkeypatch, caplog):
    monkeypatch.setattr(sweep.triton.runtime, "driver", driver)
    monkeypatch.setattr(sweep, "interpreted", lambda: False)
    sweep.trouble.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger=sweep.__name__):
            assert [patches._pick("auto", on_cuda(1, 3, 8, 8)) for _ in range(2)] == ["box"] * 2
        [message] = caplog.messages
        assert reason in message and "\n" not in message
        with pytest.raises(InputError, match=f"{reason}.*choose 'box'"):
            patches._pick("triton", on_cuda(1, 3, 8, 8))
    finally:
        sweep.trouble.cache_clear()


def test_out_of_memory_means_smaller_blocks():
    asked = []

    def run(size):
        asked.append(size)
        if size > 30:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate …")
        return size

    assert within_memory(run, 100) == 25 and asked == [100, 50, 25]


def test_out_of_memory_in_the_smallest_blocks_is_one_sentence(monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate …")

    monkeypatch.setattr(triton, "_log_sums", full)
    with pytest.raises(OutOfMemory, match="memory does not suffice.*fewer train images") as error:
        patch_scores(IMAGES, IMAGES, timestep=100, patch=3, engine="triton")
    assert "\n" not in str(error.value)


def test_scores_come_in_smaller_blocks_when_memory_is_short(monkeypatch):
    queries, train = random_images(3, 1, 4, 5), random_images(4, 1, 4, 5, name="train")
    whole = patch_scores(queries, train, timestep=100, patch=3, engine="conv")
    conv = patches.ENGINES["conv"]

    def short(noisy, train, **options):
        if len(noisy) * len(options["rows"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate …")
        return conv(noisy, train, **options)

    monkeypatch.setattr(patches, "ENGINES", {"conv": short})
    monkeypatch.setattr(patches, "SHARE_BYTES", 3 * 4 * 5 * 4 * 4)  # all rows of three queries
    parts = patch_scores(queries, train, timestep=100, patch=3, engine="conv")
    torch.testing.assert_close(parts, whole)


# ---- the machine code

COMPILE = """
import subprocess, triton
from pathlib import Path
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from nda.nonparametric.patches.sweep import _kernel as kernel
tile = {"STEP": 1, "ROWS_MEET": True, "COLS_MEET": True, "SELECT": True, "J": 4, "S": 32, "M": 32}
arrays = ("x", "y", "energy", "every", "top")
types = {name: "*fp64" if name in arrays else "i32" for name in kernel.arg_names}
types |= dict.fromkeys(tile, "constexpr")
code = ASTSource(kernel, types, tile, {(n,): [["tt.divisibility", 16]] for n in range(5)})
made = triton.compile(code, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
Path("sweep.cubin").write_bytes(made.asm["cubin"])
tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
print(subprocess.check_output([tool, "-res-usage", "sweep.cubin"], text=True))
"""


def test_the_kernel_compiles_for_an_h100_and_keeps_its_tile_in_registers(tmp_path):
    """Without a GPU; STACK would be the bytes that do not fit."""
    quiet = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=os.environ | quiet,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    used = dict(part.split(":") for part in done.stdout.split() if part.count(":") == 1)
    assert int(used["STACK"]) == 0 and int(used["REG"]) <= 255
