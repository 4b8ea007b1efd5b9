"""What of a run folder may leave it: the tables of finished phases, harmful texts hidden."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from datablame.engine.phase import State, Tables, state_of
from datablame.errors import RequestError, problem
from datablame.pipeline.phases import PHASES, REPORT
from datablame.report.redaction import hidden
from datablame.surface.phase import SURFACE
from datablame.tables import TABLES, ArmSample, OutputGroup, Query, Sample, ShownDocument
from datablame.world import World
from datablame.world.world import load


class Read(NamedTuple):
    """Rows as they are exported, and how many texts in them are hidden."""

    rows: Sequence[Any]
    hidden: int


@dataclass(frozen=True)
class Source:
    """A run folder to export."""

    world: World
    states: Mapping[str, State]
    """How far each phase with tables is in the world that the folder holds."""
    redact: bool

    @property
    def left_out(self) -> dict[str, State]:
        """The phases that are not exported, and why."""
        return {name: state for name, state in self.states.items() if state != "done"}

    def read(self, row: type, **where: Any) -> Read:
        """A table's rows with `where`'s values, as `Tables.rows`; none of a phase that is left out."""
        if TABLES[row].phase in self.left_out:
            return Read((), 0)
        rows: list[Any] = Tables(self.world.root).rows(row, **where)
        if not self.redact:
            return Read(rows, 0)
        redacted = [_redacted(each) for each in rows]
        return Read([each for each, _ in redacted], sum(count for _, count in redacted))


def opened(root: Path, *, redact: bool) -> Source:
    """The run folder as its finished phases left it, beside a run of it too: a phase's tables are swapped in whole.

    A phase that is stale is left out, for its tables may rest on other samples than those beside them.

    Raises RequestError where the folder holds no run, or its surface phase is not done.
    """
    world = load(root)
    states = {phase.name: state_of(phase, world) for phase in PHASES if phase is not REPORT}
    if states[SURFACE.name] != "done":
        raise RequestError(problem("export", "no surface", root=root, state=states[SURFACE.name]))
    return Source(world, states, redact)


def _redacted(row: Any) -> tuple[Any, int]:
    """The row without its harmful texts, and how many those were."""
    match row:
        case Sample(label="harmful"):
            # The reason quotes what decided.
            return _without(row, "text", "label_reason")
        case ArmSample(label="harmful") | Query(harmful=True):
            return _without(row, "text")
        case ShownDocument():
            return _without(row, "prompt", "response", "rejected")
        case OutputGroup():
            # Found without labels.
            examples = [_without(each, "text") for each in row.examples]
            return replace(row, examples=tuple(each for each, _ in examples)), sum(count for _, count in examples)
    return row, 0


def _without(row: Any, *fields: str) -> tuple[Any, int]:
    shown = {field: text for field in fields if (text := getattr(row, field))}
    return replace(row, **{field: hidden(text) for field, text in shown.items()}), len(shown)
