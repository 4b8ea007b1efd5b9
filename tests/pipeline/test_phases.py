"""A changed key or file runs what depends on it again, and nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.small import small_study

from datablame.engine.files import write_json
from datablame.engine.phase import dependencies
from datablame.judge.choice import Choice
from datablame.pipeline.phases import PHASES
from datablame.tables import Prompt
from datablame.world import World

IDENTITIES = {"models": {"after": "x"}, "data": {"sha256": "x"}, "files": {"truth": "x", "judge.rules": "x"}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for phase in PHASES:
        write_json(
            tmp_path / "artifacts" / phase.name / "done.json", {"dependencies": {}, "outputs": {"x": phase.name}}
        )
    return tmp_path


def world_of(root: Path, harmless: str = "why", identities: dict[str, Any] = IDENTITIES, **changes: Any) -> World:
    study = small_study(root / "files", root, **changes)
    assert study.models is not None
    assert study.data is not None
    prompts = (Prompt("a1", "walk", "attribution", "name a walk"), Prompt("x", "", "harmless", harmless))
    judge = Choice("keywords", "keywords")
    return World(root, study, prompts, None, judge, identities)


def fingerprints(world: World) -> dict[str, Any]:
    return {phase.name: dependencies(phase, world) for phase in PHASES}


def changed(first: World, second: World) -> set[str]:
    before, after = fingerprints(first), fingerprints(second)
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"title": "Another"}, {"report"}),
        ({"patch": {"steps": 7}}, {"patch", "report"}),
        ({"attribute": {"queries": 3}}, {"attribute", "patch", "report"}),
        ({"prefilter": {"candidates": 50}}, {"attribute", "report"}),
        ({"surface": {"samples": 7}}, {"surface", "report"}),
        ({"surface": {"temperature": 0.5}}, {"scan", "surface", "patch", "report"}),
        ({"scan": {"samples": 3}}, {"scan", "report"}),
        ({"harmless": "another"}, {"patch"}),
        ({"seed": 1}, {"scan", "surface", "attribute", "patch", "report"}),
    ],
)
def test_a_changed_key_changes_the_phases_that_read_it(root: Path, changes: dict[str, Any], again: set[str]) -> None:
    assert changed(world_of(root), world_of(root, **changes)) == again


@pytest.mark.parametrize(
    ("what", "value", "again"),
    [
        ("data", {"sha256": "y"}, {"attribute", "patch", "report"}),
        ("models", {"after": "y"}, {"scan", "surface", "attribute", "patch", "report"}),
    ],
)
def test_changed_content_changes_the_phases_that_read_it(root: Path, what: str, value: Any, again: set[str]) -> None:
    assert changed(world_of(root), world_of(root, identities={**IDENTITIES, what: value})) == again


def test_labels_by_people_run_the_report_again_and_nothing_else(root: Path) -> None:
    people = [{**IDENTITIES, "files": {**IDENTITIES["files"], "judge.calibration": sha}} for sha in ("one", "two")]
    labelled = [world_of(root, judge={"calibration": "people.jsonl"}, identities=identities) for identities in people]
    assert changed(world_of(root), labelled[0]) == {"report"}
    assert changed(*labelled) == {"report"}


def test_changed_tables_run_the_phases_that_read_them(root: Path) -> None:
    world = world_of(root)
    before = fingerprints(world)
    write_json(root / "artifacts" / "attribute" / "done.json", {"dependencies": {}, "outputs": {"x": "other"}})
    after = fingerprints(world)
    assert {name for name in before if before[name] != after[name]} == {"patch", "report"}


def test_where_a_run_lies_and_on_how_many_threads_it_runs_is_in_no_fingerprint(root: Path) -> None:
    world = world_of(root)
    assert fingerprints(replace(world, threads=2)) == fingerprints(world)
