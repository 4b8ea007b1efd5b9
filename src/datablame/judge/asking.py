"""Asking many questions: each is paid once, whatever fails in between, and none beyond the budget."""

import logging
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

from datablame.config.judge import Judge
from datablame.errors import PhaseError, RequestError
from datablame.judge.choice import Price, cost_usd, problem
from datablame.judge.client import Api, Rejected, Reply, Request, Unavailable, worst_usd
from datablame.judge.ledger import Budget, Ledger, OpenBatch

T = TypeVar("T")
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
        self._silent_in_a_row = 0

    def answers(self, missing: Sequence[Request]) -> Answers:
        """What open batches answer comes first; a batch that answers nothing that is missing is not waited for."""
        open_batches = self._ledger.open_batches()
        self._budget.open_usd = sum(batch.worst_usd for batch in open_batches)
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
                if waiting and len(calls) < self._judge.concurrency and self._budget.fits(under_way + waiting[0][1]):
                    request, worst = waiting.popleft()
                    calls[pool.submit(self._paid, request)] = request, worst
                    continue
                if not calls:
                    raise self._budget.used_up(waiting[0][1])
                for call in wait(calls, return_when=FIRST_COMPLETED).done:
                    request, _ = calls.pop(call)
                    try:
                        answers[request.key], cost = call.result()
                        self._budget.spent_usd += cost
                        self._silent_in_a_row = 0
                    except Unavailable as error:
                        answers[request.key] = str(error)
                        self._silent_in_a_row += 1
                    except Rejected as error:
                        self._check_takes(request.model, str(error))
                        answers[request.key] = f"rejected ({error})"
            return answers
        finally:
            self._stop.set()
            pool.shutdown()

    def _paid(self, request: Request) -> tuple[Reply, float]:
        """The reply, on disk, and what it cost."""
        reply = self._tried(partial(self._api.ask, request))
        return reply, self._keep(request.key, request, reply)

    def _tried(self, call: Callable[[], T]) -> T:
        """What a call gives, made again while that may help; raises Rejected, and in the end Unavailable.

        The wait is what the API wishes, else it doubles, shortened at random so that calls don't return in step.
        """
        for attempt in count():
            if self._stop.is_set():
                break
            try:
                return call()
            except Unavailable as error:
                down = self._silent_in_a_row >= _OUTAGE * self._judge.concurrency
                if not error.again or down or attempt == self._judge.retries:
                    raise
                longest = min(self._judge.backoff_seconds * 2.0**attempt, _LONGEST_WAIT_SECONDS)
                wish = error.retry_after_seconds
                pause = longest * random.uniform(0.75, 1.0) if wish is None else min(wish, _LONGEST_WISH_SECONDS)
                self._stop.wait(pause)
        raise Unavailable("the run has ended")

    def _check_takes(self, model: str, reason: str) -> None:
        """Some texts are taken by no model; a model that never took any is asked in the wrong way."""
        if not self._ledger.has_answer_of(model):
            raise RequestError(problem("takes_nothing", model=model, reason=reason))

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
            if size > MOST_BATCH_BYTES or not self._budget.fits(worst + more):
                break
            chosen.append(request)
            worst += more
        if not chosen:
            raise self._budget.used_up(worst_usd(requests[0], self._prices, batch=True))
        try:
            batch_id = self._tried(partial(self._api.submit, chosen))
        except Unavailable as error:
            raise PhaseError(problem("no_batch_now", error=error)) from None
        except Rejected as error:
            raise RequestError(problem("no_batch", error=error)) from None
        keys = tuple(request.key for request in chosen)
        batch = OpenBatch(batch_id, chosen[0].model, chosen[0].max_tokens, keys, worst)
        self._ledger.begin_batch(batch)
        self._budget.open_usd += worst
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
            while not self._tried(partial(self._api.has_ended, batch.id)):
                self._stop.wait(self._judge.poll_seconds)
            self._tried(fetch)
        except Unavailable as error:
            raise PhaseError(problem("batch_out_of_reach", batch=batch.id, error=error)) from None
        except Rejected as error:
            raise PhaseError(problem("batch_not_shown", batch=batch.id, error=error)) from None
        self._ledger.end_batch(batch.id)
        self._budget.open_usd -= batch.worst_usd
        self._budget.spent_usd += cost
        if reasons and not replies and all(reason.startswith("errored") for reason in reasons.values()):
            self._check_takes(batch.model, min(reasons.values()))
        answers: Answers = {**reasons, **replies}
        return {key: answers.get(key, "missing in a batch") for key in batch.keys}
