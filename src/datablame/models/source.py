"""Where a checkpoint's files are: a folder, the hub or its local cache, a converted GGUF file."""

import functools
import hashlib
import json
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from datablame.config.schema import ModelRef
from datablame.engine.files import digest
from datablame.errors import RequestError
from datablame.models.hub_errors import hub_problem

ADAPTER_CONFIG = "adapter_config.json"
_CONFIG = "config.json"
_COMMIT = re.compile(r"snapshots/([0-9a-f]{40})(?:/|$)")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_CONNECT_SECONDS = 3
_HASHED_BYTES = 4096
"""Of each tensor, from its beginning: training changes them, and a checkpoint is hashed without being read whole."""


def located(reference: ModelRef, field: str) -> ModelRef:
    """The reference as the loaders take it: a folder with a config.json or adapter_config.json, or hub id and commit.

    A GGUF file is converted, a subfolder of a local folder becomes the folder, a branch or tag becomes the commit that
    it names now. What is located once stays as it is.

    Raises:
        RequestError: there is no such folder, file, hub model or revision, or it cannot be reached.
    """
    path = Path(reference.path).expanduser()
    if _is_local(reference.path):
        folder = path / reference.subfolder if reference.subfolder else path
        if reference.gguf_file is not None or folder.suffix == ".gguf":
            return _from_gguf(reference, folder / (reference.gguf_file or ""), field)
        if not folder.is_dir():
            raise RequestError(f"{field} = {shown(reference)} is not a folder; give a checkpoint's folder or a hub id")
        if not any((folder / name).is_file() for name in (_CONFIG, ADAPTER_CONFIG)):
            raise RequestError(
                f"{field} = {shown(reference)} has no config.json; give a folder that save_pretrained wrote"
            )
        return reference.model_copy(update={"path": str(folder), "subfolder": None, "revision": None})
    if reference.gguf_file is not None:
        file = file_of(reference, reference.gguf_file, field)
        if file is None:
            raise RequestError(f"{field} = {shown(reference)} has no file {reference.gguf_file}; correct gguf_file")
        return _from_gguf(reference, file, field)
    config = file_of(reference, ADAPTER_CONFIG, field) or file_of(reference, _CONFIG, field)
    if config is None:
        raise RequestError(
            f"{field} = {shown(reference)} has no config.json at the hub; give a model in the format of transformers"
        )
    commit = _COMMIT.search(config.as_posix())
    return reference.model_copy(update={"revision": commit[1] if commit else reference.revision})


def file_of(reference: ModelRef, name: str, field: str) -> Path | None:
    """One file of the checkpoint, fetched from the hub where it isn't in the cache; None where there is none.

    Raises:
        RequestError: the hub model or revision does not exist, may not be read, or cannot be reached.
    """
    if _is_local(reference.path):
        file = Path(reference.path).expanduser() / (reference.subfolder or "") / name
        return file if file.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    where: dict[str, Any] = {"revision": reference.revision, "subfolder": reference.subfolder}
    try:
        return Path(hf_hub_download(reference.path, name, **where, local_files_only=offline()))
    except LocalEntryNotFoundError as error:
        if known_commit(reference) is not None and offline():
            return None
        raise _unreachable(reference, field, error) from error
    except EntryNotFoundError:
        return None
    except (OSError, ValueError, RuntimeError) as error:
        raise unloadable(reference, field, "a checkpoint", error) from error


def check_weights(reference: ModelRef, field: str) -> None:
    """Raises RequestError where a located whole model has no safetensors; no weights are fetched to find out."""
    if any(_has(reference, name) for name in _WEIGHTS):
        return
    if any(_has(reference, name) for name in _PICKLED):
        raise RequestError(
            f"{field} = {shown(reference)} has its weights pickled (pytorch_model.bin), which can run code when opened "
            "and is refused; give a revision with model.safetensors, or save it again with save_pretrained"
        )
    raise RequestError(
        f"{field} = {shown(reference)} has no model.safetensors; give a folder that save_pretrained wrote, or a hub id"
    )


def known_commit(reference: ModelRef) -> str | None:
    """The commit of a hub model's revision as far as the local cache knows it; asks nobody."""
    if _is_local(reference.path):
        return None
    from huggingface_hub import try_to_load_from_cache

    for name in (_CONFIG, ADAPTER_CONFIG, reference.gguf_file):
        if name is not None:
            try:
                cached = try_to_load_from_cache(reference.path, _inside(reference, name), revision=reference.revision)
            except ValueError:
                return None
            if isinstance(cached, str) and (commit := _COMMIT.search(Path(cached).as_posix())):
                return commit[1]
    return None


