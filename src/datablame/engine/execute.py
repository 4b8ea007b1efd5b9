"""The same map over work items in this process or in worker processes, whatever this machine has for them."""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, cast

from datablame.engine.machine import Card, cards, cores
from datablame.engine.usage import cuda, free_memory
from datablame.engine.workers import in_workers, use_threads
from datablame.errors import RequestError, problem

C = TypeVar("C")
I = TypeVar("I")  # noqa: E741
R = TypeVar("R")


class Cluster(NamedTuple):
    """Machines beside this one."""

    address: str
    """Of Ray: `auto` or HOST:PORT."""
    workers: int | None
    """At most; None: as many as there is room for."""
    cards: int
    """Of each worker where the cluster has cards; 0: none."""


class Execution(NamedTuple):
    """How work items run. Results depend on `threads` (float sums do), on nothing else."""

    workers: int
    threads: int
    devices: tuple[str, ...] = ()
    """The cards of each worker, as CUDA_VISIBLE_DEVICES names them (`0`, or `0,1`); none: no process is given any."""
    cluster: Cluster | None = None
    """Where items run in place of this machine, those that need the run folder's files and models."""

    @property
    def processes(self) -> int:
        """How many items run at once."""
        return len(self.devices) or self.workers

    @property
    def in_workers(self) -> bool:
        """Whether items run in processes of their own, not in this one."""
        return bool(self.devices) or self.workers > 1

    def on(self, device: str) -> "Execution":
        """Where models run on this device: a card that no worker was given holds one process's models."""
        if self.cluster is not None:
            return self._replace(cluster=self.cluster._replace(cards=self.cluster.cards if device == "cuda" else 0))
        if device == "cpu":
            return self._replace(devices=())
        return self if self.devices and device == "cuda" else Execution(1, self.threads)


class Progress(Protocol):
    """Where a phase says how far it is."""

    def start(self, description: str, total: int, done: int = 0) -> None:
        """Begin a step of `total` units, `done` of them finished earlier."""

    def advance(self, n: int = 1) -> None:
        """Finish `n` more units of the current step."""

    def note(self, text: str) -> None:
        """Say one line that should stay on the screen."""


class Silent:
    """Progress that nobody watches."""

    def start(self, description: str, total: int, done: int = 0) -> None:
        """Say nothing."""

    def advance(self, n: int = 1) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


class Told:
    """Progress that others are told of too, once a second at most, beside who watches it."""

    def __init__(self, progress: Progress, tell: Callable[[str, int, int], None]) -> None:
        self._progress, self._tell = progress, tell
        self._step, self._again_at = ("", 0, 0), 0.0

    def start(self, description: str, total: int, done: int = 0) -> None:
        """Begin a step."""
        self._progress.start(description, total, done)
        self._step, self._again_at = (description, done, total), 0.0
        self._advance(0)

    def advance(self, n: int = 1) -> None:
        """Finish units."""
        self._progress.advance(n)
        self._advance(n)

    def _advance(self, n: int) -> None:
        description, done, total = self._step
        self._step = (description, done + n, total)
        if time.monotonic() >= self._again_at:
            self._again_at = time.monotonic() + 1
            self._tell(*self._step)

    def note(self, text: str) -> None:
        """Say a line."""
        self._progress.note(text)


def default_execution(
    workers: int | None = None, devices: Sequence[int] = (), cards_per_worker: int = 1, *, on_card: bool = True
) -> Execution:
    """One worker a core unless another number is asked for, single-threaded: small models run slower on two threads.

    Where models run on cards, one worker for each card of `devices`, else of this machine, or for each
    `cards_per_worker` of them; `workers` at most. A machine with one card needs no worker for it.

    Raises RequestError where the machine lacks a card that is asked for, or cards for one worker.
    """
    execution = Execution(workers=cores() if workers is None else workers, threads=1)
    there = {card.number: card for card in cards()} if on_card else {}
    if not on_card or not (devices or there):
        return execution
    for device in devices:
        if device not in there:
            raise RequestError(problem("engine", "no device", device=device, there=_listed(there)))
    chosen = [*(devices or there)]
    groups = [chosen[i : i + cards_per_worker] for i in range(0, len(chosen), cards_per_worker)]
    whole = [",".join(map(str, group)) for group in groups if len(group) == cards_per_worker]
    if not whole:
        raise RequestError(problem("engine", "few devices", n=cards_per_worker, there=len(chosen)))
    if len(there) == 1:
        return execution
    return execution._replace(devices=tuple(whole[:workers]))


def _listed(there: Mapping[int, Card]) -> str:
    return ", ".join(f"{number} ({card.name})" for number, card in there.items()) or "no card that the driver lists"


def run_items(
    setup: Callable[[], C],
    work: Callable[[C, I], R],
    items: Mapping[str, I],
    *,
    execution: Execution,
    done: Callable[[str, R], None],
    progress: Progress,
    description: str,
    already: int = 0,
    units: Callable[[I], int] = lambda _: 1,
    root: Path | None = None,
) -> None:
    """Call `work(setup(), item)` for every item and `done(key, result)` in this process as each one finishes.

    `setup` runs once a worker. With more than one worker `setup` and `work` are pickled. An error of a work item stops
    the map; what was done stays done. Progress counts an item as `units` of it, `already` of which were done earlier.
    On a cluster run those of a run folder, `root`; what they write below it is there before `done` is called.
    Raises PhaseError where an item ended several worker processes, mostly because memory ran out.
    """
    if not items:
        return
    progress.start(description, already + sum(map(units, items.values())), already)
    if execution.cluster is not None and root is not None:
        from datablame.engine.cluster import on_cluster

        running = on_cluster(setup, work, items, execution.cluster, execution.threads, root)
    else:
        run = in_workers if execution.in_workers else _in_process
        running = run(setup, work, items, execution)
    with contextlib.closing(running) as results:
        for key, result in results:
            done(key, result)
            progress.advance(units(items[key]))


def _in_process(
    setup: Callable[[], C], work: Callable[[C, I], R], items: Mapping[str, I], execution: Execution
) -> Generator[tuple[str, R], None, None]:
    use_threads(execution.threads)
    context: C | None = setup()
    try:
        for key, item in items.items():
            yield key, work(cast(C, context), item)
    finally:
        context = None
        if cuda() is not None:
            free_memory()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for a while: how sums of floats are split, and so their bits, depends on the threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
