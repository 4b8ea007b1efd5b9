"""The pages as a person meets them, in a real browser, and labelling with a kill in between."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.report.fake_run import HOSTILE
from tests.view.serving import serving, watched

from datablame.engine.files import read_jsonl
from datablame.engine.run_folder import locked


@pytest.fixture(scope="module")
def viewed(folder: Path, chromium: Any) -> Iterator[tuple[str, Any]]:
    """The address of a server of all runs, and a browser that has its cookie."""
    with serving("view", folder) as served, chromium.new_context() as context:
        page = context.new_page()
        page.goto(served.address)
        assert page.url == f"http://127.0.0.1:{served.port}/"
        yield page.url, context


def test_runs_are_looked_at_compared_and_opened(viewed: tuple[str, Any]) -> None:
    page, problems = watched(viewed[1])
    page.goto(viewed[0])
    assert page.locator("article").count() == 2
    fake = page.locator("article", has_text="A fake study <b>").inner_text()
    assert "SUCCESS" in fake
    assert "patch done" in fake
    assert "No verdict yet" in page.locator("article", has_text="small").inner_text()
    page.get_by_role("button", name="Compare").press("Enter")
    page.wait_for_url("**/compare?a=begun&b=fake")
    differing = page.locator("tr", has_text="patch.size").first.inner_text().split("\t")
    assert differing == ["patch.size", "10", "2000"]
    page.goto(f"{viewed[0]}run/fake/")
    assert page.locator("table.arms tbody tr").count() == 6
    page.get_by_role("link", name="Open the report").click()
    page.wait_for_url("**/files/index.html")
    assert "A fake study <b>" in page.locator("h1").inner_text()
    page.go_back()
    with page.expect_download() as download:
        page.get_by_role("link", name="patching_comparison.csv").click()
    assert download.value.suggested_filename == "patching_comparison.csv"
    assert problems == []


def test_a_run_that_works_is_followed(viewed: tuple[str, Any], folder: Path) -> None:
    page, problems = watched(viewed[1])
    with locked(folder / "begun") as tell:
        tell("surface: sampling", 3, 12)
        page.goto(f"{viewed[0]}run/begun/")
        assert "surface: sampling: 3 of 12" in page.locator(".running").inner_text()
        tell("surface: sampling", 9, 12)
        page.get_by_text("9 of 12").wait_for(timeout=20_000)
        assert f"process {os.getpid()} on" in page.locator(".running").inner_text()
    page.goto(f"{viewed[0]}run/begun/")
    assert page.locator(".running").count() == 0
    assert problems == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_pages_are_accessible_and_fit_a_phone(viewed: tuple[str, Any], sampled: Path, width: int, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page, problems = watched(viewed[1])
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    paths = ("", "run/fake/", "run/begun/status", "compare?a=fake&b=begun")
    with serving("label", sampled) as labels:
        for address in (*(viewed[0] + path for path in paths), labels.address):
            page.goto(address)
            page.wait_for_load_state("networkidle")
            found = Axe().run(page).response["violations"]
            assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == [], address
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, address
    assert problems == []


def test_labels_survive_a_kill_and_the_next_output_is_another_one(run: Path, chromium: Any) -> None:
    path, texts = run / "human_labels-ann.jsonl", []
    with chromium.new_context() as context:
        page, problems = watched(context)

        def press(key: str, done: int) -> None:
            texts.append(page.locator("#text").inner_text())
            page.keyboard.press(key)
            page.get_by_text(f"{done} of 120 labelled").wait_for()
            # What is shown next is only shown when what was said is on disk.
            assert sum(1 if row["label"] else -1 for row in read_jsonl(path)) == done

        with serving("label", run, "--annotator", "ann") as served:
            page.goto(served.address)
            page.get_by_text("0 of 120 labelled").wait_for()
            shown = page.locator("main").inner_text()
            assert not any(word in shown for word in ("gradient", "retrain", "alpha"))
            for done, key in enumerate("1234", 1):
                press(key, done)
            press("u", 3)
            assert page.locator("#text").inner_text() == texts[3]
            page.keyboard.press("n")
            page.keyboard.type("a <b>note</b> 12us")
            page.keyboard.press("Enter")
            press("5", 4)
            served.process.send_signal(signal.SIGKILL)
            served.process.wait()
        page.keyboard.press("1")
        page.get_by_text("Not written").wait_for()
        with path.open("ab") as file:
            file.write(b'{"phase": "sur')
        problems.clear()  # The server was gone.
        with serving("label", run, "--annotator", "ann") as served:
            page.goto(served.address)
            page.get_by_text("4 of 120 labelled").wait_for()
            following = page.locator("#text").inner_text()
            assert following not in texts[:4]
            assert following == texts[4]  # What was on the screen before the undo.
            page.get_by_role("button", name="skip").click()
            page.wait_for_function(f"document.getElementById('text').textContent !== {json.dumps(following)}")
            page.get_by_role("button", name="harmless").click()
            page.get_by_text("5 of 120 labelled").wait_for()
        assert problems == []
    rows = read_jsonl(path)
    assert [row["label"] for row in rows] == [
        "harmful",
        "refused",
        "harmless",
        "incoherent",
        None,
        "unscored",
        "harmless",
    ]
    assert rows[5]["note"] == "a <b>note</b> 12us"


def test_hostile_text_is_shown_as_text_while_labelling(run: Path, chromium: Any) -> None:
    with serving("label", run) as served, chromium.new_context() as context:
        page, problems = watched(context)
        page.goto(served.address)
        page.get_by_text("0 of 120 labelled").wait_for()
        for done in range(1, 30):
            shown = page.locator("#text").text_content()
            if "alert" in shown:
                break
            page.keyboard.press("1")
            page.get_by_text(f"{done} of 120 labelled").wait_for()
        assert "<script>alert(1)</script></title> [click](javascript:alert(2))" in shown
        assert HOSTILE not in shown
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert page.locator("#text *").count() == 0
        assert problems == []
