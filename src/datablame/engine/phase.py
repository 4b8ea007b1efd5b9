"""What a phase is: it takes the world and earlier tables, yields tables; the engine does the rest."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from datablame.engine.execute import Execution, Progress
from datablame.engine.files import write_atomic
from datablame.engine.journal import Journal
from datablame.tables import TABLES, encoded, object_of, rows_of

if TYPE_CHECKING:
    from datablame.world import World


T = TypeVar("T")

Outputs = Mapping[type, Any]
"""What a phase yields: by row type its rows (a sequence or an Arrow table), or the one row of a JSON table."""


@dataclass(frozen=True)
class Tables:
    """The tables of a run folder."""

    root: Path
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Where a phase's tables lie that are not in their place yet."""

    def path(self, row: type) -> Path:
        """The file of a table."""
        place = TABLES[row]
        return self.folders.get(place.phase, self.root / "artifacts" / place.phase) / place.file

    def rows(self, row: type[T], columns: Sequence[str] | None = None, **where: Any) -> list[T]:
        """A table's rows, those with `where`'s values only; none where the phase has not run."""
        return rows_of(self.path(row), row, columns, **where)

    def one(self, row: type[T]) -> T | None:
        """The row of a table that has one; None where the phase has not run."""
        return object_of(self.path(row), row)

    def of(self, row: type[T]) -> T:
        """The row of a table that has one, of a phase that has run."""
        only = self.one(row)
        assert only is not None, f"{self.path(row)} is not there"
        return only


@dataclass(frozen=True)
class Work:
    """What a phase works with: where its unfinished files lie, how items run, who hears of it."""

    root: Path
    """The run folder."""
    phase: str
    out: Path
    """The phase's folder while it is not whole; its files besides tables (adapters) go here."""
    execution: Execution
    progress: Progress
    timings: Callable[[str, str, float], None]
    """Records seconds as (what, key, seconds) outside the tables, since they differ from run to run."""
    max_cost_usd: float | None = None
    """The most that the run folder may have paid for answers in all; None: no limit."""

    @property
    def journal(self) -> Journal:
        """Finished items of this phase."""
        return Journal(self.out / "journal.jsonl")


@dataclass(frozen=True)
class Phase:
    """One phase of a study."""

    name: str
    version: int
    """Grows when the same inputs give other tables."""
    parts: tuple[str, ...]
    """The parts of the world that its tables depend on (`World.part`)."""
    after: tuple["Phase", ...]
    """The phases whose tables it reads."""
    run: "Callable[[World, Tables, Work], Outputs]"
    deliver: "Callable[[World, Tables, Path], None] | None" = None
    """Writes the deliverables that the phase makes possible to the root of the run folder."""
    delivers: bool = False
    """Whether the files at the root of the run folder are its outputs, so that it runs again where one is changed."""


def write_outputs(outputs: Outputs, folder: Path) -> None:
    """Write what a phase yields into its folder, each table whole."""
    for row, rows in outputs.items():
        write_atomic(folder / TABLES[row].file, encoded(row, rows))
