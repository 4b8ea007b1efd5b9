"""A real browser for pages: what it logs, asks for and runs is kept."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; apt-get install chromium")


@dataclass
class Seen:
    """What a page did besides showing itself."""

    complaints: list[str] = field(default_factory=list)
    """Errors and warnings of the console, exceptions, dialogs."""
    requests: list[str] = field(default_factory=list)
    """Everything asked for but the page itself."""


@contextmanager
def opened(url: str, *, width: int = 1280, dark: bool = False, offline: bool = True) -> Iterator[tuple[Page, Seen]]:
    """The page at an address in a fresh browser, and what it does."""
    seen = Seen()

    def answered(dialog: Any) -> None:
        seen.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        scheme: Any = "dark" if dark else "light"
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, offline=offline, reduced_motion="reduce"
        )
        page = context.new_page()
        page.on("console", lambda message: seen.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: seen.complaints.append(f"exception: {error}"))
        page.on("dialog", answered)
        page.on("request", lambda request: seen.requests.append(request.url) if request.url != url else None)
        page.goto(url)
        yield page, seen
        browser.close()


def serious(page: Page) -> list[str]:
    """What axe-core finds on the page that is serious or critical, contrast of AA among it."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found if each["impact"] in ("serious", "critical")
    ]
