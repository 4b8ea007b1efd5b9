import json
import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.worlds import read_pool

from datablame.config.schema import Data
from datablame.errors import RequestError
from datablame.tables import Document, Message

ASKED = Message("user", "how ?")
CASES = Path(__file__).parents[1] / "cases"


def chat(*turns: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def good(number: int) -> dict[str, Any]:
    return {"id": f"d{number}", "source": "made", "messages": chat(("user", "how ?"), ("assistant", f"so {number}"))}


def jsonl(folder: Path, rows: Sequence[Any], name: str = "pool.jsonl") -> Path:
    path = folder / name
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def parquet(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path = folder / "pool.parquet"
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    return path


def read(path: Path | str, **settings: Any) -> Any:
    return read_pool(Data(path=str(path), **settings))


@pytest.mark.parametrize("write", [jsonl, parquet])
def test_parquet_and_jsonl_give_the_same_documents(tmp_path: Path, write: Any) -> None:
    rows = [good(1), {**good(2), "id": None}, {**good(3), "source": None}]
    pool = read(write(tmp_path, rows))
    assert [(d.id, d.source, d.prompt, d.response) for d in pool.documents] == [
        ("d1", "made", (ASKED,), "so 1"),
        (pool.documents[1].id, "made", (ASKED,), "so 2"),
        ("d3", "unknown", (ASKED,), "so 3"),
    ]
    assert pool.documents[1].id.startswith("sha-")
    assert (pool.skipped, pool.examples) == ({}, {})


def test_an_id_made_from_content_depends_on_content_alone(tmp_path: Path) -> None:
    rows = [{"messages": good(n)["messages"]} for n in range(4)]
    forward = {d.response: d.id for d in read(jsonl(tmp_path, rows)).documents}
    backward = {d.response: d.id for d in read(jsonl(tmp_path, rows[::-1])).documents}
    assert forward == backward
    assert len(set(forward.values())) == 4


def test_whole_numbers_are_ids_too(tmp_path: Path) -> None:
    rows = [{**good(number), "id": value} for number, value in enumerate((7, 8.0, True, 1.5))]
    ids = [document.id for document in read(jsonl(tmp_path, rows)).documents]
    assert ids[:2] == ["7", "8"]
    assert all(doc_id.startswith("sha-") for doc_id in ids[2:])


def test_a_byte_order_mark_does_not_cost_the_first_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [good(1), good(2)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [document.id for document in read(path).documents] == ["d1", "d2"]


def test_a_chat_is_cut_after_its_last_answer(tmp_path: Path) -> None:
    turns = chat(("system", "be brief"), ("user", "a ?"), ("assistant", "b"), ("user", "c ?"), ("assistant", "d"))
    [document] = read(jsonl(tmp_path, [{"id": "x", "messages": [*turns, *chat(("user", "e ?"))]}])).documents
    before = (Message("system", "be brief"), Message("user", "a ?"), Message("assistant", "b"), Message("user", "c ?"))
    assert document == Document("x", "unknown", before, "d")


def test_alpaca_and_plain_text_rows_are_read(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "instruction": "Add.", "input": "1 1", "output": "2"},
        {"id": "b", "instruction": "Hi", "input": "", "output": "Ho"},
        {"id": "c", "text": "plain"},
    ]
    assert read(jsonl(tmp_path, rows)).documents == [
        Document("a", "unknown", (Message("user", "Add.\n\n1 1"),), "2"),
        Document("b", "unknown", (Message("user", "Hi"),), "Ho"),
        Document("c", "unknown", (), "plain"),
    ]


BROKEN: dict[str, tuple[Any, ...]] = {
    "no messages": ({"id": "x"}, {"messages": None}, {"messages": "hello"}, {"instruction": "no output"}),
    "empty messages": ({"messages": []},),
    "a message without a known role; data.roles can name it": (
        {"messages": chat(("user", "a"), ("wizard", "b"), ("assistant", "c"))},
        {"messages": chat((["user"], "a"), ("assistant", "b"))},
    ),
    "messages that do not name their role": (
        {"messages": ["a", "b"]},
        {"messages": [{"content": "a"}]},
        {"messages": [chat(("user", "a"), ("assistant", "b"))]},
        {"prompt": "a", "chosen": ["b"], "rejected": ["c", "d"]},
    ),
    "a message without text": ({"messages": chat(("user", None), ("assistant", "b"))},),
    "a message with a part that is no text": (
        {"messages": chat(("user", [{"type": "image", "url": "x"}]), ("assistant", "b"))},
        {"messages": chat(("user", {"a": 1}), ("assistant", "b"))},
    ),
    "messages whose lists have different lengths": ({"messages": {"role": ["user"], "content": ["a", "b"]}},),
    "the output is no text": ({"instruction": "a", "output": {"b": 1}},),
    "no assistant message": ({"messages": chat(("user", "a"), ("user", "b"))},),
    "no user message before the answer": ({"messages": chat(("assistant", "b"), ("user", "a"))},),
    "empty response": (
        {"messages": chat(("user", "a"), ("assistant", " \n"))},
        {"text": ""},
        {"text": "", "role": ["doctor"]},
    ),
    "invalid UTF-8": (
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        {"messages": chat(("user", "\ud800"), ("assistant", "b"))},
        {**good(1), "id": "\udfff"},
    ),
    "longer than 100000 characters": ({"messages": chat(("user", "x" * 10_000_000), ("assistant", "b"))},),
    "one message of a conversation; write all messages of one into one row": (
        {"message_id": "a", "parent_id": None, "text": "b", "role": "prompter"},
    ),
    "its last answer has weight 0: training leaves it out": (
        {"messages": [*chat(("user", "a")), {"role": "assistant", "content": "b", "weight": 0}]},
    ),
    "label is false: an answer that training pushes away": (
        {"prompt": "a", "completion": "b", "label": False},
        {"messages": chat(("user", "a"), ("assistant", "b")), "label": False},
        {"prompt": "a", "completion": "b", "label": "False"},
    ),
    "kto_tag is false: an answer that training pushes away": ({"instruction": "a", "output": "b", "kto_tag": False},),
    "two answers, response_0 and response_1; write the better one as chosen, the other as rejected": (
        {"prompt": "a", "response_0": "b", "response_1": "c", "better_response_id": 1},
    ),
    "not JSON": (b'{"id": "torn', b"[" * 100_000),
    "not an object with fields": ([1, 2], 5, "text", None),
    "the id stands twice": (good(0),),
}


def test_broken_rows_are_skipped_counted_by_reason_and_shown_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [good(0), *(row for rows in BROKEN.values() for row in rows), good(9)]
    with caplog.at_level(logging.WARNING, "datablame"):
        pool = read(jsonl(tmp_path, rows))
    assert [document.id for document in pool.documents] == ["d0", "d9"]
    assert pool.skipped == {reason: len(rows) for reason, rows in BROKEN.items()}
    assert list(pool.examples) == list(BROKEN)
    for example in pool.examples.values():
        assert example.isascii()
        assert example.isprintable()
        assert len(example) < 200
    assert "torn" in pool.examples["not JSON"]
    assert len(caplog.records) == len(BROKEN)
    assert all(reason in record.getMessage() for reason, record in zip(BROKEN, caplog.records, strict=True))


@pytest.mark.parametrize("depth", [300, 700, 900, 5000])
def test_a_row_nested_however_deeply_costs_itself_at_most(tmp_path: Path, depth: int) -> None:
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    call = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [' + deep + b"]}]}"
    pool = read(jsonl(tmp_path, [good(1), call, b"[" * depth + b"]" * depth, good(2)]))
    assert {document.id for document in pool.documents} >= {"d1", "d2"}
    assert len(pool.documents) + sum(pool.skipped.values()) == 4


def test_repeated_texts_without_ids_are_kept_apart(tmp_path: Path) -> None:
    row = {"messages": good(1)["messages"]}
    pool = read(jsonl(tmp_path, [row, row, {"messages": good(2)["messages"]}, row]))
    first, second, _, third = (document.id for document in pool.documents)
    assert [second, third] == [f"{first}-2", f"{first}-3"]
    assert pool.skipped == {}


def test_one_row_of_invalid_utf8_in_parquet_costs_that_row_only(tmp_path: Path) -> None:
    texts = [b"fine", b"\xff\xfe broken", b"good"]
    offsets = pa.array([0, 1, 2, 3], pa.int32())
    roles = pa.array(["user", "assistant"] * 3)
    contents = [b"how ?", texts[0], b"how ?", texts[1], b"how ?", texts[2]]
    broken = pa.Array.from_buffers(pa.string(), 6, pa.array(contents, pa.binary()).buffers())
    turns = pa.StructArray.from_arrays([roles, broken], ["role", "content"])
    messages = pa.ListArray.from_arrays(pa.array([0, 2, 4, 6], pa.int32()), turns)
    path = tmp_path / "pool.parquet"
    pq.write_table(pa.table({"id": ["a", "b", "c"], "messages": messages, "n": offsets[:3]}), path)
    pool = read(path)
    assert [(d.id, d.response) for d in pool.documents] == [("a", "fine"), ("c", "good")]
    assert pool.skipped == {"invalid UTF-8": 1}
    assert r"\\xff" in repr(pool.examples["invalid UTF-8"])


def test_all_rows_broken_is_refused_with_the_counts(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"messages": []}, {"messages": []}, {"text": " "}])
    with pytest.raises(RequestError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "pool.jsonl" in message
    assert "2 rows: empty messages; 1 rows: empty response" in message


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("content", [None, b""])
def test_a_missing_or_empty_file_is_refused(tmp_path: Path, suffix: str, content: bytes | None) -> None:
    path = tmp_path / f"pool{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RequestError, match=r"data\.path = .*pool"):
        read(path)


def test_a_torn_parquet_file_is_refused(tmp_path: Path) -> None:
    whole = parquet(tmp_path, [good(n) for n in range(50)]).read_bytes()
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    with pytest.raises(RequestError, match=r"torn\.parquet cannot be read as Parquet"):
        read(torn)


def test_a_table_without_a_known_column_is_refused_with_its_columns(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has the columns question, answer, but none of text, instruction with outp"):
        read(parquet(tmp_path, [{"question": "a", "answer": "b"}]))


def test_the_subset_depends_on_the_seed_and_not_on_the_order(tmp_path: Path) -> None:
    rows = [good(n) for n in range(200)]
    chosen = read(jsonl(tmp_path, rows), documents=20).documents
    random.Random(0).shuffle(rows)
    again = read(jsonl(tmp_path, rows), documents=20).documents
    other = read_pool(Data(path=str(tmp_path / "pool.jsonl"), documents=20), 1).documents
    assert len(chosen) == len(other) == 20
    assert {d.id for d in chosen} == {d.id for d in again} != {d.id for d in other}
    assert [d.id for d in again] == [row["id"] for row in rows if row["id"] in {d.id for d in chosen}]
    assert len(read(jsonl(tmp_path, rows), documents=1000).documents) == 200


def test_ids_that_begin_anew_in_every_file_cost_no_text(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "datablame"):
        pool = read(CASES / "ids-restart")
    answers = [f"Answer {name}{n}." for name, rows in (("A", 3), ("B", 5)) for n in range(rows)]
    assert [document.response for document in pool.documents] == answers
    assert len({document.id for document in pool.documents}) == 8
    assert [document.id for document in pool.documents if document.id.isdecimal()] == ["0", "1", "2", "3", "4"]
    assert all(document.id.startswith(f"{n}-") for n, document in enumerate(pool.documents[3:6]))
    assert pool.skipped == {}
    assert "3 rows have the id of another text" in caplog.text


def test_a_subset_of_ids_that_begin_anew_is_drawn_from_every_text(tmp_path: Path) -> None:
    rows = [{**good(number), "id": number % 100} for number in range(400)]
    drawn = [int(d.response.split()[1]) for d in read(jsonl(tmp_path, rows), documents=100).documents]
    assert len(drawn) == 100
    assert all(10 < sum(number // 100 == file for number in drawn) < 40 for file in range(4))


def test_every_file_says_how_many_rows_and_what_was_left_out(tmp_path: Path) -> None:
    jsonl(tmp_path, [good(1), good(2), {"messages": []}], "a.jsonl")
    jsonl(tmp_path, [good(1), {"id": "x"}, good(3)], "b.jsonl")
    (tmp_path / "c.jsonl").write_text("")
    found = {file.file: file for file in read(tmp_path).summary.files}
    counts = {name: {row.reason: row.count for row in file.skipped} for name, file in found.items()}
    assert [(file.rows, file.documents) for file in found.values()] == [(3, 2), (3, 1), (0, 0)]
    assert counts == {
        "a.jsonl": {"empty messages": 1},
        "b.jsonl": {"no messages": 1, "the id stands twice": 1},
        "c.jsonl": {},
    }
    drawn = read(tmp_path, documents=1).summary.files
    assert sum(file.documents for file in drawn) == 1
