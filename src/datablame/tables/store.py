"""A table's place and its bytes: `@table(phase, file)`, and how rows are written and read."""

import functools
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    NamedTuple,
    NewType,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import TypeAdapter, ValidationError

from datablame.errors import RequestError, problem

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
Float16 = NewType("Float16", float)
"""A number that is stored in 16 bits."""
_COMPRESSION = "zstd"


class Place(NamedTuple):
    """Where a table lies: the phase that writes it and its file below `artifacts/PHASE`."""

    phase: str
    file: str
    shown: bool = False
    """Whether it is there for the pages alone, so that no number hangs on it."""


TABLES: dict[type, Place] = {}
"""Every table with its place, in the order of the phases."""


@dataclass_transform(frozen_default=True)
def table(phase: str, file: str, *, shown: bool = False) -> Callable[[type[T]], type[T]]:
    """Declare a frozen dataclass and where its rows lie."""

    def declare(row: type[T]) -> type[T]:
        made = dataclass(frozen=True)(row)
        TABLES[made] = Place(phase, file, shown)
        return made

    return declare


def path_of(row: type, root: Path) -> Path:
    """Where a table lies in a run folder."""
    place = TABLES[row]
    return root / "artifacts" / place.phase / place.file


def rows_of(path: Path, row: type[T], columns: Sequence[str] | None = None, **where: Any) -> list[T]:
    """The rows of a Parquet file; none where there is no file, RequestError where it is torn.

    `where` names columns and the value that a row must have there, or a set of which it must have one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists() or set() in where.values():  # Arrow makes no filter of an empty set.
        return []
    kind: Any = row
    filters = [(name, "in" if isinstance(value, set) else "=", value) for name, value in where.items()] or None
    try:
        records = pq.read_table(path, columns=columns, filters=filters).to_pylist()
        if any(pa.types.is_nested(each.type) for each in schema_of(kind)):
            return _adapter(kind).validate_python(records)
        return [row(**each) for each in records]
    except (OSError, pa.ArrowException, ValidationError, TypeError):
        raise RequestError(problem("tables", "torn", path=path)) from None


def object_of(path: Path, row: type[T]) -> T | None:
    """The one row of a JSON file; None where there is no file, RequestError where it is torn."""
    kind: Any = row
    try:
        rows = _adapter(kind).validate_json(b"[" + path.read_bytes() + b"]") if path.exists() else []
    except ValidationError:
        raise RequestError(problem("tables", "torn", path=path)) from None
    return next(iter(rows), None)


def encoded(row: type[T], rows: "Sequence[T] | T") -> bytes:
    """The bytes of a table: Parquet of rows, or one JSON object."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind: Any = row
    if isinstance(rows, row):
        plain = _adapter(kind).dump_python([rows], mode="json")[0]
        return (json.dumps(plain, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    every: Any = rows
    plain, schema, buffer = _adapter(kind).dump_python(list(every)), schema_of(kind), io.BytesIO()
    columns = pa.table({name: [each[name] for each in plain] for name in schema.names}, schema=schema)
    pq.write_table(columns, buffer, compression=_COMPRESSION)
    return buffer.getvalue()


def write_parts(row: type, parts: "Iterable[pa.Table]", file: BinaryIO) -> None:
    """Write Parquet of a table that is made part by part, so that no more than one is held; each is a row group."""
    import pyarrow.parquet as pq

    with pq.ParquetWriter(file, schema_of(row), compression=_COMPRESSION) as writer:
        for part in parts:
            writer.write_table(part)


@functools.cache
def schema_of(row: type) -> "pa.Schema":
    """The Arrow schema of a row, from its types."""
    import pyarrow as pa

    return pa.schema(list(_arrow(row)))


def _arrow(hint: Any) -> "pa.DataType":
    import pyarrow as pa

    plain = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), Float16: pa.float16()}
    if hint in plain:
        return plain[hint]
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return pa.struct([pa.field(each.name, _arrow(hints[each.name])) for each in fields(hint)])
    arguments = [each for each in get_args(hint) if each not in (type(None), ...)]
    if isinstance(arguments[0], str):
        return plain[str]  # Literals are texts.
    return pa.list_(_arrow(arguments[0])) if get_origin(hint) is tuple else _arrow(arguments[0])


@functools.cache
def _adapter(row: Any) -> "TypeAdapter[list[Any]]":
    return TypeAdapter(list[row])
