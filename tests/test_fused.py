"""The engine in C++: its numbers do not depend on how the work is cut up, it is built once, and it
does without a compiler."""

import logging
import platform

import numpy
import pytest
import torch

from nda import rng
from nda.errors import InputError
from nda.nonparametric.patches import (
    Posterior,
    fused,
    merge,
    patch_posterior,
    patch_scores,
    shared_noise,
)

COMPILED = fused.compiled()


def random_images(*shape, name="fused", dtype=torch.float32):
    """Uniform pixels in [-1, 1]."""
    return (2 * torch.rand(*shape, generator=rng.generator(name), dtype=torch.float64) - 1).to(
        dtype
    )


def assert_same(ours, theirs, tolerance):
    """In float32 all logits of a query may be off together, which no mass sees, so that log_total
    is less exact."""
    assert torch.equal(ours.images, theirs.images)
    torch.testing.assert_close(ours.masses, theirs.masses, rtol=0, atol=tolerance)
    tolerance *= 10 if ours.log_share.dtype == torch.float32 else 1
    torch.testing.assert_close(ours.log_total, theirs.log_total, rtol=tolerance, atol=tolerance)


def assert_identical(ours, theirs):
    for field in ("images", "log_total", "log_share"):
        assert torch.equal(getattr(ours, field), getattr(theirs, field)), field


def assert_is_conv(queries, train, tolerance=None, **options):
    """To rounding."""
    ours, theirs = (
        patch_posterior(queries, train, **options, engine=engine) for engine in ("fused", "conv")
    )
    assert_same(ours, theirs, tolerance or (1e-5 if train.dtype == torch.float32 else 1e-9))


@pytest.fixture
def fresh():
    """No library is loaded, before and after."""
    fused.compiled.cache_clear()
    yield
    fused.compiled.cache_clear()


# ---- how the work is cut up

SETTINGS = [
    {"patch": 3, "top_k": 4},
    {"patch": 6, "borders": "zero", "top_k": None},
    {"patch": 4, "coarse": True, "rows": range(2, 6)},
    {"patch": 8},  # nearly every window meets only those at its own position
]


