"""Where the pool's rows come from: files, patterns and folders here, or the hub; a row that can't be parsed is counted.

Local Parquet and JSONL are read by our own readers, which leave out single rows; `datasets` says which files of a
folder belong to a split, and reads the hub.
"""

import glob
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from datablame.config.schema import Data
from datablame.errors import RequestError
from datablame.world.formats import Broken, check_columns, read_columns
from datablame.world.refusals import line_of, refusal

_PARQUET = ".parquet"
_LINES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
_BATCH_ROWS = 64
"""Rows read together: few, for a document may be 100,000 characters long."""
_BUFFER_BYTES = 1 << 20
_SHOWN_BYTES = 120
_ANSWER_WITHIN_SECONDS = 10
COMMIT = re.compile(r"[0-9a-f]{40}")


class Source(NamedTuple):
    """Rows as mappings from columns to values, or as `Broken`."""

    rows: Iterator[Any]
    size_bytes: int | None
    """Of the local files; None for the hub."""
    n_rows: int | None
    """Rows by the files' own counts, where they have one."""
    commit: str | None = None
    """What a hub dataset's revision stood for."""


def open_source(data: Data) -> Source:
    """The rows of the data in the order of its files; what is wrong with the request shows here or at the first row.

    Raises:
        RequestError: there is no such file, folder, dataset, split, subset or revision, or it cannot be read.
    """
    path = Path(data.path).expanduser()
    if path.is_dir():
        files = _folder_files(data)
    elif glob.has_magic(data.path) and not path.is_file():
        files = pool_files(data.path)
        if not files:
            raise RequestError(f"data.path = {data.path} matches no file here; correct the pattern")
    elif path.is_file() or path.suffix in (_PARQUET, ".jsonl", ".json"):
        files = [path]
    elif data.path.startswith((".", "/", "~")) or data.path.count("/") > 1:
        raise RequestError(f"data.path = {data.path} is not here; correct the path, or name a dataset on the hub")
    else:
        return _hub(data)
    try:
        n_rows = sum(int(pq.read_metadata(file).num_rows) for file in files)
    except (OSError, pa.ArrowException):
        n_rows = None
    return Source(_file_rows(files, data), sum(file.stat().st_size for file in files if file.is_file()), n_rows)


def pool_files(path: str) -> list[Path]:
    """The local files that a path, a pattern or a folder stands for, sorted; none for a dataset on the hub."""
    here = Path(path).expanduser()
    files: Iterable[Path] = ()
    if here.is_dir():
        files = (file for file in here.rglob("*") if not any(p.startswith(".") for p in file.relative_to(here).parts))
    elif here.is_file():
        files = (here,)
    elif glob.has_magic(path):
        files = map(Path, glob.glob(str(here), recursive=True))  # noqa: PTH207
    return sorted(file for file in files if file.is_file())


def _file_rows(files: Sequence[Path], data: Data) -> Iterator[Any]:
    for file in files:
        name = file.name.lower()
        if name.endswith(_PARQUET):
            yield from _parquet_rows(file, data)
        elif name.endswith(_LINES):
            yield from _json_rows(file)
        else:
            raise RequestError(f"data.path = {file} is neither .parquet nor .jsonl; convert it or name another file")


def _parquet_rows(path: Path, data: Data) -> Iterator[Any]:
    try:
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file:
            names = file.schema_arrow.names
            check_columns(names, data, str(path))
            for batch in file.iter_batches(_BATCH_ROWS, columns=read_columns(names, data)):
                yield from _decoded(batch)
    except (OSError, pa.ArrowException) as error:
        raise RequestError(f"data.path = {path} cannot be read as Parquet ({line_of(error)}); check the file") from None


def _decoded(batch: Any) -> Iterator[Any]:
    """The rows of an Arrow table or batch; one with invalid UTF-8 costs itself only."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            yield Broken("invalid UTF-8", error.object[:_SHOWN_BYTES])
            return
        for row in range(batch.num_rows):
            yield from _decoded(batch.slice(row, 1))


def _json_rows(path: Path) -> Iterator[Any]:
    """The rows of JSON lines, or of one JSON array, as Alpaca's files are."""
    try:
        whole = _array(path) if ".json" in path.suffixes else None
        if whole is not None:
            yield from whole
            return
        with _opened(path) as file:
            for line in file:
                if line.strip():
                    yield _parsed(line)
    except (EOFError, zlib.error):
        yield Broken("the compressed file is torn", path.name)
    except OSError as error:
        reason = error.strerror or line_of(error)
        raise RequestError(f"data.path = {path} cannot be read ({reason}); check the file") from None


