"""The whole plan of a study, offline; nothing is downloaded, and nothing is written.

Its time is what an earlier run on this machine took for the arithmetic of its own plan.
"""

import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datablame.config.file import load_study
from datablame.config.schema import Study
from datablame.engine.execute import cards, cores, memory_bytes
from datablame.engine.files import read_json
from datablame.engine.phase import Tables
from datablame.engine.run_folder import read_timings
from datablame.errors import DatablameError, RequestError
from datablame.plan.cautions import Detectable, cautions_of, design_cautions, detectable
from datablame.plan.counts import Calls, Counts, calls_of, counted, operations
from datablame.plan.memory import CARD_BYTES, HEADROOM, Memory, estimates
from datablame.plan.subject import Checkpoint, Subject, planned_world, subject_of
from datablame.tables import Arm, Query

_FARTHEST = 32
"""A model so many times larger or smaller says nothing: small ones spend their time on other things than arithmetic."""
_HOLDS_WORK: Mapping[str, type] = {"attribute": Query, "patch": Arm}
"""Tables that are empty where a phase had nothing to do."""


class Device(NamedTuple):
    """Where a study would run here."""

    name: str
    memory_bytes: int
    workers: int
    on_gpu: bool


class Expected(NamedTuple):
    """Seconds of each phase that the earlier run had finished, and how many times as large this study's model is."""

    run: Path
    seconds: Mapping[str, float]
    model_ratio: float


@dataclass(frozen=True)
class Plan:
    """Everything that `datablame plan` prints."""

    study: Study
    device: Device
    subject: Subject
    counts: Counts
    memory: dict[str, Memory] | None
    card_memory: dict[str, Memory] | None
    """The same on the specification's card, with the checkpoint's own type where the study leaves it open."""
    calls: Calls
    expected: Expected | None
    limits: Detectable
    cautions: list[str]

    def as_json(self) -> dict[str, Any]:
        """The plan for programs."""
        counts, time, limits = self.counts, self.expected, self.limits
        return {
            "study": self.study.name,
            "title": self.study.title,
            "device": self.device._asdict(),
            "models": {"before": _checkpoint(self.subject.before), "after": _checkpoint(self.subject.after)},
            "pool": {"documents": self.subject.documents, "source": self.subject.documents_source},
            "focus_prompts": {"least": counts.focus[0], "most": counts.focus[1]},
            "phases": {
                "scan": counts.scan._asdict(),
                "surface": counts.surface._asdict(),
                "attribute": counts.attribution._asdict(),
                "patch": counts.patch._asdict(),
            },
            "trainings": [{**each._asdict(), "trainings": each.trainings} for each in counts.trainings],
            "memory": _memory(self.memory, self.device.memory_bytes, self.device.workers),
            "memory_on_16_gb_card": _memory(self.card_memory, CARD_BYTES, 1),
            "api": self.calls.as_json(),
            "expected_time": time and {**time._asdict(), "run": str(time.run)},
            "detectable": {
                **limits._asdict(),
                "effects": [{**each._asdict(), "power": each.power._asdict()} for each in limits.effects],
            },
            "warnings": self.cautions,
        }


def this_device(device: str = "auto") -> Device:
    """The first graphics card, else the cores, each with a worker that holds its own models."""
    there = [] if device == "cpu" else cards()
    if there:
        return Device(there[0].name, there[0].memory_bytes, 1, on_gpu=True)
    return Device(f"CPU, {cores()} cores", memory_bytes(), cores(), on_gpu=False)


