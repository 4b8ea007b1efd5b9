"""A run followed while it goes on, by trackio or by wandb: both have `init`, `log` and `finish`.

Only numbers and the verdict's label are sent, under names of phases, arms and splits; no text of a model or a document.
"""

import contextlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datablame import __version__
from datablame.config.report import Track
from datablame.config.schema import Study
from datablame.engine.execute import Progress
from datablame.engine.files import json_object
from datablame.engine.phase import Tables
from datablame.engine.run_folder import read_peaks, read_timings
from datablame.errors import RequestError, problem
from datablame.models.source import first_line
from datablame.patch.phase import PATCH
from datablame.pipeline.phases import REPORT
from datablame.surface.phase import SURFACE
from datablame.tables import EVERY, ArmTest, Rate

_PACKAGES = {"trackio": "'datablame[track]'", "wandb": "wandb"}
_logger = logging.getLogger(__name__)


def check_tracker(study: Study) -> None:
    """RequestError where the study's tracker is not installed."""
    to = study.track.to
    if to is not None and importlib.util.find_spec(to) is None:
        raise RequestError(problem("pipeline", "no tracker", to=to, package=_PACKAGES[to]))


class Tracker:
    """Progress as it was given, and the tracker that hears of it if the study names one; what fails there is dropped.

    Of a step it hears every whole percent.
    """

    def __init__(self, progress: Progress, track: Track) -> None:
        self._progress, self._track = progress, track
        self._failed = track.to is None
        self._step, self._total, self._done = "", 1, 0

    def start(self, description: str, total: int, done: int = 0) -> None:
        """Begin a step of `total` units, `done` of them finished earlier."""
        self._progress.start(description, total, done)
        self._step, self._total, self._done = description.partition(":")[0], max(total, 1), done

    def advance(self, n: int = 1) -> None:
        """Finish `n` more units of the current step."""
        self._progress.advance(n)
        before, self._done = 100 * self._done // self._total, self._done + n
        if (percent := 100 * self._done // self._total) != before:
            self.call("log", {f"{self._step}/percent": percent})

    def note(self, text: str) -> None:
        """Say one line that should stay on the screen."""
        self._progress.note(text)

    def phase_done(self, name: str, root: Path) -> None:
        """Log what a phase took and its main numbers."""
        self.call("log", {f"{name}/{key}": value for key, value in _numbers(name, root) if value is not None})

    def call(self, function: str, *arguments: Any, **named: Any) -> None:
        """Call the tracker; after its first failure, of which a warning is logged, no more."""
        if self._failed:
            return
        try:
            with contextlib.redirect_stdout(sys.stderr):  # What it says of itself is no result.
                getattr(importlib.import_module(str(self._track.to)), function)(*arguments, **named)
        except Exception as error:  # A tracker's errors are of any kind, and none may end a run.
            self._failed = True
            _logger.warning("track.to = %s failed, the run goes on without it: %s", self._track.to, first_line(error))


@contextlib.contextmanager
def tracked(study: Study, progress: Progress) -> Iterator[Tracker]:
    """Inside, the study's tracker has a run under the study's name."""
    tracker = Tracker(progress, study.track)
    config = {"seed": study.seed, "datablame": __version__}
    tracker.call("init", project=study.track.project, name=study.name, config=config)
    try:
        yield tracker
    finally:
        tracker.call("finish")


def _numbers(phase: str, root: Path) -> Iterator[tuple[str, float | str | None]]:
    """Seconds and memory over all resumes, and what the phase found where that is a number or the verdict."""
    peaks, tables = read_peaks(root), Tables(root)
    yield "seconds", read_timings(root).get(f"phase/{phase}")
    yield "peak_rss_mb", peaks.get(f"phase/{phase}")
    yield "peak_gpu_mb", peaks.get(f"gpu/{phase}")
    if phase == SURFACE.name:
        for rate in tables.rows(Rate, prompt_id=EVERY, behaviour=EVERY):
            yield f"rate/{rate.split}/alpha {rate.alpha:g}", rate.rate
    if phase == PATCH.name:
        for test in tables.rows(ArmTest, headline=True):
            yield f"rate/{test.arm}", test.rate
    if phase == REPORT.name:
        yield "verdict", json_object(root / "final_results.json")["verdict"]["label"]
