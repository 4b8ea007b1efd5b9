"""What models, data and files are, by content: one identity for fingerprints, manifest, registration and caches.

No time stamp, no path of this machine: equal contents are equal everywhere. Nobody is asked, and nothing is loaded.
"""

import functools
import hashlib
import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datablame.config.schema import Data, ModelRef, Models, Study
from datablame.engine.files import digest, hash_file, read_json
from datablame.models.source import ADAPTER_CONFIG, known_commit
from datablame.models.weight_files import weights_hash
from datablame.world.refusals import refused
from datablame.world.sources import COMMIT, pool_files

_SETTINGS = (".json", ".jinja", ".model", ".txt")
"""Files beside the weights that decide what a checkpoint says: configuration, tokenizer, chat template."""
_ENCODER = "attribute.encoder"
_SAMPLES, _SAMPLE_BYTES = 4096, 4096


def models_identity(models: Models, written: Models) -> dict[str, Any]:
    """Both checkpoints: the hub's commit, else hashes of weights and settings; None where a folder has no weights.

    `written` are the same as the study writes them: a GGUF file that was converted counts too. Raises RequestError
    where safetensors are damaged.
    """
    identities = {}
    for name in ("before", "after"):
        reference, file = getattr(models, name), _place(getattr(written, name))
        identity = reference.model_dump(mode="json", include={"dtype", "attn_implementation"})
        if file.is_file():
            identity["gguf_sha256"] = _sampled(file)
        folder = _place(reference)
        if not Path(reference.path).expanduser().exists():
            commit = reference.revision if COMMIT.fullmatch(reference.revision or "") else known_commit(reference)
            names = reference.model_dump(mode="json", include={"subfolder", "gguf_file"}, exclude_none=True)
            identity |= {"repository": reference.path, **names, "commit": commit}
        elif not folder.is_file():
            try:
                identity |= _folder_identity(folder)
            except (OSError, ValueError, KeyError) as error:
                raise refused("damaged", name=name, path=reference.path, error=error) from error
        identities[name] = identity
    return identities


def data_identity(data: Data) -> dict[str, Any]:
    """What the study says of the data, and the contents of its files by name, or the hub dataset's commit."""
    settings = data.model_dump(mode="json", exclude={"streaming", "path", "revision"})
    files = pool_files(data.path)
    if not files:
        return {"data": settings, "dataset": data.path, "commit": data.revision}
    here = Path(data.path).expanduser()
    base = here if here.is_dir() else Path(os.path.commonpath([file.parent for file in files]))
    return {"data": settings, "files": {file.relative_to(base).as_posix(): hash_file(file) for file in files}}


def files_identity(study: Study) -> dict[str, str]:
    """The hashes of the other files that a study names, by field; of a sentence encoder, that of its folder."""
    paths = _paths(study)
    hashes = {field: hash_file(path) for field, path in paths.items() if path.is_file()}
    if _ENCODER in paths and paths[_ENCODER].is_dir():
        hashes[_ENCODER] = digest(_folder_identity(paths[_ENCODER]))
    return hashes


def portable(study: Study, identities: Mapping[str, Any]) -> dict[str, Any]:
    """The study as JSON with every path replaced by the hash of what it names; models and data are their identities."""
    values: dict[str, Any] = study.model_dump(mode="json", by_alias=True)
    values |= {"models": identities["models"], "data": identities["data"]}
    del values["attribute"]["index"]  # Where projections are kept changes no score.
    for field in _paths(study).keys() - {"models.chat_template"}:
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
        "models.chat_template": study.models.chat_template if study.models is not None else None,
        **{f"attribute.scores.{name}": path for name, path in study.attribute.scores.items()},
    }
    return {field: Path(path).expanduser() for field, path in fields.items() if path is not None}


def _place(reference: ModelRef) -> Path:
    """The checkpoint's folder or GGUF file, if it is here."""
    return Path(reference.path).expanduser() / (reference.subfolder or "") / (reference.gguf_file or "")


def _folder_identity(folder: Path) -> dict[str, Any]:
    """A checkpoint's folder; an adapter's base is a part of it."""
    settings = {file.name: hash_file(file) for file in sorted(folder.glob("*")) if file.suffix in _SETTINGS}
    identity = {"weights_sha256": weights_hash(folder), "settings_sha256": digest(settings)}
    if not (folder / ADAPTER_CONFIG).is_file():
        return identity
    base = Path(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "").expanduser()
    return {**identity, "base": _folder_identity(base)} if base.is_dir() and base != Path() else identity


def _sampled(file: Path) -> str:
    """A hash of a large file's size and of 4096 pieces spread over it: training changes weights everywhere."""
    size = file.stat().st_size
    sha = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        for start in range(0, size, max(_SAMPLE_BYTES, size // _SAMPLES)):
            stream.seek(start)
            sha.update(stream.read(_SAMPLE_BYTES))
    return sha.hexdigest()
