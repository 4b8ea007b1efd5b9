"""What depends on how Claude is asked: other models and prompts are other artifacts, other manners are not."""

from pathlib import Path
from typing import Any

import pytest

from datablame.engine.run_folder import write_json
from datablame.judge import rubric
from datablame.judge.choice import freeze
from datablame.pipeline.fingerprints import fingerprint_of
from datablame.pipeline.run import PHASES
from datablame.study.schema import Study


def study(**judge: Any) -> Study:
    return Study.model_validate(
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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-test")
    for phase in PHASES:
        write_json(tmp_path / "artifacts" / phase.name / "done.json", {"outputs": {"x": phase.name}})
    return tmp_path


def stale(folder: Path, before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    prints = []
    for judge in (before, after):
        asked = study(**judge)
        freeze(asked, folder)
        prints.append({phase.name: fingerprint_of(phase, asked, folder) for phase in PHASES})
    return {name for name in prints[0] if prints[0][name] != prints[1][name]}


CLAUDE = {"classifier": "claude"}


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
def test_how_fast_and_at_what_price_is_nobodys_artifact(folder: Path, manner: dict[str, Any]) -> None:
    assert stale(folder, CLAUDE, {**CLAUDE, **manner}) == set()


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"model": "claude-haiku-4-5"}, {"scan", "surface", "patch", "report"}),
        ({"attribution_model": "claude-haiku-4-5"}, {"attribute"}),
        ({"repeats": 1}, {"attribute"}),
        ({"max_tokens": 99}, {"scan", "surface", "attribute", "patch", "report"}),
        ({"attribution": "keywords"}, {"attribute"}),
        ({"classifier": "keywords", "attribution": "claude"}, {"scan", "surface", "patch", "report"}),
    ],
    ids=lambda value: str(value if isinstance(value, dict) else sorted(value)),
)
def test_another_judge_runs_what_it_judged_again(folder: Path, change: dict[str, Any], again: set[str]) -> None:
    assert stale(folder, CLAUDE, {**CLAUDE, **change}) == again


def test_where_claude_is_not_asked_its_settings_change_nothing(folder: Path) -> None:
    words = {"classifier": "keywords"}
    assert (
        stale(folder, words, {**words, "model": "x", "attribution_model": "y", "repeats": 9, "max_tokens": 1}) == set()
    )


def test_other_prompts_are_another_judge(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = study(**CLAUDE)
    freeze(asked, folder)
    before = {phase.name: fingerprint_of(phase, asked, folder) for phase in PHASES}
    monkeypatch.setattr(rubric, "_BLAMING", rubric._BLAMING + " ")
    after = {phase.name: fingerprint_of(phase, asked, folder) for phase in PHASES}
    assert {name for name in before if before[name] != after[name]} == {"attribute"}
