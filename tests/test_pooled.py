"""The index on disk: what it says against loops, and that it is of these images and whole."""

import json
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from photographs import photographs

from nda.errors import InputError
from nda.nonparametric import pooled
from nda.schedule import sigma, signal

TRAIN, QUERIES = photographs(9, 32), photographs(2, 32, "queries")
TIMESTEPS = (100, 400)


def blocks(images=TRAIN, size=4):
    return images.split(size)


@pytest.fixture
def index(tmp_path):
    return pooled.build(tmp_path / "index", blocks())


def naive(query, train, flips):
    """Masses by loops over levels, places and images, in float64."""
    total = torch.zeros(len(train), dtype=torch.float64)
    for width, stride in ((16, 3), (8, 2), (4, 1)):
        q, *images = (
            F.adaptive_avg_pool2d((F.adaptive_avg_pool2d(x.float(), 16).round() - 128), width)
            .round()
            .double()
            for x in (query, *train)
        )
        rows = [*product(range(0, width - 3, stride), repeat=2)]
        places = [*product(range(width - 3), repeat=2)]
        for row, col in rows:
            patch = q[:, row : row + 4, col : col + 4]
            nearest = torch.tensor(
                [
                    min(
                        (view[:, r : r + 4, c : c + 4] - patch).square().sum().item()
                        for view in ([y, y.flip(-1)] if flips else [y])
                        for r, c in places
                    )
                    for y in images
                ],
                dtype=torch.float64,
            )
            area = (32 / width) ** 2 / 127.5**2
            for t in TIMESTEPS:
                logits = -nearest * area * signal(t) ** 2 / (2 * sigma(t) ** 2)
                total += logits.softmax(0) / (3 * len(rows) * len(TIMESTEPS))
    return total


@pytest.mark.parametrize("flips", [True, False])
def test_masses_against_loops(index, flips):
    masses = index.masses(QUERIES, TIMESTEPS, flips=flips)
    expected = torch.stack([naive(query, TRAIN, flips) for query in QUERIES])
    torch.testing.assert_close(masses.double(), expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(masses.sum(1), torch.ones(2))
    for found, row in zip(
        index.candidates(QUERIES, 4, TIMESTEPS, flips=flips), masses, strict=True
    ):
        assert found.tolist() == sorted(row.topk(4).indices.tolist())


@given(size=st.integers(1, 9), together=st.integers(1, 9))
def test_blocks_do_not_matter(tmp_path_factory, size, together):
    folder = tmp_path_factory.mktemp("index")
    made, again = (
        pooled.build(folder / "a", blocks()),
        pooled.build(folder / "b", blocks(size=size)),
    )
    assert made.sha256 == again.sha256 == pooled.digest(blocks(size=size))
    files = [(folder / name / "pooled.int8").read_bytes() for name in "ab"]
    assert files[0] == files[1] and len(files[0]) == 9 * 3 * 16 * 16
    with pytest.MonkeyPatch.context() as patched:
        expected = made.masses(QUERIES[:1], [100])
        patched.setattr(pooled, "TOGETHER", together)
        assert torch.equal(again.masses(QUERIES[:1], [100]), expected)


def test_an_image_and_a_part_of_one_are_found(index):
    queries = TRAIN[[3, 7]].clone()
    queries[1, :, 16:] = QUERIES[0, :, 16:]  # the upper half is of 7
    first, second = index.masses(queries, [100])
    assert first.argmax() == 3 and second.argmax() == 7


def test_more_candidates_than_images(index):
    (found,) = index.candidates(QUERIES[:1], 50, [100])
    assert found.tolist() == list(range(9))


# ---- what is kept


def never():
    raise AssertionError("built again")
    yield


def test_kept_index_is_not_built_again(index):
    assert pooled.kept(index.folder, never, sha256=index.sha256) == index
    assert pooled.kept(index.folder, blocks) == index


def test_it_is_read_from_the_first_image_on(tmp_path):
    made = pooled.kept(tmp_path / "new", blocks)
    assert made.images == 9 and made.shape == (3, 32, 32)
    assert (tmp_path / "new" / "pooled.int8").stat().st_size == 9 * 768


def cut(index):
    path = index.folder / "pooled.int8"
    path.write_bytes(path.read_bytes()[:-1])


def change(index):
    path = index.folder / "pooled.int8"
    path.write_bytes(b"\0" + path.read_bytes()[1:])


@pytest.mark.parametrize(
    "harm",
    [
        cut,
        change,
        lambda index: (index.folder / "pooled.int8").unlink(),
        lambda index: (index.folder / "index.json").unlink(),
        lambda index: (index.folder / "index.json").write_text("{"),
        lambda index: (index.folder / "index.json").write_text("{}"),
    ],
)
def test_what_is_not_whole_is_made_anew(index, harm):
    whole = (index.folder / "pooled.int8").read_bytes()
    harm(index)
    assert pooled.kept(index.folder, blocks) == index
    assert (index.folder / "pooled.int8").read_bytes() == whole


def test_a_killed_build_leaves_no_index(index):
    def ends():
        yield TRAIN[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pooled.build(index.folder, ends())
    assert [path.name for path in index.folder.iterdir()] == ["pooled.int8"]
    assert pooled.kept(index.folder, blocks) == index


def test_index_of_other_images_is_refused(index):
    with pytest.raises(InputError, match=r"is of other images, sha256 [0-9a-f]{12}…; delete"):
        pooled.kept(index.folder, lambda: blocks(TRAIN.flip(0)))
    with pytest.raises(InputError, match="is of other images"):
        pooled.kept(index.folder, never, sha256="00" * 32)


def test_index_of_other_settings_is_refused(index):
    file = index.folder / "index.json"
    about = json.loads(file.read_text())
    about["settings"]["side"] = 8
    file.write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"was built with other settings, .*'side': 8"):
        pooled.kept(index.folder, blocks)


def test_bad_input(index, tmp_path):
    for wrong in (TRAIN[:, :1], TRAIN.float(), TRAIN[0]):
        with pytest.raises(InputError, match="blocks must be images .* all of shape"):
            pooled.build(tmp_path / "bad", [TRAIN[:1], wrong])
    with pytest.raises(InputError, match="blocks has no images"):
        pooled.build(tmp_path / "bad", [])
    assert not list((tmp_path / "bad").iterdir())
    with pytest.raises(InputError, match="queries must be images of shape"):
        index.masses(QUERIES[..., :16], [100])
    with pytest.raises(InputError, match="timesteps must name at least one"):
        index.masses(QUERIES, [])
    with pytest.raises(InputError, match="count must be a positive integer"):
        index.candidates(QUERIES, 0, [100])
