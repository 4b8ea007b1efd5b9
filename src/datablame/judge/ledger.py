"""Money: every answer that was paid for, in one SQLite file that outlives kills, and what may still be spent."""

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from datablame.errors import BudgetError, PhaseError
from datablame.judge.choice import Usage, problem
from datablame.judge.client import Reply, Request

FILE = "artifacts/judge.sqlite"
"""Where a run folder keeps its answers."""


class OpenBatch(NamedTuple):
    """A batch that was submitted and whose results were not all fetched; `worst_usd` is the most that it may cost."""

    id: str
    model: str
    max_tokens: int
    keys: tuple[str, ...]
    worst_usd: float


class Ledger:
    """The file, open; an answer is on disk when `keep` returns. Threads may share one."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._one_line():
            self._file = sqlite3.connect(path, timeout=30, check_same_thread=False)
            try:
                self._file.executescript(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
            except sqlite3.Error:
                self._file.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def replies(self, requests: Iterable[Request]) -> dict[str, Reply]:
        """The answers that are there by key; one that was cut is no answer to a request that allows a longer one."""
        replies, known = {}, "SELECT * FROM answers WHERE key = ?"
        for request in requests:
            for _, _, stop_reason, text, *usage, longest in self._run(known, request.key):
                reply = Reply(stop_reason, text, Usage(*usage))
                if not (reply.was_cut and longest < request.max_tokens):
                    replies[request.key] = reply
        return replies

    def keep(self, key: str, to: Request | OpenBatch, reply: Reply, cost_usd: float, phase: str) -> None:
        """Put one answer, to a request or to one of a batch, and what it cost on disk."""
        answer = (key, to.model, reply.stop_reason, reply.text, *reply.usage, to.max_tokens)
        payment = (phase, to.model, int(isinstance(to, OpenBatch)), cost_usd)
        with self._lock, self._one_line(), self._file:
            self._file.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", answer)
            self._file.execute("INSERT INTO payments (phase, model, batch, cost_usd) VALUES (?, ?, ?, ?)", payment)

    def spent_usd(self) -> dict[str, float]:
        """What all answers cost, over every run and resume, by phase."""
        return dict(self._run("SELECT phase, SUM(cost_usd) FROM payments GROUP BY phase"))

    def has_answer_of(self, model: str) -> bool:
        """Whether the model has ever answered here."""
        return bool(self._run("SELECT 1 FROM answers WHERE model = ? LIMIT 1", model))

    def open_batches(self) -> list[OpenBatch]:
        """Batches whose results are still to be fetched."""
        rows = self._run("SELECT * FROM batches ORDER BY id")
        return [OpenBatch(*row)._replace(keys=tuple(json.loads(row[3]))) for row in rows]

    def begin_batch(self, batch: OpenBatch) -> None:
        """Put a submitted batch on disk, so that a later run fetches it instead of asking again."""
        self._run("INSERT INTO batches VALUES (?, ?, ?, ?, ?)", *batch[:3], json.dumps(batch.keys), batch.worst_usd)

    def end_batch(self, batch_id: str) -> None:
        """Forget a batch whose results were all fetched."""
        self._run("DELETE FROM batches WHERE id = ?", batch_id)

    def _run(self, statement: str, *values: object) -> list[Any]:
        """The rows of one statement, which is on disk then."""
        with self._lock, self._one_line(), self._file:
            return self._file.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        """Turns an error of the file into one line."""
        try:
            yield
        except sqlite3.Error as error:
            raise PhaseError(problem("ledger", path=self._path, error=error)) from None


@dataclass
class Budget:
    """What may be spent in all (None: anything), what was spent, and the worst case of the batches that are open."""

    most_usd: float | None
    spent_usd: float
    open_usd: float = 0.0

    def fits(self, worst_usd: float) -> bool:
        """Whether that much more could be asked now."""
        return self.most_usd is None or self.spent_usd + self.open_usd + worst_usd <= self.most_usd

    def used_up(self, worst_usd: float) -> BudgetError:
        """The error that says so."""
        open_batches = f" ({self.open_usd:.4f} more in open batches)" if self.open_usd > 0 else ""
        amounts = {"most": self.most_usd, "spent": self.spent_usd, "worst": worst_usd}
        return BudgetError(problem("used_up", **amounts, open_batches=open_batches))


def costs_usd(root: Path) -> dict[str, float]:
    """What each phase of a run folder paid for answers; empty where nobody was asked."""
    path = root / FILE
    if not path.exists():
        return {}
    with Ledger(path) as ledger:
        return ledger.spent_usd()
