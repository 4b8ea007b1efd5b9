"""What is up to date and what runs: a phase works beside its last tables, which stay until the new ones are whole."""

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from datablame.engine.execute import Execution, Progress, begin_gpu_peak, free_memory, peak_gpu_mb, peak_rss_mb
from datablame.engine.files import digest, hash_file, json_object, write_json
from datablame.engine.phase import Phase, Tables, Work, write_outputs
from datablame.engine.run_folder import KEPT, append_peak, append_timing
from datablame.errors import PhaseError

if TYPE_CHECKING:
    from datablame.world import World

State = Literal["done", "stale", "begun", "missing"]
"""`stale`: something that a finished phase depends on was changed, or one of its outputs."""

_logger = logging.getLogger(__name__)
_BEGUN, _DONE = "begun.json", "done.json"
_SCRATCH = ("journal*.jsonl", "items", _BEGUN, "*.part")


def folder_of(phase: Phase, root: Path) -> Path:
    """Where a finished phase's tables and files lie."""
    return root / "artifacts" / phase.name


def part_of(phase: Phase, root: Path) -> Path:
    """Where they lie while it is not whole."""
    return root / "artifacts" / f"{phase.name}.part"


def left_by(phase: Phase, root: Path) -> list[Path]:
    """What the phase has left so far, finished or not; nothing before it has begun."""
    return sorted((*folder_of(phase, root).glob("*"), *part_of(phase, root).glob("*")))


def has_run(phase: Phase, root: Path) -> bool:
    """Whether there are whole outputs of it, up to date or not."""
    return (folder_of(phase, root) / _DONE).exists()


def fingerprint_of(phase: Phase, world: "World") -> str:
    """What its outputs depend on: its version, its parts of the world, the outputs of the phases that it reads.

    Raises:
        PhaseError: one of those has not run.
    """
    upstream = {}
    for earlier in phase.after:
        if not has_run(earlier, world.root):
            raise PhaseError(f"{phase.name} needs {earlier.name}, which is not done; run with --resume")
        upstream[earlier.name] = json_object(folder_of(earlier, world.root) / _DONE).get("outputs")
    parts = {part: world.part(part) for part in phase.parts}
    return digest({"phase": phase.name, "version": phase.version, "world": parts, "upstream": upstream})


def state_of(phase: Phase, world: "World") -> State:
    """How far a phase is in this world; this only looks."""
    root = world.root
    if not has_run(phase, root):
        return "begun" if left_by(phase, root) else "missing"
    return "done" if _is_current(phase, world) and _changed_output(phase, root) is None else "stale"


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

    `before` is called before a phase runs, with whether it starts anew; `reached` of every phase that was looked at,
    with whether it was skipped for being up to date.

    Raises:
        DatablameError: a phase failed; what it finished stays.
    """
    for phase in phases:
        current = _is_current(phase, world)
        changed = _changed_output(phase, world.root) if current else None
        if changed is not None:
            _logger.warning("%s runs again: %s is missing or was changed", phase.name, changed)
        skipped = current and changed is None
        reached(phase, skipped)
        if skipped:
            for path in (_old_of(phase, world.root), part_of(phase, world.root)):
                shutil.rmtree(path, ignore_errors=True)
        else:
            _run_phase(phase, world, execution, progress, max_cost_usd, before)


def _is_current(phase: Phase, world: "World") -> bool:
    """Whether it ran on this world and these outputs of earlier phases; its own outputs are not looked at."""
    root = world.root
    if not has_run(phase, root) or not all(has_run(earlier, root) for earlier in phase.after):
        return False
    return json_object(folder_of(phase, root) / _DONE).get("fingerprint") == fingerprint_of(phase, world)


def _changed_output(phase: Phase, root: Path) -> str | None:
    """The first output of a finished phase that is missing or was changed, by its path in the run folder."""
    outputs = json_object(folder_of(phase, root) / _DONE).get("outputs", {})
    changed = (name for name, sha in outputs.items() if not (root / name).is_file() or hash_file(root / name) != sha)
    return next(changed, None)


def _run_phase(
    phase: Phase,
    world: "World",
    execution: Execution,
    progress: Progress,
    max_cost_usd: float | None,
    before: Callable[[Phase, bool], None],
) -> None:
    """Run a phase in PHASE.part, or finish what was begun there, and put it in the place of its last outputs."""
    root, part, fingerprint = world.root, part_of(phase, world.root), fingerprint_of(phase, world)
    if json_object(part / _DONE).get("fingerprint") != fingerprint:
        new = json_object(part / _BEGUN).get("fingerprint") != fingerprint
        before(phase, new)
        if new:
            shutil.rmtree(part, ignore_errors=True)
            write_json(part / _BEGUN, {"fingerprint": fingerprint})
        execution = Execution(execution.workers if world.models.device == "cpu" else 1, world.threads)
        _fill(part, phase, world, execution, progress, max_cost_usd)
        write_json(part / _DONE, {"fingerprint": fingerprint, "outputs": _outputs(phase, root)})
    _sweep(part)
    _swap(phase, root)


def _fill(
    part: Path, phase: Phase, world: "World", execution: Execution, progress: Progress, max_cost_usd: float | None
) -> None:
    """Everything that the phase yields, written to its folder, and how long it took."""
    root = world.root

    def timings(what: str, key: str, seconds: float) -> None:
        append_timing(root, what, key, seconds)

    begin_gpu_peak()
    began = time.monotonic()
    work = Work(root, phase.name, part, execution, progress, timings, max_cost_usd)
    write_outputs(phase.run(world, Tables(root), work), part)
    if phase.deliver is not None:
        phase.deliver(world, Tables(root, {phase.name: part}), root)
    append_timing(root, f"phase/{phase.name}", "ran", time.monotonic() - began)
    append_peak(root, f"phase/{phase.name}", peak_rss_mb())
    if (on_gpu := peak_gpu_mb()) > 0:
        append_peak(root, f"gpu/{phase.name}", on_gpu)
    free_memory()


def _outputs(phase: Phase, root: Path) -> dict[str, str]:
    """The hashes of what the phase has made, by path in the run folder once it is in place."""
    part = part_of(phase, root)
    scratch = {path for pattern in _SCRATCH for path in part.glob(pattern)}
    made = {
        str(folder_of(phase, root).relative_to(root) / path.relative_to(part)): path
        for path in part.rglob("*")
        if path.name != _DONE and not scratch & {path, *path.parents}
    }
    if phase.delivers:
        made |= {str(path.relative_to(root)): path for path in (*root.glob("*"), *root.glob("writeup/*"))}
    return {name: hash_file(path) for name, path in sorted(made.items()) if path.is_file() and path.name not in KEPT}


def _sweep(part: Path) -> None:
    """Drop journals and unfinished files: the tables hold what they held."""
    for pattern in _SCRATCH:
        for path in part.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _swap(phase: Phase, root: Path) -> None:
    """Two renames; a kill between them leaves the whole new outputs, which the next start puts in their place."""
    folder, old = folder_of(phase, root), _old_of(phase, root)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    part_of(phase, root).replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def _old_of(phase: Phase, root: Path) -> Path:
    return root / "artifacts" / f"{phase.name}.old"
