"""Where the pool's rows come from: files, patterns and folders here, or the hub; a row that can't be parsed is counted.

Our own readers leave out single rows; `datasets` says which files of a folder belong to a split, and reads the hub.
"""

import codecs
import glob
import gzip
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from datablame.config.schema import Data
from datablame.errors import RequestError
from datablame.models.weight_files import is_pointer
from datablame.world.conversations import Broken
from datablame.world.refusals import hub_sentence, line_of, refused
from datablame.world.rows import LABELS, check_columns, columns_of

_PARQUET = ".parquet"
_LINES = tuple(kind + packed for kind in (".jsonl", ".json", ".ndjson") for packed in ("", ".gz", ".zst"))
_CONVERTIBLE = (".arrow", ".csv", ".tsv", ".csv.gz", ".tsv.gz", ".xz", ".bz2", ".lz4")
"""What else data comes in, which has to be converted."""
_NO_DATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")
"""JSON that says something about data; `datasets` passes over it too."""
_SPREAD, _SPACE = re.compile(rb"\{\s*\n"), re.compile(r"\s*")
READ = (_PARQUET, *_LINES, ".arrow")
"""What a file of the data ends with; others in a folder are none of it."""
_TORN = "the compressed file is torn, and what came after is lost"
_BATCH_ROWS = 64
"""Rows read together: few, for a document may be 100,000 characters long."""
_BUFFER_BYTES = 1 << 20
_SHOWN_BYTES = 120
_ANSWER_WITHIN_SECONDS = 10
COMMIT = re.compile(r"[0-9a-f]{40}")


class Source(NamedTuple):
    """Rows as mappings from columns to values, or as `Broken`, each with the name of its file."""

    rows: Iterator[tuple[str, Any]]
    files: tuple[str, ...]
    """The names of the files, of those without rows too; of a hub dataset, its own with the split."""
    size_bytes: int | None
    """Of the local files; None for the hub."""
    n_rows: int | None
    """Rows by the files' own counts, where they have one."""
    other_files: tuple[str, ...] = ()
    """Files of a folder that belong to other splits or subsets."""
    commit: str | None = None
    """What a hub dataset's revision stood for."""


def open_source(data: Data) -> Source:
    """The rows of the data in the order of its files; what is wrong with the request shows here or at the first row.

    Raises RequestError where there is no such file, folder, dataset, split, subset or revision, where a file of a
    folder belongs to no split, or one of the files is of another kind, lacks the columns or is unreadable.
    """
    path, others = Path(data.path).expanduser(), list[Path]()
    if "://" in data.path:
        raise refused("address", data=data)
    for file in _named(data.path):
        if not file.exists() and file.name.lower().endswith((_PARQUET, *_LINES)):
            raise refused("unreadable", path=file, why=" (a link that leads nowhere)")
    if path.is_dir():
        if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
            return _saved(data)
        files, others = _folder_files(data)
    elif files := pool_files(data.path):
        for field, default in (("subset", None), ("split", "train")):
            if getattr(data, field) != default:
                raise refused("no folder", field=field, value=getattr(data, field), data=data)
    elif glob.has_magic(data.path):
        raise refused("no match", data=data)
    elif not is_local(data):
        return _hub(data)
    elif path.name.lower().endswith((_PARQUET, *_LINES)):
        files = [path]
    else:
        raise refused("not here", data=data)
    counts = [_checked(file, data) for file in files]
    base = path if path.is_dir() else Path(os.path.commonpath([file.parent for file in files]))
    names = [file.relative_to(base).as_posix() for file in files]
    return Source(
        rows=((name, row) for name, file in zip(names, files, strict=True) for row in _file_rows(file, data)),
        files=tuple(names),
        size_bytes=sum(file.stat().st_size for file in files),
        n_rows=None if None in counts else sum(filter(None, counts)),
        other_files=tuple(file.relative_to(base).as_posix() for file in others),
    )


def is_local(data: Data) -> bool:
    """Whether the data is here, or should be by its name; else it is a dataset on the hub."""
    path, named = Path(data.path).expanduser(), data.path.lower().endswith((_PARQUET, *_LINES))
    is_path = data.path.startswith((".", "/", "~")) or data.path.count("/") > 1 or glob.has_magic(data.path)
    return path.exists() or named or is_path


def pool_files(path: str) -> list[Path]:
    """The local files that a path, a pattern or a folder stands for, sorted; none for a dataset on the hub."""
    return sorted(file for file in _named(path) if file.is_file())