def _array(path: Path) -> list[Any] | None:
    try:
        with _opened(path) as file:
            if file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"[":
                return None
            file.seek(0)
            rows = json.loads(file.read().decode("utf-8-sig"))
    except (EOFError, zlib.error, ValueError, RecursionError):
        return None
    return rows if isinstance(rows, list) else None


def _opened(path: Path) -> Any:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Broken("invalid UTF-8", line[:_SHOWN_BYTES])
    except (ValueError, RecursionError):
        return Broken("not JSON", line[:_SHOWN_BYTES])


def _folder_files(data: Data) -> list[Path]:
    """The files of a local folder that belong to the subset and the split, shards in order.

    The folder's README.md may declare subsets and splits, as on the hub; otherwise the files' names do, and a folder
    without such names is all `train`.
    """
    import datasets

    folder = str(Path(data.path).expanduser().absolute())
    try:
        builder = datasets.load_dataset_builder(folder, name=data.subset, revision=data.revision)
    except Exception as error:
        raise RequestError(refusal(error, data, local=True)) from None
    files = builder.config.data_files or {}
    _check_split(data, list(files))
    return [Path(file) for file in files[data.split]]


def _hub(data: Data) -> Source:
    """The split of a hub dataset and the commit that it comes from."""
    import datasets
    from huggingface_hub import HfApi

    commit = None
    try:
        if not datasets.config.HF_HUB_OFFLINE:
            # Asked once and without retries, so that no network is found out in seconds.
            info = HfApi().dataset_info(data.path, revision=data.revision, timeout=_ANSWER_WITHIN_SECONDS)
            commit = str(info.sha)
        builder = datasets.load_dataset_builder(data.path, name=data.subset, revision=commit or data.revision)
    except Exception as error:
        raise RequestError(refusal(error, data)) from None
    if commit is None:
        commit = _cached_commit(builder.hash, data)
    elif builder.hash != commit:
        raise RequestError(
            f"data.path = {data.path} cannot be read at commit {commit}, only from a copy in the cache; check the "
            "connection, or set HF_HUB_OFFLINE=1 to take the copy"
        )
    splits = builder.info.splits or {}
    _check_split(data, list(builder.config.data_files or splits))
    count = splits[data.split].num_examples if data.split in splits else None
    return Source(_hub_rows(builder, data), None, count or None, commit)


def _cached_commit(cached: str, data: Data) -> str:
    """The commit of the copy in the cache, which must be the one that the study names, if it names one."""
    from huggingface_hub.constants import HF_HUB_CACHE

    named = data.revision
    if named is None:
        return cached
    if not COMMIT.fullmatch(named):
        reference = Path(HF_HUB_CACHE) / f"datasets--{data.path.replace('/', '--')}" / "refs" / named
        named = reference.read_text().strip() if reference.is_file() else None
    if named != cached:
        raise RequestError(
            f"data.revision = {data.revision} of {data.path} is not in the cache, which has commit {cached}; name "
            "that, or unset HF_HUB_OFFLINE"
        )
    return cached


def _check_split(data: Data, splits: list[str]) -> None:
    if data.split in splits:
        return
    there = f"there is {', '.join(splits)}" if splits else "it names none"
    part = "; for a part of a split set data.documents" if re.search(r"[\[+]", data.split) else ""
    raise RequestError(f"data.split = {data.split} is no split of {data.path}; {there}{part}")


def _hub_rows(builder: Any, data: Data) -> Iterator[Any]:
    try:
        if data.streaming:
            rows = builder.as_streaming_dataset(split=data.split)
        else:
            builder.download_and_prepare()
            rows = builder.as_dataset(split=data.split)
        names = rows.column_names or list(next(iter(rows), {}))
        check_columns(names, data, data.path)
        rows = rows.select_columns(read_columns(names, data)).with_format("arrow")
        for batch in rows.iter(_BATCH_ROWS):
            yield from _decoded(batch)
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(refusal(error, data)) from None
