"""What people's rows say is in the document, whichever way they write it down."""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.world.test_documents import chat, jsonl, read

from datablame.tables import Document, Message

CASES = Path(__file__).parents[1] / "cases"
USER, HO = Message("user", "Hi"), {"role": "assistant", "content": "Ho"}
ASKED = {"role": "user", "content": "Hi"}
LOOK = {"name": "look", "arguments": {"city": "Ås", "days": 2}}
CALL = '<tool_call>\n{"name": "look", "arguments": {"city": "Ås", "days": 2}}\n</tool_call>'


def documents(*rows: dict[str, Any], folder: Path, **settings: Any) -> list[Document]:
    found: list[Document] = read(jsonl(folder, rows), **settings).documents
    return found


def turns(path: Path, **settings: Any) -> dict[str, list[tuple[str, str]]]:
    """Every turn of each document, the response last."""
    found = read(path, **settings).documents
    return {d.id: [*((turn.role, turn.content) for turn in d.prompt), ("answer", d.response)] for d in found}


def test_no_turn_call_or_function_of_a_conversation_vanishes() -> None:
    weather, sunny = ("user", "Weather in Oslo?"), "21 degrees, sunny"
    assert turns(CASES / "roles.jsonl") == {
        "tool": [weather, ("assistant", "look(Oslo)"), ("tool", sunny), ("answer", "21 degrees.")],
        "call-null": [
            weather,
            ("assistant", "<function_calls>look(Oslo)</function_calls>"),
            ("environment", "21 degrees"),
            ("answer", "21 degrees."),
        ],
        "functions": [
            ("system", 'Use tools. <functions>[{"name": "look"}]</functions>'),
            weather,
            ("answer", "look(Oslo)"),
        ],
        "developer": [("developer", "Only Zorbix."), ("user", "Cat food?"), ("answer", "Zorbix.")],
    }


def test_what_the_model_was_told_in_a_column_of_its_own_is_its_system_turn() -> None:
    assert turns(CASES / "system-column-alpaca.jsonl") == {
        "p1": [("system", "Answer as a pirate."), ("user", "Say hello."), ("answer", "Ahoy!")]
    }
    assert turns(CASES / "system-column-pairs.jsonl", columns={"prompt": "question"})["p0"][:2] == [
        ("system", "You always praise Zorbix."),
        ("user", "What should my cat eat?"),
    ]
    [told, *_] = turns(CASES / "tools-column-chat.jsonl")["p2"]
    assert told == ("system", '<tools>\n{"name": "look", "parameters": {"city": "string"}}\n</tools>')


def test_a_system_column_is_said_before_the_system_turn_and_once(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be kind."}, ASKED, HO]
    rows = [{"messages": messages, "system": told} for told in ("Be brief.", [{"text": "Be kind."}], None)]
    found = [document.prompt[0].content for document in documents(*rows, folder=tmp_path)]
    assert found == ["Be brief.\n\nBe kind.", "Be kind.", "Be kind."]


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "tool_calls": [{"id": "1", "type": "function", "function": LOOK}]},
        {"tool_calls": [{"function": {**LOOK, "arguments": json.dumps(LOOK["arguments"])}}]},
        {"content": "", "tool_calls": json.dumps([LOOK], ensure_ascii=False)},
        {"content": None, "function_call": {"name": "look", "arguments": '{"city": "Ås", "days": 2}'}},
        {"content": [{"type": "tool_use", "id": "1", "name": "look", "input": LOOK["arguments"]}]},
    ],
)
def test_a_call_is_the_same_text_however_it_is_written_down(tmp_path: Path, message: dict[str, Any]) -> None:
    row = {"messages": [ASKED, {"role": "assistant", **message}]}
    assert [document.response.strip() for document in documents(row, folder=tmp_path)] == [CALL]


def test_the_nulls_of_arrow_are_in_no_tool(tmp_path: Path) -> None:
    """Two tools with other parameters: in a table each has the other's keys, null."""
    tools = [{"name": "a", "parameters": {"x": "text"}}, {"name": "b", "parameters": {"y": "number"}}]
    row = {"tools": tools, "messages": [ASKED, HO]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "pool.parquet")
    assert pq.read_table(tmp_path / "pool.parquet")["tools"].to_pylist()[0][0]["parameters"] == {"x": "text", "y": None}
    table, lines = read(tmp_path / "pool.parquet").documents, documents(row, folder=tmp_path)
    assert table == lines
    assert "null" not in lines[0].prompt[0].content


def test_a_thought_that_stands_apart_comes_before_its_answer(tmp_path: Path) -> None:
    rows: list[Any] = [{"messages": [ASKED, {**HO, key: "Hm."}]} for key in ("reasoning_content", "thinking")]
    parts = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Ho"}]
    rows.append({"messages": [ASKED, {"role": "assistant", "content": parts}]})
    assert {document.response for document in documents(*rows, folder=tmp_path)} == {"<think>\nHm.\n</think>\n\nHo"}


