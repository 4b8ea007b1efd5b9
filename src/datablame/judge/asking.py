"""Asking many questions: each is paid once, whatever fails in between, and none beyond the budget."""

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from datablame.config.judge import Judge
from datablame.errors import PhaseError, RequestError
from datablame.judge.choice import Price, cost_usd
from datablame.judge.client import Api, Rejected, Reply, Request, Unavailable, worst_usd
from datablame.judge.ledger import Budget, Ledger, OpenBatch

_logger = logging.getLogger(__name__)

MOST_BATCH_REQUESTS = 100_000
MOST_BATCH_BYTES = 250_000_000
"""The API takes 256 MB; the rest is room for what surrounds the requests."""

_LONGEST_WAIT_SECONDS = 60.0
_LONGEST_WISH_SECONDS = 900.0
"""A longer wish of the API to be left alone is no rate limit but a mistake."""
_BATCH_TRIES = 2
_OUTAGE = 3
"""So many calls for each one under way without any answer between: the API is down, and each gets one try."""

Answers = dict[str, Reply | str]
"""A reply or the reason for its absence, by key."""


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

    def ask(self, requests: Sequence[Request]) -> Answers:
        """What each request is answered.

        Raises RequestError where key or model are wrong, BudgetError where the next call might exceed the budget or the
        account has no credit, PhaseError where the ledger cannot be written or a batch is out of reach.
        """
        distinct = {request.key: request for request in requests}
        with Ledger(self.ledger) as ledger:
            answers: Answers = dict(ledger.replies(distinct.values()))
            missing = [request for key, request in distinct.items() if key not in answers]
            if missing:
                with closing(Api(self.judge.timeout_seconds)) as api:
                    answers |= _Session(self, ledger, api).answers(missing)
            return answers


