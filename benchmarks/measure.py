"""What the benchmarks share: contenders timed in turns in one process, and the machine named.

Machines are noisy and shared, so a result is a ratio of two contenders of one run, never a time. Both clocks are kept:
wall time is what a user waits for, CPU time is what stays meaningful while something else uses the cores.
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

__all__ = ["MOVED", "ROUNDS", "Amount", "Row", "Times", "interleaved", "line", "machine", "moved", "table"]

ROUNDS = 5
Amount = Literal["reduced", "quick", "full"]
"""Sizes that say nothing, those of `make bench`, those of `make bench FULL=1`."""
MOVED = 0.15
"""A ratio that is so much off the one kept is told."""


class Row(NamedTuple):
    """One line of `make bench`: `ratio` is ours over the peer's time, so that below 1 we are faster."""

    name: str
    ratio: float
    note: str


class Times(NamedTuple):
    """Medians over the rounds, in seconds."""

    wall: float
    cpu: float


def interleaved(contenders: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, Times]:
    """The median times of each contender; one turn of every contender a round, after one that is not counted."""
    taken: dict[str, list[Times]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, contender in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            contender()
            if number:
                taken[name].append(Times(time.perf_counter() - wall, time.process_time() - cpu))
        told = ", ".join(f"{name} {each[-1].wall:.2f} s" for name, each in taken.items() if each)
        print(f"round {number} of {rounds}: {told or 'warm'}", file=sys.stderr, flush=True)
    return {
        name: Times(statistics.median(each.wall for each in all_), statistics.median(each.cpu for each in all_))
        for name, all_ in taken.items()
    }


def moved(found: list[Row], kept: Mapping[str, float]) -> list[str]:
    """One line for each ratio that is new or not within `MOVED` of the one kept."""
    lines = []
    for row in found:
        old = kept.get(row.name)
        if old is None:
            lines.append(f"new: {row.name}: {row.ratio:.2f}")
        elif abs(row.ratio / old - 1) > MOVED:
            word = "SLOWER" if row.ratio > old else "faster"
            lines.append(f"{word}: {row.name}: {old:.2f} -> {row.ratio:.2f} ({row.ratio / old - 1:+.0%})")
    return lines


def machine() -> str:
    """Processor, cores, thread count of torch, and versions of Python and torch."""
    import os

    import torch

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return (
        f"{card or _processor()}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    return "\n".join(["| ours against | ours / theirs | note |", "|---|---:|---|", *map(line, rows)])


def line(row: Row) -> str:
    """One row of the table."""
    return f"| {row.name} | {row.ratio:.2f} | {row.note} |"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
