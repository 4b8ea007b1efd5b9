"""What models, data and files are, by content: one identity for fingerprints, manifest, registration and caches.

No time stamp, no path of this machine: equal contents are equal everywhere. Nobody is asked, and nothing is loaded.
"""

import functools
import hashlib
import operator
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from datablame.config.schema import PRESENTATION, Data, ModelRef, Models, Study
from datablame.engine.files import digest, hash_file, read_json
from datablame.models.source import ADAPTER_CONFIG, SETTINGS, known_commit
from datablame.models.weight_files import weights_hash
from datablame.world.refusals import refused
from datablame.world.sources import COMMIT, READ, pool_files

_SETTINGS = (
    *(*SETTINGS, "[!.]*.model", "[!.]*.tiktoken"),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "[0-9]_*/*.*"),
)
"""Files that decide what a checkpoint or a sentence encoder says beside its weights; others in its folder don't."""
_BASE = "base_model_name_or_path"
_ENCODER, _TEMPLATE, _OPTIMIZER = "attribute.encoder", "models.chat_template", "models.optimizer"
_TRAJECTORY = ("models.checkpoints.", "models.optimizer")
_SAMPLES, _SAMPLE_BYTES = 4096, 4096


def models_identity(models: Models, written: Models) -> dict[str, Any]:
    """Both checkpoints: the hub's commit, else hashes of weights and settings; None where a folder has no weights.

    `written` are the same as the study writes them: a GGUF file that was converted counts too. Raises RequestError
    where safetensors are damaged.
    """
    return {name: _model_identity(name, getattr(models, name), getattr(written, name)) for name in ("before", "after")}


def _model_identity(name: str, reference: ModelRef, written: ModelRef) -> dict[str, Any]:
    file, folder = _place(written), _place(reference)
    identity: dict[str, Any] = reference.model_dump(mode="json", include={"dtype", "attn_implementation"})
    if file.is_file():
        identity["gguf_sha256"] = _sampled(file)
    if not Path(reference.path).expanduser().exists():
        commit = reference.revision if COMMIT.fullmatch(reference.revision or "") else known_commit(reference)
        names = reference.model_dump(mode="json", include={"subfolder", "gguf_file"}, exclude_none=True)
        identity |= {"repository": reference.path, **names, "commit": commit}
    elif not folder.is_file():
        try:
            identity |= _folder_identity(folder)
        except (OSError, ValueError, KeyError) as error:
            raise refused("damaged", name=name, path=reference.path, error=error) from error
    return identity


