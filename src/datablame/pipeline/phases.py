"""The phases of a study in their order, and how far a run is: looking changes nothing and may go on beside a run."""

from dataclasses import replace
from pathlib import Path

from datablame.attribute.phase import ATTRIBUTE
from datablame.config.file import load_study
from datablame.config.schema import Study
from datablame.engine.phase import Phase, State, state_of
from datablame.engine.run_folder import LOCK, REGISTRATION, STUDY, TIMINGS
from datablame.errors import RequestError
from datablame.patch.phase import PATCH
from datablame.report.phase import deliver_patch, deliver_surface, report
from datablame.surface.phase import SCAN, SURFACE
from datablame.world.world import frozen_content, load

REPORT = Phase("report", 5, ("everything", "registration"), (SCAN, SURFACE, ATTRIBUTE, PATCH), report, delivers=True)
PHASES = (SCAN, replace(SURFACE, deliver=deliver_surface), ATTRIBUTE, replace(PATCH, deliver=deliver_patch), REPORT)
NAMES = tuple(phase.name for phase in PHASES)


def open_run(root: Path, study: Study | None, *, resume: bool) -> Study:
    """The study of a run folder, which is made where there is none; it may hold a registration of the study before.

    Raises:
        RequestError: another version wrote the folder, it holds another study, holds one already and `resume` is not
            set, or holds none.
    """
    path = root / STUDY
    if not path.exists():
        if study is None:
            raise RequestError(f"{root} holds no study.yaml; datablame run STUDY --out {root} begins one")
        # It may hold a registration, or what a killed start has left.
        names = {entry.name.removesuffix(".part") for entry in root.iterdir()} if root.exists() else set()
        if not names <= {LOCK, REGISTRATION, *((TIMINGS, STUDY, "artifacts") if LOCK in names else ())}:
            raise RequestError(f"{root} holds files but no study.yaml; choose an empty folder with --out")
        return study
    frozen_content(root)  # Refuses a folder that another version wrote, whose keys may be no longer known.
    held = load_study(str(path))
    if study is None:
        return held
    if held.name != study.name:
        raise RequestError(f"{root} holds the study {held.name}, not {study.name}; choose another --out")
    if not resume:
        raise RequestError(f"{root} holds a run of {held.name}; --resume continues it, --out names another folder")
    return study


def states(study: Study, root: Path) -> dict[str, State]:
    """How far the world and each phase of a run are, for this study; what it names is not read again."""
    content = frozen_content(root)
    if content is None:
        return dict.fromkeys(("world", *NAMES), "missing")
    world, frozen = load(root), Study.model_validate(content["requested"])
    if study.judge.rules is None:
        study = study.model_copy(update={"judge": study.judge.model_copy(update={"rules": frozen.judge.rules})})
    names = set(Study.model_fields) - {"organism"}
    if study.organism is not None:
        names -= {"models", "data", "behaviours", "prompts", "truth"}
    changed = {name: getattr(study, name) for name in names if getattr(study, name) != getattr(frozen, name)}
    # What was decided about the rest stays; models and data are known by content, which nobody has looked at yet.
    world = replace(world, study=world.study.model_copy(update=changed))
    return {"world": "stale" if changed else "done", **{phase.name: state_of(phase, world) for phase in PHASES}}