class _Session:
    """One round of asking."""

    def __init__(self, asker: Asker, ledger: Ledger, api: Api) -> None:
        self._judge, self._prices, self._phase = asker.judge, asker.prices, asker.phase
        self._ledger, self._api = ledger, api
        self._budget = Budget(asker.max_cost_usd, sum(ledger.spent_usd().values()))
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._silent_in_a_row = 0

    def answers(self, missing: Sequence[Request]) -> Answers:
        """What open batches answer comes first; a batch that answers nothing that is missing is not waited for."""
        open_batches = self._ledger.open_batches()
        self._budget.commit(sum(batch.worst_usd for batch in open_batches))
        keys = {request.key for request in missing}
        answers: Answers = {}
        tries: Counter[str] = Counter()
        for batch in open_batches:
            if not keys.isdisjoint(batch.keys):
                answers |= self._fetched(batch)
                tries.update(batch.keys)

        def rest() -> list[Request]:
            return [request for request in missing if not isinstance(answers.get(request.key), Reply)]

        if not self._judge.batches:
            return answers | self._one_by_one(rest())
        while again := [request for request in rest() if tries[request.key] < _BATCH_TRIES]:
            batch = self._submitted(self._batch_of(again))
            tries.update(batch.keys)
            answers |= self._fetched(batch)
        return answers

    def _one_by_one(self, requests: Sequence[Request]) -> Answers:
        """As many calls at one time as allowed; the first error that ends the run lets those under way finish."""
        pool = ThreadPoolExecutor(self._judge.concurrency, thread_name_prefix="judge")
        try:
            calls = {pool.submit(self._call, request): request.key for request in requests}
            done, _ = wait(calls, return_when=FIRST_EXCEPTION)
            for call in done:
                call.result()
            return {key: call.result() for call, key in calls.items()}
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)

    def _call(self, request: Request) -> Reply | str:
        worst = worst_usd(request, self._prices)
        self._budget.reserve(worst)
        cost = 0.0
        try:
            outcome = self._persistently(request)
            if isinstance(outcome, Reply):
                cost = self._keep(request.key, request, outcome)
            return outcome
        finally:
            self._budget.settle(worst, cost)

    def _persistently(self, request: Request) -> Reply | str:
        reason = ""
        for attempt in range(self._tries()):
            if self._stop.is_set():
                break
            try:
                reply = self._api.ask(request)
            except Unavailable as error:
                reason = str(error)
                if not error.again:
                    break
                if attempt + 1 < self._tries():
                    self._stop.wait(self._pause_seconds(attempt, error))
            except Rejected as error:
                self._check_takes(request.model, str(error))
                return f"rejected ({error})"
            else:
                with self._lock:
                    self._silent_in_a_row = 0
                return reply
        with self._lock:
            self._silent_in_a_row += 1
        return reason

    def _tries(self) -> int:
        with self._lock:
            down = self._silent_in_a_row >= _OUTAGE * self._judge.concurrency
        return 1 if down else 1 + self._judge.retries

    def _pause_seconds(self, attempt: int, error: Unavailable) -> float:
        """What the API wishes, else a wait that doubles, shortened at random so that calls don't return in step."""
        if error.retry_after_seconds is not None:
            return min(error.retry_after_seconds, _LONGEST_WISH_SECONDS)
        return min(self._judge.backoff_seconds * 2.0**attempt, _LONGEST_WAIT_SECONDS) * random.uniform(0.75, 1.0)

    def _check_takes(self, model: str, reason: str) -> None:
        """Some texts are taken by no model; a model that never took any is asked in the wrong way."""
        if not self._ledger.has_answer_of(model):
            raise RequestError(
                f"{model} does not take the judge's requests: {reason}; choose another judge.model or "
                "judge.attribution_model, or mend judge.max_tokens, and run again with --resume"
            )

    def _keep(self, key: str, to: Request | OpenBatch, reply: Reply) -> float:
        cost = cost_usd(to.model, reply.usage, self._prices, batch=isinstance(to, OpenBatch))
        self._ledger.keep(key, to, reply, cost, self._phase)
        return cost

    def _batch_of(self, requests: Sequence[Request]) -> list[Request]:
        """The first requests that a batch and the budget have room for; BudgetError without room for a single one."""
        worst, size = 0.0, 0
        for number, request in enumerate(requests):
            more = worst_usd(request, self._prices, batch=True)
            size += 2 * request.most_tokens
            if number == MOST_BATCH_REQUESTS or size > MOST_BATCH_BYTES or not self._budget.fits(worst + more):
                if not number:
                    raise self._budget.used_up(more)
                return list(requests[:number])
            worst += more
        return list(requests)

    def _submitted(self, requests: Sequence[Request]) -> OpenBatch:
        """A batch that the API has and the ledger knows."""
        attempt = 0
        while True:
            try:
                batch_id = self._api.submit(requests)
                break
            except Unavailable as error:
                if not error.again or attempt == self._judge.retries:
                    raise PhaseError(f"the API takes no batch now ({error}); run again with --resume") from None
                time.sleep(self._pause_seconds(attempt, error))
                attempt += 1
            except Rejected as error:
                raise RequestError(f"the API does not take the batch ({error}); set judge.batches = false") from None
        worst = sum(worst_usd(request, self._prices, batch=True) for request in requests)
        keys = tuple(request.key for request in requests)
        batch = OpenBatch(batch_id, requests[0].model, requests[0].max_tokens, keys, worst)
        self._ledger.begin_batch(batch)
        self._budget.commit(worst)
        _logger.info("batch %s: %d questions submitted", batch_id, len(requests))
        return batch

    def _fetched(self, batch: OpenBatch) -> Answers:
        """Everything that a batch answered, each answer kept as it comes; what it did not answer is silent."""
        answers: Answers = {}
        cost, failures = 0.0, 0
        while True:
            try:
                while not self._api.has_ended(batch.id):
                    failures = 0
                    time.sleep(self._judge.poll_seconds)
                for key, outcome in self._api.results(batch.id):
                    if isinstance(answers.get(key), Reply):
                        continue
                    if isinstance(outcome, Reply):
                        cost += self._keep(key, batch, outcome)
                    answers[key] = f"{outcome} in a batch" if isinstance(outcome, str) else outcome
                break
            except Unavailable as error:
                failures += 1
                if failures > self._judge.retries:
                    raise PhaseError(
                        f"the batch {batch.id} is out of reach ({error}); run again with --resume: "
                        "it goes on at the API and is not submitted again"
                    ) from None
                time.sleep(self._pause_seconds(failures - 1, error))
            except Rejected as error:
                raise PhaseError(f"the API does not show the batch {batch.id} ({error})") from None
        self._ledger.end_batch(batch.id)
        self._budget.commit(-batch.worst_usd, cost)
        reasons = sorted({answer for answer in answers.values() if isinstance(answer, str)})
        taken = any(isinstance(answer, Reply) for answer in answers.values())
        if reasons and not taken and all(reason.startswith("errored") for reason in reasons):
            self._check_takes(batch.model, reasons[0])
        return {key: answers.get(key, "missing in a batch") for key in batch.keys}
