"""A folder and suspects in, a report out; whatever is wrong with them, one sentence."""

import errno
import json
import multiprocessing
import os
import runpy
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from photographs import folder, photographs, save

import nda.trace
from nda.__main__ import main
from nda.data.pixels import levels
from nda.data.untrusted import read_picture
from nda.errors import InputError
from nda.evidence import attribution
from nda.evidence.attribution import Attributor
from nda.nonparametric.patches import fused
from nda.report.output import write
from nda.store import Store
from nda.trace import trace

ROOT = Path(__file__).parent.parent
SCHEMA = Path(nda.trace.__file__).parent / "report" / "trace.schema.json"
PICTURES = photographs(24, 16)
STRANGER = photographs(1, 16, "stranger")[0]
COLLAGE = torch.cat([PICTURES[3, :, :, :8], PICTURES[17, :, :, 8:]], 2)
QUICK = {"size": 16, "timesteps": (25, 300), "strangers": 19, "planted": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own, the engine compiled, and the slowest number, the score, made up."""
    fused.compiled()
    monkeypatch.setenv("NDA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        Attributor, "scores", lambda self, query, images: [-1.0 * n for n in images]
    )
    return tmp_path / "cache"


@pytest.fixture
def images(tmp_path):
    return folder(tmp_path / "images", PICTURES)


@pytest.fixture
def collage(tmp_path):
    return save(COLLAGE, tmp_path / "collage.png")


def checked(report: dict) -> dict:
    """The report as a reader gets it, if it is as the schema says."""
    report = json.loads(json.dumps(report, allow_nan=False))
    jsonschema.validate(report, json.loads(SCHEMA.read_text()))
    named = {int(key) for key in report["sources"]}
    for suspect in report["suspects"]:
        assert {source["image"] for source in suspect["sources"]} <= named
        for one in suspect["maps"]:
            positions = one["rows"] * one["cols"]
            assert set(one["image"]) <= named and len(one["entropy"]) == positions
            lengths = {len(one[key]) for key in ("image", "mass", "row", "col", "mirrored")}
            assert len(lengths) == 1 and lengths.pop() % positions == 0
            assert max(one["row"]) < one["rows"] and max(one["col"]) < one["cols"]
    return report


def without_time(report: dict) -> str:
    return json.dumps(report | {"made": report["made"] | {"at": None}}, sort_keys=True)


# ---- verdicts


def test_a_collage_a_copy_and_a_stranger(tmp_path, images, collage):
    stranger = save(STRANGER, tmp_path / "stranger.png")
    brighter = save((PICTURES[5].int() + 4).clamp(0, 255).byte(), tmp_path / "copy.png")
    found = trace(images, [collage, stranger, brighter, images / "007.png"], **QUICK)
    report = checked(found.report())
    parts, nobody, copy, itself = report["suspects"]

    assert parts["verdict"]["kind"] == "parts"
    assert {report["sources"][str(s["image"])]["name"] for s in parts["sources"][:2]} == {
        "003.png",
        "017.png",
    }
    assert parts["verdict"]["sentence"] in (
        "Parts from 003.png and 017.png",
        "Parts from 017.png and 003.png",
    )
    assert [source["p"] <= 0.05 for source in parts["sources"]] == [True, True] + [False] * 18
    lowest = parts["maps"][0]
    few = len(lowest["image"]) // 256
    first = torch.tensor(lowest["image"][::few]).view(16, 16)
    for side, image in ((slice(0, 8), 3), (slice(8, 16), 17)):
        truth = torch.zeros(16, 16, dtype=torch.bool)
        truth[:, side] = True
        said = first == image
        assert (said & truth).sum() / (said | truth).sum() >= 0.6

    assert nobody["verdict"]["kind"] == "none" and nobody["verdict"]["p"] > 0.05
    assert nobody["verdict"]["sentence"] == "No attributable source"
    assert copy["verdict"]["kind"] == "copy" and copy["sources"][0]["image"] == 5
    assert copy["verdict"]["sentence"] == "A copy of 005.png"
    assert itself["notes"] == ["an exact copy of 007.png, by hash"]
    assert itself["verdict"]["sentence"] == "A copy of 007.png, byte for byte"
    assert not any("trained on" in line for line in found.lines())

    null = report["null"]
    assert len(null["shares"]) == 19 and null["smallest_p"] == 1 / 20
    assert [one["level"] for one in null["thresholds"]] == [0.05, 0.01]
    assert null["thresholds"][1]["share"] is None
    assert report["folder"]["held_out"] == {"from": "set aside", "images": 19}
    power = {one["case"]: one for one in report["power"]}
    assert power["exact copy"] == {"case": "exact copy", "planted": 1, "found": 1, "named": 1}
    assert power["mirrored"]["found"] == 1 and len(power) == 7


def test_mirrored_copies_are_found_if_asked_for(tmp_path, images):
    mirrored = save(PICTURES[5].flip(-1), tmp_path / "m.png")
    (one,) = trace(images, [mirrored], **QUICK).suspects
    assert one.verdict.kind == "copy" and one.sources[0].mirrored
    found = trace(images, [mirrored], flips=False, **QUICK)
    assert found.suspects[0].verdict.kind == "none"
    assert not any(source.mirrored for source in found.suspects[0].sources)


def test_held_out_images_of_their_own(tmp_path, images, collage):
    others = folder(tmp_path / "others", photographs(30, 16, "others"))
    report = checked(trace(images, [collage], held_out=others, **QUICK).report())
    assert report["folder"]["held_out"] == {"from": "others", "images": 19}
    assert report["suspects"][0]["verdict"]["kind"] == "parts"


def test_twins_are_no_strangers(tmp_path, collage):
    twins = (PICTURES[:4].int() + 2).clamp(0, 255).byte()
    images = folder(tmp_path / "images", torch.cat([PICTURES, twins, PICTURES[8:10]]))
    found = trace(images, [collage], **QUICK | {"strangers": 30})
    assert len(found.null.shares) == 20 and found.strangers.near == 8
    settings = checked(found.report())["made"]["settings"]
    assert settings["same pictures"] == 2
    assert settings["not held out, since the folder has a near copy"] == 8


def test_too_few_for_a_verdict(tmp_path, collage):
    images = folder(tmp_path / "few", PICTURES[:4])
    (one,) = trace(images, [collage], **QUICK).suspects
    assert one.verdict.kind == "none"
    assert "4 held-out images are too few to say more" in one.verdict.sentence


def test_a_folder_of_suspects(tmp_path, images):
    suspects = folder(tmp_path / "suspects", torch.stack([COLLAGE, STRANGER]))
    found = trace(images, [suspects], **QUICK)
    assert [one.picture.name for one in found.suspects] == ["000.png", "001.png"]


def test_scores_are_of_the_sources(images, collage):
    (one,) = trace(images, [collage], **QUICK).suspects
    assert [source.score for source in one.sources] == [-source.image for source in one.sources]
    by_share = [source.share for source in one.sources]
    assert by_share == sorted(by_share, reverse=True)


# ---- what must not matter, what is kept


def test_names_order_and_company_do_not_matter(tmp_path, images, collage):
    (one,) = trace(images, [collage], **QUICK).suspects
    renamed = tmp_path / "renamed"
    for n, picture in enumerate(PICTURES.flip(0)):
        save(picture, renamed / "below" / f"{(7 * n) % 24}.png")
    stranger = save(STRANGER, tmp_path / "stranger.png")
    os.environ["NDA_CACHE"] = str(tmp_path / "another")
    _, other = trace(renamed, [stranger, collage], **QUICK).suspects
    assert one.sources == other.sources and one.verdict.p == other.verdict.p
    for a, b in zip(one.maps, other.maps, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.masses, b.masses)


def test_a_second_suspect_costs_itself(tmp_path, images, collage, monkeypatch):
    first = trace(images, [collage], **QUICK)
    made, run = [], attribution.partial_scores

    def counted(queries, train, config, **options):
        made.append(len(train))
        return run(queries, train, config, **options)

    monkeypatch.setattr(attribution, "partial_scores", counted)
    again = trace(images, [collage], **QUICK)
    assert made == [] and without_time(first.report()) == without_time(again.report())
    trace(images, [save(STRANGER, tmp_path / "s.png")], **QUICK)
    assert made == [24, 48, 48]  # its reading, and its maps with mirror images


def test_killed_and_resumed(images, collage, cache):
    """Killed at any time, the same call goes on, to the same bytes."""
    process = multiprocessing.get_context("fork").Process(
        target=trace, args=(images, [collage]), kwargs=QUICK
    )
    process.start()
    kept = cache / "trace" / "readings"
    while not kept.is_dir() or len(list(kept.glob("*.json"))) < 5:
        assert process.is_alive()
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -9
    before = len(list(kept.glob("*.json")))
    resumed = trace(images, [collage], **QUICK)
    assert 5 <= before < len(list(kept.glob("*.json")))
    os.environ["NDA_CACHE"] = str(cache.with_name("fresh"))
    assert without_time(resumed.report()) == without_time(
        trace(images, [collage], **QUICK).report()
    )


# ---- the command


def run(*arguments) -> int:
    quick = ["--timesteps", "25", "300", "--size", "16", "--strangers", "19"]
    return main(["trace", *quick, *map(str, arguments)])


def test_command(tmp_path, images, collage, capsys):
    output = tmp_path / "new" / "report"
    assert run(images, collage, "-o", output) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("collage.png: Parts from ") and lines[1].endswith("index.html")
    assert {path.name for path in output.iterdir()} == {"report.json", "index.html"}
    report = checked(json.loads((output / "report.json").read_text()))
    assert report["made"]["command"].startswith("nda trace ")
    assert run(images, collage, "-o", output) == 0  # over an older report


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda at: at.write_text(""), "output {} is a file; name a folder"),
        (
            lambda at: save(STRANGER, at / "mine.png"),
            "output {} has other content (mine.png); name a new folder",
        ),
        (
            lambda at: at.mkdir() or (at / "index.html").write_text("mine"),
            "output {} has files that are no report; name a new folder",
        ),
        (
            lambda at: at.mkdir() or (at / "report.json").write_text('{"schema": "other"}'),
            "output {} has files that are no report; name a new folder",
        ),
    ],
    ids=["file", "other", "page", "json"],
)
def test_bad_output(tmp_path, images, collage, capsys, prepare, message):
    at = tmp_path / "report"
    prepare(at)
    before = sorted(tmp_path.rglob("*"))
    assert run(images, collage, "-o", at) == 2
    assert capsys.readouterr().err == f"nda: {message.format(at)}\n"
    assert sorted(tmp_path.rglob("*")) == before


def test_output_that_cannot_be_written(tmp_path, images, collage, capsys, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    assert run(images, collage, "-o", tmp_path / "report") == 2
    assert "cannot be written: Permission denied\n" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_a_full_disk_leaves_nothing(tmp_path, images, collage, capsys, monkeypatch):
    found, sync = trace(images, [collage], **QUICK), os.fsync

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="could not write .*index: No space left on device"):
        write(found.report(), "<html>", tmp_path / "report")
    assert not (tmp_path / "report").exists()
    monkeypatch.setattr(os, "fsync", sync)
    write(found.report(), "<html>", tmp_path / "report")
    before = (tmp_path / "report" / "report.json").read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="what was there before is intact"):
        write(found.report("another"), "<p>", tmp_path / "report")
    assert (tmp_path / "report" / "report.json").read_bytes() == before
    assert len(list((tmp_path / "report").iterdir())) == 2


def test_interrupted(tmp_path, images, collage, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Attributor, "maps", interrupt)
    assert run(images, collage, "-o", tmp_path / "report") == 130
    assert "interrupted; the same command goes on from here" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def sentences(capsys, *arguments) -> str:
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("nda: ") and said.count("\n") == 1 and len(said) < 500
    return said


def test_bad_folders(tmp_path, images, collage, capsys):
    output = ("-o", tmp_path / "report")
    (empty := tmp_path / "empty").mkdir()
    assert "has no readable images: it has none" in sentences(capsys, empty, collage, *output)
    one = folder(tmp_path / "one", PICTURES[[0, 0]])
    assert "one has one picture" in sentences(capsys, one, collage, *output)
    (broken := tmp_path / "broken").mkdir()
    (broken / "a.png").write_bytes(b"no")
    assert "none of its 1 image files" in sentences(capsys, broken, collage, *output)
    assert "does not exist" in sentences(capsys, tmp_path / "none", collage, *output)
    assert "size must be a multiple of 4" in sentences(
        capsys, images, collage, *output, "--size", 30
    )
    assert not (tmp_path / "report").exists()


def test_bad_suspects(tmp_path, images, capsys):
    output = ("-o", tmp_path / "report")
    (wrong := tmp_path / "new\nline.png").write_bytes(b"no")
    said = sentences(capsys, images, wrong, *output)
    assert "new\\nline.png cannot be used: it is no image that Pillow can read" in said
    said = sentences(capsys, images, tmp_path / "none.png", *output)
    assert "none.png cannot be used: there is no such file" in said
    (empty := tmp_path / "empty").mkdir()
    assert "is a folder without images" in sentences(capsys, images, empty, *output)


def test_held_out_images_that_are_in_the_folder(tmp_path, images, collage, capsys):
    near = (PICTURES[6].int() + 2).clamp(0, 255).byte()
    both = torch.stack([STRANGER, near])
    others = folder(tmp_path / "others", both)
    asked = ("--held-out", others, "-o", tmp_path / "report")
    said = sentences(capsys, images, collage, *asked)
    assert "held-out image 001.png is in the folder, too, as 006.png or nearly so; take it" in said


# ---- the report


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NDA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(Attributor, "scores", lambda self, query, images: [0.5 for _ in images])
        place = tmp_path_factory.mktemp("found")
        images = folder(place / "images", PICTURES[:6])
        return trace(images, [save(COLLAGE, place / "a.png")], **QUICK | {"strangers": 2})


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@given(text, st.lists(text, min_size=6, max_size=6), text)
def test_any_names_are_in_the_report_as_they_are(found, name, names, command):
    suspect = replace(found.suspects[0].picture, name=name)
    fuzzed = replace(
        found,
        name=name,
        folder=replace(found.folder, names=tuple(names), unreadable=((name, command),)),
        suspects=(replace(found.suspects[0], picture=suspect, notes=(command,)),),
    )
    report = checked(fuzzed.report(command))
    assert report["suspects"][0]["name"] == report["folder"]["name"] == name
    assert {source["name"] for source in report["sources"].values()} <= set(names)
    assert all(line.isprintable() for line in fuzzed.lines())


def test_pictures_of_the_report_are_those_of_the_files(found):
    import base64
    from io import BytesIO

    import numpy as np
    from PIL import Image

    report = checked(found.report())
    for key, source in report["sources"].items():
        image = Image.open(BytesIO(base64.b64decode(source["picture"])))
        assert np.array_equal(np.asarray(image), PICTURES[int(key)].movedim(0, 2).numpy())
    large = replace(found.how, size=64)
    assert len(report["suspects"][0]["maps"]) == len(large.timesteps)


# ---- photographs


def test_generated_photographs(tmp_path):
    """Horses and cars that a model has drawn, of the results of profile small, at their size."""
    drawn = Store.shipped("small").load("gen")
    images = folder(tmp_path / "images", drawn[:40])
    collage = drawn[4].clone()
    collage[:, 4:13, 3:12] = drawn[11, :, 4:13, 3:12]
    save(collage, tmp_path / "collage.png")
    save(drawn[50], tmp_path / "nobody.png")
    found = trace(images, [tmp_path / "collage.png", tmp_path / "nobody.png"], **QUICK)
    parts, nobody = found.suspects
    assert {found.bank.file[source.image] for source in parts.sources[:2]} == {4, 11}
    assert all(source.p <= 0.05 for source in parts.sources[:2])
    assert nobody.verdict.kind == "none"


@pytest.mark.skipif(not os.environ.get("NDA_DATA"), reason="NDA_DATA does not name CIFAR-10")
def test_photographs_of_cifar(tmp_path):
    from nda.data import images as data

    train = levels(data.load("cifar10", split="train", size=32).pixels[::500])
    other = levels(data.load("cifar10", split="test", size=32).pixels[7])
    images = folder(tmp_path / "images", train)
    collage = torch.cat([train[20, :, :, :16], train[71, :, :, 16:]], 2)
    suspects = [save(collage, tmp_path / "collage.png"), save(other, tmp_path / "nobody.png")]
    found = trace(images, suspects, **QUICK | {"size": 32, "timesteps": [25], "strangers": 40})
    parts, nobody = found.suspects
    assert {found.bank.file[source.image] for source in parts.sources[:2]} == {20, 71}
    assert parts.verdict.kind == "parts" and nobody.verdict.kind == "none"


def test_there_are_digits_to_try(tmp_path):
    written = runpy.run_path(str(ROOT / "examples/digits.py"))
    written["main"](tmp_path / "digits")
    assert len(list((tmp_path / "digits/images").glob("*.png"))) == 400
    names = ("suspect", "images/5-03", "images/3-05")
    suspect, left, right = (
        read_picture(tmp_path / f"digits/{name}.png", 28).pixels for name in names
    )
    assert torch.equal(suspect, torch.cat([left[..., :14], right[..., 14:]], 2))
