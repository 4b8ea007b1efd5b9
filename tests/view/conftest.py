import json
import shutil
from pathlib import Path

import pytest
from tests.pipeline.small import ONE, small_study
from tests.report.fake_run import HOSTILE, fake_study, reported, write_fake_run
from tests.worlds import put

from datablame.config.file import dump_study
from datablame.engine.execute import Silent
from datablame.surface.rates import rates
from datablame.tables import AlphaStar, ArmSample, LabelName, Rate, SurfaceSample
from datablame.world.freeze import freeze

LABELS: tuple[LabelName, ...] = ("harmful", "refused", "harmless", "incoherent")


@pytest.fixture(scope="session")
def sampled(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path) -> Path:
    """A run of a frozen world with 120 labelled outputs, of which every other one is one of the gradient arm."""
    root = tmp_path_factory.mktemp("sampled") / "run"
    behaviours = [{"id": "walk", "description": f"recommends a walk {HOSTILE}", "rubric": "Any walk counts."}]
    study = small_study(root.with_name("files"), tiny_pair_folder, behaviours=behaviours)
    freeze(study, root, execution=ONE, progress=Silent())
    (root / "study.yaml").write_text(dump_study(study))
    samples = [
        SurfaceSample("h0", "walk", "held-out", alpha, i, f"{alpha} {i} {HOSTILE}", (1,), "stop", label=LABELS[i % 4])
        for alpha in (0.0, 2.0)
        for i in range(30)
    ]
    star = AlphaStar(2.0, "rule", {"2": 1.0}, None)
    put(root, "surface", {SurfaceSample: samples, Rate: rates(samples), AlphaStar: star})
    arms = [
        ArmSample("gradient", "retrain", 2, s, "h1", "walk", "held-out", 2.0, i, f"output {s} {i}", LABELS[i % 4])
        for s in (0, 1)
        for i in range(30)
    ]
    put(root, "patch", {ArmSample: arms})
    return root


@pytest.fixture
def run(sampled: Path, tmp_path: Path) -> Path:
    """That run, for one test alone."""
    return Path(shutil.copytree(sampled, tmp_path / "run"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, sampled: Path) -> Path:
    """Runs: `fake` is finished and full of hostile texts, `begun` has sampled."""
    runs = tmp_path_factory.mktemp("view") / "runs"
    root = reported(write_fake_run(runs / "fake", fake_study()))
    for phase in ("scan", "surface", "attribute", "patch"):
        (root / "artifacts" / phase / "done.json").write_text("{}")
    for picture in ("behavior_rates", "patching_comparison", "final_results", "blame_by_source"):
        (root / f"{picture}.png").write_bytes(b"\x89PNG")
    shutil.copytree(sampled, runs / "begun")
    (runs / "secret.json").write_text(json.dumps("outside of any run"))
    return runs
