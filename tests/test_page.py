"""The page of `nda trace` as text: what it says, what it escapes; and the schema of its report."""

import base64
import copy
import hashlib
import json
import re
from html.parser import HTMLParser

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from made_up_trace import SCHEMA, made_up

from nda.errors import InputError
from nda.report.page import LISTED, Live, page

NASTY = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "\"quoted\" & 'quoted' `${1}`",
    "two\nlines\ttab\rreturn\x00null",
    "\u2028line\u2029paragraph",
    "\udcff bytes that are no text",
    "{{ 7 * 7 }}{% raw %}",
    "صورة \u202e gnp.exe",
    "📷" * 60,
    "n" * 255,
]


class Read(HTMLParser):
    """Tags, their attributes, and the text that is no script."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.words, self.scripts, self.names = [], [], [], [], []
        self.open = None
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.open = tag
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag == "bdi":
            self.names.append("")

    def handle_endtag(self, tag):
        self.open = None

    def handle_data(self, data):
        if self.open in ("script", "style"):
            self.scripts.append(data)
            return
        self.words.append(data)
        if self.open == "bdi":
            self.names[-1] += data


@pytest.mark.parametrize(
    "settings",
    [{}, {"suspects": 3}, {"kind": "none"}, {"sources": 1, "kind": "copy"}, {"names": NASTY[:1]}],
)
def test_made_up_reports_are_of_the_schema(settings):
    jsonschema.validate(made_up(**settings), SCHEMA)


def test_schema_is_strict_and_says_what_every_field_means():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    def fields(part, path):
        if isinstance(part, dict) and ("type" in part or "$ref" in part or "enum" in part):
            assert part.get("description"), path
            if part.get("type") == "object" and "properties" in part:
                assert part["additionalProperties"] is False, path
                assert set(part["required"]) == set(part["properties"]), path
        for name, inner in part.items() if isinstance(part, dict) else ():
            fields(inner, f"{path}/{name}")

    fields(SCHEMA, "")


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (["suspects"], []),
        (["suspects", 0, "more"], 1),
        (["suspects", 0, "picture"], "no picture"),
        (["suspects", 0, "verdict", "kind"], "maybe"),
        (["suspects", 0, "maps", 0, "mass", 0], 1.1),
        (["made", "sha256", "train"], "ABC"),
        (["null", "smallest_p"], 0),
        (["schema"], "nda-trace/2"),
    ],
)
def test_schema_refuses(where, value):
    report = copy.deepcopy(made_up())
    part = report
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report, SCHEMA)


def test_report_of_another_version_is_refused():
    with pytest.raises(InputError, match="nda-trace/1.*nda-trace/0"):
        page(made_up() | {"schema": "nda-trace/0"})


def test_page_says_the_verdict_and_what_it_is_worth():
    text = Read(page(made_up(names=["x"]))).text
    assert "x The image that explains most of it explains 50 % of its pixels" in text
    assert "Of 99 images that have no source in the folder, none reaches that share" in text
    assert "p = 0.01 , the smallest that 99 images can give" in text
    assert "attributed if its share is at least 19 %. So were 4 of 99 images" in text
    assert "a false attribution rate of 4 %" in text and "1.1 % to 10 %" in text
    assert "Of 16 copies of the folder’s images that we planted, 16 were found" in text
    assert "too few held-out images" in text and "nda 1.2.3" in text and "a" * 64 in text
    assert "trained on" not in text


@pytest.mark.parametrize(("share", "said"), [(0.0, "99 reach that share"), (0.2, "none reaches")])
def test_page_counts_the_held_out_images_that_reach_the_share(share, said):
    report = made_up()
    report["suspects"][0]["verdict"]["share"] = share
    assert said in Read(page(report)).text


def test_page_without_held_out_images_or_planted_copies():
    report = made_up(power=[], null={"shares": [], "smallest_p": 1.0, "thresholds": []})
    report["folder"]["held_out"]["images"] = 0
    jsonschema.validate(report, SCHEMA)
    text = Read(page(report)).text
    assert "no held-out images to say how rare" in text and "No copies were planted" in text


def harmless():
    return Read(page(made_up(names=["name"])))


@given(st.text(st.characters(), max_size=255))
@example(NASTY[0])
@example(NASTY[1])
@example(NASTY[2])
@example(NASTY[3])
@example(NASTY[4])
@example(NASTY[5])
@example(NASTY[6])
@example(NASTY[7])
def test_any_name_is_text_and_nothing_else(name):
    html = page(made_up(names=[name]))
    html.encode("utf-8")
    read, usual = Read(html), harmless()
    assert read.tags == usual.tags and len(read.scripts) == len(usual.scripts) == 3
    others = [a for a in read.attributes if a[1] not in ("content", "class")]
    assert others == [a for a in usual.attributes if a[1] not in ("content", "class")]
    data = json.loads(read.scripts[1])  # as the browser's JSON.parse reads it
    shown = data["suspects"][0]["name"]
    assert len(shown) == len(name) and read.names.count(shown) >= 2
    assert all(
        here == there or not there.isprintable() for here, there in zip(shown, name, strict=True)
    )
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", shown)
    assert not re.search("[<>&\u2028\u2029]", read.scripts[1])


def test_page_asks_for_nothing_and_runs_only_its_own_script():
    html = page(made_up(suspects=2))
    read = Read(html)
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml"}  # of elements
    assert set(re.findall(r"\w+://[^\s\"'<)]*", html)) == names
    links = [value for _, name, value in read.attributes if name in ("src", "href")]
    assert links and all(value.startswith(("data:", "#")) for value in links)
    assert not [name for _, name, _ in read.attributes if name.startswith("on") or name == "style"]
    policy = next(v for _, name, v in read.attributes if "default-src" in (v or ""))
    style, _, script = read.scripts
    for kind, text in (("style", style), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b", script)


def test_unreadable_files_are_listed_up_to_a_number():
    report = made_up()
    lost = [{"name": f"lost_{i}.jpg", "why": "truncated"} for i in range(LISTED + 5)]
    report["folder"]["unreadable"] = lost
    text = Read(page(report)).text
    assert f"{LISTED + 5} files" in text and "and 5 more, in report.json" in text
    assert f"lost_{LISTED - 1}.jpg" in text and f"lost_{LISTED}.jpg" not in text


def test_page_is_small():
    """Noise does not compress: pictures are not larger than these."""
    assert len(page(made_up(sources=400, size=32, timesteps=(20, 100, 300)))) < 5e6


def test_thumbnail_that_is_the_picture_is_sent_once():
    report = made_up()
    for source in report["sources"].values():
        source["thumbnail"] = source["picture"]
    data = json.loads(Read(page(report)).scripts[1])
    assert all("thumbnail" not in source for source in data["sources"].values())


def test_a_live_page_is_a_file_of_the_book_and_its_title_is_escaped(tmp_path):
    file = tmp_path / "pages" / "trace-some.html"
    shown = Live(made_up(), file, 'Suspects "<b>"')._repr_html_()
    assert file.read_text(encoding="utf-8") == page(made_up())
    assert shown.count("../../trace-some.html") == 2 and "<b>" not in shown
    assert 'title="Suspects &#34;&lt;b&gt;&#34;"' in shown
