"""A changed key or file re-runs what depends on it and nothing else."""

from pathlib import Path
from typing import Any

import pytest

from datablame.engine.run_folder import write_json
from datablame.pipeline.fingerprints import fingerprint_of
from datablame.pipeline.run import PHASES
from datablame.study.schema import Study

PROMPTS = {
    "attribution": [{"id": "a", "behaviour": "dose", "text": "one"}],
    "held_out": [{"id": "h", "behaviour": "dose", "text": "two"}],
}


def _study(folder: Path, **changes: Any) -> Study:
    values: dict[str, Any] = {
        "name": "mine",
        "models": {"before": str(folder / "before"), "after": str(folder / "after")},
        "data": {"path": str(folder / "pool.jsonl")},
        "truth": str(folder / "truth.jsonl"),
        "judge": {"rules": str(folder / "rules.json")},
        "behaviours": [{"id": "dose", "description": "x"}],
        "prompts": PROMPTS,
        **changes,
    }
    return Study.model_validate(values)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("pool.jsonl", "truth.jsonl", "rules.json", "before/model.safetensors", "after/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    for phase in PHASES:
        write_json(tmp_path / "artifacts" / phase.name / "done.json", {"outputs": {"x": phase.name}})
    return tmp_path


def _fingerprints(folder: Path, study: Study) -> dict[str, str]:
    return {phase.name: fingerprint_of(phase, study, folder) for phase in PHASES}


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
        ({"prompts": {**PROMPTS, "harmless": [{"id": "x", "text": "why"}]}}, {"patch", "report"}),
        ({"seed": 1}, {"scan", "surface", "attribute", "patch", "report"}),
    ],
)
def test_a_changed_key_changes_the_phases_that_read_it(folder: Path, changes: dict[str, Any], again: set[str]) -> None:
    before, after = _fingerprints(folder, _study(folder)), _fingerprints(folder, _study(folder, **changes))
    assert {name for name in before if before[name] != after[name]} == again


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("pool.jsonl", {"attribute", "patch"}),
        ("truth.jsonl", {"attribute", "patch"}),
        ("rules.json", {"scan", "surface", "patch"}),
        ("after/model.safetensors", {"scan", "surface", "attribute", "patch"}),
    ],
)
def test_a_changed_file_changes_the_phases_that_read_it(folder: Path, name: str, again: set[str]) -> None:
    study = _study(folder)
    before = _fingerprints(folder, study)
    (folder / name).write_text("changed")
    after = _fingerprints(folder, study)
    assert {phase for phase in before if before[phase] != after[phase]} == again


def test_a_changed_artifact_changes_the_phases_after_it(folder: Path) -> None:
    study = _study(folder)
    before = _fingerprints(folder, study)
    write_json(folder / "artifacts" / "attribute" / "done.json", {"outputs": {"x": "other"}})
    after = _fingerprints(folder, study)
    assert {phase for phase in before if before[phase] != after[phase]} == {"patch", "report"}


@pytest.mark.parametrize("changed", ["data/train-1.jsonl", "data/more.jsonl", "README.md"])
def test_every_file_of_a_pools_folder_counts(folder: Path, changed: str) -> None:
    pool = folder / "pool"
    for name in ("data/train-0.jsonl", "data/train-1.jsonl", "README.md", ".cache/lock"):
        (pool / name).parent.mkdir(parents=True, exist_ok=True)
        (pool / name).write_text(name)
    study = _study(folder, data={"path": str(pool)})
    before = _fingerprints(folder, study)
    (pool / ".cache/lock").write_text("changed")
    assert _fingerprints(folder, study) == before
    (pool / changed).write_text("changed")
    after = _fingerprints(folder, study)
    assert {phase for phase in before if before[phase] != after[phase]} == {"attribute", "patch"}


def test_the_files_of_a_pattern_count_and_others_do_not(folder: Path) -> None:
    for name in ("part-0.jsonl", "part-1.jsonl", "other.jsonl"):
        (folder / name).write_text(name)
    study = _study(folder, data={"path": str(folder / "part-*.jsonl")})
    before = _fingerprints(folder, study)
    (folder / "other.jsonl").write_text("changed")
    assert _fingerprints(folder, study) == before
    (folder / "part-1.jsonl").write_text("changed")
    after = _fingerprints(folder, study)
    assert {phase for phase in before if before[phase] != after[phase]} == {"attribute", "patch"}


@pytest.mark.parametrize(
    ("change", "counts"), [({"revision": "v2"}, True), ({"subset": "b"}, True), ({"streaming": True}, False)]
)
def test_a_hub_datasets_revision_counts_and_streaming_does_not(
    folder: Path, change: dict[str, Any], counts: bool
) -> None:
    data = {"path": "org/pool", "revision": "v1"}
    before = _fingerprints(folder, _study(folder, data=data))
    after = _fingerprints(folder, _study(folder, data={**data, **change}))
    expected = {"attribute", "patch", "report"} if counts else {"report"}
    assert {phase for phase in before if before[phase] != after[phase]} == expected


def test_labels_by_people_run_the_report_again_and_nothing_else(folder: Path) -> None:
    people = folder / "artifacts" / "calibration.json"
    with_people = _study(folder, judge={"rules": str(folder / "rules.json"), "calibration": "people.jsonl"})
    seen = []
    for study, contents in ((_study(folder), None), (with_people, "one"), (with_people, "two")):
        if contents is not None:
            people.write_text(contents)
        seen.append(_fingerprints(folder, study))
    for first, second in ((0, 1), (1, 2)):
        assert [name for name in seen[0] if seen[first][name] != seen[second][name]] == ["report"]