def _named(path: str) -> Iterator[Path]:
    """What it stands for, links that lead nowhere too: in a folder all that is not hidden, in linked folders also."""
    here = Path(path).expanduser()
    if here.is_dir():
        visited = {os.path.realpath(here)}
        for folder, folders, files in os.walk(here, followlinks=True):
            shown = [Path(folder, name) for name in folders if not name.startswith(".")]
            folders.clear()
            for inner in sorted(shown, key=Path.is_symlink):  # A link to one beside it adds nothing.
                if (real := os.path.realpath(inner)) not in visited:
                    visited.add(real)
                    folders.append(inner.name)
            yield from (Path(folder, name) for name in files if not name.startswith("."))
    elif glob.has_magic(path) and not here.is_file():
        there = next(folder for folder in here.parents if folder.is_dir())  # Its own name may have brackets.
        yield from map(Path, glob.glob(str(Path(glob.escape(str(there)), here.relative_to(there))), recursive=True))  # noqa: PTH207
    elif here.is_file() or here.is_symlink():
        yield here


def row_lines(files: Sequence[Path]) -> int | None:
    """The rows of JSON lines, counted without reading them; None of other files, whose lines are no rows."""
    lines = 0
    for file in files:
        if file.suffix.lower() not in _LINES:
            return None
        with file.open("rb") as stream:
            start = stream.peek(64).removeprefix(codecs.BOM_UTF8).lstrip()
            if start.startswith(b"[") or _SPREAD.match(start):
                return None
            lines += sum(not line.isspace() for line in stream)
    return lines


def _checked(file: Path, data: Data) -> int | None:
    """How many rows a file says that it has; RequestError where it is of another kind, unreadable, or lacks columns."""
    name = file.name.lower()
    if not name.endswith((_PARQUET, *_LINES)):
        raise refused("other kind of file", path=file)
    try:
        with file.open("rb") as stream:
            start = stream.read(len(codecs.BOM_UTF16_LE))
        if is_pointer(file):
            raise refused("lfs pointer", path=file)
        if not name.endswith(_PARQUET):
            if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise refused("utf-16", path=file)
            return None
        footer = pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(file, error) from None
    check_columns(footer.schema.to_arrow_schema().names, data, str(file))
    return int(footer.num_rows)


def _unreadable(file: Path, error: Exception) -> RequestError:
    reason = getattr(error, "strerror", None) or line_of(error)
    return refused("unreadable", path=file, why=f" as Parquet ({reason})" if _is_parquet(file) else f" ({reason})")


def _is_parquet(file: Path) -> bool:
    return file.name.lower().endswith(_PARQUET)


def _file_rows(file: Path, data: Data) -> Iterator[Any]:
    try:
        yield from _parquet_rows(file, data) if _is_parquet(file) else _json_rows(file)
    except (EOFError, zlib.error):
        yield Broken(_TORN, file.name)
    except (OSError, pa.ArrowException) as error:
        if not file.name.lower().endswith(".zst") or getattr(error, "errno", None):
            raise _unreadable(file, error) from None
        yield Broken(_TORN, file.name)


def _parquet_rows(path: Path, data: Data) -> Iterator[Any]:
    with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file:
        for batch in file.iter_batches(_BATCH_ROWS, columns=_wanted(file.schema_arrow, data)):
            yield from _decoded(batch)


def _wanted(schema: pa.Schema, data: Data) -> list[str]:
    """The columns that may be read, and those with text, of which it is told that nobody reads it."""
    read = {*columns_of(schema.names, data).values(), *LABELS}
    return [field.name for field in schema if field.name in read or _holds_text(field.type)]


