"""Files that nobody has vouched for: pixels or a sentence."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from photographs import photographs, save
from PIL import Image

from nda.data.untrusted import Unreadable, one_line, printable, read_all, read_picture
from nda.errors import InputError

PICTURE = photographs(1, 16)[0]
NAMES = [
    'quote".png',
    "it's.png",
    "new\nline.png",
    "<script>alert(1)<script>.png",
    "emoji-🎨.png",
    "\u202egnp.evil.png",
    "שלום.png",
    "&amp;.png",
    "a" * 251 + ".png",
]


def bomb(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that says it has that many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end


def test_pixels_are_those_of_the_file(tmp_path):
    found = read_picture(save(PICTURE, tmp_path / "a.png"), 16)
    assert torch.equal(found.pixels, PICTURE)
    assert (found.name, found.of, found.notes) == ("a.png", (16, 16), ())
    half = read_picture(tmp_path / "a.png", 8).pixels.double()
    mean = PICTURE.double().unflatten(2, (8, 2)).unflatten(1, (8, 2)).mean((2, 4))
    assert (half - mean).abs().max() <= 0.5


def test_grey_transparent_tiny_and_animated(tmp_path):
    grey = Image.fromarray(PICTURE[0].numpy())
    grey.save(tmp_path / "grey.png")
    found = read_picture(tmp_path / "grey.png", 16)
    assert torch.equal(found.pixels, PICTURE[[0, 0, 0]]) and found.notes == (
        "grey: in three equal channels",
    )

    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    found = read_picture(tmp_path / "clear.png", 8)
    assert found.pixels.unique().tolist() == [255]
    assert found.notes == ("transparent: laid over white",)

    Image.new("RGB", (3, 5), (1, 2, 3)).save(tmp_path / "tiny.png")
    found = read_picture(tmp_path / "tiny.png", 8)
    assert found.pixels[:, 0, 0].tolist() == [1, 2, 3] and found.of == (3, 5)
    assert found.notes[0] == "tiny: 3 x 5 pixels, enlarged" and "middle" in found.notes[1]

    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    found = read_picture(tmp_path / "moves.gif", 8)
    assert found.notes[0] == "animated: the first of 3 frames"
    assert found.pixels[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_every_mode(tmp_path, mode):
    suffix = ".tif" if mode in ("CMYK", "F") else ".png"
    if mode == "I;16":
        image = Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257)
    else:
        image = Image.fromarray(PICTURE.movedim(0, 2).numpy()).convert(mode)
    image.save(tmp_path / f"a{suffix}")
    assert read_picture(tmp_path / f"a{suffix}", 8).pixels.shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is no image that Pillow can read"),
        (b"GIF89a", "."),
        (b"<svg/>", "it is no image that Pillow can read"),
        (bomb(10**4, 10**4), "Pillow's limit; make it smaller"),
        (bomb(10**5, 10**5), "Pillow's limit; make it smaller"),
        (bomb(8, 8), r"it is damaged \(.*\); save it again"),
    ],
    ids=["empty", "half", "other", "bomb", "large bomb", "no pixels"],
)
def test_no_image(tmp_path, content, why):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(Unreadable, match=why) as raised:
        read_picture(tmp_path / "a.png", 8)
    assert "\n" not in str(raised.value)


def test_no_file(tmp_path):
    with pytest.raises(Unreadable, match="there is no such file; check its name"):
        read_picture(tmp_path / "a.png", 8)
    with pytest.raises(Unreadable, match="it is not a file"):
        read_picture(tmp_path, 8)
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    with pytest.raises(Unreadable, match="it is not a file"):
        read_picture(tmp_path / "pipe.png", 8)


@given(st.binary(max_size=200), st.integers(0, 300), st.booleans())
def test_damaged_files_give_a_sentence(tmp_path_factory, damage, at, cut):
    place = tmp_path_factory.mktemp("damaged") / "a.png"
    content = save(PICTURE, place).read_bytes()
    place.write_bytes(content[:at] + damage + (b"" if cut else content[at + len(damage) :]))
    try:
        assert read_picture(place, 8).pixels.shape == (3, 8, 8)
    except Unreadable as error:
        assert str(error).startswith("it ") and "\n" not in str(error)


@pytest.mark.parametrize("name", NAMES)
def test_names_stay_as_they_are(tmp_path, name):
    save(PICTURE, tmp_path / name.replace("/", ""))
    (found,) = read_all(tmp_path, 8).names
    assert found == name and found.encode()
    assert one_line(found).isprintable()


def test_names_that_are_no_text(tmp_path):
    raw = os.fsencode(tmp_path) + b"/\xff.png"
    with open(raw, "wb") as file:
        file.write(save(PICTURE, tmp_path / "a.bin.png").read_bytes())
    assert set(read_all(tmp_path, 8).names) == {"a.bin.png", "\ufffd.png"}


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_any_name_fits_a_line(name):
    assert one_line(printable(name)).isprintable()
    assert printable(name) == name


def test_a_folder(tmp_path):
    pictures = photographs(3, 8)
    for n, picture in enumerate(pictures):
        save(picture, tmp_path / "below" / f"{n}.png")
    (tmp_path / "broken.JPG").write_bytes(b"no")
    (tmp_path / "notes.txt").write_text("no image")
    save(pictures[0], tmp_path / ".hidden" / "a.png")
    (tmp_path / "folder.png").mkdir()
    found = read_all(tmp_path, 8)
    assert found.names == ("below/0.png", "below/1.png", "below/2.png")
    assert torch.equal(found.pixels, pictures)
    assert found.unreadable == (
        ("broken.JPG", "it is no image that Pillow can read; save it as PNG"),
    )


def test_folders_without_images(tmp_path):
    with pytest.raises(InputError, match="does not exist; name a folder of images"):
        read_all(tmp_path / "none", 8)
    with pytest.raises(InputError, match="has no readable images: it has none; give it some"):
        read_all(tmp_path, 8)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="none of its 1 image files can be read"):
        read_all(tmp_path, 8)
    with pytest.raises(InputError, match="is not a folder"):
        read_all(tmp_path / "a.png", 8)
