"""The run folder: its lock, what it is rid of when its study is refused, and what a run took."""

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from datablame.engine.files import locked_file
from datablame.errors import RequestError

LOCK, TIMINGS, MANIFEST, STUDY = "run.lock", "timings.jsonl", "manifest.json", "study.yaml"
REGISTRATION = "preregistration.json"
HUMAN_LABELS = "human_labels*.jsonl"
"""What people say of outputs of the run, one file each."""


class Holder(NamedTuple):
    """Who works in a run folder, and at what."""

    process: str
    step: str
    """Empty before the first one."""
    done: int
    total: int
    """Of the step's units."""


def holder_of(root: Path) -> Holder | None:
    """Who works in a run folder; None where nobody does, or where the process of this machine was killed.

    Only the file is read: to try the lock would refuse a run that begins in this instant.
    """
    import psutil

    with contextlib.suppress(OSError, ValueError):
        process, _, step = (root / LOCK).read_text(encoding="utf-8").partition("\n")
        _, pid, _, host = process.split()
        if host == socket.gethostname() and not psutil.pid_exists(int(pid)):
            return None
        return Holder(process, **json.loads(step))
    return None


@contextlib.contextmanager
def locked(root: Path) -> Iterator[Callable[[str, int, int], None]]:
    """Hold the run folder and get what tells others the step that the work is at, its units done and in all.

    RequestError with the pid and host of another process that holds it.

    Where the request is refused before study.yaml is written, the folder is left as it was, or not there if it was not.
    """
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    path = root / LOCK
    try:
        file = locked_file(path, wait=False)
    except BlockingIOError:
        holder = path.read_text(encoding="utf-8").partition("\n")[0] or "another process"
        raise RequestError(f"{root} is in use by {holder}; wait for it, or choose another --out") from None
    with file:
        there = set(root.iterdir())

        def tell(step: str, done: int, total: int) -> None:
            file.truncate(0)
            at = json.dumps({"step": step, "done": done, "total": total})
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n{at}")
            file.flush()

        tell("", 0, 0)
        try:
            yield tell
        except RequestError:
            if not (root / STUDY).exists():
                # A lock alone goes too: a process that opened it in the meantime begins anew (`files.locked_file`).
                for left in set(root.iterdir()) - (there if there != {path} else set()):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
                for folder in made:
                    # Another process may have begun a run beside this one.
                    with contextlib.suppress(OSError):
                        folder.rmdir()
            raise
        finally:
            file.truncate(0)


def append_timing(root: Path, what: str, key: str, seconds: float, peak_mb: float | None = None) -> None:
    """Add one row to timings.jsonl, the only file besides the manifest that differs between equal runs."""
    peak = {} if peak_mb is None else {"mb": round(peak_mb)}
    _append_measurement(root, {"what": what, "key": key, "seconds": round(seconds, 3), **peak})


def append_peak(root: Path, what: str, mb: float) -> None:
    """Add the peak memory of one phase to timings.jsonl."""
    _append_measurement(root, {"what": what, "mb": round(mb)})


def _append_measurement(root: Path, row: Mapping[str, object]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with (root / TIMINGS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_timings(root: Path) -> dict[str, float]:
    """Seconds summed by what took them; lines torn by a kill are skipped."""
    return {what: sum(values) for what, values in _measured(root, "seconds").items()}


def read_latest(root: Path, unit: Literal["seconds", "mb"]) -> dict[str, float]:
    """As the two around, of each item's last time only: seconds summed or the highest memory, by what took them."""
    latest: dict[str, dict[str, float]] = {}
    for what, key, value in _rows(root, unit):
        latest.setdefault(what, {})[key] = value
    join = sum if unit == "seconds" else max
    return {what: float(join(by_key.values())) for what, by_key in latest.items()}


def read_peaks(root: Path) -> dict[str, float]:
    """The highest memory in MB by what needed it."""
    return {what: max(values) for what, values in _measured(root, "mb").items()}


def _measured(root: Path, unit: str) -> dict[str, list[float]]:
    measured: dict[str, list[float]] = {}
    for what, _, value in _rows(root, unit):
        measured.setdefault(what, []).append(value)
    return measured


def _rows(root: Path, unit: str) -> Iterator[tuple[str, str, float]]:
    """What took how much, with the item's key."""
    path = root / TIMINGS
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            yield row["what"], row.get("key", ""), float(row[unit])