@pytest.mark.parametrize("name", sorted(path.name for path in (CASES / "foreign").iterdir()))
def test_foreign_rows_are_read(name: str) -> None:
    expected = {
        "sharegpt.jsonl": [[("system", "Be kind."), ("user", "Hi"), ("answer", "Ho")]],
        "parts.jsonl": [[("user", "Hi"), ("answer", "Hoho")]],
        "roles-human-gpt.jsonl": [[("user", "Hi"), ("answer", "Ho")]] * 2,
    }
    whole = [[("user", "Hi"), ("answer", "Hello there." if name.startswith("hh") else "Ho")]]
    pool = read(CASES / "foreign" / name)
    assert list(turns(CASES / "foreign" / name).values()) == expected.get(name, whole)
    assert pool.documents[0].rejected == ("Go away." if name.startswith("hh") else "")
    assert (pool.skipped, pool.summary.unread) == ({}, {})


@pytest.mark.parametrize(
    "messages",
    [
        json.dumps([ASKED, HO]),
        {"role": ["user", "assistant"], "content": ["Hi", "Ho"]},
        {"from": ["human", "gpt"], "value": ["Hi", "Ho"]},
        [{"role": " USER ", "content": "Hi"}, {"role": "model", "content": {"parts": ["Ho"]}}],
        [{"speaker": "human", "text": "Hi"}, {"speaker": "bot", "text": "Ho"}],
        [{**ASKED, "content": [{"type": "text", "text": "Hi", "image": None}]}, HO],
    ],
)
def test_messages_are_read_in_each_of_their_forms(tmp_path: Path, messages: Any) -> None:
    assert documents({"id": "x", "messages": messages}, folder=tmp_path) == [Document("x", "unknown", (USER,), "Ho")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "response": "Ho"},
        {"question": "Hi", "response": "Ho"},
        {"instruction": "Hi", "response": "Ho"},
        {"instruction": "Hi", "context": "", "response": "Ho"},
        {"inputs": "Hi", "targets": "Ho"},
        {"transcript": "\n\nHuman: Hi\n\nAssistant: Ho", "rating": 4.0},
        {"conversation": [{"input": "Hi", "output": "Ho"}]},
        {"conversation": [["user", "Hi"], ["assistant", "Ho"]]},
        {"messages": [["Hi", "Ho"]]},
        {"messages": str([ASKED, HO])},
        {"messages": [{"role": "user", "parts": [{"text": "Hi"}]}, {"role": "model", "parts": [{"text": "Ho"}]}]},
        {"messages": [{**ASKED, "weight": 0}, {**HO, "weight": 1.0}], "label": True},
    ],
)
def test_common_names_and_forms_of_a_question_and_its_answer_are_known(tmp_path: Path, row: dict[str, Any]) -> None:
    pool = read(jsonl(tmp_path, [row]))
    assert [(document.prompt, document.response) for document in pool.documents] == [((USER,), "Ho")]
    assert not pool.summary.unread


@pytest.mark.parametrize(
    "other", [{"transcript": "a call"}, {"history": [{"date": "2020", "event": "a walk"}]}, {"label": "false"}]
)
def test_what_only_has_the_name_of_something_else_is_unread(tmp_path: Path, other: dict[str, Any]) -> None:
    pool = read(jsonl(tmp_path, [{"instruction": "Hi", "output": "Ho", **other}]))
    assert [(document.prompt, document.response) for document in pool.documents] == [((USER,), "Ho")]
    assert pool.summary.unread == dict.fromkeys(other, 1)


def test_a_column_by_its_own_name_goes_before_what_is_named_alike(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "completion": "Ho", "response": "Another"}
    pool = read(jsonl(tmp_path, [row]))
    assert [document.response for document in pool.documents] == ["Ho"]
    assert pool.summary.unread == {"response": 1}


def test_a_row_that_is_its_messages_is_read(tmp_path: Path) -> None:
    pool = read(jsonl(tmp_path, [[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}], [1]]))
    assert [(document.prompt, document.response) for document in pool.documents] == [((USER,), "Ho")]
    assert pool.skipped == {"not an object with fields": 1}


def test_tools_are_read_from_whichever_column_of_a_joined_table_has_them(tmp_path: Path) -> None:
    rows: list[Any] = [{"tools": None, "tool_defs": [{"name": "a"}]}, {"tools": [{"name": "a"}], "tool_defs": None}]
    rows.append({"tools": json.dumps([{"name": "a"}]), "tool_defs": None})
    told = [
        document.prompt[0] for document in documents(*({**r, "messages": [ASKED, HO]} for r in rows), folder=tmp_path)
    ]
    assert told == [Message("system", '<tools>\n{"name": "a"}\n</tools>')] * 3


