"""The same map over work items in this process or in worker processes, whatever this machine has for them."""

import contextlib
import functools
import gc
import itertools
import multiprocessing
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, cast

from datablame.errors import PhaseError

C = TypeVar("C")
I = TypeVar("I")  # noqa: E741
R = TypeVar("R")

_PARENT_CHECK_SECONDS = 1.0
_PRELOADED = ["torch", "transformers"]
"""Imported once, before workers are forked; what a phase needs besides is small."""
_ASK_SECONDS = 10
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Execution(NamedTuple):
    """How work items run. Results depend on `threads` (float sums do), never on `workers`."""

    workers: int
    threads: int


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


def default_execution(workers: int | None = None) -> Execution:
    """One worker a core unless another number is asked for, single-threaded: small models run slower on two threads."""
    return Execution(workers=cores() if workers is None else workers, threads=1)


_peaks: dict[int, float] = {}
"""Peak resident memory in MB by process id."""
_before_measuring_mb = 0.0
"""This process's peak before the kernel last forgot it."""
_FORGET_PEAK = "5"


class Taken(NamedTuple):
    """What a piece of work took."""

    seconds: float
    peak_rss_mb: float | None
    """The most memory that its process held meanwhile, the interpreter's and the models' included; Linux only."""


def measured(work: Callable[[], R]) -> tuple[R, Taken]:
    """Do the work and say what it took."""
    global _before_measuring_mb
    process, forgets = Path("/proc/self"), False
    _before_measuring_mb = _own_peak_mb()
    with contextlib.suppress(OSError):
        (process / "clear_refs").write_text(_FORGET_PEAK)
        forgets = True
    began = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - began
    # In kB.
    found = re.search(r"VmHWM:\s+(\d+)", (process / "status").read_text()) if forgets else None
    return result, Taken(seconds, int(found[1]) / 1024 if found else None)


def peak_rss_mb() -> float:
    """The sum of the peak resident memory of this process and its workers, in MB; pages that they share count twice."""
    return sum({**_peaks, os.getpid(): _own_peak_mb()}.values())


def free_memory() -> None:
    """Give back what no object holds any more, on the graphics card too where one is in use."""
    gc.collect()
    if (cuda := _cuda()) is not None:
        cuda.empty_cache()


def peak_gpu_mb() -> float:
    """The peak memory of this process's tensors on the graphics card in MB since this was asked last; 0 without one."""
    if (cuda := _cuda()) is None:
        return 0.0
    peak = cuda.max_memory_allocated() / (1 << 20)
    cuda.reset_peak_memory_stats()
    return float(peak)


def _cuda() -> Any:
    """torch.cuda where it is in use; asking must neither import torch nor begin with CUDA."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


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
) -> None:
    """Call `work(setup(), item)` for every item and `done(key, result)` in this process as each one finishes.

    `setup` runs once a worker. With more than one worker `setup` and `work` are pickled. An error of a work item stops
    the map; what was done stays done. Progress counts an item as `units` of it, `already` of which were done earlier.
    Raises PhaseError where a worker process died, which on most machines means that memory ran out.
    """
    if not items:
        return
    progress.start(description, already + sum(map(units, items.values())), already)
    run = _in_process if execution.workers == 1 else _in_workers
    for key, result in run(setup, work, items, execution):
        done(key, result)
        progress.advance(units(items[key]))


def _in_process(
    setup: Callable[[], C], work: Callable[[C, I], R], items: Mapping[str, I], execution: Execution
) -> Iterator[tuple[str, R]]:
    _use_threads(execution.threads)
    context: C | None = setup()
    try:
        for key, item in items.items():
            yield key, work(cast(C, context), item)
    finally:
        context = None
        if _cuda() is not None:
            free_memory()


def _in_workers(
    setup: Callable[[], C], work: Callable[[C, I], R], items: Mapping[str, I], execution: Execution
) -> Iterator[tuple[str, R]]:
    pool, pickled, queue = _pool(execution), pickle.dumps((setup, work)), iter(items.items())
    running: dict[Future[tuple[R, int, float]], str] = {}

    def submit(n: int) -> None:
        for key, item in itertools.islice(queue, n):
            running[pool.submit(_work_on, pickled, item)] = key

    try:
        submit(execution.workers + 1)
        while running:
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                result, pid, peak_mb = future.result()
                _peaks[pid] = peak_mb
                yield running.pop(future), result
            submit(len(finished))
    except BrokenProcessPool:
        raise PhaseError(
            "a worker process died, most likely because memory ran out; run again with --resume, with smaller batches"
        ) from None
    finally:
        if running:
            # As `terminate_workers` of Python 3.14: other children are their owners', a notebook's for instance.
            workers = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in workers:
                process.terminate()
            _pool.cache_clear()


@functools.cache
def _pool(execution: Execution) -> ProcessPoolExecutor:
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = str(execution.threads)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return ProcessPoolExecutor(execution.workers, context, _begin_worker, (os.getpid(), execution.threads))


def _begin_worker(parent: int, threads: int) -> None:
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
    _use_threads(threads)


def _use_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


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


_context: tuple[bytes, Callable[..., Any], Any] | None = None
"""This worker's current (pickled setup and work, work, context): one set of models a phase is loaded once."""


def _work_on(pickled: bytes, item: Any) -> tuple[Any, int, float]:
    global _context
    if _context is None or _context[0] != pickled:
        _context = None
        setup, work = pickle.loads(pickled)
        _context = (pickled, work, setup())
    return _context[1](_context[2], item), os.getpid(), _own_peak_mb()


def _own_peak_mb() -> float:
    return max(_before_measuring_mb, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


class Card(NamedTuple):
    """One graphics card."""

    name: str
    memory_bytes: int


def cores() -> int:
    """Cores that this process may use."""
    return max(1, len(os.sched_getaffinity(0)))


def memory_bytes() -> int:
    """Memory of the machine, or of the container where that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = []
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path(path).read_text(encoding="ascii")))
    return min([physical, *limits])


def cards() -> list[Card]:
    """The NVIDIA cards that the driver lists; none where there is no driver."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(query, capture_output=True, text=True, timeout=_ASK_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = (line.rpartition(",") for line in listing.splitlines())
    return [Card(name.strip(), int(mebibytes) << 20) for name, _, mebibytes in rows if mebibytes.strip().isdigit()]
