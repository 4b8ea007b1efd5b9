import json
import multiprocessing
import os
from pathlib import Path

import pytest

from datablame.engine.run_folder import (
    Journal,
    append_peak,
    append_timing,
    locked,
    read_peaks,
    read_table,
    read_timings,
    write_atomic,
    write_table,
)
from datablame.errors import PhaseError, RequestError


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rates.json"
    write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"


def test_a_journal_gives_back_what_was_appended(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("a", {"text": "ü\n"})
    journal.append("b", [1, 2])
    assert Journal(tmp_path / "journal.jsonl").read() == {"a": {"text": "ü\n"}, "b": [1, 2]}


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_journal_cut_anywhere_in_its_last_line_loses_that_line_only(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append("a", 1)
    journal.append("b", "long enough to be cut")
    path.write_bytes(path.read_bytes()[:-cut])
    torn = Journal(path)
    assert torn.read() == {"a": 1}
    torn.append("c", 3)
    assert Journal(path).read() == {"a": 1, "c": 3}


def test_a_journal_damaged_before_its_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"key": "a"\n{"key": "b", "payload": 1}\n')
    with pytest.raises(PhaseError, match="line 1 is damaged"):
        Journal(path).read()


def test_a_journal_line_of_zero_bytes_after_a_power_cut_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).append("a", 1)
    path.write_bytes(path.read_bytes() + b"\0\0\0\n")
    assert Journal(path).read() == {"a": 1}


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    rows = [{"prompt_id": "p", "alpha": 0.5, "token_ids": [1, 2], "log_q": None, "text": "é"}]
    for name in ("one.parquet", "two.parquet"):
        write_table(tmp_path / name, rows)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    assert read_table(tmp_path / "one.parquet") == rows


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


def test_timings_torn_by_a_kill_are_skipped(tmp_path: Path) -> None:
    append_timing(tmp_path, "phase/scan", "ran", 1.5)
    append_peak(tmp_path, "phase/scan", 700.0)
    append_peak(tmp_path, "phase/scan", 600.0)
    append_peak(tmp_path, "phase/surface", 800.0)
    with (tmp_path / "timings.jsonl").open("a") as file:
        file.write(json.dumps({"what": "phase/scan", "key": "ran", "seconds": 2.0}) + '\n{"what": "pha')
    assert read_timings(tmp_path) == {"phase/scan": 3.5}
    assert read_peaks(tmp_path) == {"phase/scan": 700, "phase/surface": 800}