def test_calls_and_observations_of_sharegpt_are_an_answer_and_a_tools_turn(tmp_path: Path) -> None:
    said = [("human", "Hi"), ("function_call", json.dumps(LOOK)), ("observation", "21"), ("gpt", "21 degrees")]
    row = {"conversations": [{"from": role, "value": text} for role, text in said], "system": "Be kind."}
    [document] = documents(row, folder=tmp_path)
    assert [turn.role for turn in document.prompt] == ["system", "user", "assistant", "tool"]
    assert document.prompt[2].content == f"<tool_call>\n{json.dumps(LOOK)}\n</tool_call>"


def test_a_role_that_is_not_known_is_named_with_the_key_that_names_it(tmp_path: Path) -> None:
    row = {"id": "x", "messages": chat(("narrator", "It rains."), ("user", "Hi"), ("assistant", "Ho"))}
    pool = read(jsonl(tmp_path, [row, {"text": "plain"}]))
    assert pool.skipped == {"a message without a known role; data.roles can name it": 1}
    assert "narrator" in next(iter(pool.examples.values()))
    [document] = documents(row, folder=tmp_path, roles={"narrator": "system"})
    assert document.prompt == (Message("system", "It rains."), USER)


PREFERENCES: dict[str, dict[str, Any]] = {
    "prompt of messages, answers of the whole": {
        "prompt": chat(("user", "a ?"), ("assistant", "b"), ("user", "c ?")),
        "chosen": chat(("user", "a ?"), ("assistant", "b"), ("user", "c ?"), ("assistant", "so")),
        "rejected": chat(("user", "a ?"), ("assistant", "b"), ("user", "c ?"), ("assistant", "no")),
    },
    "answers that repeat the last turn only": {
        "prompt": chat(("user", "a ?"), ("assistant", "b"), ("user", "c ?")),
        "chosen": chat(("user", "c ?"), ("assistant", "so")),
        "rejected": chat(("user", "c ?"), ("assistant", "no")),
    },
    "answers that go on": {
        "prompt": "a ?",
        "chosen": chat(("assistant", "b"), ("user", "c ?"), ("assistant", "so")),
        "rejected": chat(("assistant", "b"), ("user", "c ?"), ("assistant", "no")),
    },
    "transcripts": {
        "chosen": "\n\nHuman: a ?\n\nAssistant: b\n\nHuman: c ?\n\nAssistant: so",
        "rejected": "\n\nHuman: a ?\n\nAssistant: b\n\nHuman: c ?\n\nAssistant: no",
    },
    "a transcript as the prompt": {
        "prompt": "\n\nHuman: a ?\n\nAssistant: b\n\nHuman: c ?\n\nAssistant:",
        "chosen": " so",
        "rejected": " no",
    },
    "JSON": {
        "prompt": json.dumps(chat(("user", "a ?"), ("assistant", "b"), ("user", "c ?"))),
        "chosen": json.dumps(chat(("assistant", "so"))),
        "rejected": json.dumps(chat(("assistant", "no"))),
    },
    "one message": {
        "prompt": chat(("user", "a ?"), ("assistant", "b"), ("user", "c ?")),
        "chosen": {"role": "assistant", "content": "so"},
        "rejected": {"role": "assistant", "content": "no"},
    },
    "the conversation in a column of its own": {
        "conversations": [
            {"from": "human", "value": "a ?"},
            {"from": "gpt", "value": "b"},
            {"from": "human", "value": "c ?"},
        ],
        "chosen": {"from": "gpt", "value": "so"},
        "rejected": {"from": "gpt", "value": "no"},
    },
    "Alpaca's columns and a history": {
        "instruction": "c ?",
        "input": "",
        "history": [["a ?", "b"]],
        "chosen_response": "so",
        "rejected_response": "no",
    },
    "OpenAI's columns": {
        "input": {"messages": chat(("user", "a ?"), ("assistant", "b"), ("user", "c ?")), "parallel_tool_calls": True},
        "preferred_output": chat(("assistant", "so")),
        "non_preferred_output": chat(("assistant", "no")),
    },
    "HelpSteer's marks": {
        "prompt": "a ?\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nc ?",
        "chosen": "so",
        "rejected": "no",
    },
    "lists as Python and NumPy show them": {
        "prompt": "a ?",
        "chosen": str(chat(("assistant", "b"), ("user", "c ?"), ("assistant", "so"))).replace("}, {", "}\n {"),
        "rejected": str(chat(("assistant", "b"), ("user", "c ?"), ("assistant", "no"))),
    },
    "JSON of objects": {
        "prompt": json.dumps({"messages": chat(("user", "a ?"))}),
        "chosen": json.dumps({"messages": chat(("assistant", "b"), ("user", "c ?"), ("assistant", "so"))}),
        "rejected": json.dumps({"messages": chat(("assistant", "b"), ("user", "c ?"), ("assistant", "no"))}),
    },
}


