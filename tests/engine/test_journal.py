from pathlib import Path

import pytest

from datablame.engine.journal import Journal
from datablame.errors import PhaseError


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
