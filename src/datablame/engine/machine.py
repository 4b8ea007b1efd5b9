"""What this machine has: cores, memory, graphics cards."""

import contextlib
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

_ASK_SECONDS = 10
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
VISIBLE = "CUDA_VISIBLE_DEVICES"


class Card(NamedTuple):
    """One graphics card."""

    number: int
    """As the driver counts it."""
    name: str
    memory_bytes: int
    used_bytes: int
    """By whichever processes."""


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
    """The NVIDIA cards that the driver lists and CUDA_VISIBLE_DEVICES leaves; none where there is no driver."""
    query = ["nvidia-smi", "--query-gpu=index,name,memory.total,memory.used", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(query, capture_output=True, text=True, timeout=_ASK_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in listing.splitlines():
        number, _, rest = line.partition(",")
        name, *sizes = (part.strip() for part in rest.rsplit(",", 2))
        if number.isdigit() and len(sizes) == 2 and sizes[0].isdigit():
            total, used = (int(size) << 20 if size.isdigit() else 0 for size in sizes)
            found.append(Card(int(number), name, total, used))
    # Names by UUID are not told apart here; what CUDA takes of them, torch says.
    visible = os.environ.get(VISIBLE, "").split(",")
    named = [name for each in visible if (name := each.strip()).isdigit()]
    return [card for card in found if str(card.number) in named] if named else found
