"""The write-up and the slides as people read them: short, inert, and printed where a browser is installed."""

import re
from pathlib import Path

import pytest
from tests.browser import needs_browser, opened, serious
from tests.report.fake_run import fake_study, reported, write_fake_run

from datablame.errors import PhaseError, RequestError
from datablame.report.pdf import browser, print_writeup


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reported(write_fake_run(tmp_path_factory.mktemp("writeup"), fake_study()))


def test_a_slide_has_at_most_five_bullets(root: Path) -> None:
    slides = (root / "writeup" / "slides.md").read_text().split("\n---\n")
    assert len(slides) > 8
    assert max(len(re.findall(r"^- ", slide, re.MULTILINE)) for slide in slides) == 5
    html = (root / "writeup" / "slides.html").read_text()
    assert html.count("<section>") == len(slides) - 1


def test_the_write_up_begins_with_what_was_found(root: Path) -> None:
    text = (root / "writeup" / "report.md").read_text().replace("\\", "")
    abstract = text[text.index("## Abstract") : text.index("## 1. Question")]
    assert "**SUCCESS.** Removing what gradient flagged leaves 7.8 %" in abstract
    assert "| How sure | **p = 0.016** |" in abstract
    assert re.findall(r"^## (.*)", text, re.MULTILINE) == [
        *(
            "Abstract",
            "1. Question",
            "2. Method",
            "3. Results",
            "4. Limitations",
            "5. Data and reproduction",
            "References",
        ),
    ]


@needs_browser
@pytest.mark.parametrize("name", ["report", "slides"])
def test_hostile_texts_are_text_in_html(root: Path, name: str) -> None:
    with opened((root / "writeup" / f"{name}.html").as_uri()) as (page, seen):
        assert page.locator("script, iframe, [onerror], [onclick], a[href^=javascript]").count() == 0
        assert "<script>alert(1)</script>" in page.inner_text("body")
        assert serious(page) == []
        # Its pictures are not drawn here; it asks for nothing else.
        assert all(re.search(r"/\w+\.png$", request) for request in seen.requests)
        assert not [text for text in seen.complaints if "Failed to load" not in text and "ERR_" not in text]


@needs_browser
def test_both_are_printed_and_the_next_report_takes_them_away(tmp_path: Path) -> None:
    world = write_fake_run(tmp_path, fake_study())
    printed = print_writeup(browser(), reported(world))
    assert [path.read_bytes()[:5] for path in printed] == [b"%PDF-"] * 2
    reported(world)
    assert not any(path.exists() for path in printed)


def test_what_an_earlier_print_left_is_no_print(root: Path) -> None:
    (root / "writeup" / "report.pdf").write_bytes(b"%PDF-")
    with pytest.raises(PhaseError, match=r"true could not print .*report\.html: it does not say why"):
        print_writeup("/bin/true", root)
    assert not (root / "writeup" / "report.pdf").exists()


def test_without_a_browser_nothing_is_printed(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        RequestError, match=r"--pdf needs one of chromium, .*, and none is installed; install one or drop"
    ):
        browser()
    with pytest.raises(PhaseError, match=r"false could not print .*report\.html: it does not say why"):
        print_writeup("/bin/false", root)
