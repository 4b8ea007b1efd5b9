"""A registration is a copy of what a study rests on: its hash, and in what a later world deviates from it."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from datablame.engine.run_folder import digest

FILE = "preregistration.json"
"""At the root of the run folder."""
_LONGEST = 120
_ABSENT = "(absent)"


class Deviation(NamedTuple):
    """One field in which a run is not the one that was registered."""

    field: str
    registered: Any
    actual: Any

    def sentence(self) -> str:
        """In words."""
        return f"{self.field}: registered {_shown(self.registered)}, in this run {_shown(self.actual)}"


def content_hash(registered: Mapping[str, Any]) -> str:
    """The SHA-256 of everything in a registration but the hash itself, as JSON with sorted keys."""
    return digest({key: value for key, value in registered.items() if key != "sha256"})


def differences(registered: Any, actual: Any, field: str = "") -> tuple[Deviation, ...]:
    """Every key, from the top down, at which two nested mappings differ; lists are compared as wholes.

    A key without a value is as good as none: study.yaml leaves it out.
    """
    if isinstance(registered, Mapping) and isinstance(actual, Mapping):
        keys = dict.fromkeys((*registered, *actual))
        pairs = [(f"{field}.{key}" if field else str(key), registered.get(key), actual.get(key)) for key in keys]
        return tuple(deviation for name, old, new in pairs for deviation in differences(old, new, name))
    if registered == actual:
        return ()
    return (Deviation(field, _or_absent(registered), _or_absent(actual)),)


def _or_absent(value: Any) -> Any:
    return _ABSENT if value is None else value


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
