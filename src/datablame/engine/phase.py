"""What a phase is: it takes the world and earlier tables, yields tables; the engine runs it where it is not current."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from datablame.engine.execute import Execution, Progress, free_memory, peak_gpu_mb, peak_rss_mb
from datablame.engine.files import Journal, digest, hash_file, json_object, write_atomic, write_json
from datablame.engine.run_folder import KEPT, append_peak, append_timing
from datablame.errors import PhaseError
from datablame.tables import TABLES, encoded, object_of, rows_of

if TYPE_CHECKING:
    from datablame.world import World

T = TypeVar("T")
_logger = logging.getLogger(__name__)
_BEGUN, _DONE = "begun.json", "done.json"

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
        table = TABLES[row]
        return self.folders.get(table.phase, self.root / "artifacts" / table.phase) / table.file

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


State = Literal["done", "stale", "begun", "missing"]
"""`stale`: something that a finished phase depends on was changed, or one of its outputs."""


def left_by(phase: Phase, root: Path) -> list[Path]:
    """What the phase has left so far, finished or not; nothing before it has begun."""
    return sorted(path for end in ("", ".part") for path in _folder(phase, root, end).glob("*"))


def fingerprint_of(phase: Phase, world: "World") -> str:
    """What its outputs depend on: its version, its parts of the world, the outputs of the phases that it reads.

    Raises PhaseError where one of those has not run.
    """
    upstream = {}
    for earlier in phase.after:
        if not (done := _done(earlier, world.root)):
            raise PhaseError(f"{phase.name} needs {earlier.name}, which is not done; run with --resume")
        upstream[earlier.name] = done.get("outputs")
    parts = {part: world.part(part) for part in phase.parts}
    return digest({"phase": phase.name, "version": phase.version, "world": parts, "upstream": upstream})


def state_of(phase: Phase, world: "World") -> State:
    """How far a phase is in this world; this only looks."""
    if not _done(phase, world.root):
        return "begun" if left_by(phase, world.root) else "missing"
    return "done" if _is_current(phase, world) and _changed_output(phase, world.root) is None else "stale"


def bring_up_to_date(
    world: "World",
    phases: Sequence[Phase],
    *,
    execution: Execution,
    progress: Progress,
    max_cost_usd: float | None = None,
    before: Callable[[Phase, bool], None] = lambda phase, new: None,
    reached: Callable[[Phase, bool], None] = lambda phase, skipped: None,
) -> None:
    """Run what is not current, in order, in as many threads as the world says.

    A phase works beside its last tables, in PHASE.part, which stay until the new ones are whole; what was begun there
    is finished. `before` is called before a phase runs, with whether it starts anew; `reached` of every phase that was
    looked at, with whether it was skipped for being up to date.

    Raises DatablameError where a phase failed; what it finished stays.
    """
    root, execution = world.root, Execution(execution.workers if world.models.device == "cpu" else 1, world.threads)
    for phase in phases:
        current, part = _is_current(phase, world), _folder(phase, root, ".part")
        changed = _changed_output(phase, root) if current else None
        if changed is not None:
            _logger.warning("%s runs again: %s is missing or was changed", phase.name, changed)
        skipped = current and changed is None
        reached(phase, skipped)
        if skipped:
            for path in (_folder(phase, root, ".old"), part):
                shutil.rmtree(path, ignore_errors=True)
            continue
        fingerprint = fingerprint_of(phase, world)
        if json_object(part / _DONE).get("fingerprint") != fingerprint:
            new = json_object(part / _BEGUN).get("fingerprint") != fingerprint
            before(phase, new)
            if new:
                shutil.rmtree(part, ignore_errors=True)
                write_json(part / _BEGUN, {"fingerprint": fingerprint})
            timings = partial(append_timing, root)
            _run(phase, world, Work(root, phase.name, part, execution, progress, timings, max_cost_usd))
            write_json(part / _DONE, {"fingerprint": fingerprint, "outputs": _outputs(phase, root)})
        # Two renames; a kill between them leaves the whole new outputs, which the next start puts in their place.
        for path in _scratch(part):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        folder, old = _folder(phase, root), _folder(phase, root, ".old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.replace(old)
        part.replace(folder)
        shutil.rmtree(old, ignore_errors=True)


def _folder(phase: Phase, root: Path, end: str = "") -> Path:
    """Where its tables and files lie: finished ones, unfinished ones (`.part`), or those on their way out (`.old`)."""
    return root / "artifacts" / f"{phase.name}{end}"


def _done(phase: Phase, root: Path) -> dict[str, Any]:
    """The fingerprint and the hashes of a phase's whole outputs, up to date or not; empty where there are none."""
    return json_object(_folder(phase, root) / _DONE)


def _is_current(phase: Phase, world: "World") -> bool:
    """Whether it ran on this world and these outputs of earlier phases; its own outputs are not looked at."""
    done, *before = (_done(each, world.root) for each in (phase, *phase.after))
    return bool(done) and all(before) and done.get("fingerprint") == fingerprint_of(phase, world)


def _changed_output(phase: Phase, root: Path) -> str | None:
    """The first output of a finished phase that is missing or was changed, by its path in the run folder."""
    outputs = _done(phase, root).get("outputs", {})
    changed = (name for name, sha in outputs.items() if not (root / name).is_file() or hash_file(root / name) != sha)
    return next(changed, None)


def _run(phase: Phase, world: "World", work: Work) -> None:
    """Write everything that the phase yields, and what it took."""
    peak_gpu_mb()  # What came before is no part of it.
    began = time.monotonic()
    write_outputs(phase.run(world, Tables(work.root), work), work.out)
    if phase.deliver is not None:
        phase.deliver(world, Tables(work.root, {phase.name: work.out}), work.root)
    append_timing(work.root, f"phase/{phase.name}", "ran", time.monotonic() - began)
    append_peak(work.root, f"phase/{phase.name}", peak_rss_mb())
    if (on_gpu := peak_gpu_mb()) > 0:
        append_peak(work.root, f"gpu/{phase.name}", on_gpu)
    free_memory()


def _scratch(part: Path) -> set[Path]:
    """Journals and unfinished files: the tables hold what they held."""
    return {path for pattern in ("journal*.jsonl", "items", _BEGUN, "*.part") for path in part.glob(pattern)}


def _outputs(phase: Phase, root: Path) -> dict[str, str]:
    """The hashes of what the phase has made, by path in the run folder once it is in place."""
    part = _folder(phase, root, ".part")
    folder, scratch = _folder(phase, root).relative_to(root), _scratch(part)
    paths = (path for path in part.rglob("*") if path.name != _DONE and not scratch & {path, *path.parents})
    made = {str(folder / path.relative_to(part)): path for path in paths}
    if phase.delivers:
        made |= {str(path.relative_to(root)): path for path in (*root.glob("*"), *root.glob("writeup/*"))}
    return {name: hash_file(path) for name, path in sorted(made.items()) if path.is_file() and path.name not in KEPT}
