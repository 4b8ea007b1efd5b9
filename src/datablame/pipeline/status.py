"""How far a run is: only looks, so that it may run beside a run."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from datablame.engine.files import json_object
from datablame.engine.run_folder import LOCK, MANIFEST, REGISTRATION, STUDY, TIMINGS
from datablame.engine.run_phase import State, state_of
from datablame.errors import RequestError
from datablame.pipeline.phases import PHASES
from datablame.study.file import load_study
from datablame.study.schema import Study
from datablame.world import World
from datablame.world.stored import FORMAT, load_world

_WORLD = Path("artifacts", "world", "world.json")


class PhaseState(NamedTuple):
    """How far the world or a phase is."""

    name: str
    state: State


def open_run(root: Path, study: Study | None, *, resume: bool) -> Study:
    """The study of a run folder, which is made where there is none; it may hold a registration of the study before.

    Raises:
        RequestError: the folder is older than this version, holds another study, holds one already and `resume` is not
            set, or holds none.
    """
    path = root / STUDY
    if not path.exists():
        if study is None:
            raise RequestError(f"{root} holds no study.yaml; datablame run STUDY --out {root} begins one")
        if not _may_begin(root):
            raise RequestError(f"{root} holds files but no study.yaml; choose an empty folder with --out")
        return study
    _check_format(root)
    held = load_study(str(path))
    if study is None:
        return held
    if held.name != study.name:
        raise RequestError(f"{root} holds the study {held.name}, not {study.name}; choose another --out")
    if not resume:
        raise RequestError(f"{root} holds a run of {held.name}; --resume continues it, --out names another folder")
    return study


def states(study: Study, root: Path) -> list[PhaseState]:
    """How far the world and each phase of a run are."""
    world = load_world(root)
    if world is None:
        return [PhaseState(name, "missing") for name in ("world", *(phase.name for phase in PHASES))]
    asked = _asked(world, study)
    phases = [PhaseState(phase.name, state_of(phase, asked)) for phase in PHASES]
    return [PhaseState("world", "done" if asked.study == world.study else "stale"), *phases]


def _asked(world: World, study: Study) -> World:
    """The world as it will be once it is frozen for this study: what the study itself says, with nothing looked up."""
    kept = {"organism", "models", "data", "truth"}
    if study.organism is not None:
        kept |= {"behaviours", "prompts"}
    updates = {name: getattr(study, name) for name in Study.model_fields if name not in kept}
    updates["prefilter"] = study.prefilter.on(world.models.device)
    updates["judge"] = study.judge.model_copy(update={"rules": study.judge.rules or world.study.judge.rules})
    return replace(world, study=world.study.model_copy(update=updates))


def _may_begin(root: Path) -> bool:
    """Whether a run may begin in a folder: it holds a registration at most, or what a killed start has left."""
    names = {entry.name.removesuffix(".part") for entry in root.iterdir()} if root.exists() else set()
    begun = {TIMINGS, STUDY, "artifacts"} if LOCK in names else set()
    return names <= {LOCK, REGISTRATION, *begun}


def _check_format(root: Path) -> None:
    """Raises RequestError where another version of datablame has written the run folder."""
    if not (root / "artifacts").exists() or json_object(root / _WORLD).get("format") == FORMAT:
        return
    version = json_object(root / MANIFEST).get("versions", {}).get("datablame", "another version")
    raise RequestError(
        f"{root} was written by datablame {version}, whose run folders this version does not read; "
        "datablame run STUDY --out NEW starts over"
    )
