"""Worlds for tests: a study frozen, what a phase works with, and a phase's tables put in their place."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from datablame.config.schema import Data, Study
from datablame.engine.execute import Execution, Silent
from datablame.engine.phase import Outputs, Phase, Tables, Work, write_outputs
from datablame.world import World
from datablame.world.documents import Reader
from datablame.world.freeze import freeze
from datablame.world.sources import open_source

ONE = Execution(workers=1, threads=1)


def frozen(study: Study, root: Path) -> World:
    """The world of a study, written to a run folder."""
    return freeze(study, root, execution=ONE, progress=Silent())


def read_pool(data: Data, seed: int = 0) -> Any:
    """The documents of a small pool, the rows left out by reason, the first of each, and the hub's commit."""
    source = open_source(data)
    reader = Reader(source, data, seed)
    every = list(reader)
    return SimpleNamespace(
        documents=[each for each in every if each.id in reader.chosen],
        skipped={rows.reason: rows.count for rows in reader.summary.skipped},
        examples={rows.reason: rows.example for rows in reader.summary.skipped},
        summary=reader.summary,
        commit=source.commit,
    )


def work(root: Path, phase: str, execution: Execution = ONE, max_cost_usd: float | None = None) -> Work:
    """What a phase works with, unfinished files in `artifacts/PHASE.part`."""
    out = root / "artifacts" / f"{phase}.part"
    out.mkdir(parents=True, exist_ok=True)
    return Work(root, phase, out, execution, Silent(), lambda *_: None, max_cost_usd)


def put(root: Path, phase: str, outputs: Outputs) -> Tables:
    """Write a phase's tables where later phases find them."""
    write_outputs(outputs, root / "artifacts" / phase)
    return Tables(root)


def ran(phase: Phase, world: World, execution: Execution = ONE) -> Tables:
    """Run one phase, put its tables in their place, and give all tables of the run folder."""
    return put(world.root, phase.name, phase.run(world, Tables(world.root), work(world.root, phase.name, execution)))
