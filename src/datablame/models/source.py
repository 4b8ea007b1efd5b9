"""Where a checkpoint's files are: a folder, the hub or its local cache, a converted GGUF file; what the hub refuses."""

import functools
import hashlib
import importlib.util
import io
import json
import os
import re
import socket
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import yaml

from datablame.config.schema import ModelRef
from datablame.engine.files import build_atomically, digest, file_lock, hash_file
from datablame.errors import RequestError, chain

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
    it names now. What is located once stays as it is. Raises RequestError where there is no such folder, file, hub
    model or revision, or it cannot be reached.
    """
    if _is_local(reference.path):
        folder = Path(reference.path).expanduser() / (reference.subfolder or "")
        if reference.gguf_file is not None or folder.suffix == ".gguf":
            return _from_gguf(reference, folder / (reference.gguf_file or ""), field)
        if not folder.is_dir():
            raise refused(reference, field, "is not a folder; give a checkpoint's folder or a hub id")
        if not any((folder / name).is_file() for name in (_CONFIG, ADAPTER_CONFIG)):
            raise refused(reference, field, "has no config.json; give a folder that save_pretrained wrote")
        return reference.model_copy(update={"path": str(folder), "subfolder": None, "revision": None})
    if reference.gguf_file is not None:
        file = file_of(reference, reference.gguf_file, field)
        if file is None:
            raise refused(reference, field, f"has no file {reference.gguf_file}; correct gguf_file")
        return _from_gguf(reference, file, field)
    config = file_of(reference, ADAPTER_CONFIG, field) or file_of(reference, _CONFIG, field)
    if config is None:
        raise refused(reference, field, "has no config.json at the hub; give a model in the format of transformers")
    commit = _COMMIT.search(config.as_posix())
    return reference.model_copy(update={"revision": commit[1] if commit else reference.revision})


def file_of(reference: ModelRef, name: str, field: str) -> Path | None:
    """One file of the checkpoint, fetched from the hub where it isn't in the cache; None where there is none.

    Raises RequestError where the hub model or revision does not exist, may not be read, or cannot be reached.
    """
    if _is_local(reference.path):
        file = Path(reference.path).expanduser() / (reference.subfolder or "") / name
        return file if file.is_file() else None
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    where: dict[str, Any] = {"revision": reference.revision, "subfolder": reference.subfolder}
    try:
        return Path(hf_hub_download(reference.path, name, **where, local_files_only=offline()))
    except LocalEntryNotFoundError as error:
        if not offline():
            raise unloadable(reference, field, "a checkpoint", error) from error
        if known_commit(reference) is not None:
            return None
        told = "HF_HUB_OFFLINE is set; unset it"
        why = told if constants.HF_HUB_OFFLINE else "the hub cannot be reached; connect to the network"
        problem = f"is no folder and not in the local cache of the hub, and {why}, or give a checkpoint's folder"
        raise refused(reference, field, problem) from error
    except EntryNotFoundError:
        return None
    except (OSError, ValueError, RuntimeError) as error:
        raise unloadable(reference, field, "a checkpoint", error) from error


def check_weights(reference: ModelRef, field: str) -> None:
    """Raises RequestError where a located whole model has no safetensors; no weights are fetched to find out."""
    if any(_has(reference, name) for name in _WEIGHTS):
        return
    problem = "has no model.safetensors; give a folder that save_pretrained wrote, or a hub id"
    if any(_has(reference, name) for name in _PICKLED):
        problem = (
            "has its weights pickled (pytorch_model.bin), which can run code when opened and is refused; give a "
            "revision with model.safetensors, or save it again with save_pretrained"
        )
    raise refused(reference, field, problem)


def known_commit(reference: ModelRef) -> str | None:
    """The commit of a hub model's revision as far as the local cache knows it; asks nobody."""
    if _is_local(reference.path):
        return None
    names = filter(None, (_CONFIG, ADAPTER_CONFIG, reference.gguf_file))
    commits = (_COMMIT.search(cached) for name in names if (cached := _cached(reference, name)))
    return next((commit[1] for commit in commits if commit), None)


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


def refused(reference: ModelRef, field: str, problem: str) -> RequestError:
    """One line about a checkpoint: field, value, problem and remedy."""
    return RequestError(f"{field} = {shown(reference)} {problem}")


