"""What the hub's and `datasets`' errors mean for the person who asked: one line with field, value and remedy."""

import re
from collections.abc import Iterator

from datablame.study.schema import Data

_MOST_CHARACTERS = 200


def refusal(error: BaseException, data: Data, *, local: bool = False) -> str:
    """The sentence for an error or for what caused it; unknown errors are quoted."""
    errors = list(_chain(error))
    sentence = _about_subset(errors, data) or (_about_folder(data) if local and _no_files(errors) else None)
    sentence = sentence or _about_hub(errors, data) or _about_rows(errors, data)
    return sentence or f"data.path = {data.path} cannot be read ({_line(error)}); check the data"


def _about_hub(errors: list[BaseException], data: Data) -> str | None:
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import errors as hub

    where = f"data.path = {data.path}"
    words = " ".join(map(str, errors))
    if _any(errors, hub.GatedRepoError) or "is a gated dataset" in words:
        return (
            f"{where} is gated; ask for access at https://huggingface.co/datasets/{data.path}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if _any(errors, hub.RevisionNotFoundError):
        return f"data.revision = {data.revision} is no branch, tag or commit of {data.path}; correct it"
    if _any(errors, hub.OfflineModeIsEnabled) or "OfflineModeIsEnabled" in words:
        return (
            f"{where} is neither a file or folder here nor in the cache, and HF_HUB_OFFLINE is set; unset it, or name "
            "a local file or folder"
        )
    if _any(errors, hub.DisabledRepoError):
        return f"{where} is disabled on the hub; name another dataset"
    if _any(errors, hub.RepositoryNotFoundError, hub.HFValidationError):
        return _unknown(data)
    if _any(errors, hub.HfHubHTTPError):
        return _answered(next(each for each in errors if isinstance(each, hub.HfHubHTTPError)), data)
    client_error = hub.HfHubHTTPError.__bases__[0]  # that of the HTTP client, whichever the hub's library uses
    if _any(errors, client_error, ConnectionError, hub.LocalEntryNotFoundError, TimeoutError):
        return (
            f"{where} is no file or folder here, and the hub cannot be reached ({_line(errors[0])}); check the name "
            "and the connection, or set HF_HUB_OFFLINE=1 to read a copy in the cache"
        )
    if _any(errors, DatasetNotFoundError):
        return _unknown(data)
    return f"{where} holds no files that can be read as data; name another dataset" if _no_files(errors) else None


def _answered(error: BaseException, data: Data) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"data.path = {data.path}: the hub refuses the token (HTTP {status}); log in anew with `hf auth login`"
    if status == 404:
        return _unknown(data)
    return f"data.path = {data.path}: the hub answered HTTP {status}; try again later, with --resume"


def _unknown(data: Data) -> str:
    return (
        f"data.path = {data.path} is neither a file or folder here nor a public dataset on the hub; correct the name, "
        "or for a private one log in with `hf auth login`"
    )


def _about_folder(data: Data) -> str:
    return f"data.path = {data.path} is a folder without .parquet or .jsonl files; name another folder or a file"


def _about_subset(errors: list[BaseException], data: Data) -> str | None:
    for error in errors:
        text = " ".join(str(error).split())
        there = re.search(r"(?:Available(?: configs in the cache)?|available configs): \[(.*?)\]", text)
        names = there.group(1).replace("'", "") if there else "none"
        if "Config name is missing" in text:
            return f"data.subset is missing: {data.path} has {names}; name one"
        if re.search(r"BuilderConfig '.*' not found", text) or ("for config" in text and there):
            return f"data.subset = {data.subset} is no subset of {data.path}; there is {names}"
        if "save_to_disk" in text:
            return f"data.path = {data.path} was written by save_to_disk; write it with Dataset.to_parquet instead"
    return None


def _about_rows(errors: list[BaseException], data: Data) -> str | None:
    from datasets.exceptions import DatasetGenerationError

    where = f"data.path = {data.path}"
    if any("disk space" in str(error) for error in errors):
        return f"{where} does not fit on this disk ({_line(errors[0])}); set data.streaming: true, or free space"
    if _any(errors, DatasetGenerationError):
        return (
            f"{where}: its files do not fit one table ({_line(errors[-1])}); choose another data.subset, or download "
            "them and name the folder"
        )
    return None


def _no_files(errors: list[BaseException]) -> bool:
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError

    return _any(errors, EmptyDatasetError, DataFilesNotFoundError)


def _any(errors: list[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(error, kinds) for error in errors)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from, nearest first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:_MOST_CHARACTERS]
