"""Datasets of the hub, and folders in the hub's layout: `datasets` says which files are a split's and reads the hub."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datablame.errors import RequestError
from datablame.study.schema import Data
from datablame.world.formats import check_columns, wanted
from datablame.world.refusals import refusal

_logger = logging.getLogger(__name__)
_BATCH_ROWS = 1024
_ANSWER_WITHIN_SECONDS = 10
_COMMIT = re.compile(r"[0-9a-f]{40}")


def folder_files(data: Data) -> list[Path]:
    """The files of a local folder that belong to the subset and the split, shards in order.

    The folder's README.md may declare subsets and splits, as on the hub; otherwise the files' names do, and a folder
    without such names is all `train`.

    Raises:
        RequestError: there is no such subset or split, or the folder holds no data.
    """
    try:
        builder = _builder(str(Path(data.path).expanduser().absolute()), data)
    except Exception as error:
        raise RequestError(refusal(error, data, local=True)) from None
    files = builder.config.data_files or {}
    _check_split(data, list(files))
    return [Path(file) for file in files[data.split]]


def hub_batches(data: Data) -> tuple[Iterator[Any], str]:
    """The split of a hub dataset as Arrow tables of the columns that are read, and the commit that they come from.

    Raises:
        RequestError: one line about what is wrong with the name, subset, split, revision, rights or connection.
    """
    try:
        commit = _commit(data)
        builder = _builder(data.path, data.model_copy(update={"revision": commit or data.revision}))
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(refusal(error, data)) from None
    if commit is None:
        commit = _cached_commit(builder.hash, data)
    elif builder.hash != commit:
        raise RequestError(
            f"data.path = {data.path} cannot be read at commit {commit}, only from a copy in the cache; check the "
            "connection, or set HF_HUB_OFFLINE=1 to take the copy"
        )
    _check_split(data, list(builder.config.data_files or builder.info.splits or {}))
    return _batches(builder, data), commit


def _builder(path: str, data: Data) -> Any:
    import datasets

    return datasets.load_dataset_builder(path, name=data.subset, revision=data.revision)


def _commit(data: Data) -> str | None:
    """What the revision stands for, asked once and without retries, so that no network is found out in seconds.

    None where HF_HUB_OFFLINE forbids to ask.
    """
    import datasets
    from huggingface_hub import HfApi

    if datasets.config.HF_HUB_OFFLINE:
        return None
    info = HfApi().dataset_info(data.path, revision=data.revision, timeout=_ANSWER_WITHIN_SECONDS)
    return str(info.sha)


def _cached_commit(found: str, data: Data) -> str:
    """The commit of the copy in the cache, which must be the one that the study names, if it names one."""
    if data.revision is None:
        return found
    named = data.revision if _COMMIT.fullmatch(data.revision) else _reference(data.path, data.revision)
    if named != found:
        raise RequestError(
            f"data.revision = {data.revision} of {data.path} is not in the cache, which has commit {found}; name that, "
            "or unset HF_HUB_OFFLINE"
        )
    return found


def _reference(path: str, revision: str) -> str | None:
    from huggingface_hub.constants import HF_HUB_CACHE

    file = Path(HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}" / "refs" / revision
    return file.read_text().strip() if file.is_file() else None


def _check_split(data: Data, splits: list[str]) -> None:
    if data.split in splits:
        return
    there = f"there is {', '.join(splits)}" if splits else "it names none"
    part = "; for a part of a split set data.documents" if re.search(r"[\[+]", data.split) else ""
    raise RequestError(f"data.split = {data.split} is no split of {data.path}; {there}{part}")


def _batches(builder: Any, data: Data) -> Iterator[Any]:
    try:
        if data.streaming:
            rows = builder.as_streaming_dataset(split=data.split)
        else:
            builder.download_and_prepare()
            rows = builder.as_dataset(split=data.split)
        names = rows.column_names or list(next(iter(rows), {}))
        check_columns(names, data, data.path)
        rows = rows.select_columns(wanted(names, data)).with_format("arrow")
        yield from rows.iter(_BATCH_ROWS)
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(refusal(error, data)) from None