def unloadable(reference: ModelRef, field: str, what: str, error: BaseException) -> RequestError:
    """One line about a checkpoint that a library refused, with what the hub said where it was the hub."""
    at_hub = None if _is_local(reference.path) else hub_problem(error, reference.revision)
    if at_hub is not None:
        return refused(reference, field, at_hub)
    reason = first_line(error).rstrip(". ")[:200]
    where = "" if Path(reference.path).is_dir() else " that this machine can reach"
    remedy = f"give a checkpoint's folder or a hub id{where}"
    return refused(reference, field, f"cannot be loaded as {what} ({reason}); {remedy}")


def first_line(error: BaseException) -> str:
    """Of what an error says; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def hub_problem(error: BaseException, revision: str | None = None) -> str | None:
    """'problem; remedy' for an error of huggingface_hub or of the connection to it, None for any other error.

    The whole chain of causes is searched, for transformers and huggingface_hub wrap what the server said. What the
    server said goes before what that led to ("not in the cache").
    """
    told = yaml.safe_load(Path(__file__).with_name("hub_problems.yaml").read_text(encoding="utf-8"))
    links, statuses = list(chain(error)), told["statuses"]
    for name, sentence in told["errors"].items():
        for link in links:
            if any(kind.__name__ == name for kind in type(link).__mro__):
                status = getattr(getattr(link, "response", None), "status_code", 0)
                by_status = statuses.get(min(status, 500), statuses["other"]).format(status=status)
                return str(sentence.format(revision=revision or "main", by_status=by_status))
    return None


def cache_folder() -> Path:
    """$DATABLAME_CACHE, or ~/.cache/datablame."""
    return Path(os.environ.get("DATABLAME_CACHE") or Path.home() / ".cache" / "datablame")


def converted(file: Path, name: str) -> Path:
    """The folder of that name in the cache with a GGUF file's checkpoint; one process makes it while others wait.

    Raises:
        RequestError: the file cannot be read as a model, or the cache cannot be written.
    """
    folder = cache_folder() / name
    if not folder.is_dir():
        with file_lock(folder):
            build_atomically(folder, functools.partial(convert, file))
    return folder


def convert(file: Path, folder: Path) -> None:
    """Write a GGUF file's model, dequantised to float32, and its tokenizer as `save_pretrained` does.

    transformers marks a model that it read from GGUF as quantised and then refuses to save it; the marks are removed.
    Raises RequestError where the gguf package is missing, or the file is no model that transformers knows.
    """
    if importlib.util.find_spec("gguf") is None:
        raise RequestError(f"{file} needs the package gguf to be read; pip install gguf")
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        # Its own progress bar listens to no setting of transformers.
        with redirect_stderr(io.StringIO()):
            # An architecture that transformers does not know is found here, before any tensor is read.
            AutoConfig.from_pretrained(**source)
            tokenizer = AutoTokenizer.from_pretrained(**source)
            model = AutoModelForCausalLM.from_pretrained(**source, dtype="float32")
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, NotImplementedError) as error:
        problem = f"cannot be read as a GGUF model ({' '.join(str(error).split())[:200]})"
        raise RequestError(f"{file} {problem}; give another file or a hub id") from error
    model.hf_quantizer = None
    marks = ((model, "is_quantized"), (model, "quantization_method"), (model.config, "quantization_config"))
    for owner, mark in marks:
        if hasattr(owner, mark):
            delattr(owner, mark)
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _has(reference: ModelRef, name: str) -> bool:
    if _is_local(reference.path):
        return (Path(reference.path).expanduser() / name).is_file()
    if _cached(reference, name) is not None:
        return True
    from huggingface_hub import file_exists

    try:
        inside = _inside(reference, name)
        return not offline() and bool(file_exists(reference.path, inside, revision=reference.revision))
    except (OSError, ValueError, RuntimeError):
        # What keeps the hub from answering is told when the file is fetched.
        return True


def _cached(reference: ModelRef, name: str) -> str | None:
    """Where one file of a hub model lies in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(reference.path, _inside(reference, name), revision=reference.revision)
    except ValueError:
        return None
    return Path(found).as_posix() if isinstance(found, str) else None


def _inside(reference: ModelRef, name: str) -> str:
    """A file's path in its repository."""
    return f"{reference.subfolder}/{name}" if reference.subfolder else name


def _is_local(path: str) -> bool:
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or path.endswith(".gguf")
    return looks_local or Path(path).expanduser().is_dir()


def _from_gguf(reference: ModelRef, file: Path, field: str) -> ModelRef:
    if not file.is_file():
        raise refused(reference, field, "is not a file; give a GGUF file, a folder or a hub id")
    try:
        folder = converted(file, f"gguf-{hash_file(file)[:16]}")
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
