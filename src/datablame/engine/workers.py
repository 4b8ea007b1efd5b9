"""Worker processes: one a core, or one a graphics card; items flow to whichever is free."""

import functools
import itertools
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from typing import TYPE_CHECKING, Any, TypeVar

from datablame.engine.machine import VISIBLE
from datablame.engine.usage import Worked, heard, worked
from datablame.errors import PhaseError, problem

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

    from datablame.engine.execute import Execution

C = TypeVar("C")
I = TypeVar("I")  # noqa: E741
R = TypeVar("R")

_logger = logging.getLogger(__name__)
_PARENT_CHECK_SECONDS = 1.0
_PRELOADED = ["torch", "transformers", "peft"]
"""Imported once, before workers are forked; what a phase needs besides is small."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_DEATHS = 3
"""Of worker processes on the same item before it is given up."""


def in_workers(
    setup: Callable[[], C], work: Callable[[C, I], R], items: Mapping[str, I], execution: "Execution"
) -> Generator[tuple[str, R], None, None]:
    """Each item's key and result as it finishes.

    Where a process died, what was under way runs again, one item after another, so that two do not want the memory that
    one could have, and the one that is to blame is known. Raises PhaseError when it has ended three processes.
    """
    pickled, queue = pickle.dumps((setup, work)), iter(items)
    suspects, deaths = list[str](), Counter[str]()
    running: dict[Future[Worked], str] = {}
    try:
        while True:
            try:
                source = iter(suspects[:1]) if suspects else queue
                for key in itertools.islice(source, (1 if suspects else execution.processes + 1) - len(running)):
                    running[_pool(execution).submit(_work_on, pickled, items[key])] = key
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    taken = future.result()
                    heard(taken)
                    key = running.pop(future)
                    suspects = [each for each in suspects if each != key]
                    yield key, taken.result
            except BrokenProcessPool:
                _pool.cache_clear()
                died = [*running.values()]
                running.clear()
                deaths.update(died)
                suspects = [*dict.fromkeys([*died, *suspects])]
                if len(died) == 1 and deaths[died[0]] >= _DEATHS:
                    raise PhaseError(problem("engine", "deadly", item=died[0], n=_DEATHS)) from None
                _logger.warning("a worker process died; %s", _again(len(died)))
    finally:
        if running:
            # As `terminate_workers` of Python 3.14: other children are their owners', a notebook's for instance.
            pool = _pool(execution)
            workers = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in workers:
                process.terminate()
            _pool.cache_clear()


def _again(n: int) -> str:
    return "its item runs again" if n == 1 else f"{n} items run again, one after another"


def prepare(execution: "Execution") -> None:
    """Have imported what workers are forked with, while this process does something else."""
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = str(execution.threads)
    multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()


@functools.cache
def _pool(execution: "Execution") -> ProcessPoolExecutor:
    prepare(execution)
    context = multiprocessing.get_context("forkserver")
    devices = context.SimpleQueue()
    for group in execution.devices:
        devices.put(group)
    given = os.getpid(), execution.threads, devices if execution.devices else None
    return ProcessPoolExecutor(execution.processes, context, _begin_worker, given)


def _begin_worker(parent: int, threads: int, devices: "SimpleQueue[str] | None") -> None:
    def end_with_parent() -> None:
        """No pipe tells a worker that its parent was killed."""
        while True:
            time.sleep(_PARENT_CHECK_SECONDS)
            try:
                os.kill(parent, 0)
            except ProcessLookupError:
                os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    if devices is not None:
        # CUDA looks at it once, when it is first used: to this process its cards are all that there are.
        os.environ[VISIBLE] = devices.get()
    use_threads(threads)


def use_threads(threads: int) -> None:
    """So many threads for torch in this process."""
    import torch

    torch.set_num_threads(threads)


_context: tuple[bytes, Callable[..., Any], Any] | None = None
"""This worker's current (pickled setup and work, work, context): one set of models a phase is loaded once."""


def _work_on(pickled: bytes, item: Any) -> Worked:
    global _context
    if _context is None or _context[0] != pickled:
        _context = None
        setup, work = pickle.loads(pickled)
        _context = (pickled, work, setup())
    return worked(functools.partial(_context[1], _context[2], item))