@pytest.fixture
def threads():
    """To be set as a test likes."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", SETTINGS)
def test_number_of_threads_changes_no_bit(settings, dtype, threads, monkeypatch):
    monkeypatch.setattr(fused, "SHARD", 5)
    queries, train = (
        random_images(3, 3, 8, 9, dtype=dtype),
        random_images(23, 3, 8, 9, name="train", dtype=dtype),
    )
    options = {
        "timestep": 100,
        "noise": shared_noise(queries, 100, 0),
        "engine": "fused",
    } | settings
    found = []
    for n in (1, 2, 3):
        threads(n)
        found.append(patch_posterior(queries, train, **options))
    for other in found[1:]:
        assert_identical(other, found[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", SETTINGS)
def test_batches_of_queries_change_no_bit(settings, dtype):
    queries, train = (
        random_images(5, 2, 8, 9, dtype=dtype),
        random_images(19, 2, 8, 9, name="train", dtype=dtype),
    )
    queries[1:3] *= 0.01  # queries of unlike contrast want unlike number formats
    options = {"timestep": 100, "engine": "fused"} | settings
    whole = patch_posterior(queries, train, **options)
    for cuts in ([1] * 5, [3, 2]):
        parts = [patch_posterior(part, train, **options) for part in queries.split(cuts)]
        assert_identical(
            Posterior(
                whole.images,
                *(torch.cat([getattr(p, f) for p in parts]) for f in ("log_total", "log_share")),
            ),
            whole,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", SETTINGS)
def test_shards_and_order_of_train_images_do_not_matter(settings, dtype, monkeypatch):
    """Fewer images than lanes, as many, one more, …; the images in another order lie in other lanes
    and shards."""
    queries, train = (
        random_images(2, 2, 8, 9, dtype=dtype),
        random_images(37, 2, 8, 9, name="train", dtype=dtype),
    )
    train[30] = queries[1]  # far better than the others: shards before it know of nothing so good
    options = {"timestep": 50, "engine": "fused"} | settings
    whole, order = (
        patch_posterior(queries, train, **options),
        torch.randperm(37, generator=rng.generator("order")),
    )
    back = order.argsort()
    for shard in (1, 8, 17, 36):
        monkeypatch.setattr(fused, "SHARD", shard)
        for moved, found in (
            (False, patch_posterior(queries, train, **options)),
            (True, patch_posterior(queries, train[order], **options)),
        ):
            ours = Posterior(
                found.images,
                found.log_total,
                found.log_share[:, :, back] if moved else found.log_share,
            )
            assert_same(ours, whole, 1e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_train_images_than_a_shard(dtype):
    """And not a multiple of the lanes of a vector."""
    images = 2 * fused.SHARD + 3
    queries, train = (
        random_images(2, 1, 5, 4, dtype=dtype),
        random_images(images, 1, 5, 4, name="train", dtype=dtype),
    )
    for settings in (
        {"patch": 3, "top_k": 2},
        {"patch": 4, "coarse": True, "borders": "zero", "top_k": None},
    ):
        assert_is_conv(queries, train, timestep=200, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "settings",
    [
        {"patch": 1},
        {"patch": 3},
        {"patch": 4, "borders": "zero", "top_k": None},
        {"patch": 4, "coarse": True, "borders": "zero"},
        {"patch": 6, "coarse": True, "rows": range(5, 21)},
    ],
)
def test_images_of_which_only_some_columns_fit_the_state(settings, dtype):
    """The state of all columns takes rows · (columns + 6) · columns vectors of 64 bytes, here about
    2 MB; 1.2 MB are allowed."""
    queries, train = (
        random_images(1, 2, 29, 32, dtype=dtype),
        random_images(2, 2, 29, 32, name="train", dtype=dtype),
    )
    assert_is_conv(queries, train, timestep=200, noise=shared_noise(queries, 200, 0), **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", SETTINGS)
def test_more_channels_than_colours(settings, dtype):
    queries, train = (
        random_images(1, 7, 8, 9, dtype=dtype),
        random_images(3, 7, 8, 9, name="train", dtype=dtype),
    )
    assert_is_conv(queries, train, timestep=200, **settings)


@pytest.mark.parametrize("rows", [range(0, 1), range(1, 3), range(3, 4), range(5, 7)])
@pytest.mark.parametrize("shape", [(7, 8), (8, 7), (7, 20), (20, 7)])
def test_windows_as_large_as_a_side(shape, rows):
    """Along one side every window meets only its own position, along the other some have company:
    rows, or columns turned into rows."""
    queries, train = (
        random_images(1, 2, *shape, dtype=torch.float64),
        random_images(3, 2, *shape, name="train", dtype=torch.float64),
    )
    for settings in ({"patch": 7}, {"patch": 6}, {"patch": 6, "coarse": True}):
        if rows.stop <= shape[0] - 1:
            assert_is_conv(queries, train, timestep=200, rows=rows, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("top_k", [1, 10, 50, 99])
def test_ties_in_some_images_and_none_in_others(top_k, dtype):
    """Lanes that find their threshold at once wait for those that have to search."""
    queries = random_images(2, 1, 10, 10, dtype=dtype)
    train = random_images(40, 1, 10, 10, name="train", dtype=dtype)
    train[::3] = train[::3].round()  # three levels only
    train[::5] = train[::5].sign()
    for timestep in (100, 500, 999):
        for borders in ("match", "zero"):
            options = {"patch": 1, "borders": borders, "top_k": top_k}
            assert_is_conv(queries, train, timestep=timestep, **options)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86-64 has variants")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", [*SETTINGS, {"patch": 3, "top_k": 20}, {"patch": 1}])
def test_instruction_sets_change_no_bit(settings, dtype, fresh, monkeypatch):
    """AVX2 only, against all that this processor has."""
    queries, train = (
        random_images(2, 3, 8, 9, dtype=dtype),
        random_images(37, 3, 8, 9, name="train", dtype=dtype),
    )
    options = {"noise": shared_noise(queries, 400, 0), "engine": "fused"} | settings
    ours = [patch_posterior(queries, train, timestep=t, **options) for t in (50, 400)]
    flags = ["-march=x86-64-v3" if "-march" in flag else flag for flag in fused.FLAGS]
    monkeypatch.setattr(fused, "FLAGS", tuple(flags))
    fused.compiled.cache_clear()
    for timestep, expected in zip((50, 400), ours, strict=True):
        assert_identical(patch_posterior(queries, train, timestep=timestep, **options), expected)


# ---- number formats


@pytest.fixture
def formats(monkeypatch):
    """Those that were chosen."""
    found, choose = [], fused.Format.choose

    def watched(*args):
        found.append(choose(*args))
        return found[-1]

    monkeypatch.setattr(fused.Format, "choose", watched)
    return found


@pytest.mark.parametrize(("error", "narrow"), [(0, False), (1, True)])
@pytest.mark.parametrize("settings", SETTINGS)
def test_both_number_formats(error, narrow, settings, formats, monkeypatch):
    monkeypatch.setattr(fused, "NARROW_ERROR", error)
    queries, train = random_images(2, 2, 8, 9), random_images(18, 2, 8, 9, name="train")
    assert_is_conv(queries, train, timestep=400, noise=shared_noise(queries, 400, 0), **settings)
    assert [form.narrow for form in formats] == [narrow] * 2


def test_the_narrow_format_is_for_float32_and_not_for_the_smallest_timesteps(formats):
    queries, train = random_images(1, 3, 16, 16), random_images(2, 3, 16, 16, name="train")
    for timestep, dtype in ((500, torch.float32), (500, torch.float64), (0, torch.float32)):
        patch_posterior(
            queries.to(dtype), train.to(dtype), timestep=timestep, patch=7, engine="fused"
        )
    assert [form.narrow for form in formats] == [True, False, False]


@pytest.mark.parametrize("timestep", [0, 1, 10, 50])
@pytest.mark.parametrize(("patch", "coarse"), [(1, False), (2, True), (2, False), (3, False)])
def test_small_windows_at_small_timesteps(patch, coarse, timestep):
    """Here single pixels make up a whole logit, and differences of two of them the steps from one
    logit to the next."""
    for n in range(4):
        queries, train = random_images(2, 1, 6, 7, name=n), random_images(3, 1, 6, 7, name=-1 - n)
        assert_is_conv(
            queries,
            train,
            timestep=timestep,
            patch=patch,
            coarse=coarse,
            noise=shared_noise(queries, timestep, n),
        )


@pytest.mark.parametrize("timestep", [0, 10, 100, 999])
@pytest.mark.parametrize(
    ("patch", "coarse"), [(1, False), (2, True), (2, False), (3, False), (6, True)]
)
def test_the_narrow_format_does_not_overflow(patch, coarse, timestep, monkeypatch):
    """Where its rounding alone would forbid it too: the error may be some thousandths there, but
    not everything."""
    monkeypatch.setattr(fused, "NARROW_ERROR", torch.inf)
    for n in range(4):
        queries, train = (
            random_images(2, 1, 6, 7, name=n).sign(),
            random_images(3, 1, 6, 7, name=-1 - n).sign(),
        )
        assert_is_conv(
            queries,
            train,
            5e-3,
            timestep=timestep,
            patch=patch,
            coarse=coarse,
            noise=0.1 * shared_noise(queries, timestep, n),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("timestep", [0, 10, 26, 50, 999])
def test_logits_as_large_as_they_can_be(dtype, timestep):
    """Black meets white; and all of an image's energy lies in one pixel."""
    white = torch.ones(1, 1, 6, 6, dtype=dtype)
    spot = torch.zeros_like(white)
    spot[..., 2, 3] = 1
    striped = white.clone()
    striped[
        :, :, ::2
    ] = -1  # from one row to the next a window's sum changes by twice the largest product
    train = torch.cat([-white, white, -spot, spot, -white.tril(), striped])
    for queries in (white, -white, spot, striped):
        for patch, coarse in ((1, False), (2, False), (2, True), (5, False), (6, True)):
            assert_is_conv(
                queries, train, timestep=timestep, patch=patch, coarse=coarse, borders="zero"
            )


