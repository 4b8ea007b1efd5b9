"""Bring a run folder up to date: what is current is skipped, what depends on a change runs again, the rest resumes."""

import contextlib
import math
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from datablame import __version__
from datablame.config.file import dump_study
from datablame.config.schema import Study
from datablame.engine import run_folder, workers
from datablame.engine.execute import Execution, Progress, Told
from datablame.engine.files import Change, changes, json_object, own_object, write_atomic, write_json
from datablame.engine.phase import Phase, Work, bring_up_to_date, left_by
from datablame.engine.usage import peak_rss_mb
from datablame.errors import RequestError, problem
from datablame.judge.asking import costs_usd
from datablame.judge.calibration import calibrate
from datablame.organism.make import cache_path, cached, resolved
from datablame.patch.phase import PATCH
from datablame.pipeline.checks import check_names, check_recipe, check_study_files, check_world
from datablame.pipeline.phases import NAMES, PHASES, REPORT, status
from datablame.pipeline.track import check_tracker, tracked
from datablame.world import World
from datablame.world.freeze import check_unchanged, ensure_pool, freeze, preview
from datablame.world.registration import BEGUN, departures, described

_PACKAGES = (
    *("datablame", "torch", "transformers", "tokenizers", "peft", "datasets", "safetensors"),
    *("scikit-learn", "numpy", "scipy", "pyarrow", "matplotlib", "anthropic"),
)


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

    The study is as it was written; an organism is made or taken from the cache first. `until` is the last phase to run,
    `only` the single one, before which all must be done. A begun phase keeps the thread count that it began with. For
    answers of a judge this run and those that it resumes pay `max_cost_usd` at most. The report alone needs neither
    models nor data: where they are not here, they are taken to be what they were.

    Raises:
        RequestError: the study or its data cannot be used, `only` is not reachable, or the folder is locked.
        BudgetError: the next call to a judge might cost more than may be spent.
        PhaseError: a phase failed; what was finished stays.
    """
    check_names(study)
    check_tracker(study)
    if max_cost_usd is not None and not 0 <= max_cost_usd < math.inf:
        raise RequestError(problem("pipeline", "no amount", cost=max_cost_usd))
    held, absent = None, list[str]()
    if only is not None:
        states, why, absent, held = status(study, root)
        for earlier in NAMES[: NAMES.index(only)]:
            if states[earlier] != "done":
                because = f" ({'; '.join(why[earlier])})" if earlier in why else ""
                values = {"phase": only, "earlier": earlier, "because": because, "root": root}
                raise RequestError(problem("pipeline", "too early", **values))
    last = NAMES.index(until) + 1 if until else None
    phases = [phase for phase in PHASES[:last] if only in (None, phase.name)]
    with run_folder.locked(root) as tell, tracked(study, Told(progress, tell)) as tracker:
        if execution.in_workers:
            workers.prepare(execution)
        if held is not None and only == REPORT.name:
            world = held
        else:
            world = frozen(study, root, execution=execution, progress=tracker, max_cost_usd=max_cost_usd)
        write_atomic(root / run_folder.STUDY, dump_study(study))
        for change in _other_versions(root):
            tracker.note(f"warning: {change.sentence()}; what is done stays as it was made, and manifest.json has both")
        registered = own_object(root / run_folder.REGISTRATION, "choose a new folder with --out")
        if registered and PATCH.name in {phase.name for phase in phases} and not left_by(PATCH, root):
            for departure in departures(registered, described(world)):
                tracker.note(f"warning: not as pre-registered: {departure.sentence()}")
        if only != REPORT.name or "judge.calibration" not in absent:
            # A calibration's seconds stand in no file.
            out = root / "artifacts" / "world"
            work = Work(root, "calibration", out, execution, tracker, lambda *_: None, max_cost_usd)
            calibrate(world.study, world.judge, work)
        skipped: dict[str, bool] = {}

        def before(phase: Phase, new: bool) -> None:
            if phase.name != REPORT.name:
                check_unchanged(world)
            if "pool" in phase.parts:
                ensure_pool(world, execution=execution, progress=tracker)
            if new and phase.name == PATCH.name:
                note_registration(world)

        try:
            bring_up_to_date(
                world,
                phases,
                execution=execution,
                progress=tracker,
                max_cost_usd=max_cost_usd,
                before=before,
                reached=lambda phase, was_skipped: skipped.__setitem__(phase.name, was_skipped),
                finished=lambda phase: tracker.phase_done(phase.name, root),
            )
        finally:
            write_manifest(root, study, world, skipped)
    return skipped


def frozen(
    study: Study, root: Path, *, execution: Execution, progress: Progress, max_cost_usd: float | None = None
) -> World:
    """The world of a study, its organism made or taken from the cache first.

    Raises:
        RequestError: as `check_recipe`, `check_study_files`, `check_world` and `world.freeze`; nothing is written then.
    """
    work = Work(root, "world", root / "artifacts" / "world", execution, progress, lambda *_: None, max_cost_usd)
    if study.organism is not None:
        if not cache_path(study.organism).exists():
            check_recipe(study, work)
        began = time.monotonic()
        folder = cached(study.organism, progress)
        if (seconds := time.monotonic() - began) > 1:
            run_folder.append_timing(root, "phase/organism", "made", seconds)
            run_folder.append_peak(root, "phase/organism", peak_rss_mb())
        study = resolved(study, folder)
    check_study_files(study)
    check_world(preview(study, root), work)
    began = time.monotonic()
    world = freeze(study, root, execution=execution, progress=progress)
    run_folder.append_timing(root, "phase/world", "froze", time.monotonic() - began)
    run_folder.append_peak(root, "phase/world", peak_rss_mb())
    return world


def note_registration(world: World) -> None:
    """Before patching leaves anything, write down under which registration and in which world it begins.

    The first start decides: a registration that turns up when the phase has left something already is none.
    """
    path, registered = world.root / BEGUN, json_object(world.root / run_folder.REGISTRATION)
    if path.exists():
        sha256 = json_object(path).get("sha256")
    elif registered:
        sha256 = None if left_by(PATCH, world.root) else registered.get("sha256")
    else:
        return
    write_json(path, {"sha256": sha256, "datablame": __version__, "world": described(world)})


def _versions() -> dict[str, str]:
    """Of Python and the packages that results hang on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _other_versions(root: Path) -> tuple[Change, ...]:
    """Versions that are others now than where this run was last."""
    last = json_object(root / run_folder.MANIFEST).get("versions")
    return changes(last, _versions(), "versions") if isinstance(last, dict) else ()


