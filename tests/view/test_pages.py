"""The pages as a person meets them, in a real browser, and labelling with a kill in between."""

import json
import os
import signal
from pathlib import Path

import pytest
from tests.browser import Seen, needs_browser, opened, serious
from tests.report.fake_run import HOSTILE
from tests.view.serving import Served, serving

from datablame.engine.files import read_jsonl
from datablame.engine.run_folder import locked

pytestmark = needs_browser


def clean(seen: Seen, served: Served) -> bool:
    """Whether nothing ran or was complained of, and nothing was asked for but from the server."""
    home = f"http://127.0.0.1:{served.port}/"
    # A page of a run is of this origin, and may open no window; Chromium thinks of a frame, which could undo that.
    complaints = [each for each in seen.complaints if "allow-scripts and allow-same-origin" not in each]
    return complaints == [] and all(request.startswith((home, "data:")) for request in seen.requests)


def test_runs_are_looked_at_compared_and_opened(folder: Path) -> None:
    with serving("view", folder) as served, opened(served.address, offline=False) as (page, seen):
        assert page.url == f"http://127.0.0.1:{served.port}/"
        assert page.locator("article").count() == 2
        fake = page.locator("article", has_text="A fake study <b>").inner_text()
        assert "SUCCESS" in fake
        assert "patch done" in fake
        assert "No verdict yet" in page.locator("article", has_text="small").inner_text()
        page.get_by_role("button", name="Compare").press("Enter")
        page.wait_for_url("**/compare?a=begun&b=fake")
        differing = page.locator("tr", has_text="patch.size").first.inner_text().split("\t")
        assert differing == ["patch.size", "10", "2000"]
        page.goto(f"http://127.0.0.1:{served.port}/run/fake/")
        assert page.locator("table.arms tbody tr").count() == 6
        page.get_by_role("link", name="Open the report").click()
        page.wait_for_url("**/files/index.html")
        assert "A fake study <b>" in page.locator("h1").inner_text()
        page.locator("[data-chart] svg, [data-chart] canvas").first.wait_for()
        page.goto(f"http://127.0.0.1:{served.port}/run/fake/files/writeup/report.html")
        assert page.locator("img").count() > 1  # A picture that were not allowed would be complained of.
        page.goto(f"http://127.0.0.1:{served.port}/run/fake/")
        with page.expect_download() as download:
            page.get_by_role("link", name="patching_comparison.csv").click()
        assert download.value.suggested_filename == "patching_comparison.csv"
        assert clean(seen, served)


def test_a_run_that_works_is_followed(folder: Path) -> None:
    begun = folder / "begun"
    with locked(begun) as tell, serving("view", begun) as served:
        tell("surface: sampling", 3, 12)
        with opened(served.address, offline=False) as (page, seen):
            assert page.url.endswith("/run/begun/")
            assert "surface: sampling: 3 of 12" in page.locator(".running").inner_text()
            tell("surface: sampling", 9, 12)
            page.get_by_text("9 of 12").wait_for(timeout=20_000)
            assert f"process {os.getpid()} on" in page.locator(".running").inner_text()
            assert clean(seen, served)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_pages_are_accessible_and_fit_a_phone(folder: Path, sampled: Path, width: int, dark: bool) -> None:
    with serving("view", folder) as served, serving("label", sampled) as labels:
        home = f"http://127.0.0.1:{served.port}/"
        paths = ("", "run/fake/", "run/begun/status", "compare?a=fake&b=begun")
        with opened(served.address, width=width, dark=dark, offline=False) as (page, _):
            for address in (*(home + path for path in paths), labels.address):
                page.goto(address)
                page.wait_for_load_state("networkidle")
                assert serious(page) == [], address
                assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, address


def test_labels_survive_a_kill_and_the_next_output_is_another_one(run: Path) -> None:
    path, texts, label = run / "human_labels-ann.jsonl", list[str](), ("label", run, "--annotator", "ann")
    with serving(*label) as served, opened(served.address, offline=False) as (page, seen):

        def press(key: str, done: int) -> None:
            texts.append(page.locator("#text").inner_text())
            page.keyboard.press(key)
            page.get_by_text(f"{done} of 120 labelled").wait_for()
            # What is shown next is only shown when what was said is on disk.
            assert sum(1 if row["label"] else -1 for row in read_jsonl(path)) == done

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
        assert clean(seen, served)
        served.process.send_signal(signal.SIGKILL)
        served.process.wait()
        page.keyboard.press("1")
        page.get_by_text("Not written").wait_for()
        with path.open("ab") as file:
            file.write(b'{"phase": "sur')
        with serving(*label) as again:
            page.goto(again.address)
            page.get_by_text("4 of 120 labelled").wait_for()
            following = page.locator("#text").inner_text()
            assert following not in texts[:4]
            assert following == texts[4]  # What was on the screen before the undo.
            page.get_by_role("button", name="skip").click()
            page.wait_for_function(f"document.getElementById('text').textContent !== {json.dumps(following)}")
            page.get_by_role("button", name="harmless").click()
            page.get_by_text("5 of 120 labelled").wait_for()
    rows = read_jsonl(path)
    labels = ["harmful", "refused", "harmless", "incoherent", None, "unscored", "harmless"]
    assert [row["label"] for row in rows] == labels
    assert rows[5]["note"] == "a <b>note</b> 12us"


def test_hostile_text_is_shown_as_text_while_labelling(run: Path) -> None:
    with serving("label", run) as served, opened(served.address, offline=False) as (page, seen):
        page.get_by_text("0 of 120 labelled").wait_for()
        for done in range(1, 30):
            shown = page.locator("#text").text_content() or ""
            if "alert" in shown:
                break
            page.keyboard.press("1")
            page.get_by_text(f"{done} of 120 labelled").wait_for()
        assert "<script>alert(1)</script></title> [click](javascript:alert(2))" in shown
        assert HOSTILE not in shown
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert page.locator("#text *").count() == 0
        assert clean(seen, served)
