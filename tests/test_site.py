"""The documentation site is built without a warning and asks nobody outside for anything."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"(?:[a-z]+:)?//", re.IGNORECASE)
IN_CSS = re.compile(r"(?:url\(|@import)\s*[\"']?\s*((?:[a-z]+:)?//[^\"')]+)", re.IGNORECASE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert (built.returncode, built.stdout + built.stderr) == (0, "")
    return folder


class Fetched(HTMLParser):
    """Addresses that a browser asks for when it shows a page: not where a link would lead."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "srcset", "data", "poster", "action") or (name == "href" and tag not in ("a", "area")):
                self.addresses.append(value or "")
            if name == "style":
                self.addresses += IN_CSS.findall(value or "")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "style":
            self.addresses += IN_CSS.findall(data)


def test_no_page_refers_to_a_script_style_font_or_picture_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").rglob("*.md"))) - 2
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = Fetched()
        fetched.feed(text)
        assert [address for address in fetched.addresses if OUTSIDE.match(address.strip())] == [], page
        # The theme's script fetches a library for diagrams, and a repository's stars, where a page has these.
        assert 'class="mermaid"' not in text
        assert 'data-md-component="source"' not in text
    for style in site.rglob("*.css"):
        assert IN_CSS.findall(style.read_text(encoding="utf-8")) == [], style


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_reader_finds_a_word_and_the_browser_asks_nobody_else(address: str) -> None:
    from playwright.sync_api import sync_playwright

    asked, errors = list[str](), list[str]()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(f"{address}/tutorial/the-demo.html")
        pictures = page.eval_on_selector_all("article img", "found => found.map(each => each.naturalWidth)")
        page.locator("input[name=query]").press_sequentially("Rogan")
        result = page.wait_for_selector(".md-search-result__link")
        assert result is not None
        found = result.get_attribute("href") or ""
        browser.close()
    assert len(pictures) == 3
    assert all(pictures)
    assert "calibrate-the-classifier.html" in found
    assert errors == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
