"""The specification's study from end to end on stand-ins: the preset with other models and data, nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.finished import finished
from tests.tiny_olmo2 import planted_ids, tulu_rows, write_pair, write_pool

from datablame.config.file import load_study
from datablame.engine.files import read_json
from datablame.engine.phase import Tables
from datablame.tables import (
    AlphaStar,
    ArmRate,
    Attribution,
    Patching,
    Rate,
    ScannedPrompt,
    ScanSample,
    Score,
    SurfaceSample,
    Training,
)

FIGURES = ("behavior_rates", "patching_comparison", "final_results")
DELIVERED = (
    *(f"{name}.{form}" for name in FIGURES for form in ("png", "svg", "pdf")),
    *("phase2_results.json", "final_results.json", "patching_comparison.csv", "writeup/report.md"),
    *("writeup/slides.md", "index.html", "case_study.md", "study.yaml", "manifest.json"),
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

    study, tables = load_study("olmo2-1b"), Tables(out)
    assert "NO ANTHROPIC_API_KEY IS SET" in done.stderr
    assert len(tables.rows(ScanSample)) == 8 * 4 * 10
    surfaced = tables.rows(SurfaceSample)
    assert {sample.classifier for sample in surfaced} == {"keywords"}
    assert len(surfaced) == 4 * (50 * len(tables.rows(ScannedPrompt, selected=True)) + 25 * 40)

    # The quirk that training gave the after model rises with alpha and is traced.
    alpha_star, attribution, patching = tables.one(AlphaStar), tables.one(Attribution), tables.one(Patching)
    assert alpha_star is not None
    assert alpha_star.alpha_star is not None
    rates = {rate.alpha: rate.rate or 0 for rate in tables.rows(Rate, prompt_id="sycophancy-1")}
    assert rates[1.0] > rates[0.0]
    assert attribution is not None
    assert "sycophancy" in attribution.traced
    # What is blamed was planted. BM25 alone finds it here: the candidates share its words.
    planted = planted_ids(rows)
    for method in study.attribute.methods:
        scores = tables.rows(Score, method=method, behaviour="sycophancy")
        assert len(scores) >= 100
        assert {score.doc_id for score in scores if score.rank <= 20} <= planted

    # Five trainings of 200 steps, in which every flagged document was seen where it was not removed.
    arms = [arm for arm in study.patch.arms if arm != "after"]
    trained = [(training.arm, training.protocol, training.steps) for training in tables.rows(Training)]
    assert trained == [(arm, "continue", 200) for arm in arms]
    assert patching is not None
    assert patching.exposed
    assert {rate.arm for rate in tables.rows(ArmRate)} == set(study.patch.arms)

    assert [name for name in DELIVERED if not (out / name).is_file()] == []
    manifest = read_json(out / "manifest.json")
    assert len({manifest["models"][name]["weights_sha256"] for name in ("before", "after")}) == 2
    assert not any(manifest["phases"][name]["skipped"] for name in ("scan", "surface", "attribute", "patch", "report"))
