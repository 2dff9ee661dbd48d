"""The built book: every page is there, every picture and link resolves, nothing failed, nothing is
fetched from elsewhere.

Without `NDA_BOOK` the tests build a book from the tiny profile's runs; `make book` sets it to the
repository and so checks the real one.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def book(request, tmp_path_factory):
    """A folder with `_toc.yml`, `book/` with its executed runs, and `_build/html`."""
    if os.environ.get("NDA_BOOK"):
        return Path(os.environ["NDA_BOOK"]).resolve()
    tiny = request.getfixturevalue("tiny_home")
    folder = tmp_path_factory.mktemp("book")
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "book", folder / "book", ignore=shutil.ignore_patterns("runs"))
    for name in ("examples", "nda"):  # pages show their source
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(tiny / "book/runs", folder / "book/runs")
    builder = Path(sys.executable).parent / "jupyter-book"
    command = [builder, "build", ".", "-n", "-W", "--keep-going"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return folder


class Links(HTMLParser):
    """Everything that a page points to: what the browser fetches by itself, and what a reader may
    click."""

    def __init__(self, page):
        super().__init__()
        self.fetched, self.clicked, self.ids = [], [], set()
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[key] for key in ("id", "name") if a.get(key)}
        if tag in ("script", "img", "source", "iframe") and a.get("src"):
            self.fetched.append(a["src"])
        elif (
            tag == "link"
            and a.get("href")
            and a.get("rel") not in ("canonical", "next", "prev", "index", "search", "author")
        ):
            self.fetched.append(a["href"])
        elif tag == "a" and a.get("href"):
            self.clicked.append(a["href"])


def pages(book):
    found = [page for page in (book / "_build/html").rglob("*.html") if "_static" not in page.parts]
    assert found, "the book has no pages"
    return found


def test_every_page_of_the_toc_exists(book):
    toc = yaml.safe_load((book / "_toc.yml").read_text())
    listed = [
        toc["root"],
        *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"]),
    ]
    assert {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")} == {
        Path(f).name for f in listed if "/runs/" in f
    }
    for file in listed:
        page = book / "_build/html" / f"{file}.html"
        assert page.stat().st_size > 5000, file


def test_pictures_scripts_and_links_resolve(book):
    for page in pages(book):
        links = Links(page)
        for target in links.fetched + links.clicked:
            url = urlparse(target)
            if url.scheme in ("http", "https", "mailto", "data") or not url.path:
                continue
            assert (page.parent / unquote(url.path)).exists(), f"{page.name}: {target}"
        for target in links.clicked:
            if target.startswith("#") and len(target) > 1:
                assert unquote(target[1:]) in links.ids, f"{page.name}: {target}"


def test_no_page_fetches_anything_from_elsewhere(book):
    for page in pages(book):
        outside = [target for target in Links(page).fetched if re.match(r"(https?:)?//", target)]
        assert not outside, f"{page.name}: {outside}"
        assert not re.search(
            r"""(import|require|fetch)\s*\(?\s*["']https?://""", page.read_text()
        ), page.name
    assert (book / "_build/html/_static/mathjax/tex-chtml.js").exists()


def test_no_cell_failed_or_was_left_out(book):
    for path in sorted((book / "book/runs").glob("*.ipynb")):
        notebook = json.loads(path.read_text())
        assert not notebook["metadata"]["papermill"]["exception"], path.name
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code" and "".join(cell["source"]).strip():
                assert cell["execution_count"], f"{path.name}: a cell was not executed"
                kinds = {output["output_type"] for output in cell["outputs"]}
                assert "error" not in kinds, path.name
                streams = {output.get("name") for output in cell["outputs"]}
                assert "stderr" not in streams, f"{path.name}: {cell['outputs']}"


def test_every_sentence_has_its_number(book):
    """Numbers and words are glued into sentences. `tiny` has not run all that the pages name, and
    says nan; the real book has."""
    found = {
        page.name: re.findall(r'<span class="pasted-text">([^<]*)</span>', page.read_text())
        for page in pages(book)
    }
    assert len(found["shows.html"]) > 50 and len(found["index.html"]) > 5
    if os.environ.get("NDA_BOOK"):
        for name, said in found.items():
            assert not {"nan", "nan%", "not run", ""} & set(said), name


def test_tables_and_figures_are_in_the_pages(book):
    page = (book / "_build/html/book/runs/10_lds.html").read_text()
    assert page.count("<img") >= 2 and page.count("<table") >= 5
