"""The whole plan of a study, offline; nothing is downloaded, and nothing is written.

Its time is what an earlier run on this machine took for the arithmetic of its own plan.
"""

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datablame.config.file import load_study
from datablame.config.schema import Study
from datablame.engine.files import read_json
from datablame.engine.phase import Tables
from datablame.engine.run_folder import read_timings
from datablame.errors import DatablameError, RequestError
from datablame.judge.choice import has_key
from datablame.plan.cautions import Detectable, cautions_of, design_cautions, detectable
from datablame.plan.counts import Calls, Counts, calls_of, counted, operations
from datablame.plan.memory import CARD, Device, Memory, estimates, this_device
from datablame.plan.subject import Checkpoint, Subject, planned_world, subject_of
from datablame.tables import Arm, Query

_FARTHEST = 32
"""A model so many times larger or smaller says nothing: small ones spend their time on other things than arithmetic."""
_HOLDS_WORK: Mapping[str, type] = {"attribute": Query, "patch": Arm}
"""Tables that are empty where a phase had nothing to do."""


class Expected(NamedTuple):
    """Seconds of each phase that the earlier run had finished, and how many times as large this study's model is."""

    run: str
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
        counts, subject = self.counts, self.subject
        content = {
            "study": self.study.name,
            "title": self.study.title,
            "device": self.device,
            "models": {"before": _described(subject.before), "after": _described(subject.after)},
            "pool": {"documents": subject.documents, "source": subject.documents_source},
            "focus_prompts": {"least": counts.focus[0], "most": counts.focus[1]},
            "phases": {
                "scan": counts.scan,
                "surface": counts.surface,
                "attribute": counts.attribution,
                "patch": counts.patch,
            },
            "trainings": counts.trainings,
            "memory": self.memory,
            "memory_on_16_gb_card": self.card_memory,
            "api": self.calls,
            "expected_time": self.expected,
            "detectable": self.limits,
            "warnings": self.cautions,
        }
        return dict(_plain(content))


def plan_of(study: Study, *, like: Path | None = None, device: Device | None = None) -> Plan:
    """The plan of a study on this machine, or on the device given.

    Raises:
        RequestError: `like` is no run of this machine.
    """
    device = device or this_device("auto" if study.models is None else study.models.device)
    subject = subject_of(study, on_gpu=device.on_gpu)
    counts, limits = counted(subject), detectable(subject.world)
    memory, calls = estimates(subject, counts, device), calls_of(subject, counts, has_key=has_key())
    card_memory = estimates(subject_of(study, on_gpu=True), counts, CARD)
    expected = _expected(subject, counts, like, on_gpu=device.on_gpu)
    cautions = [*design_cautions(subject.study, limits), *cautions_of(subject, counts, memory, device, calls)]
    return Plan(study, device, subject, counts, memory, card_memory, calls, expected, limits, cautions)


def doubts_of(study: Study) -> list[str]:
    """What a study should hear before it starts: that its design cannot succeed, or hardly."""
    return design_cautions(study, detectable(planned_world(study, on_gpu=False)))


def _expected(subject: Subject, counts: Counts, like: Path | None, *, on_gpu: bool) -> Expected | None:
    """At the pace of the run that `like` names, or of that under runs/ on this kind of machine that is nearest in size.

    None where no run's model is within 32 times the size.
    """
    runs = [like] if like is not None else [path.parent for path in Path("runs").glob("*/study.yaml")]
    paces = [pace for run in runs if (pace := _pace_of(run, on_gpu)) is not None]
    if like is not None and not paces:
        raise RequestError(
            f"--like {like} is no run of this machine with a finished phase; name a run folder, or leave it out"
        )
    work = operations(subject, counts)
    if work is None:
        return None
    size = subject.after.shape.parameters
    if like is None:
        paces = [pace for pace in paces if size / _FARTHEST <= pace.parameters <= _FARTHEST * size]
    pace = min(paces, key=lambda pace: (abs(math.log(pace.parameters / size)), str(pace.run)), default=None)
    if pace is None:
        return None
    seconds = {phase: work[phase] / rate for phase, rate in pace.per_second.items()}
    return Expected(str(pace.run), seconds, size / pace.parameters)


class _Pace(NamedTuple):
    """An earlier run: planned operations a second in each phase that it finished."""

    run: Path
    parameters: int
    per_second: Mapping[str, float]


def _pace_of(root: Path, on_gpu: bool) -> _Pace | None:
    """What a run folder tells of this kind of machine; None where that is nothing."""
    try:
        study = load_study(str(root / "study.yaml"))
        machine = read_json(root / "manifest.json")["machine"]
    except (DatablameError, OSError, ValueError, KeyError):
        return None
    ran_on_gpu = not str(machine.get("device", "cpu")).startswith("cpu")
    made_on = (machine.get("system"), machine.get("processor"), ran_on_gpu)
    if made_on != (platform.system(), platform.machine(), on_gpu):
        return None
    subject = subject_of(study, on_gpu=on_gpu)
    paces, timings = {}, read_timings(root)
    for phase, done in (operations(subject, counted(subject)) or {}).items():
        finished = (root / "artifacts" / phase / "done.json").is_file() and timings.get(f"phase/{phase}")
        if finished and (phase not in _HOLDS_WORK or Tables(root).rows(_HOLDS_WORK[phase])):
            paces[phase] = done / finished
    return _Pace(root, subject.after.shape.parameters, paces) if paces else None


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    path, known, dtype, weight_bytes = checkpoint
    parameters, source = (known.shape.parameters, known.source) if known else (None, None)
    return {"path": path, "dtype": dtype, "weight_bytes": weight_bytes, "parameters": parameters, "source": source}


def _plain(value: Any) -> Any:
    """With a dict for every NamedTuple."""
    value = value._asdict() if hasattr(value, "_asdict") else value
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
