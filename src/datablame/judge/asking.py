"""Asking many questions: each is paid once, whatever fails in between, and none beyond the budget.

Every answer that was paid for stands in one SQLite file of the run folder, which outlives kills.
"""

import json
import logging
import random
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from datablame.config.judge import Judge
from datablame.errors import BudgetError, PhaseError, RequestError, problem
from datablame.judge.choice import Price, Usage, cost_usd
from datablame.judge.client import Api, Rejected, Reply, Request, Unavailable, endpoint, worst_usd

T = TypeVar("T")
_logger = logging.getLogger(__name__)

FILE = "artifacts/judge.sqlite"
"""Where a run folder keeps its answers."""
MOST_BATCH_REQUESTS = 100_000
MOST_BATCH_BYTES = 250_000_000
"""The API takes 256 MB; the rest is room for what surrounds the requests."""

_LONGEST_WAIT_SECONDS = 60.0
_LONGEST_WISH_SECONDS = 900.0
"""A longer wish of the API to be left alone is no rate limit but a mistake."""
_BATCH_TRIES = 2
_OUTAGE = 3
"""So many calls for each one under way in vain, none answered between: the API is down, and the run stops.

Of a model that has never answered, one for each under way is enough.
"""
_USELESS = 10
"""So many answers to one round, and never one of the model that says what was asked: the run stops."""
_SILENCE_SECONDS = 300.0
"""After so long without any answer no call is made again that the API did not ask for."""

Answers = dict[str, Reply | str]
"""A reply or the reason for its absence, by key."""


class Useless(PhaseError):
    """No answer of a model can be used; those to one round of questions are forgotten, and may come out better."""


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
                self._file.executescript(Path(__file__).with_name("ledger.sql").read_text(encoding="utf-8"))
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

    def replies_of(self, model: str) -> list[Reply]:
        """Everything that the model has ever answered here."""
        rows = self._run("SELECT stop_reason, text FROM answers WHERE model = ?", model)
        return [Reply(stop_reason, text, Usage(0, 0)) for stop_reason, text in rows]

    def forget(self, keys: Iterable[str]) -> None:
        """Drop the answers with these keys, so that they are asked for anew; what they cost stays."""
        for key in keys:
            self._run("DELETE FROM answers WHERE key = ?", key)

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

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """Turns an error of the file into one line."""
        try:
            yield
        except sqlite3.Error as error:
            raise PhaseError(problem("judge", "ledger", path=self._path, error=error)) from None


@dataclass(frozen=True)
class Asker:
    """Where answers are kept, what they cost, and how patient to be."""

    judge: Judge
    ledger: Path
    prices: Mapping[str, Price]
    phase: str
    """Whom the cost is put down to."""
    max_cost_usd: float | None = None
    """The most that the run folder may have paid in all."""

    def ask(self, requests: Sequence[Request], unusable: Callable[[Reply], str | None] = lambda _: None) -> Answers:
        """What each request is answered; `unusable` says why a reply is of no use, None of one that is.

        Raises RequestError where key or model are wrong, BudgetError where the next call might exceed the budget or the
        account has no credit, PhaseError where the ledger cannot be written, a batch is out of reach, nobody answers or
        no answer can be used.
        """
        distinct = {request.key: request for request in requests}
        with Ledger(self.ledger) as ledger:
            answers: Answers = dict(ledger.replies(distinct.values()))
            missing = [request for key, request in distinct.items() if key not in answers]
            if missing:
                try:
                    with closing(Api(self.judge.timeout_seconds)) as api:
                        answers |= _Session(self, ledger, api, distinct.values(), unusable).answers(missing)
                except Useless:
                    # Calls that were under way may have been answered well.
                    ledger.forget(key for key, reply in ledger.replies(distinct.values()).items() if unusable(reply))
                    raise
            return answers