def _holds_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    if pa.types.is_nested(kind):
        return any(_holds_text(kind.field(place).type) for place in range(kind.num_fields))
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _decoded(batch: Any) -> Iterator[Any]:
    """The rows of an Arrow table or batch; one that Python cannot hold costs itself only."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            if isinstance(error, UnicodeDecodeError):
                yield Broken("invalid UTF-8", error.object[:_SHOWN_BYTES])
            else:
                yield Broken("a date that Python cannot hold", line_of(error))
            return
        for row in range(batch.num_rows):
            yield from _decoded(batch.slice(row, 1))


def _json_rows(path: Path) -> Iterator[Any]:
    """The rows of JSON lines, of one JSON array, as Alpaca's files are, or of objects over several lines, as jq's."""
    with _opened(path) as file:
        start = file.peek(64).removeprefix(codecs.BOM_UTF8).lstrip()
        if not start.startswith(b"[") and not _SPREAD.match(start):
            yield from (_parsed(line) for line in file if line.strip())
            return
        text = file.read()
    if _SPREAD.match(start):
        yield from _spread(text)
        return
    whole = _parsed(text)
    lines = (_parsed(line) for line in io.BytesIO(text) if line.strip())
    yield from whole if isinstance(whole, list) else lines


def _spread(text: bytes) -> Iterator[Any]:
    """One JSON value after another; what follows one that is torn is lost with it."""
    try:
        left, decoder, at = text.decode("utf-8-sig").strip(), json.JSONDecoder(), 0
    except UnicodeDecodeError:
        yield Broken("invalid UTF-8", text[:_SHOWN_BYTES])
        return
    while at < len(left):
        try:
            row, end = decoder.raw_decode(left, at)
        except (ValueError, RecursionError):
            yield Broken("not JSON from here on", left[at : at + _SHOWN_BYTES])
            return
        yield row
        at = _SPACE.match(left, end).end()  # type: ignore[union-attr]


def _opened(path: Path) -> Any:
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path)
        case ".zst":
            return io.BufferedReader(pa.input_stream(path, compression="zstd"))
    return path.open("rb")


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Broken("invalid UTF-8", text[:_SHOWN_BYTES])
    except (ValueError, RecursionError):
        return Broken("not JSON", text[:_SHOWN_BYTES])


def _folder_files(data: Data) -> tuple[list[Path], list[Path]]:
    """The files of a local folder, shards in order, that README.md or else their names give to the subset and split.

    And the others. `datasets` forgets a file whose name says nothing as soon as that of another one names a split.
    """
    import datasets

    folder = Path(data.path).expanduser().resolve()
    every = [file for file in pool_files(str(folder)) if file.name not in _NO_DATA]
    there = [file for file in every if file.name.lower().endswith((_PARQUET, *_LINES))]
    splits = dict[str, list[Path]]()
    try:
        builder = datasets.load_dataset_builder(str(folder), name=data.subset, revision=data.revision)
        splits |= {
            str(name): [Path(file) for file in files] for name, files in (builder.config.data_files or {}).items()
        }
    except Exception as error:
        if not there or not isinstance(error, FileNotFoundError):
            raise RequestError(hub_sentence(error, data, local=True)) from None
    readme = folder / "README.md"
    if not (readme.is_file() and re.search(r"^configs:", readme.read_text("utf-8", "replace"), re.MULTILINE)):
        known = {file for files in splits.values() for file in files}
        every = [file for file in every if file in there or file.name.lower().endswith(_CONVERTIBLE)]
        strays = [file.relative_to(folder).as_posix() for file in every if file not in known]
        if strays and there:
            named = "; ".join(f"{name} has {files[0].name}" for name, files in splits.items()) or "none has a file"
            [(kind, _)] = Counter(_kind(file) for file in there).most_common(1)
            raise refused("no split of a file", data=data, n=len(strays), first=strays[0], named=named, kind=kind)
    _check_split(data, list(splits))
    files = splits[data.split]
    return [Path(data.path).expanduser() / file.relative_to(folder) for file in files], [
        Path(data.path).expanduser() / file.relative_to(folder) for file in there if file not in set(files)
    ]


def _kind(file: Path) -> str:
    """The end of a file's name that says what it holds, in its own letters."""
    return file.name[-max(len(kind) for kind in (_PARQUET, *_LINES) if file.name.lower().endswith(kind)) :]


def _saved(data: Data) -> Source:
    """What `save_to_disk` wrote: a dataset, or one for each split."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(Path(data.path).expanduser()))
    except Exception as error:
        raise RequestError(hub_sentence(error, data, local=True)) from None
    splits: dict[str, Any] = dict(saved) if isinstance(saved, dict) else {str(saved.split or data.split): saved}
    _check_split(data, list(splits))
    rows, name = splits[data.split], data.split
    check_columns(rows.column_names, data, data.path)
    size = sum(file.stat().st_size for file in Path(data.path).expanduser().rglob("*.arrow"))
    others = tuple(other for other in splits if other != name)
    return Source(((name, row) for row in _table_rows(rows, data)), (name,), size, len(rows), others)


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
    if builder.info.features:
        check_columns(list(builder.info.features), data, data.path)
    count = splits[data.split].num_examples if data.split in splits else None
    name = f"{data.path} ({data.split})"
    rows = ((name, row) for row in _hub_rows(builder, data))
    return Source(rows, (name,), None, count or None, commit=builder.hash)


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
        check_columns(rows.column_names or list(next(iter(rows), {})), data, data.path)
        yield from _table_rows(rows, data)
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(hub_sentence(error, data)) from None


def _table_rows(rows: Any, data: Data) -> Iterator[Any]:
    """The rows of a dataset of `datasets`, streamed or not."""
    if rows.features is not None:
        rows = rows.select_columns(_wanted(rows.features.arrow_schema, data))
    for batch in rows.with_format("arrow").iter(_BATCH_ROWS):
        yield from _decoded(batch)
