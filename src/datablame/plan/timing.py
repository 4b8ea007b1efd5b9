"""How long a study will take, from what an earlier run on this machine took for the arithmetic of its own plan."""

import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datablame.config.file import load_study
from datablame.engine.files import read_json
from datablame.engine.run_folder import read_timings
from datablame.errors import DatablameError, RequestError
from datablame.plan.counts import counted, operations
from datablame.plan.subject import Subject, subject_of
from datablame.tables import TABLES, Arm, Query, rows_of

_FARTHEST = 32
"""A model so many times larger or smaller says nothing: small ones spend their time on other things than arithmetic."""
_HOLDS_WORK: Mapping[str, type] = {"attribute": Query, "patch": Arm}
"""Tables that are empty where a phase had nothing to do."""


class Benchmark(NamedTuple):
    """An earlier run: planned operations a second in each phase that it finished."""

    run: Path
    parameters: int
    per_second: Mapping[str, float]


class Expected(NamedTuple):
    """Seconds of each phase that the earlier run had finished, and how many times as large this study's model is."""

    run: Path
    seconds: Mapping[str, float]
    model_ratio: float


def benchmark(subject: Subject, like: Path | None, *, on_gpu: bool) -> Benchmark | None:
    """The run that `like` names, or the one under runs/ on this kind of machine whose model is nearest in size.

    None where no run's model is within 32 times the size.

    Raises:
        RequestError: `like` is no run folder with a finished phase.
    """
    if like is not None:
        if (named := _measured(like, on_gpu)) is None:
            raise RequestError(
                f"--like {like} is no run of this machine with a finished phase; name a run folder, or leave it out"
            )
        return named
    if subject.after.shape is None:
        return None
    size = subject.after.shape.parameters
    runs = [_measured(path.parent, on_gpu) for path in sorted(Path("runs").glob("*/study.yaml"))]
    usable = [run for run in runs if run is not None and size / _FARTHEST <= run.parameters <= _FARTHEST * size]
    if not usable:
        return None
    return min(usable, key=lambda run: (abs(math.log(run.parameters / size)), str(run.run)))


def expected(subject: Subject, pace: Benchmark, operations: Mapping[str, float]) -> Expected:
    """The seconds of each phase at the earlier run's pace; the subject's shapes are known."""
    assert subject.after.shape is not None
    seconds = {phase: operations[phase] / rate for phase, rate in pace.per_second.items()}
    return Expected(pace.run, seconds, subject.after.shape.parameters / pace.parameters)


def _measured(root: Path, on_gpu: bool) -> Benchmark | None:
    try:
        study = load_study(str(root / "study.yaml"))
        made_on = read_json(root / "manifest.json")["machine"]
    except (DatablameError, OSError, ValueError, KeyError):
        return None
    if not _this_kind(made_on, on_gpu):
        return None
    subject = subject_of(study, on_gpu=on_gpu)
    done = operations(subject, counted(subject))
    if done is None or subject.after.shape is None:
        return None
    timings = read_timings(root)
    paces = {
        phase: work / timings[f"phase/{phase}"]
        for phase, work in done.items()
        if timings.get(f"phase/{phase}") and _worked(root / "artifacts" / phase, phase)
    }
    return Benchmark(root, subject.after.shape.parameters, paces) if paces else None


def _worked(folder: Path, phase: str) -> bool:
    """Whether the phase is done and had something to do."""
    rows = _HOLDS_WORK.get(phase)
    return (folder / "done.json").is_file() and (rows is None or bool(rows_of(folder / TABLES[rows].file, rows)))


def _this_kind(made_on: Mapping[str, Any], on_gpu: bool) -> bool:
    same = (made_on.get("system"), made_on.get("processor")) == (platform.system(), platform.machine())
    return same and str(made_on.get("device", "cpu")).startswith("cpu") != on_gpu