@functools.cache
def offline() -> bool:
    """Whether the hub is left alone: HF_HUB_OFFLINE is set, or nothing answers at its address within 3 seconds.

    huggingface_hub itself would try again and again, for minutes.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return True
    hub = urlsplit(constants.ENDPOINT)
    proxy = None if proxy_bypass(hub.hostname or "") else getproxies().get(hub.scheme)
    server = urlsplit(proxy if "//" in proxy else f"http://{proxy}") if proxy else hub
    port = server.port or (443 if server.scheme == "https" else 80)
    try:
        with socket.create_connection((server.hostname or "", port), timeout=_CONNECT_SECONDS):
            return False
    except OSError:
        return True


def weights_hash(folder: Path) -> str | None:
    """A hash of the folder's weights: the safetensors files' headers, sizes and the first bytes of every tensor.

    None where there are no such files. Sizes alone would be equal before and after training.
    """
    files = sorted(folder.glob("*.safetensors"))
    return digest([[file.name, file.stat().st_size, _sampled(file)] for file in files]) if files else None


def shown(reference: ModelRef) -> str:
    """The reference as a message names it: path, subfolder, revision, GGUF file."""
    text = f"{reference.path}/{reference.subfolder}" if reference.subfolder else reference.path
    text = f"{text}/{reference.gguf_file}" if reference.gguf_file else text
    return f"{text}@{reference.revision}" if reference.revision else text


def unloadable(reference: ModelRef, field: str, what: str, error: BaseException) -> RequestError:
    """One line about a checkpoint that a library refused, with what the hub said where it was the hub."""
    at_hub = None if _is_local(reference.path) else hub_problem(error, reference.revision)
    if at_hub is not None:
        return RequestError(f"{field} = {shown(reference)} {at_hub}")
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
    where = "" if Path(reference.path).is_dir() else " that this machine can reach"
    return RequestError(
        f"{field} = {shown(reference)} cannot be loaded as {what} ({reason[:200]}); "
        f"give a checkpoint's folder or a hub id{where}"
    )


def _unreachable(reference: ModelRef, field: str, error: Exception) -> RequestError:
    """Not in the cache, and not fetched: because it may not be, because nothing answers, or because the hub failed."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE is set; unset it"
    elif offline():
        why = "the hub cannot be reached; connect to the network"
    else:
        return unloadable(reference, field, "a checkpoint", error)
    return RequestError(
        f"{field} = {shown(reference)} is no folder and not in the local cache of the hub, and {why}, or give a "
        "checkpoint's folder"
    )


def _has(reference: ModelRef, name: str) -> bool:
    if _is_local(reference.path):
        return (Path(reference.path).expanduser() / name).is_file()
    from huggingface_hub import file_exists, try_to_load_from_cache

    inside = _inside(reference, name)
    if isinstance(try_to_load_from_cache(reference.path, inside, revision=reference.revision), str):
        return True
    try:
        return not offline() and bool(file_exists(reference.path, inside, revision=reference.revision))
    except (OSError, ValueError, RuntimeError):
        # What keeps the hub from answering is told when the file is fetched.
        return True


def _inside(reference: ModelRef, name: str) -> str:
    """A file's path in its repository."""
    return f"{reference.subfolder}/{name}" if reference.subfolder else name


def _is_local(path: str) -> bool:
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or path.endswith(".gguf")
    return looks_local or Path(path).expanduser().is_dir()


def _from_gguf(reference: ModelRef, file: Path, field: str) -> ModelRef:
    from datablame.models.gguf import converted

    if not file.is_file():
        raise RequestError(f"{field} = {shown(reference)} is not a file; give a GGUF file, a folder or a hub id")
    try:
        folder = converted(file)
    except RequestError as error:
        raise RequestError(f"{field}: {error}") from error
    return reference.model_copy(update={"path": str(folder), "revision": None, "subfolder": None, "gguf_file": None})


def _sampled(file: Path) -> str:
    sha = hashlib.sha256()
    with file.open("rb") as stream:
        header = stream.read(int.from_bytes(stream.read(8), "little"))
        sha.update(header)
        start = stream.tell()
        tensors = [value for name, value in json.loads(header).items() if name != "__metadata__"]
        for begin, end in sorted(tensor["data_offsets"] for tensor in tensors):
            stream.seek(start + begin)
            sha.update(stream.read(min(_HASHED_BYTES, end - begin)))
    return sha.hexdigest()
