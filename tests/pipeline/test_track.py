"""A run followed by a tracker: what it hears, and that nothing depends on it."""

import importlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.small import ONE, small_study

from datablame.config.file import dump_study
from datablame.config.schema import Study
from datablame.engine.execute import Silent
from datablame.engine.phase import Tables
from datablame.errors import RequestError
from datablame.pipeline.run import run_study
from datablame.pipeline.track import tracked
from datablame.tables import EVERY, Rate

WANDB = """
calls = []
def init(**named): calls.append(("init", named))
def log(values): calls.append(("log", values))
def finish(): calls.append(("finish", None))
"""
"""What both SDKs have."""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any]]]:
    """What a stand-in for wandb, which is not installed, is called with."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    yield importlib.import_module("wandb").calls
    del sys.modules["wandb"]


def followed(folder: Path, pair: Path, to: str | None) -> Study:
    return small_study(folder, pair, track={"to": to})


def test_trackio_holds_what_phases_took_and_found_and_no_number_depends_on_it(
    tmp_path: Path, tiny_pair_folder: Path
) -> None:
    (tmp_path / "study.yaml").write_text(dump_study(followed(tmp_path / "files", tiny_pair_folder, "trackio")))
    command = [sys.executable, "-m", "datablame", "run", "study.yaml", "--until", "surface", "--workers", "1", "--json"]
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "tracked")}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["skipped"] == {"scan": False, "surface": False}
    with sqlite3.connect(tmp_path / "tracked/datablame.db") as database:
        rows = database.execute("select run_name, metrics from metrics").fetchall()
    values: dict[str, Any] = {}
    for run, metrics in rows:
        assert run == "small"
        values |= json.loads(metrics)
    root = tmp_path / "runs/small"
    rates = {
        f"surface/rate/{rate.split}/alpha {rate.alpha:g}": rate.rate
        for rate in Tables(root).rows(Rate, prompt_id=EVERY, behaviour=EVERY)
    }
    assert len(rates) == 6
    assert rates.items() <= values.items()
    assert values["scan/seconds"] > 0
    assert values["surface/peak_rss_mb"] > 0
    assert values["surface/percent"] == 100
    plain = followed(tmp_path / "files", tiny_pair_folder, None)
    run_study(plain, tmp_path / "plain", execution=ONE, progress=Silent(), until="surface")
    for table in ("scan/samples.parquet", "surface/samples.parquet", "surface/done.json"):
        assert (root / "artifacts" / table).read_bytes() == (tmp_path / "plain/artifacts" / table).read_bytes()


def test_both_trackers_are_called_alike_and_hear_no_text(
    tmp_path: Path, tiny_pair_folder: Path, calls: list[tuple[str, Any]]
) -> None:
    study = followed(tmp_path / "files", tiny_pair_folder, "wandb")
    run_study(study, tmp_path / "run", execution=ONE, progress=Silent(), until="scan")
    assert [calls[0][0], calls[-1][0]] == ["init", "finish"]
    named = calls[0][1]
    assert (named["project"], named["name"], named["config"]["seed"]) == ("datablame", "small", 0)
    logged = [values for name, values in calls if name == "log"]
    assert len(logged) == len(calls) - 2 > 0
    assert all(isinstance(value, int | float) for values in logged for value in values.values())


def test_a_tracker_that_fails_is_a_warning_and_hears_no_more(
    tmp_path: Path,
    tiny_pair_folder: Path,
    calls: list[tuple[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def gone(values: Any) -> None:
        raise ConnectionError("the server is gone\nand more")

    monkeypatch.setattr("wandb.log", gone)
    study = followed(tmp_path / "files", tiny_pair_folder, "wandb")
    skipped = run_study(study, tmp_path / "run", execution=ONE, progress=Silent(), until="scan")
    assert skipped == {"scan": False}
    assert [name for name, _ in calls] == ["init"]
    told = [record.getMessage() for record in caplog.records if "track.to" in record.getMessage()]
    assert told == ["track.to = wandb failed, the run goes on without it: the server is gone"]


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(
    tmp_path: Path, tiny_pair_folder: Path
) -> None:
    study = followed(tmp_path / "files", tiny_pair_folder, "wandb")
    with pytest.raises(RequestError, match=r"^track.to = wandb is not installed; pip install wandb, or leave"):
        run_study(study, tmp_path / "run", execution=ONE, progress=Silent())
    assert not (tmp_path / "run").exists()


def test_a_step_is_heard_of_in_whole_percents(calls: list[tuple[str, Any]], tmp_path: Path) -> None:
    study = followed(tmp_path, tmp_path, "wandb")
    with tracked(study, Silent()) as tracker:
        tracker.start("patch: training", 1000, 500)
        for _ in range(500):
            tracker.advance()
    assert [v for name, v in calls if name == "log"] == [{"patch/percent": percent} for percent in range(51, 101)]