def identities_now(
    study: Study, written: Models, held: Mapping[str, Any], same: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """The identities of what a study names as it is now, and the fields whose models or files are not here any more.

    What is not here, and under a key that is the `same`, keeps the identity that was `held`: a run folder can be looked
    at and reported where neither its models nor its data are. `written` are the models as the study writes them.
    """
    absent, models = [], dict(held["models"])
    assert study.models is not None
    assert study.data is not None
    for name in ("before", "after"):
        reference, source, field = getattr(study.models, name), getattr(written, name), f"models.{name}"
        if all(Path(each.path).expanduser().exists() for each in (reference, source)) or field not in same:
            identity = _model_identity(name, reference, source)
            # What `auto` stands for is known when the model is looked at.
            dtype = models[name]["dtype"] if reference.dtype == "auto" else reference.dtype
            models[name] = {**identity, "dtype": dtype}
        elif "repository" not in models[name]:
            absent.append(field)
    data = held["data"]
    if pool_files(study.data.path) or "data" not in same:
        data = data_identity(study.data)
    elif "dataset" not in data:
        absent.append("data")
    files, before = files_identity(study), held["files"]
    for field in _paths(study):
        if field not in files and field in before:
            files[field] = before[field]
            absent.append(field)
    if (template := files.get(_TEMPLATE)) != before.get(_TEMPLATE):
        models["chat_template_sha256"] = template
    return {"models": models, "data": data, "files": files}, absent


def data_identity(data: Data) -> dict[str, Any]:
    """What the study says of the data, and the contents of its file, of its files by name, or the hub's commit."""
    settings = data.model_dump(mode="json", exclude={"streaming", "path", "revision"})
    files = pool_files(data.path)
    if not files:
        return {"data": settings, "dataset": data.path, "commit": data.revision}
    if (here := Path(data.path).expanduser()).is_file():
        return {"data": settings, "sha256": hash_file(here)}
    if here.is_dir():  # README.md may say which files belong to a split.
        base, files = here, [file for file in files if file.name.lower().endswith((*READ, "readme.md"))]
    else:
        base = Path(os.path.commonpath([file.parent for file in files]))
    return {"data": settings, "files": {file.relative_to(base).as_posix(): hash_file(file) for file in files}}


def files_identity(study: Study) -> dict[str, str]:
    """The hashes of the other files that a study names, by field; of an encoder or a checkpoint, that of its folder.

    Of a checkpoint at the hub it is that of its commit. Raises RequestError where safetensors are damaged.
    """
    paths = _paths(study)
    others = {field: path for field, path in paths.items() if not field.startswith(_TRAJECTORY)}
    hashes = {field: hash_file(path) for field, path in others.items() if path.is_file()}
    if _OPTIMIZER in paths and paths[_OPTIMIZER].is_file():
        hashes[_OPTIMIZER] = _sampled(paths[_OPTIMIZER])
    for number, reference in enumerate(study.models.checkpoints if study.models is not None else ()):
        identity = _model_identity(f"checkpoints.{number}", reference, reference)
        if "repository" not in identity or identity["commit"] is not None:
            hashes[f"models.checkpoints.{number}"] = digest({**identity, "learning_rate": reference.learning_rate})
    if _ENCODER in paths and paths[_ENCODER].is_dir():
        hashes[_ENCODER] = digest(_folder_identity(paths[_ENCODER]))
    return hashes


def trajectory(files: Mapping[str, str]) -> dict[str, str]:
    """Of the hashes of files those of what else the training left: intermediate checkpoints, the optimiser's state."""
    return {field: value for field, value in files.items() if field.startswith(_TRAJECTORY)}


def portable(study: Study, identities: Mapping[str, Any]) -> dict[str, Any]:
    """The study as JSON with every path replaced by the hash of what it names; models and data are their identities."""
    values: dict[str, Any] = study.model_dump(mode="json", by_alias=True, exclude=set(PRESENTATION))
    values |= {"models": identities["models"], "data": identities["data"]}
    del values["attribute"]["index"]  # Where projections are kept changes no score.
    for field in (field for field in _paths(study) if not field.startswith("models.")):
        *sections, name = field.split(".", 2)
        section = functools.reduce(operator.getitem, sections, values)
        # A sentence encoder may be one at the hub.
        section[name] = identities["files"].get(field, section[name] if field == _ENCODER else None)
    return values


def _paths(study: Study) -> dict[str, Path]:
    fields = {
        "judge.rules": study.judge.rules,
        "judge.calibration": study.judge.calibration,
        "truth": study.truth,
        _ENCODER: study.attribute.encoder,
        **{f"attribute.scores.{name}": path for name, path in study.attribute.scores.items()},
    }
    if study.models is not None:
        fields |= {_TEMPLATE: study.models.chat_template, _OPTIMIZER: study.models.optimizer}
        fields |= {f"models.checkpoints.{i}": each.path for i, each in enumerate(study.models.checkpoints)}
    return {field: Path(path).expanduser() for field, path in fields.items() if path is not None}


def _place(reference: ModelRef) -> Path:
    """The checkpoint's folder or GGUF file, if it is here."""
    return Path(reference.path).expanduser() / (reference.subfolder or "") / (reference.gguf_file or "")


def _folder_identity(folder: Path) -> dict[str, Any]:
    """A checkpoint's folder; an adapter's base is a part of it, and where that lies is not."""
    paths = sorted(path for pattern in _SETTINGS for path in folder.glob(pattern) if path.is_file())
    settings = {path.relative_to(folder).as_posix(): hash_file(path) for path in paths}
    identity: dict[str, Any] = {"weights_sha256": weights_hash(folder), "settings": settings}
    if ADAPTER_CONFIG not in settings:
        return identity
    adapter = read_json(folder / ADAPTER_CONFIG)
    base = Path(adapter.pop(_BASE, None) or "").expanduser()
    if base == Path() or not base.is_dir():
        return identity
    settings[ADAPTER_CONFIG] = digest(adapter)
    return {**identity, "base": _folder_identity(base)}


def _sampled(file: Path) -> str:
    """A hash of a large file's size and of 4096 pieces spread over it: training changes weights everywhere."""
    size = file.stat().st_size
    sha = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        for start in range(0, size, max(_SAMPLE_BYTES, size // _SAMPLES)):
            stream.seek(start)
            sha.update(stream.read(_SAMPLE_BYTES))
    return sha.hexdigest()
