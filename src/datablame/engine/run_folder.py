"""The run folder: atomic files, journals that survive a kill, the lock, and what a phase reads."""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datablame.errors import PhaseError, RequestError

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Inputs:
    """What a phase reads besides the study."""

    root: Path
    """The run folder; artifacts of earlier phases lie under root/artifacts/PHASE."""
    timings: Callable[[str, str, float], None]
    """Records seconds as (what, key, seconds) outside the artifacts, since they differ from run to run."""
    phase: str = ""
    """The phase that reads; answers of a judge are put down to it."""
    max_cost_usd: float | None = None
    """The most that the run folder may have paid for answers in all; none: no limit."""

    def artifact(self, phase: str, name: str) -> Path:
        """The path of a finished artifact."""
        return self.root / "artifacts" / phase / name


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file or nothing: NAME.part, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
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


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one canonical JSON object a line."""
    lines = (json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_atomic(path, "".join(lines))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as Parquet; equal rows give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), buffer, compression="zstd")
    write_atomic(path, buffer.getvalue())


def read_table(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a Parquet file."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


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


class Journal:
    """Finished work items, appended as they finish; a torn last line (a kill while writing) is dropped.

    Raises:
        PhaseError: a line before the last does not parse, so the file was changed by something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._valid_bytes: int | None = None

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
        if self._valid_bytes is None:
            self.read()
        assert self._valid_bytes is not None
        line = json.dumps({"key": key, "payload": payload}, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("r+b" if self._path.exists() else "w+b") as file:
            file.truncate(self._valid_bytes)
            file.seek(self._valid_bytes)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._valid_bytes += len(line)


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the run folder; a second process is refused with the pid and host of the first.

    Raises:
        RequestError: another process holds it.
    """
    root.mkdir(parents=True, exist_ok=True)
    path = root / "run.lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise RequestError(f"{root} is in use by {holder}; wait for it, or choose another --out") from None
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def append_timing(root: Path, what: str, key: str, seconds: float) -> None:
    """Add one row to timings.jsonl, the only file besides the manifest that differs between equal runs."""
    _append_measurement(root, {"what": what, "key": key, "seconds": round(seconds, 3)})


def append_peak(root: Path, what: str, mb: float) -> None:
    """Add the peak memory of one phase to timings.jsonl."""
    _append_measurement(root, {"what": what, "mb": round(mb)})


def _append_measurement(root: Path, row: Mapping[str, Any]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with (root / "timings.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_timings(root: Path) -> dict[str, float]:
    """Seconds summed by what took them; lines torn by a kill are skipped."""
    return {what: sum(values) for what, values in _measured(root, "seconds").items()}


def read_peaks(root: Path) -> dict[str, float]:
    """The highest memory in MB by what needed it."""
    return {what: max(values) for what, values in _measured(root, "mb").items()}


def _measured(root: Path, unit: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    path = root / "timings.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError, KeyError):
            row = json.loads(line)
            value = row[unit]
            found.setdefault(row["what"], []).append(value)
    return found
