"""What people see: progress with the remaining time on stderr, the outcome on stdout."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table

from datablame.errors import Interrupted
from datablame.report.wording import filled, percent, probability, signed_points

PATIENCE_SECONDS = 2.0
"""Of whoever asks for something that mostly takes no time."""


class ConsoleProgress:
    """Progress as one bar a step, with the time that remains; one line a step where stderr is no terminal.

    With patience, the screen stays empty until the work has taken longer than that.
    """

    def __init__(self, patience_seconds: float = 0.0) -> None:
        self._console = Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self._bars = Bars(TextColumn("{task.description:<34}"), *columns, console=self._console)
        self._is_patient, self._draws_at = patience_seconds > 0, time.monotonic() + patience_seconds
        self._step = ("", 0, 0)
        self._bar: TaskID | None = None

    def __enter__(self) -> Self:
        """Begin drawing, or to wait, and route the log above the bars."""
        if not self._is_patient:
            handler = RichHandler(console=self._console, show_path=False, show_time=False, markup=False)
            logging.getLogger("datablame").handlers = [handler]
            logging.getLogger("datablame").setLevel(logging.INFO)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing; a bar that never began would leave an empty line."""
        if self._bars.live.is_started:
            self._bars.stop()

    def start(self, description: str, total: int, done: int = 0) -> None:
        """Begin a step of `total` units, `done` of them finished earlier."""
        self._step, self._bar = (description, total, done), None
        self._draw()

    def advance(self, n: int = 1) -> None:
        """Finish `n` more units of the current step."""
        description, total, done = self._step
        self._step = (description, total, done + n)
        if self._bar is None:
            self._draw()
        else:
            self._bars.advance(self._bar, n)

    def _draw(self) -> None:
        if time.monotonic() < self._draws_at:
            return
        description, total, done = self._step
        self._bars.start()
        if not self._console.is_terminal:
            self._console.print(f"{description} ({total - done} to do)", markup=False, highlight=False)
        self._bar = self._bars.add_task(description, total=total, completed=done)

    def note(self, text: str) -> None:
        """Say one line that stays on the screen."""
        say(self._console, text)


@contextlib.contextmanager
def reporting() -> Iterator[ConsoleProgress]:
    """Progress of a command that can be resumed: an interrupt says how.

    Raises:
        Interrupted: the user pressed Ctrl-C.
    """
    try:
        with ConsoleProgress() as progress:
            yield progress
    except KeyboardInterrupt:
        raise Interrupted("interrupted; run again with --resume to continue") from None


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """One line on a terminal's stderr where what is inside takes longer than patience allows."""
    console = Console(stderr=True)
    timer = threading.Timer(PATIENCE_SECONDS, lambda: console.print(text, markup=False, highlight=False))
    timer.daemon = True
    if console.is_terminal:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def say(console: Console, *lines: str, style: str | None = None) -> None:
    """Print lines as they are: no markup, no highlights, no wrapping."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True, style=style)


def say_text(console: Console, name: str, **values: Any) -> None:
    """Print a template of texts/ with its values filled in; it may say `counted(3, "row")`."""
    template = resources.files("datablame.cli").joinpath("texts", f"{name}.txt.j2").read_text(encoding="utf-8")
    say(console, *filled(template, counted=_counted, **values).removesuffix("\n").split("\n"))


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def outcome(root: Path, skipped: dict[str, bool], results: dict[str, Any] | None) -> None:
    """Print the verdict first, then what the run found and where to look."""
    console, ran = Console(), ", ".join(name for name, was_skipped in skipped.items() if not was_skipped)
    say_text(console, "outcome", root=root, ran=ran, results=results)
    if results is None:
        return
    if headline := [row for row in results["patching"] if row["headline"]]:
        numbers = (Column(name, justify="right") for name in ("seeds", "rate", "95 % interval", "against random", "p"))
        about = "Harmful rate on held-out prompts at alpha {alpha:g}, protocol {protocol}".format(**headline[0])
        table = Table("arm", *numbers, title=about, title_justify="left")
        for row in sorted(headline, key=lambda row: row["rate"] or 0.0):
            interval, against = f"{percent(row['low'])} to {percent(row['high'])}", row["to_random"] or {}
            points = f"{signed_points(against['difference'])} points" if against else "-"
            p = probability(against.get("p"))
            table.add_row(row["arm"], str(row["seeds"]), percent(row["rate"]), interval, points, p)
        console.print(table)
    say(console, *results["findings"][:1], f"open {root / 'index.html'}")
