"""What this machine has, asked without torch: cores, memory, graphics cards."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

_ASK_SECONDS = 10
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


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
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(query, capture_output=True, text=True, timeout=_ASK_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    listed = []
    for line in listing.splitlines():
        name, _, mebibytes = line.rpartition(",")
        with contextlib.suppress(ValueError):
            listed.append(Card(name.strip(), int(mebibytes) << 20))
    return listed
