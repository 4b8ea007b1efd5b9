"""Worlds for tests: a study frozen, what a phase works with, and a phase's tables put in their place."""

from pathlib import Path

from datablame.config.schema import Study
from datablame.engine.execute import Execution, Silent
from datablame.engine.phase import Outputs, Phase, Tables, Work, write_outputs
from datablame.world import World
from datablame.world.freeze import freeze

ONE = Execution(workers=1, threads=1)


def frozen(study: Study, root: Path) -> World:
    """The world of a study, written to a run folder."""
    return freeze(study, root, execution=ONE, progress=Silent())


def work(root: Path, phase: str, execution: Execution = ONE, max_cost_usd: float | None = None) -> Work:
    """What a phase works with, unfinished files in `artifacts/PHASE.part`."""
    out = root / "artifacts" / f"{phase}.part"
    out.mkdir(parents=True, exist_ok=True)
    return Work(root, phase, out, execution, Silent(), lambda what, key, seconds: None, max_cost_usd)


def put(root: Path, phase: str, outputs: Outputs) -> Tables:
    """Write a phase's tables where later phases find them."""
    write_outputs(outputs, root / "artifacts" / phase)
    return Tables(root)


def ran(phase: Phase, world: World, execution: Execution = ONE) -> Tables:
    """Run one phase, put its tables in their place, and give all tables of the run folder."""
    return put(world.root, phase.name, phase.run(world, Tables(world.root), work(world.root, phase.name, execution)))