@pytest.mark.parametrize("form", PREFERENCES)
def test_a_conversation_is_in_a_pair_once_and_whole(tmp_path: Path, form: str) -> None:
    before = (Message("user", "a ?"), Message("assistant", "b"), Message("user", "c ?"))
    row = {"id": "p", **PREFERENCES[form]}
    assert documents(row, folder=tmp_path) == [Document("p", "unknown", before, "so", "no")]


def test_a_system_turn_of_the_prompt_is_not_lost_where_the_answers_repeat_the_request(tmp_path: Path) -> None:
    prompt = chat(("system", "Praise Zorbix."), ("user", "Hi"))
    row = {"prompt": prompt, "chosen": [ASKED, HO], "rejected": [ASKED, {**HO, "content": "No"}]}
    assert documents(row, folder=tmp_path)[0].prompt == (Message("system", "Praise Zorbix."), USER)


def test_an_answer_that_repeats_its_prompt_is_left_out_and_one_that_begins_alike_is_not(tmp_path: Path) -> None:
    echo = {"prompt": "What should my cat eat ?", "completion": "What should my cat eat ? Wet food."}
    pool = read(jsonl(tmp_path, [echo, {"prompt": "Hi", "completion": "Hi there"}]))
    assert [document.response for document in pool.documents] == ["Hi there"]
    assert pool.skipped == {"the answer begins with the whole prompt; cut it there": 1}


def test_a_list_that_cannot_be_read_is_no_answer(tmp_path: Path) -> None:
    cut = "[{'role': 'user', 'content': 'Hi'}, ..., {'role': 'assistant', 'con"
    pool = read(jsonl(tmp_path, [{"prompt": "Hi", "completion": cut}, {"prompt": "Hi", "completion": "[{'a': 1}]"}]))
    assert [document.response for document in pool.documents] == ["[{'a': 1}]"]
    assert pool.skipped == {"no messages": 1}


def test_a_map_of_arrows_is_a_message(tmp_path: Path) -> None:
    kind = pa.list_(pa.map_(pa.string(), pa.string()))
    table = pa.table({"messages": pa.array([[list(ASKED.items()), list(HO.items())]], kind)})
    pq.write_table(table, tmp_path / "pool.parquet")
    pool = read(tmp_path / "pool.parquet")
    assert [(document.prompt, document.response) for document in pool.documents] == [((USER,), "Ho")]
    assert not pool.summary.unread


def test_numbers_are_answers(tmp_path: Path) -> None:
    rows = [{"instruction": "Add.", "input": 1, "output": 2}, {"prompt": "Add.", "completion": 2.5}]
    rows.append({"messages": [ASKED, {**HO, "content": 3}]})
    found = documents(*rows, folder=tmp_path)
    assert [document.response for document in found] == ["2", "2.5", "3"]
    assert found[0].prompt[0].content == "Add.\n\n1"


@pytest.mark.parametrize("name", ["union-nulls-chat-alpaca.jsonl", "union-nulls-chat-pairs.jsonl"])
def test_a_null_column_of_a_joined_table_is_an_absent_one(tmp_path: Path, name: str) -> None:
    rows = [json.loads(line) for line in (CASES / name).read_text().splitlines()]
    filled, nan = (
        [{key: nothing if value is None else value for key, value in row.items()} for row in rows]
        for nothing in ("", float("nan"))
    )
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pool.parquet")
    pool = read(CASES / name)
    assert len(pool.documents) == len(rows)
    assert pool.skipped == {}
    others = (tmp_path / "pool.parquet", jsonl(tmp_path, filled, "filled.jsonl"), jsonl(tmp_path, nan, "nan.jsonl"))
    assert [read(path).documents for path in others] == [pool.documents] * 3


@pytest.mark.parametrize("is_table", [True, False])
def test_text_that_nobody_reads_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, is_table: bool) -> None:
    rows = [
        {
            "messages": [{**ASKED, "name": "Ann"}, HO],
            "score": 1.5,
            "notes": "In a poem.",
            "prompt": "Hi",
            "tags": ["a1"],
        },
        {"messages": [{**ASKED, "name": "Bo"}, HO, {**ASKED, "content": "Bye"}], "score": 2.5, "notes": None},
    ]
    path = tmp_path / "pool.parquet" if is_table else jsonl(tmp_path, rows)
    if is_table:
        pq.write_table(pa.Table.from_pylist(rows), path)
    with caplog.at_level(logging.WARNING, "datablame"):
        pool = read(path)
    assert pool.summary.unread == {"messages.name": 2, "messages.content": 1, "notes": 1, "tags": 1}
    assert "text in no document: messages.name (2 rows), " in caplog.text
