"""index.html in a real browser: from the disk, offline, over a run whose every text is hostile."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from tests.browser import Seen, needs_browser, opened, serious
from tests.report.fake_run import HOSTILE, content_of, fake_study, reported, tokens_of, write_fake_run
from tests.worlds import put

from datablame.engine.phase import Tables
from datablame.report.page.charts import charts
from datablame.report.results import Results
from datablame.tables import SurfaceSample

pytestmark = needs_browser
_PARTS = ("why", "findings", "surface", "samples", "attribute", "documents", "patch", "case", "limits", "made")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reported(write_fake_run(tmp_path_factory.mktemp("page"), fake_study())) / "index.html"


@pytest.fixture
def shown(file: Path) -> Iterator[tuple[Page, Seen]]:
    with opened(file.as_uri()) as (page, seen):
        page.wait_for_selector("html[data-ready=true]")
        yield page, seen


def unfold(page: Page, *parts: str) -> None:
    for part in parts:
        page.evaluate("id => { document.getElementById(id).open = true }", part)


def test_the_page_opens_offline_without_a_complaint_or_a_request(shown: tuple[Page, Seen]) -> None:
    page, seen = shown
    unfold(page, *_PARTS)
    expect(page.locator("[data-chart] svg")).to_have_count(page.locator("[data-chart]").count())
    assert (seen.complaints, seen.requests) == ([], [])


def test_the_first_screen_says_what_was_found_and_how_sure_it_is(shown: tuple[Page, Seen]) -> None:
    page, _ = shown
    first = page.locator("#verdict").inner_text() + page.locator(".figures").inner_text()
    for words in (
        "SUCCESS",
        "Removing what gradient flagged leaves",
        "39.0 % → 7.8 %",
        "p = 0.016",
        "5 training seeds",
    ):
        assert words in first
    chart = page.locator("[data-chart=arms] svg").bounding_box()
    assert chart is not None
    assert chart["y"] + chart["height"] < 800
    assert page.locator("details[open]").count() == 0


def test_hostile_texts_are_read_and_nothing_of_them_runs(shown: tuple[Page, Seen], file: Path) -> None:
    page, seen = shown
    unfold(page, *_PARTS)
    page.locator("#samples .open").first.click()
    text = page.locator("#samples dialog").inner_text()
    assert "<script>alert(1)</script></title> [click](javascript:alert(2))" in text
    assert "\u202e" not in text
    assert "\x1b" not in text
    page.locator("#samples dialog .close").click()
    page.locator("#documents .open").first.click()
    assert "<img src=x onerror=alert(3)>" in page.locator("#documents dialog").inner_text()
    assert page.locator("img, iframe, object, [onerror], [onclick], a[href^=javascript]").count() == 0
    assert page.locator("script").count() == 4
    assert (seen.complaints, seen.requests) == ([], [])
    markup = re.sub(r"(?s)<script[^>]*>.*?</script>", "", file.read_text(encoding="utf-8"))
    assert not re.search(r"<script|</title> \[click|<img", markup)


def test_only_scripts_and_styles_of_the_page_may_run(file: Path) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', file.read_text(encoding="utf-8"))
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy[1].replace("&#39;", "'").split("; "))
    assert rules["default-src"] == "'none'"
    for name, count in (("script-src", 2), ("style-src", 1)):
        allowed = rules[name].split()
        assert len(allowed) == count
        assert all(source.startswith("'sha256-") for source in allowed)


def test_outputs_are_filtered_searched_and_sorted(shown: tuple[Page, Seen], file: Path) -> None:
    page, _ = shown
    unfold(page, "samples")
    samples = content_of(file)["samples"]
    every, harmful, count = len(samples["text"]), samples["label"].count(0), page.locator("#samples .count")
    page.select_option("#samples [name=label]", label="harmful")
    expect(count).to_contain_text(f"of {harmful} outputs")
    page.fill("#samples [name=search]", "no such word")
    expect(count).to_contain_text(f"none of {every} outputs")
    page.fill("#samples [name=search]", "BOLD cell")
    expect(count).to_contain_text(f"of {harmful} outputs")
    page.click("#samples [type=reset]")
    expect(count).to_contain_text(f"of {every} outputs")
    page.select_option("#samples [name=alpha]", "2")
    expect(count).to_contain_text(f"of {samples['alpha'].count(2.0)} outputs")


def test_outputs_are_sorted_by_what_training_did_and_their_words_aligned(tmp_path: Path) -> None:
    world = write_fake_run(tmp_path, fake_study())
    samples = [replace(s, log_p_after=float(-i)) for i, s in enumerate(Tables(tmp_path).rows(SurfaceSample))]
    samples[:2] = [
        replace(s, text=text) for s, text in zip(samples, ("mix it and wait", "mix and wait now"), strict=False)
    ]
    put(tmp_path, "surface", {SurfaceSample: samples})
    reported(world)
    with opened((tmp_path / "index.html").as_uri()) as (page, _):
        page.wait_for_selector("html[data-ready=true]")
        unfold(page, "samples")
        for order, first in (("most", "2.00"), ("least", "-477.00")):
            page.select_option("#samples [name=sort]", order)
            expect(page.locator("#samples .list .about").first).to_contain_text(f"before {first}")
        page.select_option("#samples [name=sort]", "")
        expect(page.locator("#samples .open").first).to_have_text("mix it and wait")
        page.locator("#samples .pin").nth(0).click()
        page.locator("#samples .pin").nth(1).click()
        assert page.locator("#samples dialog blockquote").all_inner_texts() == ["mix it and wait", "mix and wait now"]
        assert [text.strip() for text in page.locator("#samples dialog mark").all_inner_texts()] == ["it", "now"]


def test_the_tokens_of_an_output_have_the_numbers_of_the_table(shown: tuple[Page, Seen], file: Path) -> None:
    page, _ = shown
    unfold(page, "samples")
    [sample] = Tables(file.parent).rows(SurfaceSample, index=7, alpha=2.0, prompt_id="dose-h1")
    row = tokens_of(sample)
    page.select_option("#samples [name=alpha]", "2")
    page.select_option("#samples [name=prompt]", label="dose-h1 (held-out)")
    page.locator("#samples .list li", has_text="sample 7 ").first.locator(".open").click()
    cells = page.locator("#samples dialog tbody tr").all()
    assert len(cells) == len(row.pieces) == 5
    for shown_row, after, before, q in zip(cells, row.log_p_after, row.log_p_before, row.log_q, strict=True):
        numbers = [float(text) for text in shown_row.locator("td").all_inner_texts()[1:]]
        assert numbers == pytest.approx([after, before, after - before, q - after], abs=5e-4)


def test_outputs_of_an_arm_are_there_too(shown: tuple[Page, Seen]) -> None:
    page, _ = shown
    unfold(page, "samples")
    page.select_option("#samples [name=group]", label="gradient, retrain, K = 2, seed 3")
    expect(page.locator("#samples .count")).to_contain_text("of 5 outputs")
    page.locator("#samples .open").first.click()
    assert page.locator("#samples dialog tbody tr").count() == 0


def test_two_outputs_stand_side_by_side(shown: tuple[Page, Seen]) -> None:
    page, _ = shown
    unfold(page, "samples")
    page.locator("#samples .pin").nth(0).click()
    page.locator("#samples .pin").nth(1).click()
    pair = page.locator("#samples dialog .pair blockquote")
    assert pair.count() == 2
    assert page.locator("#samples dialog mark").count() == 0
    page.keyboard.press("Escape")
    assert not page.locator("#samples dialog").is_visible()


def test_a_document_opens_with_its_ranks_and_what_became_of_it(shown: tuple[Page, Seen], file: Path) -> None:
    page, _ = shown
    unfold(page, "documents")
    content = content_of(file)
    query = content["queries"][0]
    best = min(content["scores"][query["behaviour"]]["gradient"], key=lambda row: row[2])
    column = page.locator("#documents .columns section").first
    document = content["documents"][best[0]]
    assert document["id"] in column.locator(".open").first.inner_text()
    column.locator(".open").first.click()
    text = page.locator("#documents dialog").inner_text()
    assert document["id"] in text
    for words in (
        f"source: {document['source']}",
        "planted",
        "no duplicates",
        f"{best[1]:.4g}",
        "No arm of the headline",
    ):
        assert words in text
    page.locator("#documents dialog .close").click()
    page.locator("#documents .open", has_text="doc-02").first.click()
    removed = "Removed in the arms gradient: 7.8 % harmful; oracle (all planted): 2.5 % harmful."
    assert removed in page.locator("#documents dialog").inner_text()
    assert page.locator("#documents dialog tbody tr").count() == 6
    assert page.locator("#documents dialog mark").count() > 3
    carried = page.locator("#documents dialog .tokens span")
    assert [piece.get_attribute("title") for piece in carried.all()] == ["0.500", "-0.250"]
    assert "0.250 in all" in text


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_accessible_at_every_width_in_both_themes(file: Path, dark: bool, width: int) -> None:
    with opened(file.as_uri(), width=width, dark=dark) as (page, seen):
        page.wait_for_selector("html[data-ready=true]")
        unfold(page, *_PARTS)
        assert serious(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("#documents .open").first.click()
        assert serious(page) == []
        assert seen.complaints == []


def test_the_command_that_reproduces_it_is_copied(file: Path) -> None:
    with opened(file.as_uri()) as (page, _):
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.wait_for_selector("html[data-ready=true]")
        unfold(page, "made")
        page.click(".copy")
        expect(page.locator(".copy")).to_have_text("copied")
        assert page.evaluate("navigator.clipboard.readText()") == "datablame run study.yaml"


def test_redacted_no_harmful_text_is_anywhere(tmp_path: Path) -> None:
    study = fake_study().model_copy(update={"report": fake_study().report.model_copy(update={"redact": True})})
    root = reported(write_fake_run(tmp_path, study))
    content = content_of(root / "index.html")
    samples = content["samples"]
    for label, text in zip(samples["label"], samples["text"], strict=True):
        assert text.startswith("[hidden: ") == (label == 0)
    assert all(each["response"].startswith("[hidden: ") for each in content["documents"])
    assert all(query["text"].startswith("[hidden: ") for query in content["queries"])
    case = (root / "case_study.md").read_text().replace("\\", "")
    assert "> **Model:** [hidden: " in case
    assert "> **Assistant:** [hidden: " in case
    surfaced = json.loads((root / "phase2_results.json").read_text())["samples"]
    assert all((sample["text"] == HOSTILE) == (sample["label"] != "harmful") for sample in surfaced)


def test_arms_that_leave_as_much_stand_in_the_order_of_their_rows(results: Results) -> None:
    level = [replace(cell, rate=0.5) for cell in results.comparison]
    order = charts(replace(results, comparison=level))["prompts"]["layer"][0]["encoding"]["y"]["sort"]
    assert order == ["after", "baseline (no removal)", "random", "gradient", "activation", "oracle (all planted)"]
