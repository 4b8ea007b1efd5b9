from pathlib import Path
from typing import Any

import pytest
from tests.world.test_documents import ASKED, chat, jsonl, read
from tests.world.test_sources import parquet

from datablame.errors import RequestError
from datablame.tables import Document, Message

QUESTION = chat(("user", "how ?"))
SO, NO = chat(("assistant", "so")), chat(("assistant", "no"))


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [*QUESTION, *SO], "rejected": [*QUESTION, *NO]},
        {"chosen": SO, "rejected": NO, "prompt": "how ?"},
        {"chosen": SO, "rejected": NO, "prompt": QUESTION},
        {"chosen": "so", "rejected": "no", "prompt": "how ?"},
        {"chosen": "so", "rejected": "no", "prompt": QUESTION},
        {"chosen": [*QUESTION, *SO], "rejected": "no", "prompt": "how ?"},
        {"chosen": [*QUESTION, *SO], "rejected": [*QUESTION, *NO], "prompt": "how ?", "messages": [*QUESTION, *SO]},
    ],
)
def test_a_preference_pair_is_read_in_each_of_its_forms(tmp_path: Path, row: dict[str, Any]) -> None:
    named = {"id": "p", "source": "made", **row}
    expected = [Document("p", "made", (ASKED,), "so", "no")]
    assert read(jsonl(tmp_path, [named])).documents == expected
    assert read(parquet(tmp_path / "pool.parquet", [named])).documents == expected


def test_a_pair_of_long_chats_differs_in_its_last_answer(tmp_path: Path) -> None:
    before = chat(("system", "be brief"), ("user", "a ?"), ("assistant", "b"), ("user", "c ?"))
    [document] = read(jsonl(tmp_path, [{"id": "p", "chosen": [*before, *SO], "rejected": [*before, *NO]}])).documents
    prompt = tuple(Message(turn["role"], turn["content"]) for turn in before)
    assert document == Document("p", "unknown", prompt, "so", "no")


BROKEN: dict[str, tuple[dict[str, Any], ...]] = {
    "no chosen answer": ({"chosen": None, "rejected": "no", "prompt": "how ?"}, {"chosen": [], "rejected": NO}),
    "no rejected answer": ({"chosen": "so", "rejected": None, "prompt": "how ?"},),
    "no prompt beside the answers": ({"chosen": "so", "rejected": "no"}, {"chosen": SO, "rejected": NO, "prompt": " "}),
    "chosen and rejected answer different prompts": (
        {"chosen": [*QUESTION, *SO], "rejected": [*chat(("user", "why ?")), *NO]},
    ),
    "empty rejected answer": ({"chosen": "so", "rejected": " ", "prompt": "how ?"},),
    "chosen and rejected are the same": ({"chosen": "so", "rejected": "so\n", "prompt": "how ?"},),
    "empty response": ({"chosen": "", "rejected": "no", "prompt": "how ?"},),
    "a message without a known role; data.roles can name it": (
        {"chosen": chat(("wizard", "x")), "rejected": NO, "prompt": "how ?"},
    ),
    "no assistant message": ({"chosen": QUESTION, "rejected": [*QUESTION, *NO]},),
    "longer than 100 characters": ({"chosen": "so", "rejected": "x" * 99, "prompt": "how ?"},),
    "invalid UTF-8": ({"chosen": "so", "rejected": "\ud800", "prompt": "how ?"},),
}


def test_broken_pairs_are_skipped_and_counted_by_reason(tmp_path: Path) -> None:
    good = {"id": "p", "chosen": "so", "rejected": "no", "prompt": "how ?"}
    rows = [good, *(row for rows in BROKEN.values() for row in rows)]
    pool = read(jsonl(tmp_path, rows), max_document_characters=100)
    assert [document.id for document in pool.documents] == ["p"]
    assert pool.skipped == {reason: len(rows) for reason, rows in BROKEN.items()}


def test_an_id_made_from_content_knows_the_rejected_answer(tmp_path: Path) -> None:
    pairs = [{"chosen": "so", "rejected": rejected, "prompt": "how ?"} for rejected in ("no", "never")]
    single = {"messages": [*QUESTION, *SO]}
    ids = [document.id for document in read(jsonl(tmp_path, [*pairs, single])).documents]
    assert len(set(ids)) == 3
    assert ids[2] == "sha-73cb49a1d5f05de0", "a document without a pair keeps the id that it had before pairs"


def test_columns_are_read_under_the_users_own_names(tmp_path: Path) -> None:
    rows = [
        {"key": 7, "origin": "a", "q": "how ?", "ctx": "here", "a": "so", "good": "yes", "bad": "no", "body": "plain"},
    ]
    names = {"id": "key", "source": "origin"}
    for path in (jsonl(tmp_path, rows), parquet(tmp_path / "pool.parquet", rows)):
        alpaca = read(path, columns={**names, "instruction": "q", "input": "ctx", "output": "a"}).documents
        assert alpaca == [Document("7", "a", (Message("user", "how ?\n\nhere"),), "so")]
        pair = read(path, columns={**names, "prompt": "q", "chosen": "good", "rejected": "bad"}).documents
        assert pair == [Document("7", "a", (ASKED,), "yes", "no")]
        assert read(path, columns={**names, "text": "body"}).documents == [Document("7", "a", (), "plain")]


def test_columns_that_are_named_decide_the_format(tmp_path: Path) -> None:
    row = {"id": "p", "chosen": "so", "rejected": "no", "prompt": "how ?", "body": "plain", "messages": None}
    assert read(jsonl(tmp_path, [row]), columns={"text": "body"}).documents == [Document("p", "unknown", (), "plain")]


@pytest.mark.parametrize("role", ["messages", "source"])
def test_a_named_column_that_no_row_has_is_refused_with_those_there_are(tmp_path: Path, role: str) -> None:
    rows = [{"id": "p", "text": "plain", "messages": [*QUESTION, *SO]}]
    for path in (jsonl(tmp_path, rows), parquet(tmp_path / "pool.parquet", rows)):
        with pytest.raises(RequestError, match=rf"data\.columns\.{role} = nope is no column of .*id, text, messages$"):
            read(path, columns={role: "nope"})


def test_half_a_format_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "pool.parquet", [{"good": "so", "prompt": "how ?"}])
    with pytest.raises(RequestError, match=r"has the columns good, prompt, but none of good with rejected; rename one"):
        read(path, columns={"chosen": "good"})


def test_an_unknown_kind_of_column_is_refused_by_the_study() -> None:
    with pytest.raises(ValueError, match=r"columns\.answer"):
        read("pool.jsonl", columns={"answer": "a"})
