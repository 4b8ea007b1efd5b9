"""What a phase's artifacts depend on, as one hash: equal hash, equal artifacts."""

from pathlib import Path
from typing import Any, NamedTuple

from datablame.engine.run_folder import digest, hash_file, read_json
from datablame.errors import PhaseError
from datablame.judge.calibration import FILE as CALIBRATION
from datablame.judge.choice import CLAUDE_FIELDS, choice_of, identity
from datablame.models.source import known_commit
from datablame.report.registration import FILE as REGISTRATION
from datablame.study.schema import ModelRef, Models, Study

_LATER = {
    "surface": ("cuda_graphs",),
    "attribute": ("encoder", "scores", "dtype", "projection"),
    "patch": ("micro_batch", "beta"),
}
"""Keys that are younger than some run folders: left out while they have their default, so that those stay up to date.
"""
_LATER_OF_MODELS = ("subfolder", "gguf_file", "attn_implementation")
_SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "plausibility", "batch_rows")


class Phase(NamedTuple):
    """One phase: where its code is, which parts of the study it reads, whose artifacts it reads."""

    name: str
    version: int
    code: str
    reads: tuple[str, ...]
    after: tuple[str, ...] = ()
    deliver: str | None = None


def fingerprint_of(phase: Phase, study: Study, root: Path) -> str:
    """What the phase's artifacts depend on: its version, its part of the study, and the artifacts that it reads."""
    upstream = {}
    for name in phase.after:
        path = root / "artifacts" / name / "done.json"
        if not path.exists():
            raise PhaseError(f"{phase.name} needs {name}, which is not done; run with --resume")
        upstream[name] = read_json(path)["outputs"]
    fingerprint: str = digest(
        {
            "phase": phase.name,
            "version": phase.version,
            "study": {part: value for part in phase.reads if (value := _part(part, study, root)) is not None},
            "upstream": upstream,
        }
    )
    return fingerprint


def _part(part: str, study: Study, root: Path) -> Any:
    """What a part of the study says; None where it plays no part in this study."""
    values: dict[str, Any] = study.model_dump(mode="json", by_alias=True)
    values["judge"], attribution_judge = _judges(study, root)
    for section, names in _LATER.items():
        for name in names:
            if name in values[section] and values[section][name] == _default(study, section, name):
                del values[section][name]
    # Where an index lies changes no score.
    del values["attribute"]["index"]
    prompts = values["prompts"]
    if prompts and prompts["harmless"] is None:
        del prompts["harmless"]
    if part == "attribution judge":
        return attribution_judge
    if part == "everything":
        calibration = None if study.judge.calibration is None else _contents(str(root / CALIBRATION))
        return values if calibration is None else {**values, "calibration": calibration}
    if part == "registration":
        return _contents(str(root / REGISTRATION))
    if part == "identity":
        keys = ("seed", "behaviours", "truth")
        models, organism = _models_identity(study, root), _organism_identity(study)
        asked = {"prompts": prompts and {split: prompts[split] for split in ("attribution", "held_out")}}
        return {**{key: values[key] for key in keys}, **asked, "models": models, "organism": organism}
    if part == "harmless":
        return (prompts or {}).get("harmless")
    if part == "sampling":
        return {key: values["surface"][key] for key in _SAMPLING}
    if part == "pool":
        return _pool_identity(study)
    if part == "judge" and study.judge.rules is not None:
        return {**values["judge"], "contents": _contents(study.judge.rules)}
    if part == "attribute":
        brought = {name: _contents(path) for name, path in study.attribute.scores.items()}
        told = {**values["attribute"], **({"scores contents": brought} if brought else {})}
        return told if study.truth is None else {**told, "truth": _contents(study.truth)}
    return values[part]


def _default(study: Study, section: str, name: str) -> Any:
    return type(getattr(study, section)).model_fields[name].default


def _judges(study: Study, root: Path) -> tuple[dict[str, Any], Any]:
    """Who labels and who blames. How fast, by which way and at what price Claude is asked changes no answer.

    Nor does what people say of the answers: a calibration corrects rates in the report and runs nothing again.
    """
    choice = choice_of(study, root)
    labels, scores = identity(study, choice)
    judge = study.judge.model_dump(mode="json", exclude={"calibration"})
    others = {key: value for key, value in judge.items() if key not in CLAUDE_FIELDS}
    return (others if labels is None else {**others, "classifier": "claude", "claude": labels}), scores


def _pool_identity(study: Study) -> Any:
    """What the study says of the data, streaming aside, and the names and contents of its files where they are here."""
    if study.data is None:
        return None
    from datablame.world.rows import pool_files

    folder = Path(study.data.path).expanduser()
    contents = [
        [str(file.relative_to(folder)) if folder.is_dir() else file.name, hash_file(file)]
        for file in pool_files(study.data.path)
    ]
    return [study.data.model_dump(mode="json", exclude={"streaming"}), contents]


def _contents(path: str | None) -> str | None:
    return hash_file(Path(path)) if path is not None and Path(path).is_file() else None


def _organism_identity(study: Study) -> Any:
    if study.organism is None:
        return None
    from datablame.organism.make import identity

    return identity(study.organism)


def _models_identity(study: Study, root: Path) -> Any:
    if study.models is None:
        return None
    found = [_model_identity(study.models, name, root) for name in ("before", "after")]
    template = study.models.chat_template
    return found if template is None else [*found, [template, _contents(template)]]


def _model_identity(models: Models, name: str, root: Path) -> list[Any]:
    """The reference with, for a local checkpoint, its files' names, sizes and times; for the hub's, the known commit.

    On which device a model runs is no part of it, as threads are not.
    """
    ref: ModelRef = getattr(models, name)
    told = ref.model_dump(mode="json", exclude={"device_map"})
    told = {key: value for key, value in told.items() if value is not None or key not in _LATER_OF_MODELS}
    place = Path(ref.path)
    folder = place / ref.subfolder if ref.subfolder else place
    files = sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
    files = [place] if place.is_file() else files
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    commit = None if stats else held_commit(ref, name, root) or known_commit(ref)
    return [told, stats] if commit is None else [told, stats, commit]


def held_commit(ref: ModelRef, name: str, root: Path) -> str | None:
    """The commit that the run folder's models were loaded from; a branch that has moved on since is not followed."""
    path = root / "manifest.json"
    models = read_json(path)["models"] if path.exists() else None
    held = (models or {}).get(name, {})
    same = all(held.get(key) == getattr(ref, key) for key in ("path", "revision", "subfolder"))
    return str(held["commit"]) if same and "commit" in held else None
