"""The phases in order: what is up to date is skipped, what depends on a change runs again, the rest resumes."""

import importlib
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from datablame.attribute.brought import check_brought
from datablame.engine.execute import Execution, Progress, begin_gpu_peak, free_memory, peak_gpu_mb, peak_rss_mb
from datablame.engine.run_folder import (
    Inputs,
    append_peak,
    append_timing,
    hash_file,
    locked,
    read_json,
    write_atomic,
    write_json,
)
from datablame.errors import RequestError
from datablame.judge.calibration import calibrate
from datablame.judge.choice import freeze
from datablame.pipeline.fingerprints import Phase, fingerprint_of, held_commit
from datablame.pipeline.manifest import write_manifest
from datablame.pipeline.references import begun_under
from datablame.report.registration import BEGUN, FILE
from datablame.study.file import dump_study, load_study
from datablame.study.schema import Study

_logger = logging.getLogger(__name__)
_WITHOUT_MODELS = ("report",)
_SCRATCH = ("journal*.jsonl", "items", "begun.json", "*.part")


PHASES = (
    Phase("scan", 3, "datablame.surface.run:run_scan", ("identity", "scan", "sampling", "judge")),
    Phase(
        "surface",
        3,
        "datablame.surface.run:run_surface",
        ("identity", "surface", "judge"),
        ("scan",),
        "datablame.report.run:after_surface",
    ),
    Phase(
        "attribute",
        4,
        "datablame.attribute.run:run",
        ("identity", "pool", "prefilter", "attribute", "attribution judge"),
        ("surface",),
    ),
    Phase(
        "patch",
        4,
        "datablame.patch.run:run",
        ("identity", "pool", "patch", "sampling", "judge", "attribute", "harmless"),
        ("surface", "attribute"),
        "datablame.report.run:after_patch",
    ),
    Phase(
        "report",
        3,
        "datablame.report.run:run",
        ("everything", "registration"),
        ("scan", "surface", "attribute", "patch"),
    ),
)
"""The five phases of a study. A phase's version grows when the same inputs give other artifacts."""


class PhaseState(NamedTuple):
    """Whether a phase is `done`, `stale` (its inputs changed), `begun` or `missing`."""

    name: str
    state: str


def open_run(root: Path, study: Study | None, *, resume: bool) -> Study:
    """The study of a run folder, which is made where there is none; it may hold a registration of the study before.

    Raises:
        RequestError: the folder holds another study, holds one already and `resume` is not set, or holds none.
    """
    path = root / "study.yaml"
    if not path.exists():
        if study is None:
            raise RequestError(f"{root} holds no study.yaml; datablame run STUDY --out {root} begins one")
        if root.exists() and any(path.name.removesuffix(".part") != FILE for path in root.iterdir()):
            raise RequestError(f"{root} holds files but no study.yaml; choose an empty folder with --out")
        return study
    held = load_study(str(path))
    if study is None:
        return held
    if held.name != study.name:
        raise RequestError(f"{root} holds the study {held.name}, not {study.name}; choose another --out")
    if not resume:
        raise RequestError(f"{root} holds a run of {held.name}; --resume continues it, --out names another folder")
    return study


def run_study(
    study: Study,
    root: Path,
    *,
    execution: Execution,
    progress: Progress,
    until: str | None = None,
    only: str | None = None,
    max_cost_usd: float | None = None,
) -> dict[str, bool]:
    """Bring a run folder up to date and return which phases were skipped for being so.

    Args:
        study: as written; an organism is made or taken from the cache first.
        root: the run folder.
        execution: how work items run; a begun phase keeps the thread count that it began with.
        progress: hears of every long step.
        until: the last phase to run.
        only: the single phase to run; those before it must be done.
        max_cost_usd: the most that this run and those that it resumes may pay for answers of a judge.

    Raises:
        RequestError: the study or its data cannot be used, `only` is not reachable, or the folder is locked.
        BudgetError: the next call to a judge might cost more than may be spent.
        PhaseError: a phase failed; what was finished stays.
    """
    if only is not None:
        for phase in PHASES:
            if phase.name in _before(only) and not _is_done(phase, study, root):
                raise RequestError(f"{only} needs {phase.name}, which is not done; datablame {phase.name} {root}")
    names = [phase.name for phase in PHASES]
    wanted = PHASES[: names.index(until) + 1 if until is not None else None]
    with locked(root):
        write_atomic(root / "study.yaml", dump_study(study))
        freeze(study, root)
        resolved = resolve(study, root, progress)
        check_brought(resolved)
        calibrate(resolved, Inputs(root, lambda what, key, seconds: None, "calibration", max_cost_usd))
        skipped: dict[str, bool] = {}
        models: dict[str, Any] | None = None
        for phase in wanted:
            if only not in (None, phase.name):
                continue
            skipped[phase.name] = _is_done(phase, study, root)
            try:
                if not skipped[phase.name]:
                    if models is None and phase.name not in _WITHOUT_MODELS:
                        resolved, models = _preflight(resolved, root, execution)
                    _run_phase(phase, study, resolved, root, execution, progress, max_cost_usd)
            finally:
                write_manifest(root, study, resolved, skipped, models)
        return skipped


def states(study: Study, root: Path) -> list[PhaseState]:
    """How far each phase of a run is."""
    found = []
    for phase in PHASES:
        folder = root / "artifacts" / phase.name
        if _is_done(phase, study, root):
            state = "done"
        elif (folder / "done.json").exists():
            state = "stale"
        else:
            state = "begun" if (folder / "begun.json").exists() else "missing"
        found.append(PhaseState(phase.name, state))
    return found