def test_a_shard_that_does_not_count_counts_again_after_a_merge():
    """Beside an image that equals the query the others have no mass at all, and are left out;
    merging puts their part right."""
    train = random_images(9, 3, 8, 8)
    options = {"timestep": 0, "patch": 7, "engine": "fused"}
    whole = patch_posterior(train[:1], train, **options)
    assert (whole.log_share[:, :, 1:] == -torch.inf).all() and whole.masses[:, :, 0].allclose(
        torch.ones(())
    )
    near, far = (patch_posterior(train[:1], part, **options) for part in (train[:1], train[1:]))
    merged = merge([near, Posterior(far.images + 1, far.log_total, far.log_share)])
    assert_same(merged, whole, 1e-6)
    assert far.masses.sum().item() == pytest.approx(64, rel=1e-4)


def test_loading_the_engine_leaves_small_numbers_alone():
    """GCC's -ffast-math, if it also links, makes the whole process round subnormal numbers to zero:
    all other code would change."""
    assert fused.compiled() is not None
    assert (numpy.array(1e-310) / 2 > 0).item() and (torch.tensor(1e-40) / 2 > 0).item()


# ---- building


@pytest.fixture
def compiler(fresh, tmp_path, monkeypatch):
    """A quick stand-in that says it knows one instruction set, and copies what the real one has
    made; `calls()` lists the outputs."""

    def install(build, ask="echo '#define __AVX__ 1'"):
        script = tmp_path / "quick c++"
        script.write_text(f"""#!/bin/sh
            for last; do :; done
            echo "$last" >> "{tmp_path}/calls"
            case "$*" in *-dM*) {ask};; *) {build};; esac
        """)
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))

    monkeypatch.setenv("NDA_CACHE", str(tmp_path / "cache"))
    install(f'cp "{COMPILED._name}" "$last"')
    install.calls = lambda: [
        line for line in (tmp_path / "calls").read_text().splitlines() if line.endswith(".so")
    ]
    install.files = lambda: [path.name for path in (tmp_path / "cache").glob("**/*")]
    return install


