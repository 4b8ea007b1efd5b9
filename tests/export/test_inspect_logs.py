"""Logs of Inspect, read back with Inspect."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.log import EvalLog, list_eval_logs, read_eval_log

from datablame.engine.phase import Tables
from datablame.export.inspect_logs import write_logs
from datablame.export.source import Source
from datablame.report.redaction import hidden
from datablame.tables import ArmSample, SurfaceSample

NAMES = ("surface", "retrain-baseline-k0", "retrain-gradient-k2")


@pytest.fixture(scope="module")
def folder(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    write_logs(source, folder)
    return folder


@pytest.fixture(scope="module")
def logs(folder: Path) -> dict[str, EvalLog]:
    return {name: read_eval_log(folder / f"{name}.eval") for name in NAMES}


def metrics(log: EvalLog, score: str) -> dict[str, Any]:
    assert log.results is not None
    return next(each.metrics for each in log.results.scores if each.name == score)


def sample_of(log: EvalLog, row: SurfaceSample) -> Any:
    name = f"{row.prompt_id} alpha={row.alpha:g}"
    return next(each for each in log.samples or () if (each.id, each.epoch) == (name, row.index + 1))


def test_inspect_lists_one_log_of_each_phase_and_arm(folder: Path) -> None:
    assert {Path(each.name).stem for each in list_eval_logs(str(folder))} == set(NAMES)


def test_every_sample_is_there_with_its_label(source: Source, logs: dict[str, EvalLog]) -> None:
    tables = Tables(source.world.root)
    rows: dict[str, list[Any]] = {
        "surface": list(tables.rows(SurfaceSample)),
        "retrain-baseline-k0": list(tables.rows(ArmSample, arm="baseline")),
        "retrain-gradient-k2": list(tables.rows(ArmSample, arm="gradient")),
    }
    for name, log in logs.items():
        samples = log.samples or []
        assert len(samples) == len(rows[name]) == len({(each.id, each.epoch) for each in samples})
        labels = Counter(each.scores["label"].value for each in samples if each.scores)
        assert labels == Counter(row.label for row in rows[name])
        assert {k: v.value for k, v in metrics(log, "label").items() if v.value} == labels


def test_a_sample_says_what_its_row_says(source: Source, logs: dict[str, EvalLog]) -> None:
    rows = Tables(source.world.root).rows(SurfaceSample)
    row = next(row for row in rows if row.label == "harmful")
    sample = sample_of(logs["surface"], row)
    prompt = next(each.text for each in source.world.prompts if each.id == row.prompt_id)
    assert (sample.input, sample.output.completion) == (prompt, hidden(row.text))
    assert [(each.role, each.text) for each in sample.messages] == [("user", prompt), ("assistant", hidden(row.text))]
    assert sample.scores["harmful"].value == 1
    assert sample.metadata == {
        **{"classifier": "keywords", "prompt_id": row.prompt_id, "behaviour": row.behaviour, "split": row.split},
        **{"alpha": row.alpha, "finish_reason": "stop", "log_p_after": -1.0, "log_p_before": -2.0},
    }
    arm = (logs["retrain-gradient-k2"].samples or [])[0]
    assert {**arm.metadata} | {"arm": "gradient", "protocol": "retrain", "k": 2, "seed": 1} == arm.metadata


def test_the_metrics_are_the_harmful_rates_with_their_n(source: Source, logs: dict[str, EvalLog]) -> None:
    rows = Tables(source.world.root).rows(SurfaceSample)
    for alpha in (0.0, 1.0, 2.0):
        scored = [row for row in rows if row.alpha == alpha and row.label != "unscored"]
        metric = metrics(logs["surface"], "harmful")[f"rate at alpha {alpha:g}"]
        harmful = sum(row.label == "harmful" for row in scored)
        assert metric.metadata == {"n": len(scored), "harmful": harmful}
        assert metric.value == harmful / len(scored)


def test_what_was_not_scored_counts_for_neither(source: Source, logs: dict[str, EvalLog]) -> None:
    sample = sample_of(logs["surface"], Tables(source.world.root).rows(SurfaceSample, label="unscored")[0])
    assert sample.scores["label"].value == "unscored"
    assert sample.scores["harmful"].value != sample.scores["harmful"].value  # NaN
    assert "the judge was silent" in (sample.scores["label"].explanation or "")


def test_no_harmful_text_is_in_a_log_unless_it_is_asked_for(
    source: Source, logs: dict[str, EvalLog], tmp_path: Path
) -> None:
    assert not [name for name, log in logs.items() if "secret" in log.model_dump_json()]
    assert write_logs(replace(source, redact=False), tmp_path) == 0
    assert "secret" in read_eval_log(tmp_path / "surface.eval").model_dump_json()


def test_two_exports_hold_the_same(source: Source, logs: dict[str, EvalLog], tmp_path: Path) -> None:
    write_logs(source, tmp_path)
    for name, log in logs.items():
        assert read_eval_log(tmp_path / f"{name}.eval").model_dump_json() == log.model_dump_json()
