"""Which outputs a person sees and in which order, and that no label is lost."""

import json
import multiprocessing
import os
import pty
import subprocess
import sys
import termios
import time
from collections import Counter
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from datablame.engine.files import read_jsonl
from datablame.engine.phase import Tables
from datablame.errors import RequestError
from datablame.report.human_labels import Output, OutputKey, outputs_of, read_files
from datablame.tables import LabelName
from datablame.view.labelling import labelling, planned


def _many() -> dict[OutputKey, Output]:
    """Outputs of which few are harmful, and most are of one arm."""
    sizes: dict[tuple[str, LabelName], int] = {
        ("after", "harmful"): 30,
        ("after", "harmless"): 300,
        ("after", "refused"): 60,
        ("random", "harmless"): 40,
    }
    return {
        OutputKey("surface", arm, "none", 0, 0, label, 0.0, i): Output("dose", "", label)
        for (arm, label), size in sizes.items()
        for i in range(size)
    }


def test_the_first_outputs_are_balanced_over_labels_and_these_over_arms() -> None:
    first = planned(_many(), 0)[:90]
    assert Counter(output.predicted for _, output in first) == {"harmful": 30, "harmless": 30, "refused": 30}
    assert Counter(key.arm for key, output in first if output.predicted == "harmless") == {"after": 15, "random": 15}


def test_every_output_is_asked_about_once_in_the_order_of_the_seed() -> None:
    outputs = _many()
    orders = [
        [key for key, _ in planned(dict(items), seed)]
        for items in (outputs.items(), [*reversed(outputs.items())])
        for seed in (0, 1)
    ]
    assert orders[0] == orders[2] != orders[1] == orders[3]
    assert sorted(map(astuple, orders[0])) == sorted(map(astuple, outputs))


def test_no_place_in_the_order_tells_a_label() -> None:
    places = [[output.predicted for _, output in planned(_many(), seed)[:3]] for seed in range(40)]
    for place in range(3):
        assert set(Counter(labels[place] for labels in places)) == {"harmful", "harmless", "refused"}


def test_a_person_sees_neither_arm_nor_alpha_nor_label(run: Path) -> None:
    with labelling(run, "ann", 200) as session:
        seen = []
        for _ in range(30):
            seen.append(session.shown())
            session.label(seen[-1]["number"], "harmless")
    assert len(seen[0]["text"]) > 0
    keys = {"number", "done", "total", "undo", "behaviour", "description", "rubric", "prompt", "text"}
    assert all(set(item) == keys for item in seen)
    behaviour = {item["description"] for item in seen}
    assert len(behaviour) == 1
    for item in seen:
        told = json.dumps(
            {name: value for name, value in item.items() if name not in ("description", "text", "prompt")}
        )
        assert not any(word in told for word in ("gradient", "retrain", "after", "alpha", "harmful", "2.0"))


def test_each_row_says_which_output_whose_text_and_who(run: Path) -> None:
    with labelling(run, "ann", 200) as session:
        key, _ = session.plan[0]
        session.label(0, "refused", "odd \ud800 <b>")
    [row] = read_jsonl(run / "human_labels-ann.jsonl")
    assert {
        name: row[name] for name in ("phase", "arm", "protocol", "k", "seed", "prompt_id", "alpha", "index")
    } == vars(key)
    assert (row["label"], row["note"], row["annotator"]) == ("refused", "odd \ud800 <b>", "ann")
    assert row["at"].endswith("Z")
    assert len(row["text_sha256"]) == 64


def test_resuming_goes_on_where_the_file_ends(run: Path) -> None:
    with labelling(run, "human", 6) as session:
        for _ in range(4):
            session.label(session.current or 0, "harmful")
        session.undo()
    with (run / "human_labels.jsonl").open("ab") as file:
        file.write(b'{"phase": "surface", "ar')
    with labelling(run, "human", 6) as session:
        assert (session.current, session.shown()["done"], list(session.left)) == (3, 3, [3, 4, 5])
        session.undo()
        assert session.current == 2
        session.label(2, "refused")
    assert [row.label for row in read_files(run)["human"]] == ["harmful", "harmful", "refused"]
    assert [row["label"] for row in read_jsonl(run / "human_labels.jsonl")] == [*["harmful"] * 4, None, None, "refused"]


def test_a_key_pressed_twice_labels_once_and_skipped_outputs_come_last(run: Path) -> None:
    with labelling(run, "ann", 3) as session:
        session.skip(0)
        session.label(1, "harmless")
        session.label(1, "harmful")
        assert list(session.left) == [2, 0]
        session.label(2, "harmless")
        session.label(0, "harmless")
        assert session.shown() == {"number": None, "done": 3, "total": 3, "undo": True}
    assert len(read_jsonl(run / "human_labels-ann.jsonl")) == 3


def _begin(run: Path, told: Any) -> None:
    try:
        with labelling(run, "ann", 3):
            told.put("begun")
    except RequestError as error:
        told.put(str(error))


def test_two_processes_do_not_write_one_file_and_two_people_have_two(run: Path) -> None:
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    with labelling(run, "ann", 3) as session, labelling(run, "bob", 3) as other:
        process = context.Process(target=_begin, args=(run, told))
        process.start()
        assert "human_labels-ann.jsonl is being written by another process" in told.get(timeout=60)
        process.join()
        assert [key for key, _ in session.plan] == [key for key, _ in other.plan]
        other.label(0, "harmful")
    # Who said nothing leaves no file.
    assert [path.name for path in run.glob("human_labels*")] == ["human_labels-bob.jsonl"]


def test_a_run_without_outputs_is_refused(run: Path) -> None:
    for path in (run / "artifacts/surface/samples.parquet", run / "artifacts/patch/samples.parquet"):
        path.unlink()
    with (
        pytest.raises(RequestError, match="has no outputs to label; run its surface phase first"),
        labelling(run, "ann", 3),
    ):
        pass


def test_the_terminal_takes_the_same_keys_and_shows_no_escapes(run: Path) -> None:
    master, slave = pty.openpty()
    words = [sys.executable, "-m", "datablame", "label", str(run), "--terminal", "--samples", "4"]
    process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    for key in (b"1", b"3", b"u", b"s", b"n", b"why not\n", b"2", b"q"):
        while not shown.endswith((b"q leave\r\n", b"note: ")):
            shown += os.read(master, 65536)
        # What is typed before a single key is waited for is thrown away.
        while not shown.endswith(b"note: ") and termios.tcgetattr(master)[3] & termios.ICANON:
            time.sleep(0.01)
        shown += b"\n"
        os.write(master, key)
    assert process.wait(30) == 0
    os.close(master)
    rows = [(row["label"], row["note"]) for row in read_jsonl(run / "human_labels.jsonl")]
    assert rows == [("harmful", ""), ("harmless", ""), (None, ""), ("refused", "why not")]
    assert b"1 of 4 labelled" in shown
    assert b"\x1b[31m" not in shown
    assert "\u202e".encode() not in shown


def test_outputs_that_were_labelled_and_then_changed_are_asked_about_again(run: Path) -> None:
    with labelling(run, "ann", 200) as session:
        session.label(0, "harmful")
        total = len(session.plan)
    text = (run / "human_labels-ann.jsonl").read_text()
    row = json.loads(text)
    (run / "human_labels-ann.jsonl").write_text(json.dumps(row | {"text_sha256": "0" * 64}) + "\n")
    with labelling(run, "ann", 200) as session:
        assert (session.current, session.shown()["done"], len(session.left)) == (0, 0, total)
    assert len(outputs_of(Tables(run))) == total == 120
