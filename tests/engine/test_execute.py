import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from datablame.engine import execute
from datablame.engine.execute import Execution, Silent, default_execution, run_items
from datablame.engine.machine import Card, cores
from datablame.engine.usage import measured, peak_rss_mb
from datablame.errors import PhaseError, RequestError


def _base(value: int) -> int:
    return value


def _add(base: int, item: int) -> tuple[int, int]:
    return base + item, os.getpid()


def _path(path: Path) -> Path:
    return path


def _kill_itself(base: int, item: int) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


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


def _die_once(marker: Path, item: int) -> int:
    """Each item's first process dies."""
    try:
        (marker / str(item)).touch(exist_ok=False)
    except FileExistsError:
        return item
    return _kill_itself(0, item)


def _kill_itself_at_3(base: int, item: int) -> int:
    return _kill_itself(base, item) if item == 3 else item


def _its_cards(base: int, item: int) -> tuple[str, int]:
    time.sleep(0.2)
    return os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()


def test_a_worker_that_dies_loses_nothing(tmp_path: Path) -> None:
    results: dict[str, int] = {}
    run_items(
        partial(_path, tmp_path),
        _die_once,
        {str(i): i for i in range(4)},
        execution=Execution(2, 1),
        done=results.__setitem__,
        progress=Silent(),
        description="dying",
    )
    assert results == {str(i): i for i in range(4)}


def test_an_item_that_ends_its_process_three_times_is_named_and_the_others_are_done() -> None:
    results: dict[str, int] = {}
    with pytest.raises(PhaseError, match=r"^number 3 ended its worker process 3 times"):
        run_items(
            partial(_base, 0),
            _kill_itself_at_3,
            {f"number {i}": i for i in range(4)},
            execution=Execution(2, 1),
            done=results.__setitem__,
            progress=Silent(),
            description="dying",
        )
    assert {f"number {i}": i for i in range(2)}.items() <= results.items()


def test_each_worker_has_cards_of_its_own() -> None:
    results: dict[str, tuple[str, int]] = {}
    run_items(
        partial(_base, 0),
        _its_cards,
        {str(i): i for i in range(12)},
        execution=Execution(2, 1, devices=("0,1", "4,5", "6,7")),
        done=results.__setitem__,
        progress=Silent(),
        description="asking",
    )
    cards_of = {pid: cards for cards, pid in results.values()}
    assert sorted(cards_of.values()) == ["0,1", "4,5", "6,7"]
    assert os.getpid() not in cards_of


CARDS = [Card(number, "H200", 141 << 30, 0) for number in (0, 1, 2, 3)]


@pytest.mark.parametrize(
    ("workers", "devices", "each", "expected"),
    [
        (None, (), 1, ("0", "1", "2", "3")),
        (3, (), 1, ("0", "1", "2")),
        (None, (2, 0), 1, ("2", "0")),
        (None, (3,), 1, ("3",)),
        (None, (), 2, ("0,1", "2,3")),
        (None, (0, 1, 3), 2, ("0,1",)),
    ],
)
def test_a_worker_gets_one_card_or_as_many_as_its_models_need(
    monkeypatch: pytest.MonkeyPatch, workers: int | None, devices: tuple[int, ...], each: int, expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(execute, "cards", lambda: CARDS)
    execution = default_execution(workers, devices, each)
    assert execution.devices == expected
    assert execution.on("cuda").processes == len(expected)
    assert execution.on("cpu") == Execution(workers or cores(), 1)


def test_a_machine_with_one_card_or_none_needs_no_worker_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (CARDS[:1], []):
        monkeypatch.setattr(execute, "cards", lambda there=there: there)
        assert default_execution().devices == ()
        assert default_execution().on("cuda") == Execution(1, 1)


def test_cards_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "cards", lambda: CARDS[:2])
    with pytest.raises(RequestError, match=r"no graphics card 5 to use; it has 0 \(H200\), 1 \(H200\)"):
        default_execution(devices=(0, 5))
    with pytest.raises(RequestError, match=r"cards_per_worker = 3, but 2 graphics card\(s\)"):
        default_execution(cards_per_worker=3)
    monkeypatch.setattr(execute, "cards", list)
    with pytest.raises(RequestError, match="no graphics card 0 to use; it has no card that the driver lists"):
        default_execution(devices=(0,))


@pytest.mark.parametrize(
    ("work", "message"), [(_refuse, "item 1 cannot be done"), (_kill_itself, "ended its worker process 3 times")]
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
from datablame.engine.execute import Execution, Silent, run_items
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