def _earlier_versions(root: Path) -> dict[str, list[str]]:
    """Other versions with which something of a run was made, by package, the oldest first."""
    before = json_object(root / run_folder.MANIFEST).get("earlier_versions")
    earlier: dict[str, list[str]] = dict(before) if isinstance(before, dict) else {}
    for change in _other_versions(root):
        name = change.field.removeprefix("versions.")
        earlier[name] = [*dict.fromkeys([*earlier.get(name, []), *filter(None, [change.then])])]
    return earlier


def write_manifest(root: Path, study: Study, world: World, skipped: Mapping[str, bool]) -> None:
    """Write versions, identities, seeds, and what each phase and method took (summed over resumes).

    `study` is as it was written, `skipped` says of every phase that was asked for whether it was up to date.
    """
    timings, peaks, costs = run_folder.read_timings(root), run_folder.read_peaks(root), costs_usd(root)

    def took(name: str, **more: object) -> dict[str, object]:
        return {
            "seconds": round(timings.get(f"phase/{name}", 0.0), 1),
            "peak_rss_mb": round(peaks.get(f"phase/{name}", 0.0)),
            "peak_gpu_mb": round(peaks.get(f"gpu/{name}", 0.0)),
            **more,
        }

    phases = {"world": took("world")}
    for name in (name for name in NAMES if name in skipped or f"phase/{name}" in timings):
        phases[name] = took(name, skipped=skipped.get(name, True), cost_usd=round(costs.get(name, 0.0), 6))
    if study.organism is not None:
        phases["organism"] = took("organism", skipped="phase/organism" not in timings)
    methods = {name: timings.get(f"attribute/{name}") for name in study.attribute.methods}
    write_json(
        root / run_folder.MANIFEST,
        {
            "study": study.name,
            "versions": _versions(),
            "earlier_versions": _earlier_versions(root),
            "machine": {"system": platform.system(), "processor": platform.machine(), "device": world.models.device},
            "organism": None if study.organism is None else study.organism.model_dump(mode="json"),
            **world.identities,
            "seed": study.seed,
            "phases": phases,
            "methods": {name: {"seconds": round(t, 1)} for name, t in methods.items() if t is not None},
            "cost_usd": round(sum(costs.values()), 6),
        },
    )
