"""What the hub's and `datasets`' errors mean for the person who asked: one line with field, value and remedy."""

import re

from datablame.config.schema import Data
from datablame.errors import chain
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
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError
    from huggingface_hub import errors as hub

    errors = list(chain(error))
    words = " ".join(map(str, errors))

    def met(*kinds: type[BaseException]) -> bool:
        return any(isinstance(each, kinds) for each in errors)

    where, no_files = f"data.path = {data.path}", met(EmptyDatasetError, DataFilesNotFoundError)
    unknown = met(hub.RepositoryNotFoundError, hub.HFValidationError)
    unknown = unknown or (met(DatasetNotFoundError) and not any(map(hub_problem, errors)))
    subset, at_hub = _about_subset(errors, data), _about_hub(error, data)
    rules = [
        (subset is not None, f"{subset}"),
        (
            local and no_files,
            f"{where} is a folder without .parquet or .jsonl files; name another folder or a file",
        ),
        # What has another remedy for data than for models.
        (
            met(hub.GatedRepoError) or "is a gated dataset" in words,
            f"{where} is gated; ask for access at https://huggingface.co/datasets/{data.path}, then log in with "
            "`hf auth login` or set HF_TOKEN",
        ),
        (
            met(hub.RevisionNotFoundError),
            f"data.revision = {data.revision} is no branch, tag or commit of {data.path}; correct it",
        ),
        (
            met(hub.OfflineModeIsEnabled) or "OfflineModeIsEnabled" in words,
            f"{where} is neither a file or folder here nor in the cache, and HF_HUB_OFFLINE is set; unset it, or name "
            "a local file or folder",
        ),
        (
            unknown,
            f"{where} is neither a file or folder here nor a public dataset on the hub; correct the name, or for a "
            "private one log in with `hf auth login`",
        ),
        (at_hub is not None, f"{where} {at_hub}"),
        (no_files, f"{where} holds no files that can be read as data; name another dataset"),
        (
            "disk space" in words,
            f"{where} does not fit on this disk ({line_of(error)}); set data.streaming: true, or free space",
        ),
        (
            met(DatasetGenerationError),
            f"{where}: its files do not fit one table ({line_of(errors[-1])}); choose another data.subset, or download "
            "them and name the folder",
        ),
        (True, f"{where} cannot be read ({line_of(error)}); check the data"),
    ]
    return next(sentence for holds, sentence in rules if holds)


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


def _about_hub(error: BaseException, data: Data) -> str | None:
    problem = hub_problem(error, data.revision)
    for phrase, said_of_data in _CHECKPOINT.items():
        problem = problem and problem.replace(phrase, said_of_data)
    if problem and "cannot be reached" in problem:
        problem += ", or set HF_HUB_OFFLINE=1 to read a copy in the cache"
    return problem


def line_of(error: BaseException) -> str:
    """What an error says, in one line of at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:_MOST_CHARACTERS]
