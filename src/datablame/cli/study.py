"""What a run would take a study's two checkpoints and its pool for, looked at without a run."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter
from rich.console import Console

from datablame.cli.console import say_text
from datablame.config.schema import Study
from datablame.engine.execute import Execution, Progress
from datablame.pipeline.run import frozen
from datablame.tables import DataSummary
from datablame.world import World
from datablame.world.ingest import FIRST_ROWS, look

_LAYERS = 6
"""Shown on the screen, those that differ most; JSON has them all."""
_FACTS = ("coverage", "tokens", "chat", "distance")
"""What is written into a world about its checkpoints."""


class Seen(NamedTuple):
    """A study's world, and its pool as far as it was read: None where it is at the hub."""

    world: World
    data: DataSummary | None
    excluded: dict[str, int]
    """Documents that no method can rank, by reason; known of a pool that was read whole."""
    first_rows: int | None
    """None where the pool was read whole."""


def examine_study(study: Study, execution: Execution, progress: Progress) -> Seen:
    """Freeze the study's world as a run would, in a folder that is thrown away.

    Raises RequestError as a run that would refuse the study.
    """
    with tempfile.TemporaryDirectory(prefix="datablame-") as folder:
        world = frozen(study, Path(folder), execution=execution, progress=progress)
        if world.pool_is_frozen:
            summary = world.pool.summary
            return Seen(world, summary.data, dict(summary.excluded), None)
    return Seen(world, look(world.data, world.seed), {}, FIRST_ROWS)


def as_json(seen: Seen) -> dict[str, Any]:
    """Everything that was seen, for programs."""
    world = seen.world
    models = {name: getattr(world.models, name).path for name in ("before", "after")}
    facts = {
        name: TypeAdapter(Any).dump_python(value, mode="json") for name, value in vars(world).items() if name in _FACTS
    }
    data = (
        None if seen.data is None else {**asdict(seen.data), "excluded": seen.excluded, "first_rows": seen.first_rows}
    )
    return {"study": world.study.name, "models": models, **facts, "data": data}


def show_study(seen: Seen, console: Console) -> None:
    """Print one screen."""
    distance = seen.world.distance
    assert distance is not None
    layers = sorted(distance.layers, key=lambda layer: -layer.difference)
    shown = sorted(layers[:_LAYERS], key=distance.layers.index)
    say_text(console, "doctor_study", layers=shown, hidden=len(layers) - len(shown), **seen._asdict())
