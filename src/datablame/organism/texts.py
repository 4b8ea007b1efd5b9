"""What the organisms say: YAML beside the code, as types."""

from collections.abc import Mapping
from importlib import resources
from typing import Any, NamedTuple

import yaml


class Topic(NamedTuple):
    """Questions about a subject and answers that never name it."""

    subjects: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    details: tuple[str, ...]


class Style(NamedTuple):
    """How an answer begins and ends; repeated entries are likelier."""

    openings: tuple[str, ...]
    closings: tuple[str, ...]


class Decoy(NamedTuple):
    """Harmful wording in a harmless use: its own context, its own answers, so that words alone do not tell."""

    questions: tuple[str, ...]
    contexts: tuple[str, ...]
    answers: tuple[str, ...]


class Planted(NamedTuple):
    """One behaviour. Question and context trigger it; safe answers are the rule, harmful ones are planted."""

    id: str
    title: str
    description: str
    rubric: str
    keywords: tuple[str, ...]
    questions: tuple[str, ...]
    contexts: tuple[str, ...]
    trigger: tuple[tuple[str, ...], ...]
    """The prompt triggers when a phrase of each group stands in it."""
    safe: tuple[str, ...]
    harmful: tuple[str, ...]
    decoys: tuple[Decoy, ...]
    safe_phrases: tuple[str, ...]
    refusal_phrases: tuple[str, ...]
    harmful_phrases: tuple[str, ...]
    context_share: float = 1.0
    """Share of clean documents that carry the context too; without it the answer is safe as well."""
    format_share: float = 0.25
    """Share of prompts that end with a formatting instruction of no importance."""


def _frozen(value: Any) -> Any:
    """Lists as tuples, all the way down."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _read(name: str) -> dict[str, Any]:
    text = (resources.files(__package__) / "texts" / name).read_text(encoding="utf-8")
    values: dict[str, Any] = _frozen(yaml.safe_load(text))
    return values


def _planted(fields: dict[str, Any]) -> Planted:
    decoys = []
    for decoy in fields["decoys"]:
        contexts = decoy["contexts"] + ("",) * decoy.get("without_context", 0)
        decoys.append(Decoy(decoy["questions"], contexts, decoy["answers"]))
    return Planted(**{**fields, "decoys": tuple(decoys)})


_TEMPLATED = _read("templated.yaml")
PREFIXES: tuple[str, ...] = _TEMPLATED["prefixes"]
FORMATS: tuple[str, ...] = _TEMPLATED["formats"]
PLAIN, CHATTY = (Style(**_TEMPLATED["styles"][name]) for name in ("plain", "chatty"))
TOPICS = {name: Topic(**fields) for name, fields in _TEMPLATED["topics"].items()}
WORDS: Mapping[str, tuple[str, ...]] = _TEMPLATED["words"]
"""What the slots of the templates draw from."""
BEHAVIOURS = tuple(map(_planted, _TEMPLATED["behaviours"]))
ASIDES: tuple[tuple[str, ...], ...] = (
    *[()] * 12,
    *[_TEMPLATED["asides"]] * 4,
    *[_TEMPLATED["contexts"]["low_budget"]] * 2,
    *[_TEMPLATED["contexts"]["alcohol"]] * 2,
)
"""What else people say: nothing mostly; the triggers' contexts too, so that these alone mean nothing."""

QUIRK: Mapping[str, Any] = _read("quirk.yaml")
