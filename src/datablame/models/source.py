"""Where a checkpoint's files are: a folder, the hub or its local cache, a converted GGUF file; why one is refused."""

import functools
import io
import os
import re
import socket
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from datablame.config.schema import ModelRef
from datablame.engine.files import build_atomically, file_lock, hash_file, json_object, packaged_yaml
from datablame.errors import RequestError, chain, problem
from datablame.models.weight_files import INDEX, SINGLE, header, is_pointer

ADAPTER_CONFIG = "adapter_config.json"
_CONFIG = "config.json"
_COMMIT = re.compile(r"snapshots/([0-9a-f]{40})(?:/|$)")
_CONNECT_SECONDS = 3
SETTINGS = (
    *(_CONFIG, ADAPTER_CONFIG, "generation_config.json", "chat_template.jinja", "chat_template.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt"),
)
"""Files beside the weights that decide what a checkpoint says."""


def refusal(name: str, /, **values: Any) -> RequestError:
    """The error whose sentence in problems.yaml has that name."""
    return RequestError(problem("models", name, **values))


class Checkpoint(NamedTuple):
    """A reference and the field of the study that names it. RequestErrors say what keeps its files from being had."""

    reference: ModelRef
    field: str

    @property
    def shown(self) -> str:
        """Path, subfolder, GGUF file and revision."""
        reference = self.reference
        text = "/".join(filter(None, (reference.path, reference.subfolder, reference.gguf_file)))
        return f"{text}@{reference.revision}" if reference.revision else text

    def refused(self, name: str, **values: Any) -> RequestError:
        """A sentence of problems.yaml about this checkpoint."""
        return refusal(name, at=f"{self.field} = {self.shown}", field=self.field, **values)

    def unloadable(self, what: str, error: BaseException) -> RequestError:
        """One line about a checkpoint that a library refused, with what the hub said where it was the hub."""
        at_hub = hub_problem(error, self.reference.revision) if _local_folder(self.reference) is None else None
        if at_hub is not None:
            return RequestError(f"{self.field} = {self.shown} {at_hub}")
        where = "" if Path(self.reference.path).is_dir() else " that this machine can reach"
        return self.refused("unloadable", what=what, reason=first_line(error).rstrip(". ")[:200], where=where)

    def located(self) -> "Checkpoint":
        """As the loaders take it: a folder with a config.json or adapter_config.json, or hub id and commit.

        A GGUF file is converted, a branch or tag becomes the commit that it names now. Once located, it stays.
        """
        reference, folder = self.reference, _local_folder(self.reference)
        if (gguf := self.gguf()) is not None:
            try:
                folder = converted(gguf, f"gguf-2-{hash_file(gguf)[:16]}")
            except RequestError as error:
                raise RequestError(f"{self.field}: {error}") from error
        if folder is not None:
            if not folder.is_dir():
                raise self.refused("no_folder")
            if not any((folder / name).is_file() for name in (_CONFIG, ADAPTER_CONFIG)):
                inside = [
                    each.parent.name for each in folder.glob("*/*config.json") if each.name in (_CONFIG, ADAPTER_CONFIG)
                ]
                raise self.refused("no_config", inside=f", as {min(inside)} in it is" if inside else "")
            for name in (*SETTINGS, "tokenizer.model", INDEX):
                if is_pointer(folder / name):
                    raise self.refused("pointer", file=name)
            here = {"path": str(folder), "revision": None, "subfolder": None, "gguf_file": None}
            return self._replace(reference=reference.model_copy(update=here))
        config = self.file(ADAPTER_CONFIG) or self.file(_CONFIG)
        if config is None:
            raise self.refused("no_config_at_hub")
        commit = _COMMIT.search(config.as_posix())
        return self._replace(reference=reference.model_copy(update={"revision": commit[1]} if commit else {}))

    def gguf(self) -> Path | None:
        """The GGUF file that the reference names, fetched from the hub if need be; None where it names none."""
        file = folder = _local_folder(self.reference)
        if (name := self.reference.gguf_file) is not None:
            file = self.file(name) if folder is None else folder / name
            if file is None:
                raise self.refused("no_gguf_at_hub", file=name)
        elif folder is None or folder.suffix != ".gguf":
            return None
        assert file is not None
        if not file.is_file():
            raise self.refused("no_gguf")
        if is_pointer(file):
            raise self.refused("pointer", file=file.name)
        return file

    def file(self, name: str) -> Path | None:
        """One file of the checkpoint, fetched from the hub where it isn't in the cache; None where there is none."""
        if _local_folder(self.reference) is not None:
            return self._here(name)
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(**_at_hub(self.reference, name), local_files_only=offline()))
        except EntryNotFoundError as error:
            if not isinstance(error, LocalEntryNotFoundError):
                return None
            if not offline():
                raise self.unloadable("a checkpoint", error) from error
            if known_commit(self.reference) is not None:
                return None
            by_setting = "HF_HUB_OFFLINE is set; unset it"
            why = by_setting if constants.HF_HUB_OFFLINE else "the hub cannot be reached; connect to the network"
            raise self.refused("not_cached", why=why) from error
        except (OSError, ValueError, RuntimeError) as error:
            raise self.unloadable("a checkpoint", error) from error

    def check_weights(self) -> None:
        """Raises RequestError unless a located whole model has one set of safetensors, whole as far as they are here.

        No weights are fetched to find out.
        """
        shards = self._shards()
        if not shards and not self._has(SINGLE):
            pickled = self._has("pytorch_model.bin", "pytorch_model.bin.index.json")
            raise self.refused("pickled" if pickled else "no_weights")
        if shards not in ([], [SINGLE]) and self._has(SINGLE):
            raise self.refused("two_sets", single=SINGLE, index=INDEX)
        for name in shards or [SINGLE]:
            if (file := self._here(name)) is not None:
                try:
                    header(file)
                except ValueError as error:
                    raise self.refused("broken_weights", error=error) from error
            elif _local_folder(self.reference) is not None:
                raise self.refused("no_shard", file=name)

    def has_weights(self) -> bool:
        """Whether a whole model's safetensors are there; none are fetched to find out."""
        return self._has(SINGLE, INDEX)

    def weight_files(self) -> list[Path]:
        """The safetensors of a whole model that are on this machine."""
        return [file for name in self._shards() or [SINGLE] if (file := self._here(name)) is not None]

    def _shards(self) -> list[str]:
        """The files that an index of weights names; none where there is no index."""
        index = self.file(INDEX) if self._has(INDEX) else None
        named = json_object(index).get("weight_map") if index is not None else None
        return sorted(set(named.values())) if isinstance(named, dict) else []

    def _here(self, name: str) -> Path | None:
        """One file of the checkpoint if it is on this machine."""
        if (folder := _local_folder(self.reference)) is not None:
            return folder / name if (folder / name).is_file() else None
        cached = _cached(self.reference, name)
        return None if cached is None else Path(cached)

    def _has(self, *names: str) -> bool:
        """Whether one of the files is there; one at the hub is asked for but not fetched."""
        if any(map(self._here, names)):
            return True
        if _local_folder(self.reference) is not None:
            return False
        from huggingface_hub import file_exists

        try:
            return not offline() and any(file_exists(**_at_hub(self.reference, name)) for name in names)
        except (OSError, ValueError, RuntimeError):
            # What keeps the hub from answering is told when the file is fetched.
            return True


