"""How long a study will take, from what an earlier run on this machine took for the arithmetic of its own plan."""

import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datablame.engine.files import read_json
from datablame.engine.run_folder import read_timings
from datablame.errors import DatablameError, RequestError
from datablame.plan.counts import counted, operations
from datablame.plan.subject import subject_of
from datablame.study.file import load_study
from datablame.study.schema import Study
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


def benchmark(study: Study, like: Path | None, *, on_gpu: bool) -> Benchmark | None:
    """The run that `like` names, or the one under runs/ on this kind of machine whose model is nearest in size.

    None where no run's model is within 32 times the size.

    Raises:
        RequestError: `like` is no run folder with a finished phase.
    """
    if like is not None:
        found = _measured(like, on_gpu)
        if found is None:
            raise RequestError(
                f"--like {like} is no run of this machine with a finished phase; name a run folder, or leave it out"
            )
        return found
    runs = [_measured(path.parent, on_gpu) for path in sorted(Path("runs").glob("*/study.yaml"))]
    size = _parameters(study, on_gpu)
    if size is None:
        return None
    usable = [run for run in runs if run is not None and size / _FARTHEST <= run.parameters <= _FARTHEST * size]
    if not usable:
        return None
    return min(usable, key=lambda run: (abs(math.log(run.parameters / size)), str(run.run)))


def expected(
    study: Study, found: Benchmark | None, operations: Mapping[str, float] | None, *, on_gpu: bool
) -> Expected | None:
    """The seconds of each phase at the earlier run's pace."""
    size = _parameters(study, on_gpu)
    if found is None or operations is None or size is None:
        return None
    seconds = {phase: operations[phase] / pace for phase, pace in found.per_second.items() if phase in operations}
    return Expected(found.run, seconds, size / found.parameters)


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
    size = _parameters(study, on_gpu)
    if done is None or size is None:
        return None
    timings = read_timings(root)
    paces = {
        phase: work / timings[f"phase/{phase}"]
        for phase, work in done.items()
        if timings.get(f"phase/{phase}") and _worked(root / "artifacts" / phase, phase)
    }
    return Benchmark(root, size, paces) if paces else None


def _worked(folder: Path, phase: str) -> bool:
    """Whether the phase is done and had something to do."""
    rows = _HOLDS_WORK.get(phase)
    return (folder / "done.json").is_file() and (rows is None or bool(rows_of(folder / TABLES[rows].file, rows)))


def _this_kind(made_on: Mapping[str, Any], on_gpu: bool) -> bool:
    same = (made_on.get("system"), made_on.get("processor")) == (platform.system(), platform.machine())
    return same and str(made_on.get("device", "cpu")).startswith("cpu") != on_gpu


def _parameters(study: Study, on_gpu: bool) -> int | None:
    shape = subject_of(study, on_gpu=on_gpu).after.shape
    return None if shape is None else shape.parameters
