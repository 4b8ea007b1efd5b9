"""The tables of a run with flat columns: which ones, and their rows as Parquet or CSV."""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import datablame.tables as rows
from datablame.export.source import Source
from datablame.report.wording import spreadsheet
from datablame.tables.meanings import claim, meaning, words

if TYPE_CHECKING:
    import pyarrow as pa

TABLES = (
    *(rows.Prompt, rows.ScannedPrompt, rows.ScanSample, rows.SurfaceSample, rows.Rate),
    *(rows.Query, rows.Candidate, rows.MethodInfo, rows.Score, rows.Flag, rows.ShownDocument, rows.Agreement),
    *(rows.Quality, rows.PrefilterRecall, rows.Ceiling, rows.Theme, rows.Blame, rows.OutputGroup),
    *(rows.ArmInfo, rows.Arm, rows.Training, rows.Exposure, rows.ArmSample, rows.ArmRate, rows.ArmTest),
    *(rows.Check, rows.ArmCheck),
)
"""What is exported; the pool is its owner's, and per-token tables and those of one row stay in the run folder."""
_LEFT_OUT = ("token_ids", "stop_id")
"""They spell what is hidden."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PLAIN = (str, int, float, bool)


class Column(NamedTuple):
    """A flat column: `to_random.p` is the field `p` of the field `to_random`."""

    path: tuple[str, ...]
    kind: type
    """Text, integer, number or truth value; text too where it is JSON."""
    words: str
    meaning: str

    @property
    def name(self) -> str:
        """As pandas' `json_normalize` names it."""
        return ".".join(self.path)


class Table(NamedTuple):
    """A table as it is exported."""

    row: type
    name: str
    claim: str
    """What a row is."""
    columns: tuple[Column, ...]
    rows: int


def write_parquet(source: Source, folder: Path) -> tuple[list[Table], int]:
    """Write every table that has rows as NAME.parquet; the tables, and how many texts are hidden."""
    import pyarrow.parquet as pq

    written, hidden = list[Table](), 0
    for table, values, count in _tables(source):
        pq.write_table(_arrow(table, values), folder / f"{table.name}.parquet", compression="zstd")
        written, hidden = [*written, table], hidden + count
    return written, hidden


def write_csv(source: Source, folder: Path) -> tuple[list[Table], int]:
    r"""Write every table that has rows as NAME.csv, in UTF-8; control characters are spelled out: \u0000."""
    written, hidden = list[Table](), 0
    for table, values, count in _tables(source):
        with (folder / f"{table.name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(column.name for column in table.columns)
            writer.writerows([spreadsheet(_visible(value)) for value in row] for row in zip(*values, strict=True))
        written, hidden = [*written, table], hidden + count
    return written, hidden


def columns_of(row: type) -> tuple[Column, ...]:
    """The columns of a row: rows inside it spread, lists and maps as JSON."""
    return tuple(_columns(row, ()))


def _tables(source: Source) -> Iterator[tuple[Table, list[list[Any]], int]]:
    """Each table that has rows, its values column by column, how many texts are hidden."""
    shown = {each.doc_id for each in source.read(rows.ShownDocument).rows}
    for row in TABLES:
        # The others are of the whole pool.
        held = source.read(row, doc_id=shown) if row is rows.Score else source.read(row)
        if held.rows:
            place = rows.TABLES[row]
            columns = columns_of(row)
            claims = " ".join(claim(each) for each in row.__mro__ if is_dataclass(each))
            table = Table(row, f"{place.phase}_{Path(place.file).stem}", claims, columns, len(held.rows))
            yield table, [[_value(each, column) for each in held.rows] for column in columns], held.hidden


def _columns(row: Any, above: tuple[str, ...], missing: bool = False) -> Iterator[Column]:
    hints = get_type_hints(row)
    for each in fields(row):
        if each.name in _LEFT_OUT:
            continue
        hint, path = hints[each.name], (*above, each.name)
        said = meaning(row, each.name) or (claim(row) if above else "")
        # X | None is a column of X.
        can_miss = type(None) in get_args(hint)
        kind: Any = get_args(hint)[0] if can_miss else hint
        told = words(hint | None if missing else hint, _braces)
        if is_dataclass(kind):
            yield from _columns(kind, path, missing or can_miss)
        elif kind in _PLAIN or get_origin(kind) is Literal:
            yield Column(path, kind if kind in _PLAIN else str, told, said)
        else:
            yield Column(path, str, f"JSON: {told}", said)


def _braces(row: type) -> str:
    return f"{{{', '.join(get_type_hints(row))}}}"


def _value(row: Any, column: Column) -> Any:
    value = row
    for name in column.path:
        value = None if value is None else getattr(value, name)
    if value is None or isinstance(value, _PLAIN):
        return value
    return json.dumps(_plain(value), ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _arrow(table: Table, values: list[list[Any]]) -> "pa.Table":
    import pyarrow as pa

    kinds: Mapping[type, Any] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(column.name, kinds[column.kind]) for column in table.columns])
    return pa.table(dict(zip(schema.names, values, strict=True)), schema=schema)


def _visible(value: Any) -> Any:
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", value) if isinstance(value, str) else value
