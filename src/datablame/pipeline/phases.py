"""The phases of a study in their order, and how far a run is: looking changes nothing and may go on beside a run."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from datablame.attribute.phase import ATTRIBUTE
from datablame.config.file import load_study
from datablame.config.organism import Organism
from datablame.config.schema import Study
from datablame.engine.files import changes, json_object
from datablame.engine.phase import Phase, State, reasons, state_of
from datablame.engine.run_folder import LOCK, MANIFEST, REGISTRATION, STUDY, TIMINGS
from datablame.errors import RequestError
from datablame.judge.choice import decide, has_key
from datablame.organism.make import cache_path, resolved
from datablame.patch.phase import PATCH
from datablame.report.phase import DELIVERABLES, deliver_patch, deliver_surface, report
from datablame.surface.phase import SCAN, SURFACE
from datablame.world import World
from datablame.world.identity import identities_now
from datablame.world.world import frozen_content, load, prompts_of

_REPORTED = ("everything", "presentation", "registration", "human labels")
REPORT = Phase("report", 6, _REPORTED, (SCAN, SURFACE, ATTRIBUTE, PATCH), report, delivers=DELIVERABLES, shows=True)
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
        if root.is_file():
            raise RequestError(f"{root} is a file; give a run folder, as datablame run STUDY --out makes it")
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


class Status(NamedTuple):
    """How far a run is, for its study and the models and files that it names as they are now."""

    states: dict[str, State]
    """Of the world and each phase."""
    why: dict[str, list[str]]
    """What has changed, of each that is stale."""
    absent: list[str]
    """Fields whose models or files are not on this machine; they are taken to be what they were."""
    world: World | None
    """What the phases would rest on; None before there is one."""


def status(study: Study, root: Path) -> Status:
    """Look how far a run is; nothing is written and no model loaded.

    Raises RequestError where a file that says so is torn, or another version wrote the folder.
    """
    content = frozen_content(root)
    if content is None:
        return Status(dict.fromkeys(("world", *NAMES), "missing"), {}, [], None)
    frozen, requested = load(root), Study.model_validate(content["requested"])
    if study.organism is not None and not _is_made_of(requested, study.organism):
        if not (folder := cache_path(study.organism)).exists():
            return _of_another_organism(frozen, study.organism)
        study = resolved(study, folder)
    if study.judge.rules is None:
        study = study.model_copy(update={"judge": study.judge.model_copy(update={"rules": requested.judge.rules})})
    names = set(Study.model_fields) - {"organism"}
    if study.organism is not None:
        names -= {"models", "data", "behaviours", "prompts", "truth"}
    current = requested.model_copy(update={name: getattr(study, name) for name in names})
    world, absent = _as_requested(frozen, requested, current, content["decided"]["judge"])
    then, now = (each.part("everything") for each in (frozen, world))
    why = {"world": [change.sentence() for change in changes(then, now)]}
    states: dict[str, State] = {"world": "stale" if why["world"] else "done"}
    for phase in PHASES:
        states[phase.name] = state_of(phase, world)
        why[phase.name] = reasons(phase, world) if states[phase.name] == "stale" else []
    return Status(states, {name: sentences for name, sentences in why.items() if sentences}, absent, world)


def _is_made_of(requested: Study, recipe: Organism) -> bool:
    """Whether a study's checkpoints are those of the organism, wherever the cache was."""
    assert requested.models is not None
    return Path(requested.models.before.path).parent.name == cache_path(recipe).name


def _of_another_organism(frozen: World, recipe: Organism) -> Status:
    """What a run is worth whose study now has an organism that is not made: nothing of it is up to date."""
    then = {"organism": json_object(frozen.root / MANIFEST).get("organism") or "another"}
    why = [change.sentence() for change in changes(then, {"organism": recipe.model_dump(mode="json")})]
    states: dict[str, State] = {"world": "stale"}
    states |= {phase.name: "stale" if (s := state_of(phase, frozen)) == "done" else s for phase in PHASES}
    return Status(states, {name: why for name, state in states.items() if state == "stale"}, [], None)


def _as_requested(world: World, requested: Study, current: Study, decided: Any) -> tuple[World, list[str]]:
    """The frozen world with what the study says otherwise by now, and what of it is not on this machine.

    What was decided about the rest stays.
    """
    changed = {name: value for name, value in dict(current).items() if value != getattr(requested, name)}
    same = [name for name in ("data",) if name not in changed]
    if "models" in changed:
        settled = {}
        for name in ("before", "after", "checkpoints", "device", "date"):
            if getattr(current.models, name) == getattr(requested.models, name):
                settled[name] = getattr(world.models, name)
                same.append(f"models.{name}")
        changed["models"] = changed["models"].model_copy(update=settled)
    else:
        same += ["models.before", "models.after"]
    if "attribute" in changed:
        layers = ("layers", "activation_layer")
        settled = {
            name: getattr(world.study.attribute, name) for name in layers if getattr(current.attribute, name) is None
        }
        changed["attribute"] = changed["attribute"].model_copy(update=settled)
    study = world.study.model_copy(update=changed)
    study = study.model_copy(update={"prefilter": study.prefilter.on(world.models.device)})
    assert current.models is not None
    identities, absent = identities_now(study, current.models, world.identities, same)
    judge = decide(current, decided, has_key())
    return replace(world, study=study, prompts=prompts_of(current), judge=judge, identities=identities), absent
