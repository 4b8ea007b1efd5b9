"""One way to write a file, to hash one, to be the only process that makes one, and to journal what survives a kill."""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import yaml

from datablame.errors import PhaseError, RequestError, problem

_LONGEST_VALUE = 40
"""Characters of a value that is quoted where it changed; hashes are longer."""


@contextlib.contextmanager
def atomic_file(path: Path, *, shared: bool = False) -> Iterator[BinaryIO]:
    """A file, whole or not there: NAME.part, fsync, rename; each process its own part where they may be several."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part" if shared else f"{path.name}.part")
    with part.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def write_atomic(path: Path, data: bytes | str, *, shared: bool = False) -> None:
    """Write a whole file or nothing."""
    with atomic_file(path, shared=shared) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: Any) -> None:
    """Write canonical JSON: sorted keys, no NaN, one trailing newline."""
    write_atomic(path, json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON value."""
    return json.loads(path.read_text(encoding="utf-8-sig"))


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty where there is no such file or where it holds something else."""
    with contextlib.suppress(OSError, ValueError):
        if isinstance(value := read_json(path), dict):
            return value
    return {}


def own_object(path: Path, otherwise: str, keys: Iterable[str] = ()) -> dict[str, Any]:
    """The JSON object with these keys that a run has written to a file; empty where there is none.

    Raises RequestError where it is torn: to take it for absent would do its work again, or forget what it froze.
    """
    if ((value := json_object(path)) and value.keys() >= set(keys)) or not path.exists():
        return value
    raise RequestError(problem("engine", "torn", path=path, otherwise=otherwise))


class Change(NamedTuple):
    """A field in which two JSON values differ."""

    field: str
    then: Any
    now: Any

    def sentence(self) -> str:
        """In words, with both values where they are short."""
        values = [json.dumps(value, ensure_ascii=False) for value in (self.then, self.now)]
        if max(map(len, values)) > _LONGEST_VALUE:
            return f"{self.field} was changed"
        return f"{self.field} was {values[0]} and is {values[1]}"


def changes(then: Any, now: Any, field: str = "") -> tuple[Change, ...]:
    """Every key, from the top down, at which two nested mappings differ; lists are compared as wholes.

    A key without a value is as good as none: study.yaml leaves it out.
    """
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys((*then, *now))
        pairs = [(f"{field}.{key}" if field else str(key), then.get(key), now.get(key)) for key in keys]
        return tuple(change for name, old, new in pairs for change in changes(old, new, name))
    return () if then == now else (Change(field, then, now),)


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one canonical JSON object a line."""
    lines = (json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_atomic(path, "".join(lines))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line."""
    with path.open(encoding="utf-8-sig") as file:
        return [json.loads(line) for line in file if line.strip()]


def packaged_yaml(package: str, name: str) -> Any:
    """The values of a YAML file that stands beside a package's code."""
    return yaml.safe_load(resources.files(package).joinpath(name).read_text(encoding="utf-8"))


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write plain rows as Parquet, as people bring them; what phases yield is typed (`tables.encoded`)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), buffer, compression="zstd")
    write_atomic(path, buffer.getvalue())


def hash_file(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: object) -> str:
    """The SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def locked_file(path: Path, *, wait: bool) -> IO[str]:
    """The file, made if need be, open and held until it is closed; BlockingIOError without `wait` if it is held."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("a+", encoding="utf-8")
        except FileNotFoundError:
            if path.is_symlink():
                raise
            # The folder was taken away since the line before.
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Whoever held it may have taken it away with its folder: then a later process would hold another file.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """One process at a time makes `path`, which lies in the cache; RequestError where that cannot be written."""
    try:
        file = locked_file(path.with_name(path.name + ".lock"), wait=True)
    except OSError as error:
        raise RequestError(
            f"the cache {path.parent} cannot be written ({error.strerror}); set DATABLAME_CACHE to a folder that can"
        ) from error
    with file:
        yield


def build_atomically(path: Path, build: Callable[[Path], None]) -> None:
    """Let `build` make the folder or file PATH.part and rename it to PATH; nothing when PATH is there.

    A kill cannot tear it: what is finished stays, what is half done is done again.
    """
    if path.exists():
        return
    part = path.with_name(path.name + ".part")
    if part.is_dir():
        shutil.rmtree(part)
    part.unlink(missing_ok=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    build(part)
    part.replace(path)


class Journal:
    """Finished work items, appended as they finish; a torn last line (a kill while writing) is dropped.

    Raises PhaseError where a line before the last does not parse, so that the file was changed by something else.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._valid_bytes = path, -1

    def read(self) -> dict[str, Any]:
        """Payloads by key, in the order in which they were written."""
        entries: dict[str, Any] = {}
        self._valid_bytes = 0
        if not self._path.exists():
            return entries
        lines = self._path.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1], 1):
            try:
                entry = json.loads(line)
                entries[entry["key"]] = entry["payload"]
            except (ValueError, KeyError, TypeError):
                if number == len(lines) - 1 and not lines[-1]:
                    break
                raise PhaseError(f"{self._path}: line {number} is damaged; delete the file to redo its items") from None
            self._valid_bytes += len(line) + 1
        return entries

    def append(self, key: str, payload: Any) -> None:
        """Add one finished item; it is on disk when this returns."""
        if self._valid_bytes < 0:
            self.read()
        line = json.dumps({"key": key, "payload": payload}, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.truncate(self._valid_bytes)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._valid_bytes += len(line)