class _Session:
    """One round of asking: what is spent, and the worst case of the batches that are open, never exceed the budget."""

    def __init__(
        self,
        asker: Asker,
        ledger: Ledger,
        api: Api,
        requests: Collection[Request],
        unusable: Callable[[Reply], str | None],
    ) -> None:
        self._judge, self._prices, self._phase, self._requests = asker.judge, asker.prices, asker.phase, requests
        self._ledger, self._api, self._unusable, self._is_of_use = ledger, api, unusable, False
        self._most_usd, self._spent_usd, self._open_usd = asker.max_cost_usd, sum(ledger.spent_usd().values()), 0.0
        self._stop = threading.Event()
        self._silent_in_a_row, self._heard_at = 0, time.monotonic()

    def answers(self, missing: Sequence[Request]) -> Answers:
        """What those of the round are answered that were not yet; raises Useless where no answer is of use."""
        answers = self._asked(missing)
        for request in missing:
            self._check_use(request.model, answers.get(request.key), refusals_too=True)
        return answers

    def _asked(self, missing: Sequence[Request]) -> Answers:
        """What open batches answer comes first; a batch that answers nothing that is missing is not waited for."""
        open_batches = self._ledger.open_batches()
        self._open_usd = sum(batch.worst_usd for batch in open_batches)
        keys = {request.key for request in missing}
        waited_for = [batch for batch in open_batches if not keys.isdisjoint(batch.keys)]
        answers: Answers = {}
        tries: Counter[str] = Counter()
        while True:
            for batch in waited_for:
                answers |= self._fetched(batch)
                tries.update(batch.keys)
            rest = [request for request in missing if not isinstance(answers.get(request.key), Reply)]
            if not self._judge.batches:
                return answers | self._one_by_one(rest)
            again = [request for request in rest if tries[request.key] < _BATCH_TRIES]
            if not again:
                return answers
            waited_for = [self._submitted(again)]

    def _one_by_one(self, requests: Sequence[Request]) -> Answers:
        """As many calls at one time as are allowed and the budget has room for; an error lets those under way finish.

        Calls under way cost less than their worst case, so that they are waited for where there is no room.
        """
        answers: Answers = {}
        calls: dict[Future[tuple[Reply, float]], tuple[Request, float]] = {}
        waiting = deque((request, worst_usd(request, self._prices)) for request in requests)
        pool = ThreadPoolExecutor(self._judge.concurrency, thread_name_prefix="judge")
        try:
            while waiting or calls:
                under_way = sum(worst for _, worst in calls.values())
                if waiting and len(calls) < self._judge.concurrency and self._fits(under_way + waiting[0][1]):
                    request, worst = waiting.popleft()
                    calls[pool.submit(self._paid, request)] = request, worst
                    continue
                if not calls:
                    raise self._used_up(waiting[0][1])
                for call in wait(calls, return_when=FIRST_COMPLETED).done:
                    request, _ = calls.pop(call)
                    try:
                        answers[request.key], cost = call.result()
                        self._spent_usd += cost
                        self._silent_in_a_row, self._heard_at = 0, time.monotonic()
                        self._check_use(request.model, answers[request.key])
                    except Unavailable as error:
                        answers[request.key] = str(error)
                        self._silent_in_a_row += 1
                        none = not (waiting or calls or any(isinstance(each, Reply) for each in answers.values()))
                        self._check_answers(request.model, str(error), none=none)
                    except Rejected as error:
                        self._check_takes(request.model, str(error))
                        answers[request.key] = f"rejected ({error})"
            return answers
        finally:
            self._stop.set()
            pool.shutdown()

    def _fits(self, worst_usd: float) -> bool:
        return self._most_usd is None or self._spent_usd + self._open_usd + worst_usd <= self._most_usd

    def _used_up(self, worst_usd: float) -> BudgetError:
        open_batches = f" ({self._open_usd:.4f} more in open batches)" if self._open_usd > 0 else ""
        amounts = {"most": self._most_usd, "spent": self._spent_usd, "worst": worst_usd}
        return BudgetError(problem("judge", "used_up", **amounts, open_batches=open_batches))

    def _paid(self, request: Request) -> tuple[Reply, float]:
        """The reply, on disk, and what it cost."""
        reply = self._tried(partial(self._api.ask, request))
        return reply, self._keep(request.key, request, reply)

    def _tried(self, call: Callable[[], T], *, patient: bool = False) -> T:
        """What a call gives, made again while that may help; raises Rejected, and in the end Unavailable.

        A `patient` one, about a batch that the API has, is made again whatever the API thinks of that.
        The wait is what the API wishes, else it doubles, shortened at random so that calls don't return in step.
        """
        for attempt in count():
            if self._stop.is_set():
                break
            try:
                return call()
            except Unavailable as error:
                silent = error.retry_after_seconds is None and time.monotonic() - self._heard_at > _SILENCE_SECONDS
                hopeless = not patient and (silent or not error.again)
                if hopeless or attempt == self._judge.retries:
                    raise
                longest = min(self._judge.backoff_seconds * 2.0**attempt, _LONGEST_WAIT_SECONDS)
                wish = error.retry_after_seconds
                pause = longest * random.uniform(0.75, 1.0) if wish is None else min(wish, _LONGEST_WISH_SECONDS)
                self._stop.wait(pause)
        raise Unavailable("the run has ended")

    def _check_answers(self, model: str, why: str, *, none: bool) -> None:
        """Raises PhaseError where going on would leave every row unscored; a call now and then may stay in vain.

        `none`: every question was asked and not one answered.
        """
        known, silent = self._ledger.has_answer_of(model), self._silent_in_a_row
        if silent >= (_OUTAGE if known else 1) * self._judge.concurrency or (none and (silent >= _OUTAGE or not known)):
            raise PhaseError(problem("judge", "silent", n=silent, model=model, why=why, endpoint=endpoint()))

    def _check_use(self, model: str, answer: Reply | str | None, *, refusals_too: bool = False) -> None:
        """Raises Useless where a model never answered what was asked; one text after another may well be refused.

        Only the round's answers are counted: others may be to another kind of question, of which none says this.
        """
        if self._is_of_use or not isinstance(answer, Reply):
            return
        if (why := self._unusable(answer)) is None:
            self._is_of_use = True
        elif refusals_too or answer.stop_reason != "refusal":
            self._is_of_use = any(self._unusable(reply) is None for reply in self._ledger.replies_of(model))
            if not self._is_of_use and (n := len(self._ledger.replies(self._requests))) >= _USELESS:
                raise Useless(problem("judge", "useless", model=model, n=n, why=why))

    def _check_takes(self, model: str, reason: str) -> None:
        """Some texts are taken by no model; a model that never took any is asked in the wrong way."""
        if not self._ledger.has_answer_of(model):
            raise RequestError(problem("judge", "takes_nothing", model=model, reason=reason))

    def _keep(self, key: str, to: Request | OpenBatch, reply: Reply) -> float:
        cost = cost_usd(to.model, reply.usage, self._prices, batch=isinstance(to, OpenBatch))
        self._ledger.keep(key, to, reply, cost, self._phase)
        return cost

    def _submitted(self, requests: Sequence[Request]) -> OpenBatch:
        """A batch of the first requests that it and the budget have room for: the API has it, the ledger knows it.

        Raises BudgetError without room for a single one.
        """
        chosen, worst, size = list[Request](), 0.0, 0
        for request in requests[:MOST_BATCH_REQUESTS]:
            more = worst_usd(request, self._prices, batch=True)
            size += 2 * request.most_tokens
            if size > MOST_BATCH_BYTES or not self._fits(worst + more):
                break
            chosen.append(request)
            worst += more
        if not chosen:
            raise self._used_up(worst_usd(requests[0], self._prices, batch=True))
        try:
            batch_id = self._tried(partial(self._api.submit, chosen))
        except Unavailable as error:
            raise PhaseError(problem("judge", "no_batch_now", error=error)) from None
        except Rejected as error:
            raise RequestError(problem("judge", "no_batch", error=error)) from None
        keys = tuple(request.key for request in chosen)
        batch = OpenBatch(batch_id, chosen[0].model, chosen[0].max_tokens, keys, worst)
        self._ledger.begin_batch(batch)
        self._open_usd += worst
        _logger.info("batch %s: %d questions submitted", batch_id, len(chosen))
        return batch

    def _fetched(self, batch: OpenBatch) -> Answers:
        """Everything that a batch answered, each answer kept as it comes; what it did not answer is silent."""
        replies, reasons, cost = dict[str, Reply](), dict[str, str](), 0.0

        def fetch() -> None:
            nonlocal cost
            for key, outcome in self._api.results(batch.id):
                if isinstance(outcome, str):
                    reasons[key] = f"{outcome} in a batch"
                elif key not in replies:
                    cost += self._keep(key, batch, outcome)
                    replies[key] = outcome

        try:
            while not self._tried(partial(self._api.has_ended, batch.id), patient=True):
                self._stop.wait(self._judge.poll_seconds)
            self._tried(fetch, patient=True)
        except Unavailable as error:
            raise PhaseError(problem("judge", "batch_out_of_reach", batch=batch.id, error=error)) from None
        except Rejected as error:
            raise PhaseError(problem("judge", "batch_not_shown", batch=batch.id, error=error)) from None
        self._ledger.end_batch(batch.id)
        self._open_usd -= batch.worst_usd
        self._spent_usd += cost
        if reasons and not replies and all(reason.startswith("errored") for reason in reasons.values()):
            self._check_takes(batch.model, min(reasons.values()))
        answers: Answers = {**reasons, **replies}
        return {key: answers.get(key, "missing in a batch") for key in batch.keys}


def costs_usd(root: Path) -> dict[str, float]:
    """What each phase of a run folder paid for answers; empty where nobody was asked."""
    path = root / FILE
    if not path.exists():
        return {}
    with Ledger(path) as ledger:
        return ledger.spent_usd()
