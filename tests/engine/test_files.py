import fcntl
import os
import shutil
import threading
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq
import pytest

from datablame.engine.files import Journal, file_lock, json_object, locked_file, write_atomic, write_json, write_table
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


def test_what_several_processes_write_at_once_has_a_part_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda _: parts.extend(path.name for path in tmp_path.iterdir()))
    write_atomic(tmp_path / "index", b"one", shared=True)
    assert parts == [f"index.{os.getpid()}.part"]
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    rows = [{"prompt_id": "p", "alpha": 0.5, "token_ids": [1, 2], "log_q": None, "text": "é"}]
    for name in ("one.parquet", "two.parquet"):
        write_table(tmp_path / name, rows)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    assert pq.read_table(tmp_path / "one.parquet").to_pylist() == rows


@pytest.mark.parametrize("text", ["not json", "[1]", "", None])
def test_a_file_that_holds_no_object_is_an_empty_one(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    assert json_object(tmp_path / "a.json") == {}
    write_json(tmp_path / "a.json", {"b": 1})
    assert json_object(tmp_path / "a.json") == {"b": 1}


def test_what_waits_for_a_lock_that_is_taken_away_holds_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder" / "lock"
    opened, held = threading.Event(), list[bool]()
    flock = fcntl.flock

    def flock_in_sight(file: IO[str], how: int) -> None:
        opened.set()
        flock(file, how)

    def wait() -> None:
        with locked_file(path, wait=True) as file:
            held.append(os.path.samestat(os.fstat(file.fileno()), path.stat()))

    thread = threading.Thread(target=wait)
    with locked_file(path, wait=False):
        with pytest.raises(BlockingIOError):
            locked_file(path, wait=False)
        monkeypatch.setattr(fcntl, "flock", flock_in_sight)
        thread.start()
        assert opened.wait(30)
        shutil.rmtree(path.parent)
    thread.join(30)
    assert held == [True]


def test_a_folder_taken_away_before_its_lock_is_opened_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, mkdir, made = tmp_path / "folder" / "lock", Path.mkdir, list[Path]()

    def made_and_taken_away(folder: Path, *words: Any, **options: Any) -> None:
        mkdir(folder, *words, **options)
        if not made:
            folder.rmdir()
        made.append(folder)

    monkeypatch.setattr(Path, "mkdir", made_and_taken_away)
    with locked_file(path, wait=False):
        assert made == [path.parent] * 2


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with (
        pytest.raises(RequestError, match=r"the cache .*/file cannot be written \(.*\); set DATABLAME_CACHE to"),
        file_lock(tmp_path / "file" / "model"),
    ):
        pass
    with file_lock(tmp_path / "cache" / "model"):
        assert [path.name for path in (tmp_path / "cache").iterdir()] == ["model.lock"]


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
