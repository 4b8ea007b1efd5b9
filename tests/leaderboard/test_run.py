"""From the command line to the page, on organisms that are small and barely trained."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from datablame.engine.files import read_json

SMALL = (
    *("organism.scale=0.08", "scan.samples=1", "surface.samples=4", "surface.held_out_samples=2"),
    *("surface.alphas=[0,1]", "surface.max_new_tokens=8", "surface.coherent_share=0.01"),
    *("attribute.top_k=4", "attribute.queries=2", "patch.k=[2,4]", "patch.size=100", "patch.samples=1"),
    "patch.retrain={method: full, steps: 7, batch: 16, learning_rate: 1.0e-3}",
)
METHODS = ("activation", "bm25", "random")


def command(out: Path, *more: str) -> list[str]:
    given = [word for override in SMALL for word in ("--set", override)]
    names = ["--kinds", "lexical,few", "--seeds", "100", "--methods", ",".join(METHODS), "--subsets", "4"]
    return [sys.executable, "-m", "datablame", "leaderboard", "--out", str(out), *names, *given, *more]


def ended(words: Sequence[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "DATABLAME_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)


@pytest.mark.slow
def test_a_killed_leaderboard_goes_on_and_ends_with_every_file(tmp_path: Path) -> None:
    out, page = tmp_path / "runs", tmp_path / "page"
    environment = {**os.environ, "DATABLAME_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command(out, "--workers", "1"), cwd=tmp_path, env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    ) as first:
        while not (out / "lexical-100/study.yaml").exists() and first.poll() is None:
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGKILL)
    assert not page.exists()
    done = ended(command(out, "--write", str(page), "--workers", "2"), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"{page / 'README.md'}\n"
    rows = list(csv.DictReader((page / "results.csv").read_text().splitlines()))
    assert [(row["kind"], row["method"]) for row in rows] == [(k, m) for k in ("lexical", "few") for m in METHODS]
    board = read_json(page / "results.json")
    assert {row["name"] for row in board["standings"]} == set(METHODS)
    # Nothing is left to do, and gathering again gives the same bytes.
    assert ended(command(out, "--write", str(tmp_path / "again")), tmp_path).returncode == 0
    names = [str(path.relative_to(page)) for path in page.rglob("*") if path.is_file()]
    assert {"organisms/lexical-100.json", "organisms/few-100.json"} < set(names)
    for name in names:
        assert (page / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    # Records say all that the runs said.
    shutil.rmtree(out)
    assert ended(command(out, "--write", str(page)), tmp_path).returncode == 0
    for name in names:
        assert (page / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
