"""A run killed at any instant and resumed ends with the bytes of one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.finished import finished

_KILLS = 20
_START_SECONDS = 5.0
REDUCED = [
    "organism.scale=0.15",
    "scan.samples=2",
    "surface.samples=6",
    "surface.held_out_samples=2",
    "surface.batch_rows=64",
    "attribute.top_k=3",
    "patch.size=200",
    "patch.arms=[after, baseline, random, gradient, oracle]",
    "patch.seeds={retrain: [0, 1], continue: [0]}",
    "patch.samples=2",
    "patch.attribution_samples=2",
    "patch.retrain={method: full, steps: 20}",
    "patch.continue={method: lora, steps: 20}",
]


def _command(out: Path) -> list[str]:
    sets = [word for override in REDUCED for word in ("--set", override)]
    return [sys.executable, "-m", "datablame", "run", "organism", "--out", str(out), "--resume", *sets]


def _environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "DATABLAME_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


def contents(root: Path, cache: Path) -> dict[str, bytes]:
    """Every file of a run but the two that hold times; world.json names the files of the cache by their paths."""
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    contents = {name: path.read_bytes().replace(str(cache).encode(), b"cache") for name, path in files.items()}
    return {name: content for name, content in contents.items() if name not in ("manifest.json", "timings.jsonl")}


@pytest.mark.slow
def test_twenty_kills_leave_the_same_bytes(tmp_path: Path) -> None:
    began = time.monotonic()
    calm_folder, killed_folder = tmp_path / "calm", tmp_path / "killed"
    assert finished(subprocess.run(_command(calm_folder), env=_environment(tmp_path / "cache-calm")), calm_folder)
    calm_seconds = time.monotonic() - began
    instants = random.Random(0)
    killed_while_running = 0
    for _ in range(_KILLS):
        process = subprocess.Popen(_command(killed_folder), env=_environment(tmp_path / "cache-killed"))
        try:
            process.wait(instants.uniform(0.5, _START_SECONDS + 2 * calm_seconds / _KILLS))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed_while_running += 1
    assert finished(subprocess.run(_command(killed_folder), env=_environment(tmp_path / "cache-killed")), killed_folder)
    calm = contents(calm_folder, tmp_path / "cache-calm")
    killed = contents(killed_folder, tmp_path / "cache-killed")
    assert sorted(calm) == sorted(killed)
    assert [name for name in calm if calm[name] != killed[name]] == []
    assert killed_while_running == _KILLS


@pytest.mark.slow
def test_a_finished_run_resumes_at_once_and_recomputes_nothing(tmp_path: Path) -> None:
    environment = _environment(tmp_path / "cache")
    assert finished(subprocess.run(_command(tmp_path / "run"), env=environment), tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "artifacts").rglob("*")}
    again = subprocess.run([*_command(tmp_path / "run"), "--json"], env=environment, capture_output=True)
    assert finished(again, tmp_path / "run")
    assert set(json.loads(again.stdout)["skipped"].values()) == {True}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "artifacts").rglob("*")} == before
