import json
import multiprocessing
import os
import socket
from pathlib import Path

import pytest

from datablame.engine.execute import Silent, Told
from datablame.engine.run_folder import (
    append_peak,
    append_timing,
    holder_of,
    locked,
    read_latest,
    read_peaks,
    read_timings,
)
from datablame.errors import PhaseError, RequestError


def _hold(root: Path, held: "multiprocessing.synchronize.Event", free: "multiprocessing.synchronize.Event") -> None:
    with locked(root):
        held.set()
        free.wait(30)


def test_a_second_process_on_a_run_folder_is_refused_by_name(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, free = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, held, free))
    holder.start()
    assert held.wait(30)
    with pytest.raises(RequestError, match=f"in use by process {holder.pid} on "), locked(tmp_path):
        pass
    free.set()
    holder.join()
    with locked(tmp_path):
        pass


def test_the_lock_of_a_killed_process_does_not_stay(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, free = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, held, free))
    holder.start()
    assert held.wait(30)
    holder.kill()
    holder.join()
    with locked(tmp_path):
        pass


def test_the_lock_stays_by_name_and_is_empty_when_nobody_holds_it(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert (tmp_path / "run.lock").read_text().startswith("process ")
    assert (tmp_path / "run.lock").read_bytes() == b""


def test_who_works_in_a_folder_says_at_what(tmp_path: Path) -> None:
    assert holder_of(tmp_path) is None
    with locked(tmp_path) as tell:
        progress = Told(Silent(), tell)
        assert holder_of(tmp_path) == (f"process {os.getpid()} on {socket.gethostname()}", "", 0, 0)
        progress.start("surface: sampling", 12, 3)
        assert (holder_of(tmp_path) or ())[1:] == ("surface: sampling", 3, 12)
        # Not oftener than once a second, but the next step at once.
        progress.advance()
        progress.start("surface: labelling", 2)
        assert (holder_of(tmp_path) or ())[1:] == ("surface: labelling", 0, 2)
    assert holder_of(tmp_path) is None


def test_a_killed_process_works_no_more(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, free = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, held, free))
    holder.start()
    assert held.wait(30)
    assert holder_of(tmp_path) is not None
    holder.kill()
    holder.join()
    assert (tmp_path / "run.lock").read_bytes() != b""
    assert holder_of(tmp_path) is None


def _begin_and_fail(root: Path, name: str, error: Exception) -> None:
    with locked(root):
        (root / "artifacts/world").mkdir(parents=True)
        (root / name).write_text("x")
        raise error


@pytest.mark.parametrize(
    ("there", "left"),
    [
        ([], []),
        (["run"], ["run"]),
        # A lock alone was left by a killed start.
        (["run", "run/run.lock"], ["run"]),
        (["run", "run/preregistration.json"], ["run", "run/preregistration.json", "run/run.lock"]),
    ],
)
def test_a_refused_request_leaves_the_folder_as_it_was(tmp_path: Path, there: list[str], left: list[str]) -> None:
    for name in there:
        (tmp_path / name).touch() if "/" in name else (tmp_path / name).mkdir()
    with pytest.raises(RequestError, match="too few"):
        _begin_and_fail(tmp_path / "run", "timings.jsonl", RequestError("too few"))
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == left


def test_a_refused_request_takes_the_folders_above_with_it(tmp_path: Path) -> None:
    with pytest.raises(RequestError), locked(tmp_path / "runs" / "deep" / "organism"):
        raise RequestError("no")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [PhaseError("failed"), RequestError("late")])
def test_what_a_run_has_left_stays_when_it_fails(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)):
        _begin_and_fail(tmp_path / "run", "study.yaml", error)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["artifacts", "run.lock", "study.yaml"]


def test_timings_torn_by_a_kill_are_skipped(tmp_path: Path) -> None:
    append_timing(tmp_path, "phase/scan", "ran", 1.5)
    append_peak(tmp_path, "phase/scan", 700.0)
    append_peak(tmp_path, "phase/scan", 600.0)
    append_peak(tmp_path, "phase/surface", 800.0)
    with (tmp_path / "timings.jsonl").open("a") as file:
        file.write(json.dumps({"what": "phase/scan", "key": "ran", "seconds": 2.0}) + '\n{"what": "pha')
    assert read_timings(tmp_path) == {"phase/scan": 3.5}
    assert read_peaks(tmp_path) == {"phase/scan": 700, "phase/surface": 800}


def test_what_an_item_took_and_held_is_summed_and_its_peak_kept(tmp_path: Path) -> None:
    append_timing(tmp_path, "attribute/loss", "a", 1.5, 512.4)
    append_timing(tmp_path, "attribute/loss", "b", 2.0, 300.0)
    append_timing(tmp_path, "attribute/loss", "c", 0.25)
    assert read_timings(tmp_path) == {"attribute/loss": 3.75}
    assert read_peaks(tmp_path) == {"attribute/loss": 512.0}
    append_timing(tmp_path, "attribute/loss", "a", 1.0, 256.0)
    assert read_latest(tmp_path, "seconds") == {"attribute/loss": 3.25}
    assert read_latest(tmp_path, "mb") == {"attribute/loss": 300.0}
