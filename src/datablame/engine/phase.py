"""What a phase is: it takes the world and earlier tables, yields tables; the engine runs it where it is not current."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from datablame.engine.execute import Execution, Progress
from datablame.engine.files import (
    Journal,
    atomic_file,
    changes,
    digest,
    hash_file,
    own_object,
    write_atomic,
    write_json,
)
from datablame.engine.run_folder import append_peak, append_timing
from datablame.engine.usage import busy_seconds, free_memory, peak_gpu_mb, peak_rss_mb
from datablame.errors import PhaseError
from datablame.tables import TABLES, encoded, object_of, rows_of, write_parts

if TYPE_CHECKING:
    from datablame.world import World

T = TypeVar("T")
_logger = logging.getLogger(__name__)
_BEGUN, _DONE = "begun.json", "done.json"
_SAID = 3
"""Reasons why a phase runs again that are said; `datablame status` has all of them."""

Outputs = Mapping[type, Any]
"""What a phase yields: by row type its rows, an iterator of Arrow tables that make one, or the row of a JSON table."""


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
    timings: Callable[..., None]
    """Records what took how long outside the tables, since it differs from run to run: (what, key, seconds), and the
    peak of memory in MB where it was measured."""
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
    delivers: tuple[str, ...] = ()
    """Files at the root of the run folder that are its outputs, so that it runs again where one is changed."""
    shows: bool = False
    """Whether it reads tables that are there for the pages alone; no other phase runs again where one changes."""


def write_outputs(outputs: Outputs, folder: Path) -> None:
    """Write what a phase yields into its folder, each table whole."""
    for row, made in outputs.items():
        path = folder / TABLES[row].file
        if isinstance(made, Iterator):
            with atomic_file(path) as file:
                write_parts(row, made, file)
        else:
            write_atomic(path, encoded(row, made))


State = Literal["done", "stale", "begun", "missing"]
"""`stale`: something that a finished phase depends on was changed, or one of its outputs."""


def left_by(phase: Phase, root: Path) -> list[Path]:
    """What the phase has left so far, finished or not; nothing before it has begun."""
    paths = (path for end in ("", ".part") for path in _folder(phase, root, end).glob("*"))
    return sorted(path for path in paths if not _is_hidden(path))


def dependencies(phase: Phase, world: "World") -> dict[str, Any]:
    """What its outputs depend on: its version, its parts of the world, the outputs that it may read of earlier phases.

    Raises PhaseError where one of those has not run.
    """
    upstream, ignored = {}, set[str]()
    if not phase.shows:
        ignored = {f"artifacts/{place.phase}/{place.file}" for place in TABLES.values() if place.shown}
    for earlier in phase.after:
        if not (done := _done(earlier, world.root)):
            raise PhaseError(f"{phase.name} needs {earlier.name}, which is not done; run with --resume")
        upstream[earlier.name] = {name: sha for name, sha in done["outputs"].items() if name not in ignored}
    parts = {part: world.part(part) for part in phase.parts}
    return {"phase": phase.name, "version": phase.version, "world": parts, "upstream": upstream}


def reasons(phase: Phase, world: "World") -> list[str]:
    """Why a finished phase is not up to date in this world: the keys, files, models and phases that are others now."""
    done, unfinished = _done(phase, world.root), [each.name for each in phase.after if not _done(each, world.root)]
    if not done or unfinished:
        return [f"{name} is not done" for name in unfinished]
    then, now = done["dependencies"], dependencies(phase, world)
    parts = [changes(then["world"].get(part, {}), value) for part, value in now["world"].items()]
    sentences = [] if then["version"] == now["version"] else ["another version of datablame made it"]
    sentences += dict.fromkeys(change.sentence() for part in parts for change in part)
    others = (name for name, made in now["upstream"].items() if made != then["upstream"].get(name))
    sentences += [f"{name} gave something else" for name in others]
    if (output := _changed_output(phase, world.root)) is not None:
        sentences.append(f"{output} is missing or was changed")
    return sentences


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
    finished: Callable[[Phase], None] = lambda phase: None,
) -> None:
    """Run what is not current, in order, in as many threads as the world says.

    A phase works beside its last tables, in PHASE.part, which stay until the new ones are whole; what was begun there
    is finished. `before` is called before a phase runs, with whether it starts anew; `reached` of every phase that was
    looked at, with whether it was skipped for being up to date; `finished` of every one that ran, once it is whole.

    Raises DatablameError where a phase failed; what it finished stays.
    """
    root, execution = world.root, execution.on(world.models.device)._replace(threads=world.threads)
    for phase in phases:
        part, skipped = _folder(phase, root, ".part"), state_of(phase, world) == "done"
        if not skipped and (why := reasons(phase, world)):
            more = f" and {len(why) - _SAID} more" if len(why) > _SAID else ""
            _logger.warning("%s runs again: %s%s", phase.name, "; ".join(why[:_SAID]), more)
        reached(phase, skipped)
        if skipped:
            for path in (_folder(phase, root, ".old"), part):
                shutil.rmtree(path, ignore_errors=True)
            continue
        depends = dependencies(phase, world)
        fingerprint = digest(depends)
        if digest(_done(phase, root, ".part").get("dependencies")) != fingerprint:
            new = _written(phase, root, ".part", _BEGUN, "fingerprint").get("fingerprint") != fingerprint
            before(phase, new)
            if new:
                shutil.rmtree(part, ignore_errors=True)
                write_json(part / _BEGUN, {"fingerprint": fingerprint})
            timings = partial(append_timing, root)
            _run(phase, world, Work(root, phase.name, part, execution, progress, timings, max_cost_usd))
            write_json(part / _DONE, {"dependencies": depends, "outputs": _outputs(phase, root)})
        # Two renames; a kill between them leaves the whole new outputs, which the next start puts in their place.
        for path in _scratch(part):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        folder, old = _folder(phase, root), _folder(phase, root, ".old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.replace(old)
        part.replace(folder)
        shutil.rmtree(old, ignore_errors=True)
        finished(phase)


def _folder(phase: Phase, root: Path, end: str = "") -> Path:
    """Where its tables and files lie: finished ones, unfinished ones (`.part`), or those on their way out (`.old`)."""
    return root / "artifacts" / f"{phase.name}{end}"


def _done(phase: Phase, root: Path, end: str = "") -> dict[str, Any]:
    """On what a phase's whole outputs depend and their hashes, up to date or not; empty where there are none."""
    return _written(phase, root, end, _DONE, "dependencies", "outputs")


