"""What of a run folder may leave it: the tables of finished phases, harmful texts hidden."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datablame.engine.phase import State, Tables, state_of
from datablame.errors import RequestError, problem
from datablame.pipeline.phases import PHASES, REPORT
from datablame.report.redaction import without_harm
from datablame.surface.phase import SURFACE
from datablame.tables import TABLES
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
        redacted = [without_harm(each) for each in rows]
        return Read([each.row for each in redacted], sum(each.hidden for each in redacted))


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