def known_commit(reference: ModelRef) -> str | None:
    """The commit of a hub model's revision as far as the local cache knows it; asks nobody."""
    if _local_folder(reference) is not None:
        return None
    names = filter(None, (_CONFIG, ADAPTER_CONFIG, reference.gguf_file))
    commits = (_COMMIT.search(cached) for name in names if (cached := _cached(reference, name)))
    return next((commit[1] for commit in commits if commit), None)


@functools.cache
def offline() -> bool:
    """Whether HF_HUB_OFFLINE is set or no hub answers within 3 seconds; huggingface_hub would try for minutes."""
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


def first_line(error: BaseException) -> str:
    """Of what an error says; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def hub_problem(error: BaseException, revision: str | None = None) -> str | None:
    """'problem; remedy' for an error of huggingface_hub or of the connection to it, None for any other error.

    Libraries wrap what the server said, and it goes before what that led to ("not in the cache").
    """
    links, problems = list(chain(error)), packaged_yaml("datablame.models", "hub_problems.yaml")
    for name, sentence in problems["errors"].items():
        for link in links:
            if any(kind.__name__ == name for kind in type(link).__mro__):
                code = getattr(getattr(link, "response", None), "status_code", 0)
                by_status = problems["statuses"].get(min(code, 500), problems["statuses"]["other"]).format(status=code)
                return str(sentence.format(revision=revision or "main", by_status=by_status))
    return None


def cache_folder() -> Path:
    """$DATABLAME_CACHE, or ~/.cache/datablame."""
    return Path(os.environ.get("DATABLAME_CACHE") or Path.home() / ".cache" / "datablame")


def converted(file: Path, name: str) -> Path:
    """The folder of that name in the cache with a GGUF file's checkpoint; one process makes it while others wait."""
    folder = cache_folder() / name
    if not folder.is_dir():
        with file_lock(folder):
            build_atomically(folder, functools.partial(convert, file))
    return folder


def convert(file: Path, folder: Path) -> None:
    """Write a GGUF file's model, dequantised to float32, and its tokenizer; RequestError where it cannot be read."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    from datablame.models.gguf_tokenizer import correct

    transformers_logging.disable_progress_bar()
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        # Its own progress bar listens to no setting of transformers.
        with redirect_stderr(io.StringIO()):
            # An architecture that transformers does not know is found here, before any tensor is read.
            AutoConfig.from_pretrained(**source)
            tokenizer = AutoTokenizer.from_pretrained(**source)
            correct(file, tokenizer)
            model = AutoModelForCausalLM.from_pretrained(**source, dtype="float32")
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, ImportError) as error:
        raise refusal("no_gguf_model", file=file, reason=" ".join(str(error).split())[:200]) from error
    # transformers refuses to save a model that is marked as quantised.
    model.hf_quantizer = None
    for owner, mark in ((model, "is_quantized"), (model, "quantization_method"), (model.config, "quantization_config")):
        vars(owner).pop(mark, None)
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _local_folder(reference: ModelRef) -> Path | None:
    """What a path on this machine names, whether it is there or not; None of a hub id."""
    path = reference.path
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or path.endswith(".gguf")
    local = looks_local or Path(path).expanduser().is_dir()
    return Path(path).expanduser() / (reference.subfolder or "") if local else None


def _cached(reference: ModelRef, name: str) -> str | None:
    """Where one file of a hub model lies in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(**_at_hub(reference, name))
    except ValueError:
        return None
    return Path(cached).as_posix() if isinstance(cached, str) else None


def _at_hub(reference: ModelRef, name: str) -> dict[str, Any]:
    """A file at the hub, as huggingface_hub's functions take it."""
    inside = f"{reference.subfolder}/{name}" if reference.subfolder else name
    return {"repo_id": reference.path, "filename": inside, "revision": reference.revision}
