"""A registration and what departs from it: both sides are plain JSON, compared key by key."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from datablame.engine.files import changes, digest
from datablame.world.identity import portable

if TYPE_CHECKING:
    from datablame.world.world import World

BEGUN = "artifacts/preregistered.json"
"""Under which registration patching began, with what version and in which world."""
_LONGEST = 120
_ABSENT = "(absent)"


class Deviation(NamedTuple):
    """One field in which the run is not the one that was registered."""

    field: str
    registered: Any
    actual: Any

    def sentence(self) -> str:
        """In words."""
        return f"{self.field}: registered {_shown(self.registered)}, in this run {_shown(self.actual)}"


def described(world: "World") -> dict[str, Any]:
    """A world as a registration holds it: the study's settings, and by content what it asks, looks at and is judged by.

    Where models and files lie is no part of it.
    """
    study = portable(world.study, world.identities)
    content = {
        "study": {key: value for key, value in study.items() if key not in ("models", "data", "prompts")},
        "identities": dict(world.identities),
        "prompts": {prompt.id: asdict(prompt) for prompt in world.prompts},
        "judge": asdict(world.judge),
    }
    return dict(json.loads(json.dumps(content)))


def content_hash(registered: Mapping[str, Any]) -> str:
    """The SHA-256 of everything in the file but the hash itself, as JSON with sorted keys."""
    return digest({key: value for key, value in registered.items() if key != "sha256"})


def deviations(
    registered: Mapping[str, Any], begun: Mapping[str, Any], now: Mapping[str, Any]
) -> tuple[Deviation, ...]:
    """In what a run, whose world is `now` as `described`, departs from its registration.

    First whether the hash is intact, was frozen before the first file of the patch phase, and patched by the version
    that registered. What follows from the study, as hypotheses and tests do, is compared by the study. A file of
    `registered` or `begun` (`BEGUN`) that is absent or holds no object counts as empty: then the hash is broken.
    """
    stated, real, sealed = registered.get("sha256"), content_hash(registered), begun.get("sha256")
    broken = "sha256 (the hash is broken: the file was changed after it was frozen)"
    late, begins = "date (a registration after the fact is none)", "the patch phase had begun without it"
    seal = (
        (stated != real, Deviation(broken, stated, real)),
        (sealed is None, Deviation(late, registered.get("date"), begins)),
        (sealed not in (None, stated), Deviation("sha256 when the patch phase began", stated, sealed)),
    )
    of_seal = [deviation for holds, deviation in seal if holds]
    if sealed is not None:
        of_seal += differences(registered.get("datablame"), begun.get("datablame"), "datablame")
    return (*of_seal, *departures(registered, now))


def departures(registered: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Deviation, ...]:
    """In what a world differs from the registered one; fields of the study go by their own names."""

    def flat(world: Mapping[str, Any]) -> dict[str, Any]:
        others = {name: world.get(name) for name in ("identities", "prompts")}
        return {**world.get("study", {}), **others, "classifier": world.get("judge")}

    return differences(flat(registered.get("world", {})), flat(now))


def differences(registered: Any, actual: Any, field: str = "") -> tuple[Deviation, ...]:
    """Every field at which two nested mappings differ (`engine.files.changes`)."""
    found = changes(registered, actual, field)
    return tuple(Deviation(name, *(_ABSENT if each is None else each for each in values)) for name, *values in found)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
