"""The specification's study from end to end on stand-ins: the preset with other models and data, nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.finished import finished
from tests.tiny_olmo2 import planted_ids, tulu_rows, write_pair, write_pool

from datablame.engine.files import read_json, read_jsonl
from datablame.engine.run_folder import read_table
from datablame.study.file import load_study

DELIVERED = (
    *("behavior_rates.png", "patching_comparison.png", "final_results.png", "phase2_results.json"),
    *("final_results.json", "patching_comparison.csv", "writeup/report.md", "writeup/slides.md"),
    *("index.html", "case_study.md", "study.yaml", "manifest.json"),
)


@pytest.mark.slow
def test_the_specifications_study_runs_on_a_tiny_olmo_2_and_a_file_in_tulus_format(tmp_path: Path) -> None:
    rows = tulu_rows(5000)
    write_pool(tmp_path / "tulu.parquet", rows)
    write_pair(tmp_path, rows)
    out = tmp_path / "run"
    changed = {
        "models.before.path": tmp_path / "before",
        "models.after.path": tmp_path / "after",
        "data.path": tmp_path / "tulu.parquet",
    }
    sets = [word for key, value in changed.items() for word in ("--set", f"{key}={value}")]
    environment = {key: value for key, value in os.environ.items() if key != "ANTHROPIC_API_KEY"}
    command = [sys.executable, "-m", "datablame", "run", "olmo2-1b", "--out", str(out), *sets]
    done = subprocess.run(command, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert finished(done, out), done.stderr[-2000:]

    study, artifacts = load_study("olmo2-1b"), out / "artifacts"
    assert "NO ANTHROPIC_API_KEY IS SET" in done.stderr
    scanned = read_table(artifacts / "scan" / "samples.parquet")
    assert len(scanned) == 8 * 4 * 10
    surfaced = read_table(artifacts / "surface" / "samples.parquet")
    assert {row["classifier"] for row in surfaced} == {"keywords"}
    assert len(surfaced) == 4 * (50 * len(read_json(artifacts / "scan" / "scan.json")["focus"]) + 25 * 40)

    # The quirk that training gave the after model rises with alpha and is traced.
    assert read_json(artifacts / "surface" / "alpha_star.json")["alpha_star"] is not None
    rates = {
        (row["prompt_id"], row["alpha"]): row["rate"] for row in read_table(artifacts / "surface" / "rates.parquet")
    }
    assert rates["sycophancy-1", 1.0] > rates["sycophancy-1", 0.0]
    assert "sycophancy" in read_json(artifacts / "attribute" / "pool.json")["behaviours"]["traced"]
    # What is blamed was planted. BM25 alone finds it here: the candidates share its words.
    planted = planted_ids(rows)
    for method in study.attribute.methods:
        scores = read_jsonl(artifacts / "attribute" / "scores" / f"{method}.jsonl")
        traced = [row for row in sorted(scores, key=lambda row: row["rank"]) if row["behaviour"] == "sycophancy"]
        assert len(traced) >= 100
        assert {row["doc_id"] for row in traced[:20]} <= planted

    # Five trainings of 200 steps, in which every flagged document was seen where it was not removed.
    training = read_jsonl(artifacts / "patch" / "training.jsonl")
    arms = [arm for arm in study.patch.arms if arm != "untrained"]
    assert [(row["arm"], row["protocol"], row["steps"]) for row in training] == [(arm, "continue", 200) for arm in arms]
    assert read_json(artifacts / "patch" / "exposure.json")["passed"]
    assert {row["arm"] for row in read_table(artifacts / "patch" / "comparison.parquet")} == set(study.patch.arms)

    assert [name for name in DELIVERED if not (out / name).is_file()] == []
    manifest = read_json(out / "manifest.json")
    assert len({manifest["models"][name]["weights_sha256"] for name in ("before", "after")}) == 2
    assert not any(manifest["phases"][name]["skipped"] for name in ("scan", "surface", "attribute", "patch", "report"))
