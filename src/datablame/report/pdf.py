"""The write-up and the slides as PDF, printed by a browser that is installed; no deliverable, since it holds a date."""

import shutil
import subprocess
from pathlib import Path

from datablame.errors import PhaseError, RequestError

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PRINTED = ("writeup/report.pdf", "writeup/slides.pdf")
_SECONDS = 120


def browser() -> str:
    """The browser that prints; RequestError where none is installed."""
    found = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise RequestError(
            f"--pdf needs one of {', '.join(_BROWSERS)}, and none is installed; install one or drop --pdf"
        )
    return found


def print_writeup(printer: str, root: Path) -> list[Path]:
    """Print writeup/report.html and writeup/slides.html beside themselves; PhaseError where the browser fails."""
    printed = []
    for name in PRINTED:
        target = root / name
        page = target.with_suffix(".html")
        target.unlink(missing_ok=True)
        # The page is ours and may run nothing; containers forbid the sandbox.
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer")
        command = [printer, *options, f"--print-to-pdf={target.resolve()}", page.resolve().as_uri()]
        try:
            ended = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise PhaseError(f"{printer} did not print {page} within {_SECONDS} seconds") from None
        if ended.returncode or not target.exists():
            why = ended.stderr.decode(errors="replace").strip().splitlines()
            raise PhaseError(f"{printer} could not print {page}: {why[-1] if why else 'it does not say why'}")
        printed.append(target)
    return printed
