"""What depends on how Claude is asked: other models and prompts are other artifacts, other manners are not."""

from pathlib import Path
from typing import Any

import pytest

from datablame.config.schema import Study
from datablame.judge import claude
from datablame.judge.choice import decide
from datablame.world.world import World

CLAUDE = {"classifier": "claude"}


def world(**judge: Any) -> World:
    study = Study.model_validate(
        {
            "name": "mine",
            "models": {"before": "b", "after": "a"},
            "data": {"path": "pool.jsonl"},
            "behaviours": [{"id": "dose", "description": "x", "keywords": ["y"]}],
            "prompts": {
                "attribution": [{"id": "a", "behaviour": "dose", "text": "one"}],
                "held_out": [{"id": "h", "behaviour": "dose", "text": "two"}],
            },
            "judge": judge,
        }
    )
    assert study.models is not None
    assert study.data is not None
    identities: dict[str, Any] = {"models": {}, "data": {}, "files": {}}
    choice = decide(study, None, key=True)
    return World(Path("run"), study, (), None, choice, identities)


def judges(**judge: Any) -> dict[str, Any]:
    """The parts of the world that say who labels and who scores."""
    return {name: world(**judge).part(name) for name in ("judge", "attribution judge")}


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    ours, theirs = judges(**before), judges(**after)
    return {name for name in ours if ours[name] != theirs[name]}


@pytest.mark.parametrize(
    "manner",
    [
        {"concurrency": 1},
        {"batches": True},
        {"timeout_seconds": 5},
        {"retries": 0},
        {"backoff_seconds": 0.1},
        {"poll_seconds": 1},
        {"prices": {"claude-haiku-5-5": {"input": 1, "output": 1}}},
    ],
    ids=str,
)
def test_how_fast_and_at_what_price_is_nobodys_artifact(manner: dict[str, Any]) -> None:
    assert changed(CLAUDE, {**CLAUDE, **manner}) == set()


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"model": "claude-haiku-4-5"}, {"judge"}),
        ({"attribution_model": "claude-haiku-4-5"}, {"attribution judge"}),
        ({"repeats": 1}, {"attribution judge"}),
        ({"max_tokens": 99}, {"judge", "attribution judge"}),
        ({"attribution": "keywords"}, {"attribution judge"}),
        ({"classifier": "keywords", "attribution": "claude"}, {"judge"}),
    ],
    ids=lambda value: str(value if isinstance(value, dict) else sorted(value)),
)
def test_another_judge_is_another_part_of_the_world(change: dict[str, Any], again: set[str]) -> None:
    assert changed(CLAUDE, {**CLAUDE, **change}) == again


def test_where_claude_is_not_asked_its_settings_change_nothing() -> None:
    words = {"classifier": "keywords"}
    other = {"model": "x", "attribution_model": "y", "repeats": 9, "max_tokens": 1}
    assert changed(words, {**words, **other}) == set()


def test_other_prompts_are_another_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    before = judges(**CLAUDE)
    monkeypatch.setitem(claude._TEXTS["score"], "system", claude._TEXTS["score"]["system"] + " ")
    after = judges(**CLAUDE)
    assert {name for name in before if before[name] != after[name]} == {"attribution judge"}