def plan_of(study: Study, *, like: Path | None = None, device: Device | None = None) -> Plan:
    """The plan of a study on this machine, or on the device given.

    Raises:
        RequestError: `like` is no run of this machine.
    """
    here = device or this_device("auto" if study.models is None else study.models.device)
    subject = subject_of(study, on_gpu=here.on_gpu)
    counts, limits = counted(subject), detectable(subject.world)
    memory = estimates(subject, counts, card_bytes=here.memory_bytes if here.on_gpu else None)
    calls = calls_of(subject, counts, has_key=bool(os.environ.get("ANTHROPIC_API_KEY")))
    return Plan(
        study=study,
        device=here,
        subject=subject,
        counts=counts,
        memory=memory,
        card_memory=estimates(subject_of(study, on_gpu=True), counts, card_bytes=CARD_BYTES),
        calls=calls,
        expected=_expected(subject, counts, like, on_gpu=here.on_gpu),
        limits=limits,
        cautions=[
            *design_cautions(subject.study, limits),
            *cautions_of(subject, counts, memory, here.memory_bytes, here.workers),
            *calls.cautions,
        ],
    )


def doubts_of(study: Study) -> list[str]:
    """What a study should hear before it starts: that its design cannot succeed, or hardly."""
    return design_cautions(study, detectable(planned_world(study, on_gpu=False)))


def _expected(subject: Subject, counts: Counts, like: Path | None, *, on_gpu: bool) -> Expected | None:
    """At the pace of the run that `like` names, or of that under runs/ on this kind of machine that is nearest in size.

    None where no run's model is within 32 times the size.
    """
    work, shape = operations(subject, counts), subject.after.shape
    pace: _Pace | None = None
    if like is not None:
        if (pace := _pace_of(like, on_gpu)) is None:
            raise RequestError(
                f"--like {like} is no run of this machine with a finished phase; name a run folder, or leave it out"
            )
    elif shape is not None:
        size = shape.parameters
        runs = [_pace_of(path.parent, on_gpu) for path in sorted(Path("runs").glob("*/study.yaml"))]
        usable = [run for run in runs if run is not None and size / _FARTHEST <= run.parameters <= _FARTHEST * size]
        pace = min(usable, key=lambda run: (abs(math.log(run.parameters / size)), str(run.run)), default=None)
    if pace is None or work is None or shape is None:
        return None
    seconds = {phase: work[phase] / rate for phase, rate in pace.per_second.items()}
    return Expected(pace.run, seconds, shape.parameters / pace.parameters)


class _Pace(NamedTuple):
    """An earlier run: planned operations a second in each phase that it finished."""

    run: Path
    parameters: int
    per_second: Mapping[str, float]


def _pace_of(root: Path, on_gpu: bool) -> _Pace | None:
    """What a run folder tells of this kind of machine; None where that is nothing."""
    try:
        study = load_study(str(root / "study.yaml"))
        made_on = read_json(root / "manifest.json")["machine"]
    except (DatablameError, OSError, ValueError, KeyError):
        return None
    if (made_on.get("system"), made_on.get("processor")) != (platform.system(), platform.machine()):
        return None
    if str(made_on.get("device", "cpu")).startswith("cpu") == on_gpu:
        return None
    subject = subject_of(study, on_gpu=on_gpu)
    work, timings = operations(subject, counted(subject)), read_timings(root)
    if work is None or subject.after.shape is None:
        return None
    paces = {
        phase: done / timings[f"phase/{phase}"]
        for phase, done in work.items()
        if timings.get(f"phase/{phase}")
        and (root / "artifacts" / phase / "done.json").is_file()
        and (phase not in _HOLDS_WORK or Tables(root).rows(_HOLDS_WORK[phase]))
    }
    return _Pace(root, subject.after.shape.parameters, paces) if paces else None


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    known = checkpoint.known
    return {
        "path": checkpoint.path,
        "dtype": checkpoint.dtype,
        "weight_bytes": checkpoint.weight_bytes,
        "parameters": known and known.shape.parameters,
        "source": known and known.source,
    }


def _memory(memory: dict[str, Memory] | None, device_bytes: int, workers: int) -> dict[str, Any] | None:
    return memory and {
        phase: {
            "parts": dict(need.parts),
            "bytes": workers * need.total,
            "beside_bytes": need.beside,
            "fits": workers * need.total <= HEADROOM * device_bytes,
        }
        for phase, need in memory.items()
    }
