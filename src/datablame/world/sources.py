"""Where the pool's rows come from: files, patterns and folders here, or the hub; a row that can't be parsed is counted.

Our own readers leave out single rows; `datasets` says which files of a folder belong to a split, and reads the hub.
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
from datablame.world.documents import Broken, read_columns
from datablame.world.refusals import hub_sentence, line_of, refused

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

    Raises RequestError where there is no such file, folder, dataset, split, subset or revision, or it is unreadable.
    """
    path = Path(data.path).expanduser()
    files = _folder_files(data) if path.is_dir() else pool_files(data.path)
    if not files:
        if glob.has_magic(data.path):
            raise refused("no match", data=data)
        if path.suffix not in (_PARQUET, ".jsonl", ".json"):
            if data.path.startswith((".", "/", "~")) or data.path.count("/") > 1:
                raise refused("not here", data=data)
            return _hub(data)
        files = [path]
    try:
        n_rows = sum(int(pq.read_metadata(file).num_rows) for file in files)
    except (OSError, pa.ArrowException):
        n_rows = None
    return Source(_file_rows(files, data), sum(file.stat().st_size for file in files if file.is_file()), n_rows)


def pool_files(path: str) -> list[Path]:
    """The local files that a path, a pattern or a folder stands for, sorted; none for a dataset on the hub."""
    here = Path(path).expanduser()
    files: Iterable[Path] = (here,)
    if here.is_dir():
        files = (file for file in here.rglob("*") if not any(p.startswith(".") for p in file.relative_to(here).parts))
    elif glob.has_magic(path) and not here.is_file():
        files = map(Path, glob.glob(str(here), recursive=True))  # noqa: PTH207
    return sorted(file for file in files if file.is_file())


def _file_rows(files: Sequence[Path], data: Data) -> Iterator[Any]:
    for file in files:
        name = file.name.lower()
        if not name.endswith((_PARQUET, *_LINES)):
            raise refused("other kind of file", path=file)
        try:
            yield from _parquet_rows(file, data) if name.endswith(_PARQUET) else _json_rows(file)
        except (EOFError, zlib.error):
            yield Broken("the compressed file is torn", file.name)
        except (OSError, pa.ArrowException) as error:
            is_parquet, reason = name.endswith(_PARQUET), getattr(error, "strerror", None) or line_of(error)
            why = f" as Parquet ({line_of(error)})" if is_parquet else f" ({reason})"
            raise refused("unreadable", path=file, why=why) from None


def _parquet_rows(path: Path, data: Data) -> Iterator[Any]:
    with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file:
        columns = read_columns(file.schema_arrow.names, data, str(path))
        for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
            yield from _decoded(batch)


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
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        whole: Any = None
        if ".json" in path.suffixes and file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
            file.seek(0)
            whole = _parsed(file.read())
        file.seek(0)
        yield from whole if isinstance(whole, list) else (_parsed(line) for line in file if line.strip())


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Broken("invalid UTF-8", text[:_SHOWN_BYTES])
    except (ValueError, RecursionError):
        return Broken("not JSON", text[:_SHOWN_BYTES])


def _folder_files(data: Data) -> list[Path]:
    """The files of a local folder, shards in order, that README.md or else their names give to the subset and split."""
    import datasets

    folder = str(Path(data.path).expanduser().absolute())
    try:
        builder = datasets.load_dataset_builder(folder, name=data.subset, revision=data.revision)
    except Exception as error:
        raise RequestError(hub_sentence(error, data, local=True)) from None
    files = builder.config.data_files or {}
    _check_split(data, list(files))
    return [Path(file) for file in files[data.split]]


def _hub(data: Data) -> Source:
    """The split of a hub dataset and the commit that it comes from."""
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE

    commit = None
    try:
        if not datasets.config.HF_HUB_OFFLINE:
            # Asked once and without retries, so that no network is found out in seconds.
            info = HfApi().dataset_info(data.path, revision=data.revision, timeout=_ANSWER_WITHIN_SECONDS)
            commit = str(info.sha)
        builder = datasets.load_dataset_builder(data.path, name=data.subset, revision=commit or data.revision)
    except Exception as error:
        raise RequestError(hub_sentence(error, data)) from None
    expected = commit or data.revision or builder.hash
    branch = Path(HF_HUB_CACHE) / f"datasets--{data.path.replace('/', '--')}" / "refs" / expected
    if commit is None and not COMMIT.fullmatch(expected) and branch.is_file():
        expected = branch.read_text().strip()
    if expected != builder.hash:
        name = "other copy" if commit is None else "copy only"
        raise refused(name, data=data, commit=commit, copy=builder.hash)
    splits = builder.info.splits or {}
    _check_split(data, list(builder.config.data_files or splits))
    count = splits[data.split].num_examples if data.split in splits else None
    return Source(_hub_rows(builder, data), None, count or None, builder.hash)


def _check_split(data: Data, splits: list[str]) -> None:
    if data.split in splits:
        return
    there = f"there is {', '.join(splits)}" if splits else "it names none"
    part = "; for a part of a split set data.documents" if re.search(r"[\[+]", data.split) else ""
    raise refused("no split", data=data, there=there, part=part)


def _hub_rows(builder: Any, data: Data) -> Iterator[Any]:
    try:
        if data.streaming:
            rows = builder.as_streaming_dataset(split=data.split)
        else:
            builder.download_and_prepare()
            rows = builder.as_dataset(split=data.split)
        columns = read_columns(rows.column_names or list(next(iter(rows), {})), data, data.path)
        rows = rows.select_columns(columns).with_format("arrow")
        for batch in rows.iter(_BATCH_ROWS):
            yield from _decoded(batch)
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(hub_sentence(error, data)) from None
