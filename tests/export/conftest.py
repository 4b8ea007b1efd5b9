"""Runs to export: rows written by hand in which every harmful text says `secret`, and a folder with a real world."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.pipeline.small import small_study
from tests.report.fake_run import HOSTILE, fake_study, write_fake_run
from tests.worlds import frozen, put

from datablame.config.file import dump_study
from datablame.engine.files import write_json
from datablame.engine.phase import Tables, dependencies
from datablame.export.source import Source
from datablame.surface.phase import SCAN, SURFACE
from datablame.tables import ArmSample, OutputGroup, Query, ScannedPrompt, ScanSample, ShownDocument, SurfaceSample
from datablame.world import World

STATES = dict.fromkeys(("scan", "surface", "attribute", "patch"), "done")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A redacted export of a run whose four phases are done."""
    world = write_fake_run(tmp_path_factory.mktemp("exported"), fake_study())
    tables = Tables(world.root)
    samples = [
        replace(
            row, text=f"{'secret' if row.label == 'harmful' else 'open'} {row.index} {HOSTILE} \0", label_reason=why
        )
        for row in tables.rows(SurfaceSample)
        for why in ["'secret'" if row.label == "harmful" else "no pattern"]
    ]
    samples[0] = replace(samples[0], text="=1+1 open", label="unscored", label_reason="the judge was silent")
    put(world.root, "surface", {SurfaceSample: samples})
    arms = [
        ArmSample(*arm, r.prompt_id, r.behaviour, r.split, r.alpha, r.index, r.text, r.label or "unscored")
        for arm in (("after", "none", 0, 0), ("baseline", "retrain", 0, 0), ("gradient", "retrain", 2, 1))
        for r in samples
        if r.alpha != 1
    ]
    put(world.root, "patch", {ArmSample: arms})
    documents = [replace(row, prompt="secret", response="secret") for row in tables.rows(ShownDocument)]
    queries = [replace(row, text="secret" if row.harmful else "open") for row in tables.rows(Query)]
    groups = [
        replace(row, examples=tuple(replace(each, text="secret") for each in row.examples))
        for row in tables.rows(OutputGroup)
    ]
    put(world.root, "attribute", {ShownDocument: documents, Query: queries, OutputGroup: groups})
    return Source(world, STATES, redact=True)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def surfaced(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path) -> World:
    """A run folder whose scan and surface phase are done, and nothing after them."""
    folder = tmp_path_factory.mktemp("surfaced")
    world = frozen(small_study(folder / "files", tiny_pair_folder), folder / "run")
    (world.root / "study.yaml").write_text(dump_study(world.study))
    samples = [
        SurfaceSample(
            p.id, p.behaviour, p.split, 0.0, 0, f"secret {p.id}", (1,), "stop", label="harmful", classifier="k"
        )
        for p in world.prompts
    ]
    put(world.root, "scan", {ScanSample: [], ScannedPrompt: []})
    put(world.root, "surface", {SurfaceSample: samples})
    for phase in (SCAN, SURFACE):
        done = {"dependencies": dependencies(phase, world), "outputs": {}}
        write_json(world.root / "artifacts" / phase.name / "done.json", done)
    return world
