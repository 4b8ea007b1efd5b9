"""What the hub's and `datasets`' errors mean for the person who asked: one line with field, value and remedy."""

import re
from collections.abc import Iterator

from datablame.config.schema import Data
from datablame.models.source import hub_problem

_MOST_CHARACTERS = 200
_CHECKPOINT = {
    "a checkpoint's folder": "a local file or folder",
    "another checkpoint": "another dataset",
    "that a checkpoint needs": "that it needs",
}
"""What the sentences about models at the hub say of checkpoints, said of data."""


def refusal(error: BaseException, data: Data, *, local: bool = False) -> str:
    """The sentence for an error or for what caused it; unknown errors are quoted."""
    errors = list(_chain(error))
    return (
        _about_subset(errors, data)
        or (_about_files(errors, data, local=True) if local else None)
        or _about_access(errors, data)
        or _about_hub(error, data)
        or _about_files(errors, data)
        or _about_rows(errors, data)
        or f"data.path = {data.path} cannot be read ({_line(error)}); check the data"
    )


def _about_subset(errors: list[BaseException], data: Data) -> str | None:
    for error in errors:
        text = " ".join(str(error).split())
        listed = re.search(r"(?:Available(?: configs in the cache)?|available configs): \[(.*?)\]", text)
        names = listed.group(1).replace("'", "") if listed else "none"
        if "Config name is missing" in text:
            return f"data.subset is missing: {data.path} has {names}; name one"
        if re.search(r"BuilderConfig '.*' not found", text) or ("for config" in text and listed):
            return f"data.subset = {data.subset} is no subset of {data.path}; there is {names}"
        if "save_to_disk" in text:
            return f"data.path = {data.path} was written by save_to_disk; write it with Dataset.to_parquet instead"
    return None


def _about_access(errors: list[BaseException], data: Data) -> str | None:
    """What `datasets` says in words of its own, and what has another remedy for data than for models."""
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
    unknown = _any(errors, hub.RepositoryNotFoundError, hub.HFValidationError)
    if unknown or (_any(errors, DatasetNotFoundError) and not any(map(hub_problem, errors))):
        return (
            f"{where} is neither a file or folder here nor a public dataset on the hub; correct the name, or for a "
            "private one log in with `hf auth login`"
        )
    return None


def _about_hub(error: BaseException, data: Data) -> str | None:
    problem = hub_problem(error, data.revision)
    for phrase, said_of_data in _CHECKPOINT.items():
        problem = problem and problem.replace(phrase, said_of_data)
    if problem and "cannot be reached" in problem:
        problem += ", or set HF_HUB_OFFLINE=1 to read a copy in the cache"
    return problem and f"data.path = {data.path} {problem}"


def _about_files(errors: list[BaseException], data: Data, *, local: bool = False) -> str | None:
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError

    if not _any(errors, EmptyDatasetError, DataFilesNotFoundError):
        return None
    if local:
        return f"data.path = {data.path} is a folder without .parquet or .jsonl files; name another folder or a file"
    return f"data.path = {data.path} holds no files that can be read as data; name another dataset"


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


def _any(errors: list[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(error, kinds) for error in errors)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from, nearest first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:_MOST_CHARACTERS]
