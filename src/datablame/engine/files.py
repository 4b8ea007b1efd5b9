"""One way to write a file, to hash one, and to be the only process that makes one."""

import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from datablame.errors import RequestError

_CHUNK_BYTES = 1 << 20


def write_atomic(path: Path, data: bytes | str, *, shared: bool = False) -> None:
    """Write a whole file or nothing: NAME.part, fsync, rename.

    `shared`: other processes may write the same file at this moment, so that the part has the process's id in its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part" if shared else f"{path.name}.part")
    with part.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write canonical JSON: sorted keys, no NaN, one trailing newline."""
    write_atomic(path, json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON value."""
    return json.loads(path.read_text(encoding="utf-8"))


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty where there is no such file or where it holds something else."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one canonical JSON object a line."""
    lines = (json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_atomic(path, "".join(lines))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def packaged_yaml(package: str, name: str) -> Any:
    """The values of a YAML file that stands beside a package's code."""
    return yaml.safe_load(resources.files(package).joinpath(name).read_text(encoding="utf-8"))


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write plain rows as Parquet, as people bring them; what phases yield is typed (`tables.encoded`)."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), buffer, compression="zstd")
    write_atomic(path, buffer.getvalue())


def hash_file(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha.update(chunk)
    return sha.hexdigest()


def digest(value: object) -> str:
    """The SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def locked_file(path: Path, *, wait: bool) -> IO[str]:
    """The file, made if it is not there, open and held by this process until it is closed.

    Raises:
        BlockingIOError: another process holds it, and `wait` is not set.
    """
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


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """One process at a time makes `path`, which lies in the cache; the others wait.

    Raises:
        RequestError: the cache cannot be written.
    """
    try:
        file = locked_file(path.with_name(path.name + ".lock"), wait=True)
    except OSError as error:
        raise RequestError(
            f"the cache {path.parent} cannot be written ({error.strerror}); set DATABLAME_CACHE to a folder that can"
        ) from error
    with file:
        yield
