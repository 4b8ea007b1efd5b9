"""The whole plan of a study, offline; nothing is downloaded, and nothing is written."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datablame.config.schema import Study
from datablame.engine.machine import cards, cores, memory_bytes
from datablame.plan.calls import Calls, calls_of
from datablame.plan.cautions import cautions_of, design_cautions
from datablame.plan.counts import Counts, counted, operations
from datablame.plan.detect import Detectable, Effect, detectable
from datablame.plan.memory import CARD_BYTES, HEADROOM, Memory, estimates
from datablame.plan.subject import Checkpoint, Subject, planned_world, subject_of
from datablame.plan.timing import Expected, benchmark, expected


class Device(NamedTuple):
    """Where a study would run here."""

    name: str
    memory_bytes: int
    workers: int
    on_gpu: bool


def this_device(device: str = "auto") -> Device:
    """The first graphics card, else the cores, each with a worker that holds its own models."""
    there = [] if device == "cpu" else cards()
    if there:
        return Device(there[0].name, there[0].memory_bytes, 1, on_gpu=True)
    return Device(f"CPU, {cores()} cores", memory_bytes(), cores(), on_gpu=False)


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
        counts, attribution = self.counts, self.counts.attribution
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
                "attribute": attribution._asdict(),
                "patch": counts.patch._asdict(),
            },
            "trainings": [{**each._asdict(), "trainings": each.trainings} for each in counts.trainings],
            "memory": _memory(self.memory, self.device.memory_bytes, self.device.workers),
            "memory_on_16_gb_card": _memory(self.card_memory, CARD_BYTES, 1),
            "api": self.calls.as_json(),
            "expected_time": None
            if self.expected is None
            else {**self.expected._asdict(), "run": str(self.expected.run)},
            "detectable": {**self.limits._asdict(), "effects": [_effect(each) for each in self.limits.effects]},
            "warnings": self.cautions,
        }


def plan_of(study: Study, *, like: Path | None = None, device: Device | None = None) -> Plan:
    """The plan of a study on this machine, or on the device given.

    Raises:
        RequestError: `like` is no run of this machine.
    """
    here = device or this_device("auto" if study.models is None else study.models.device)
    subject = subject_of(study, on_gpu=here.on_gpu)
    counts = counted(subject)
    memory = estimates(subject, counts, card_bytes=here.memory_bytes if here.on_gpu else None)
    pace, work = benchmark(subject, like, on_gpu=here.on_gpu), operations(subject, counts)
    limits = detectable(subject.world)
    calls = calls_of(subject, counts, has_key=bool(os.environ.get("ANTHROPIC_API_KEY")))
    return Plan(
        study=study,
        device=here,
        subject=subject,
        counts=counts,
        memory=memory,
        card_memory=estimates(subject_of(study, on_gpu=True), counts, card_bytes=CARD_BYTES),
        calls=calls,
        expected=None if pace is None or work is None else expected(subject, pace, work),
        limits=limits,
        cautions=[
            *cautions_of(subject, counts, memory, limits, here.memory_bytes, here.workers),
            *calls.cautions,
        ],
    )


def doubts_of(study: Study) -> list[str]:
    """What a study should hear before it starts: that its design cannot succeed, or hardly."""
    return design_cautions(study, detectable(planned_world(study, on_gpu=False)))


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    known = checkpoint.known
    return {
        "path": checkpoint.path,
        "dtype": checkpoint.dtype,
        "weight_bytes": checkpoint.weight_bytes,
        "parameters": None if known is None else known.shape.parameters,
        "source": None if known is None else known.source,
    }


def _effect(effect: Effect) -> dict[str, Any]:
    return {**effect._asdict(), "power": effect.power._asdict()}


def _memory(memory: dict[str, Memory] | None, device_bytes: int, workers: int) -> dict[str, Any] | None:
    if memory is None:
        return None
    return {
        phase: {
            "parts": dict(need.parts),
            "bytes": workers * need.total,
            "beside_bytes": need.beside,
            "fits": workers * need.total <= HEADROOM * device_bytes,
        }
        for phase, need in memory.items()
    }
