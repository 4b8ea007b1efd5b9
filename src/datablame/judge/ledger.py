"""Every answer that was paid for, in one SQLite file: it outlives kills and phases that run again."""

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from datablame.errors import PhaseError
from datablame.judge.prices import Usage
from datablame.judge.request import Reply, Request

FILE = "artifacts/judge.sqlite"
"""Where a run folder keeps its answers."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, stop_reason TEXT NOT NULL, text TEXT NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    cache_read_tokens INTEGER NOT NULL, cache_write_tokens INTEGER NOT NULL, max_tokens INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS payments (
    id INTEGER PRIMARY KEY, phase TEXT NOT NULL, model TEXT NOT NULL, batch INTEGER NOT NULL, cost_usd REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS batches (
    id TEXT PRIMARY KEY, model TEXT NOT NULL, max_tokens INTEGER NOT NULL, keys TEXT NOT NULL, worst_usd REAL NOT NULL
) WITHOUT ROWID;
"""
_LONGEST_WAIT_SECONDS = 30.0


class OpenBatch(NamedTuple):
    """A batch that was submitted and whose results were not all fetched; `worst_usd` is the most that it may cost."""

    id: str
    model: str
    max_tokens: int
    keys: tuple[str, ...]
    worst_usd: float

    def question(self, key: str) -> "Question":
        """What one of its keys stands for."""
        return Question(key, self.model, self.max_tokens)


class Question(NamedTuple):
    """What an answer is kept under."""

    key: str
    model: str
    max_tokens: int


class Ledger:
    """The file, open; an answer is on disk when `keep` returns. Threads may share one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        with _told(path):
            self._file = sqlite3.connect(path, timeout=_LONGEST_WAIT_SECONDS, check_same_thread=False)
            try:
                self._file.execute("PRAGMA journal_mode = WAL")
                self._file.execute("PRAGMA synchronous = FULL")
                self._file.executescript(_SCHEMA)
            except sqlite3.Error:
                self._file.close()
                raise

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()

    def replies(self, requests: Iterable[Request]) -> dict[str, Reply]:
        """The answers that are there by key; one that was cut is no answer to a request that allows a longer one."""
        found = {}
        with self._lock, _told(self._path):
            for request in requests:
                row = self._file.execute(
                    "SELECT stop_reason, text, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, "
                    "max_tokens FROM answers WHERE key = ?",
                    (request.key,),
                ).fetchone()
                if row is not None:
                    reply = Reply(row[0], row[1], Usage(*row[2:6]))
                    if not (reply.was_cut and row[6] < request.max_tokens):
                        found[request.key] = reply
        return found

    def keep(self, asked: Question, reply: Reply, cost_usd: float, phase: str, *, batch: bool = False) -> None:
        """Put one answer and what it cost on disk."""
        answer = (asked.key, asked.model, reply.stop_reason, reply.text, *reply.usage, asked.max_tokens)
        payment = (phase, asked.model, int(batch), cost_usd)
        with self._lock, _told(self._path), self._file:
            self._file.execute(f"INSERT OR REPLACE INTO answers VALUES ({', '.join('?' * len(answer))})", answer)
            self._file.execute("INSERT INTO payments (phase, model, batch, cost_usd) VALUES (?, ?, ?, ?)", payment)

    def spent_usd(self) -> float:
        """What all answers cost, over every run and resume."""
        with self._lock, _told(self._path):
            (total,) = self._file.execute("SELECT COALESCE(SUM(cost_usd), 0) FROM payments").fetchone()
        return float(total)

    def spent_by_phase_usd(self) -> dict[str, float]:
        """The same for each phase, the one that asked first."""
        with self._lock, _told(self._path):
            rows = self._file.execute("SELECT phase, SUM(cost_usd) FROM payments GROUP BY phase").fetchall()
        return {str(phase): float(cost) for phase, cost in rows}

    def has_answer_of(self, model: str) -> bool:
        """Whether the model has ever answered here."""
        with self._lock, _told(self._path):
            row = self._file.execute("SELECT 1 FROM answers WHERE model = ? LIMIT 1", (model,)).fetchone()
        return row is not None

    def open_batches(self) -> list[OpenBatch]:
        """Batches whose results are still to be fetched."""
        with self._lock, _told(self._path):
            rows = self._file.execute(
                "SELECT id, model, max_tokens, keys, worst_usd FROM batches ORDER BY id"
            ).fetchall()
        return [OpenBatch(row[0], row[1], row[2], tuple(json.loads(row[3])), row[4]) for row in rows]

    def begin_batch(self, batch: OpenBatch) -> None:
        """Put a submitted batch on disk, so that a later run fetches it instead of asking again."""
        row = (batch.id, batch.model, batch.max_tokens, json.dumps(batch.keys), batch.worst_usd)
        with self._lock, _told(self._path), self._file:
            self._file.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?)", row)

    def end_batch(self, batch_id: str) -> None:
        """Forget a batch whose results were all fetched."""
        with self._lock, _told(self._path), self._file:
            self._file.execute("DELETE FROM batches WHERE id = ?", (batch_id,))


def costs_usd(root: Path) -> dict[str, float]:
    """What each phase of a run folder paid for answers; empty where nobody was asked."""
    path = root / FILE
    if not path.exists():
        return {}
    with Ledger(path) as ledger:
        return ledger.spent_by_phase_usd()


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns an error of the file into one line."""
    try:
        yield
    except sqlite3.Error as error:
        raise PhaseError(
            f"{path}: {error}; make room or mend it, then run again with --resume "
            "(without the file every answer is paid again)"
        ) from None