def test_built_once_per_source_and_cpu(compiler, monkeypatch, tmp_path):
    for _ in range(2):  # two processes: what the first has made, the second loads
        fused.compiled.cache_clear()
        assert fused.compiled() is not None
    assert len(compiler.calls()) == 1 and len(compiler.files()) == 1
    source = tmp_path / "other.cpp"
    source.write_bytes(fused.SOURCE.read_bytes() + b"\n")
    monkeypatch.setattr(fused, "SOURCE", source)
    fused.compiled.cache_clear()
    assert fused.compiled() is not None
    assert len(compiler.calls()) == 2 and len(compiler.files()) == 2
    # the same home on another CPU
    compiler(f'cp "{COMPILED._name}" "$last"', ask="echo '#define __AVX512F__ 1'")
    fused.compiled.cache_clear()
    assert fused.compiled() is not None
    assert len(compiler.calls()) == 3 and len(compiler.files()) == 3


def test_what_was_built_runs(compiler):
    images = random_images(2, 1, 5, 5)
    patch_scores(images, images, timestep=100, patch=3, engine="fused")
    assert len(compiler.files()) == 1


@pytest.mark.parametrize(
    "build",
    [
        "echo half > $last; echo 'no such flag' >&2; echo more >&2; exit 1",
        "echo not a library > $last",
    ],
)
def test_a_compiler_that_fails_is_one_warning(compiler, build, caplog):
    compiler(build)
    with caplog.at_level(logging.WARNING, logger="nda.nonparametric.patches.fused"):
        assert fused.compiled() is None and fused.compiled() is None
    [message] = caplog.messages
    assert "quick c++" in message and "\n" not in message
    assert "no such flag" in message or "exit" not in build
    # no half-made file that a later run would load
    assert not compiler.files() or "exit" not in build


def test_a_compiler_that_knows_no_flag_is_one_readable_warning(compiler, caplog):
    compiler("exit 1", ask="echo 'unknown flag' >&2; exit 1")
    with caplog.at_level(logging.WARNING, logger="nda.nonparametric.patches.fused"):
        assert fused.compiled() is None
    [message] = caplog.messages
    assert message.endswith("unknown flag") and compiler.files() == []


def test_a_cache_folder_that_cannot_be_made_is_one_warning(compiler, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NDA_CACHE", str(tmp_path / "file"))
    assert fused.compiled() is None
    assert len(caplog.messages) == 1


def test_no_compiler_means_conv(fresh, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    images = random_images(2, 1, 5, 5)
    with caplog.at_level(logging.INFO, logger="nda.nonparametric.patches"):
        auto = patch_scores(images, images, timestep=100, patch=3)
    assert torch.equal(auto, patch_scores(images, images, timestep=100, patch=3, engine="conv"))
    assert "no C++ compiler" in caplog.messages[0] and caplog.messages[1].startswith("engine conv:")
    for function in (patch_scores, patch_posterior):
        with pytest.raises(InputError, match="engine 'fused' needs a C\\+\\+ compiler") as error:
            function(images, images, timestep=100, patch=3, engine="fused")
        assert "\n" not in str(error.value)
    assert fused.compiled() is None
    assert len([message for message in caplog.messages if "no C++ compiler" in message]) == 1
