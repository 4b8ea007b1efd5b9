"""Where the pool's rows come from: files, patterns and folders here, or the hub; a row that can't be parsed is told."""

import glob
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datablame.errors import RequestError
from datablame.study.schema import Data
from datablame.world.formats import check_columns, wanted
from datablame.world.turns import Broken

_PARQUET = (".parquet",)
_LINES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
_BATCH_ROWS = 1024
_SHOWN_BYTES = 120


class Source(NamedTuple):
    """Rows as mappings from columns to values, or as `Broken`; `commit` is what a hub dataset's revision stood for."""

    rows: Iterator[Any]
    commit: str | None = None


def open_source(data: Data) -> Source:
    """The rows of the data in the order of its files; what is wrong with the request shows here or at the first row.

    Local Parquet and JSONL are read by our own readers, which leave out single rows; `datasets` decides which files of
    a folder belong to the split, and reads the hub.

    Raises:
        RequestError: there is no such file, folder, dataset, split, subset or revision, or it cannot be read.
    """
    path = Path(data.path).expanduser()
    if path.is_dir():
        from datablame.world.hub import folder_files

        return Source(_file_rows(folder_files(data), data))
    if glob.has_magic(data.path) and not path.is_file():
        files = pool_files(data.path)
        if not files:
            raise RequestError(f"data.path = {data.path} matches no file here; correct the pattern")
        return Source(_file_rows(files, data))
    if path.is_file() or path.suffix in (*_PARQUET, ".jsonl", ".json"):
        return Source(_file_rows([path], data))
    if data.path.startswith((".", "/", "~")) or data.path.count("/") > 1:
        raise RequestError(f"data.path = {data.path} is not here; correct the path, or name a dataset on the hub")
    from datablame.world.hub import hub_batches

    batches, commit = hub_batches(data)
    return Source((row for batch in batches for row in _decoded(batch)), commit)


def pool_files(path: str) -> list[Path]:
    """The local files that a path, a pattern or a folder stands for, sorted; none for a dataset on the hub."""
    here = Path(path).expanduser()
    found: Iterable[Path] = ()
    if here.is_dir():
        found = (file for file in here.rglob("*") if not any(p.startswith(".") for p in file.relative_to(here).parts))
    elif here.is_file():
        found = (here,)
    elif glob.has_magic(path):
        found = map(Path, glob.glob(str(here), recursive=True))  # noqa: PTH207
    return sorted(file for file in found if file.is_file())


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
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            check_columns(names, data, str(path))
            for batch in file.iter_batches(_BATCH_ROWS, columns=wanted(names, data)):
                yield from _decoded(batch)
    except (OSError, pa.ArrowException) as error:
        raise RequestError(f"data.path = {path} cannot be read as Parquet ({_line(error)}); check the file") from None


def _decoded(batch: Any) -> list[Any]:
    """The rows of an Arrow table or batch; one with invalid UTF-8 costs itself only."""
    try:
        rows: list[Any] = batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [Broken("invalid UTF-8", error.object[:_SHOWN_BYTES])]
        return [row for place in range(batch.num_rows) for row in _decoded(batch.slice(place, 1))]
    return rows


def _json_rows(path: Path) -> Iterator[Any]:
    """The rows of JSON lines, or of one JSON array, as Alpaca's files are."""
    whole = _array(path) if ".json" in path.suffixes else None
    if whole is not None:
        yield from whole
        return
    try:
        with _opened(path) as file:
            for line in file:
                if line.strip():
                    yield _parsed(line)
    except (EOFError, zlib.error):
        yield Broken("the compressed file is torn", path.name)
    except OSError as error:
        raise _unreadable(path, error) from None


def _array(path: Path) -> list[Any] | None:
    try:
        with _opened(path) as file:
            if file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"[":
                return None
            file.seek(0)
            rows = json.loads(file.read().decode("utf-8-sig"))
    except (EOFError, zlib.error, ValueError, RecursionError):
        return None
    except OSError as error:
        raise _unreadable(path, error) from None
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


def _unreadable(path: Path, error: OSError) -> RequestError:
    return RequestError(f"data.path = {path} cannot be read ({error.strerror or _line(error)}); check the file")


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
