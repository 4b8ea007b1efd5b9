"""What work takes: seconds, memory of the machine and of its graphics card, in this process and in workers."""

import contextlib
import gc
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

R = TypeVar("R")

_FORGET_PEAK = "5"
_before_measuring_mb = 0.0
"""This process's peak before the kernel last forgot it."""
_peaks: dict[int, float] = {}
"""Peak resident memory in MB by worker process."""
_on_cards: dict[int, float] = {}
"""Peak memory in MB on the worker's graphics card since it was asked last, by worker process."""
_busy: dict[int, float] = {}
"""Seconds of work since they were asked last, by worker process."""


class Taken(NamedTuple):
    """What a piece of work took."""

    seconds: float
    peak_rss_mb: float | None
    """The most memory that its process held meanwhile, the interpreter's and the models' included; Linux only."""


class Worked(NamedTuple):
    """A worker's result, and what it took until then."""

    result: Any
    pid: int
    peak_rss_mb: float
    peak_gpu_mb: float
    seconds: float


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


def worked(work: Callable[[], Any]) -> Worked:
    """Do an item's work in a worker."""
    began = time.perf_counter()
    result = work()
    return Worked(result, os.getpid(), _own_peak_mb(), _own_gpu_mb(), time.perf_counter() - began)


def heard(worked: Worked) -> None:
    """Remember what a worker said."""
    pid = worked.pid
    _peaks[pid] = worked.peak_rss_mb
    _on_cards[pid] = max(_on_cards.get(pid, 0.0), worked.peak_gpu_mb)
    _busy[pid] = _busy.get(pid, 0.0) + worked.seconds


def peak_rss_mb() -> float:
    """The sum of the peak resident memory of this process and its workers, in MB; pages that they share count twice."""
    return sum({**_peaks, os.getpid(): _own_peak_mb()}.values())


def peak_gpu_mb() -> float:
    """The peak memory of tensors on a graphics card in MB, of the process that had most, since this was asked last."""
    peak = max([_own_gpu_mb(), *_on_cards.values()])
    _on_cards.clear()
    return peak


def busy_seconds() -> list[float]:
    """How long each worker process worked since this was asked last, the one that worked most first."""
    seconds = sorted(_busy.values(), reverse=True)
    _busy.clear()
    return seconds


def free_memory() -> None:
    """Give back what no object holds any more, on the graphics card too where one is in use."""
    gc.collect()
    if (card := cuda()) is not None:
        card.empty_cache()


def _own_peak_mb() -> float:
    return max(_before_measuring_mb, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _own_gpu_mb() -> float:
    """Of this process, since it was asked last; 0 without a card."""
    if (card := cuda()) is None:
        return 0.0
    peak = card.max_memory_allocated() / (1 << 20)
    card.reset_peak_memory_stats()
    return float(peak)


def cuda() -> Any:
    """torch.cuda where it is in use; asking must neither import torch nor begin with CUDA."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