def _before(name: str) -> set[str]:
    phase = next(phase for phase in PHASES if phase.name == name)
    return set(phase.after).union(*(_before(earlier) for earlier in phase.after))


def resolve(study: Study, root: Path, progress: Progress) -> Study:
    """The study with what its organism brings: models, data, behaviours, prompts, truth and rules."""
    if study.organism is None:
        return study
    from datablame.organism.make import cached, study_fields

    began = time.monotonic()
    folder = cached(study.organism, progress)
    if (seconds := time.monotonic() - began) > 1:
        append_timing(root, "phase/organism", "made", seconds)
        append_peak(root, "phase/organism", peak_rss_mb())
    fields = study_fields(folder)
    if study.organism.recipe == "templated":
        # Too small for a graphics card to be of use, and so it has the same bytes on every machine of a kind.
        fields["models"]["device"] = "cpu"
    values = study.model_dump(mode="json", by_alias=True)
    judge = {**values["judge"], **fields.pop("judge", {})}
    return Study.model_validate({**values, **fields, "judge": judge, "organism": None})


def _preflight(study: Study, root: Path, execution: Execution) -> tuple[Study, dict[str, Any]]:
    """The study with its models pinned and their identity, after everything that can be refused early was looked at."""
    from datablame.models.preflight import preflight

    assert study.models is not None
    refs = {"before": study.models.before, "after": study.models.after}
    commits = {name: commit for name, ref in refs.items() if (commit := held_commit(ref, name, root)) is not None}
    return preflight(study, workers=execution.workers, commits=commits)


def _run_phase(
    phase: Phase,
    study: Study,
    resolved: Study,
    root: Path,
    execution: Execution,
    progress: Progress,
    max_cost_usd: float | None,
) -> None:
    out = root / "artifacts" / phase.name
    fingerprint = fingerprint_of(phase, study, root)
    begun = read_json(out / "begun.json") if (out / "begun.json").exists() else None
    if begun is None or begun["fingerprint"] != fingerprint:
        registered = begun_under(study, root, out) if phase.name == "patch" else None
        shutil.rmtree(out, ignore_errors=True)
        begun = {"fingerprint": fingerprint, "threads": execution.threads, "device": _device_of(resolved)}
        if registered is not None:
            write_json(root / BEGUN, registered)
        write_json(out / "begun.json", begun)
    resolved = _on_device(resolved, begun.get("device", "cpu"))
    workers = execution.workers if _device_of(resolved) == "cpu" else 1
    execution = Execution(workers, begun["threads"])
    begin_gpu_peak()
    inputs = Inputs(root, lambda what, key, seconds: append_timing(root, what, key, seconds), phase.name, max_cost_usd)
    began = time.monotonic()
    _load(phase.code)(resolved, inputs, out, execution, progress)
    if phase.deliver is not None:
        _load(phase.deliver)(resolved, inputs)
    outputs = {
        str(path.relative_to(root)): hash_file(path) for path in sorted(_outputs(phase, out, root)) if path.is_file()
    }
    append_timing(root, f"phase/{phase.name}", "ran", time.monotonic() - began)
    append_peak(root, f"phase/{phase.name}", peak_rss_mb())
    if (on_gpu := peak_gpu_mb()) > 0:
        append_peak(root, f"gpu/{phase.name}", on_gpu)
    free_memory()
    write_json(out / "done.json", {"fingerprint": fingerprint, "outputs": outputs})
    _sweep(out)


def _device_of(study: Study) -> str:
    return "cpu" if study.models is None or study.models.device == "auto" else study.models.device


def _on_device(study: Study, device: str) -> Study:
    """A begun phase goes on where it began: sums of floats depend on the device, and which documents are scored may."""
    study = study.model_copy(update={"prefilter": study.prefilter.on(device)})
    if study.models is None or study.models.device == device:
        return study
    return study.model_copy(update={"models": study.models.model_copy(update={"device": device})})


def _load(code: str) -> Callable[..., None]:
    module, _, name = code.partition(":")
    function: Callable[..., None] = getattr(importlib.import_module(module), name)
    return function


def _outputs(phase: Phase, out: Path, root: Path) -> list[Path]:
    scratch = {path for pattern in _SCRATCH for path in out.glob(pattern)}
    own = [p for p in out.rglob("*") if p.name != "done.json" and not scratch & {p, *p.parents}]
    if phase.name == "report":
        kept = {"run.lock", "timings.jsonl", "manifest.json", "study.yaml", FILE}
        own += [p for p in [*root.glob("*"), *root.glob("writeup/*")] if p.is_file() and p.name not in kept]
    return own


def _sweep(out: Path) -> None:
    """Drop journals and unfinished files: the tables hold what they held."""
    for pattern in _SCRATCH:
        for path in out.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_done(phase: Phase, study: Study, root: Path) -> bool:
    out = root / "artifacts" / phase.name
    path = out / "done.json"
    if not path.exists() or not all((root / "artifacts" / name / "done.json").exists() for name in phase.after):
        return False
    done = read_json(path)
    if done["fingerprint"] != fingerprint_of(phase, study, root):
        return False
    changed = [
        name for name, sha in done["outputs"].items() if not (root / name).is_file() or hash_file(root / name) != sha
    ]
    if changed:
        _logger.warning("%s runs again: %s is missing or was changed", phase.name, changed[0])
        path.unlink()
        return False
    _sweep(out)
    return True