def _written(phase: Phase, root: Path, end: str, name: str, *keys: str) -> dict[str, Any]:
    folder = _folder(phase, root, end)
    return own_object(folder / name, f"delete {folder}: then {phase.name} runs again", keys)


def _is_current(phase: Phase, world: "World") -> bool:
    """Whether it ran on this world and these outputs of earlier phases; its own outputs are not looked at."""
    done, *before = (_done(each, world.root) for each in (phase, *phase.after))
    return bool(done) and all(before) and digest(done["dependencies"]) == digest(dependencies(phase, world))


def _changed_output(phase: Phase, root: Path) -> str | None:
    """The first output of a finished phase that is missing or was changed, by its path in the run folder."""
    outputs = _done(phase, root)["outputs"]
    changed = (name for name, sha in outputs.items() if not (root / name).is_file() or hash_file(root / name) != sha)
    return next(changed, None)


def _run(phase: Phase, world: "World", work: Work) -> None:
    """Write everything that the phase yields, and what it took."""
    peak_gpu_mb(), busy_seconds()  # What came before is no part of it.
    began = time.monotonic()
    write_outputs(phase.run(world, Tables(work.root), work), work.out)
    if phase.deliver is not None:
        phase.deliver(world, Tables(work.root, {phase.name: work.out}), work.root)
    append_timing(work.root, f"phase/{phase.name}", "ran", time.monotonic() - began)
    append_peak(work.root, f"phase/{phase.name}", peak_rss_mb())
    for number, seconds in enumerate(busy_seconds()):
        append_timing(work.root, f"worker/{phase.name}", str(number), seconds)
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
    made = {str(folder / path.relative_to(part)): path for path in paths if path.is_file() and not _is_hidden(path)}
    made |= {name: root / name for name in phase.delivers}
    return {name: hash_file(path) for name, path in sorted(made.items())}


def _is_hidden(path: Path) -> bool:
    """Whether it is a stray of a file manager or a file system, as .DS_Store is; no phase writes such a file."""
    return path.name.startswith(".")
