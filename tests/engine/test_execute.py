import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from datablame.engine.execute import Execution, Silent, measured, peak_rss_mb, run_items
from datablame.errors import PhaseError


def _base(value: int) -> int:
    return value


def _add(base: int, item: int) -> tuple[int, int]:
    return base + item, os.getpid()


def _kill_itself(base: int, item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _refuse(base: int, item: int) -> None:
    raise PhaseError(f"item {item} cannot be done")


def _collect(workers: int, items: dict[str, int]) -> dict[str, tuple[int, int]]:
    results: dict[str, tuple[int, int]] = {}
    run_items(
        partial(_base, 10),
        _add,
        items,
        execution=Execution(workers, 1),
        done=results.__setitem__,
        progress=Silent(),
        description="adding",
    )
    return results


def test_workers_give_what_one_process_gives() -> None:
    items = {str(i): i for i in range(7)}
    here, there = _collect(1, items), _collect(2, items)
    expected = {str(i): 10 + i for i in range(7)}
    assert {k: v[0] for k, v in here.items()} == {k: v[0] for k, v in there.items()} == expected
    assert {pid for _, pid in here.values()} == {os.getpid()}
    assert os.getpid() not in {pid for _, pid in there.values()}


@pytest.mark.parametrize(
    ("work", "message"), [(_refuse, "item 1 cannot be done"), (_kill_itself, "a worker process died")]
)
def test_a_failing_item_stops_the_map_with_its_own_message_and_no_process_of_others(work: object, message: str) -> None:
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    other.start()
    with pytest.raises(PhaseError, match=message):
        run_items(
            partial(_base, 0),
            work,  # type: ignore[arg-type]
            {"a": 1, "b": 1},
            execution=Execution(2, 1),
            done=lambda key, result: None,
            progress=Silent(),
            description="failing",
        )
    other.join(1)
    assert other.is_alive()
    other.kill()
    other.join()


_ORPHAN = """
import os, time
from datablame.engine.execute import Execution, Silent, measured, peak_rss_mb, run_items
def setup(): return None
def work(context, item):
    os.write(1, b"%d " % os.getpid())  # one write, unlike print: both workers hold the pipe
    time.sleep(60)
if __name__ == "__main__":
    run_items(setup, work, {"a": 1, "b": 2}, execution=Execution(2, 1), done=print, progress=Silent(), description="x")
"""


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "orphan.py"
    script.write_text(_ORPHAN)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    written = ""
    while written.count(" ") < 2:
        written += parent.stdout.read(1) or pytest.fail("the parent ended by itself")
    workers = [int(pid) for pid in written.split()]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(_alive(pid) for pid in workers)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say")
def test_the_peak_of_a_piece_of_work_is_its_own_and_the_process_keeps_its_highest() -> None:
    large, highest = measured(lambda: np.ones(25_000_000).sum())
    small, afterwards = measured(lambda: 1 + 1)
    assert (large, small) == (25_000_000, 2)
    assert highest.peak_rss_mb is not None
    assert afterwards.peak_rss_mb is not None
    assert highest.peak_rss_mb - afterwards.peak_rss_mb > 150
    assert peak_rss_mb() >= highest.peak_rss_mb
