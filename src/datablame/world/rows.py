"""A row as a document: a preference pair, a chat, a prompt with its completion, Alpaca style or plain text.

Its columns say which. A row that cannot be used is `Broken`; text of it that is in no document is named.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, get_args

from datablame.config.schema import Column, Data
from datablame.tables import Document, Message
from datablame.world.conversations import (
    ROLE_OF,
    Broken,
    Turns,
    are_messages,
    holds_turns,
    is_null,
    leaves,
    scalar,
    transcript,
    turns,
    with_system,
)
from datablame.world.refusals import refused

_FORMATS: dict[str, tuple[Column, ...]] = {
    "pair": ("chosen", "rejected"),
    "messages": ("messages",),
    "completion": ("completion", "prompt"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
"""The columns that each format cannot do without; a row is read by the first format whose columns it has."""
_BESIDE: dict[str, tuple[Column, ...]] = {"pair": ("prompt",), "alpaca": ("input",)}
"""What else a format reads; all but plain text have a system turn and tools too."""
_ROLES: tuple[Column, ...] = get_args(Column)
_ALSO: Mapping[str, tuple[str, ...]] = {
    "messages": ("conversations", "conversation", "transcript"),
    "prompt": ("question", "inputs"),
    "completion": ("response", "targets"),
    "chosen": ("chosen_response", "preferred_output"),
    "rejected": ("rejected_response", "non_preferred_output"),
    "input": ("context",),
    "output": ("response",),
    "system": ("system_prompt",),
    "tools": ("functions", "tool_defs"),
}
"""Names of columns in common sets, read where the column of that name is not there."""
LABELS = ("label", "kto_tag")
"""Columns that are false for an answer that training pushes away."""
_TWIN = re.compile(r"((?:response|answer|completion|output|summary|conversation|human_ref)_?)([01a])", re.IGNORECASE)
_SECOND = {"0": "1", "1": "2", "a": "b", "A": "B"}
_PREFERENCE = re.compile(
    r"(?:\w+_)?(?:better|preferred|preference|winner)(?:_\w+)?|choice|labels?|rank|score_?[01ab]", re.IGNORECASE
)
_ECHO_WORDS = 4
"""A prompt of so many words, with which its answers begin, stands in them once more."""


def columns_of(names: Collection[str], data: Data) -> dict[str, str]:
    """Which of the columns there are hold what: those that the study names, else those named so or as is common."""
    found = dict[str, str]()
    for role in _ROLES:
        name = data.columns.get(role, role)
        if name not in names and role in _ALSO and role not in data.columns:
            name = next((name for name in _ALSO[role] if name in names), name)
        if name in names:
            found[role] = name
    return found


def check_columns(names: Collection[str], data: Data, where: str) -> None:
    """Raises RequestError where a column that the study names, or some column of every format, is not there."""
    for role, name in data.columns.items():
        if name not in names:
            raise refused("absent column", role=role, name=name, where=where, names=", ".join(names) or "none")
    check_answers(names, data, where)
    found = columns_of(names, data)
    if not any(set(_FORMATS[form]) <= set(found) for form in _allowed(data)):
        formats = [[data.columns.get(role, role) for role in _FORMATS[form]] for form in _allowed(data)]
        known = ", ".join(dict.fromkeys(" with ".join(columns) for columns in reversed(formats)))
        twins = f"; it has {pair}" if (pair := _twins(names)) else ""
        raise refused("no format", where=where, names=", ".join(names), known=known, twins=twins)


def check_answers(names: Collection[str], data: Data, where: str) -> None:
    """Raises RequestError where the study names two answers as chosen and rejected, and a column tells which is."""
    named = {data.columns.get("chosen"), data.columns.get("rejected")}
    preference = next((name for name in names if _PREFERENCE.fullmatch(name)), None)
    if preference and any(named == set(pair) for pair in _pairs(names)):
        raise refused(
            "labelled answers", where=where, names=" and ".join(sorted(map(str, named))), preference=preference
        )


def _pairs(names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Columns of two answers that a number or a letter tells apart."""
    for name in names:
        if (twin := _TWIN.fullmatch(name)) and (second := twin[1] + _SECOND[twin[2]]) in names:
            yield name, second


def _twins(names: Collection[str]) -> str:
    """What to do about two answers of which none is the chosen one; nothing where there are none."""
    if (pair := next(_pairs(names), None)) is None:
        return ""
    return f"two answers, {' and '.join(pair)}; write the better one as chosen, the other as rejected"


class Row(NamedTuple):
    """A row as a document, and which columns, or keys of messages, have text that is not in it."""

    document: Document
    unread: list[str]


def document(row: Any, data: Data) -> Row:
    """The document that a row holds, without an id where the row has none; `Broken` where it cannot be used.

    A multi-turn chat is one document: what precedes its last assistant turn, and that turn. A null column is none.
    """
    if isinstance(row, Broken):
        raise row
    if are_messages(row):
        row = {data.columns.get("messages", "messages"): row}
    if not isinstance(row, dict):
        raise Broken("not an object with fields")
    row = {name: value for name, value in row.items() if not is_null(value)}
    columns = columns_of(row, data)
    fields = {role: row[name] for role, name in columns.items()}
    form = _form(fields, _allowed(data), row)
    prompt, response, rejected = _content(form, fields, row, data.roles)
    if prompt:
        history = () if form == "messages" else _history(fields, data.roles)
        prompt = prompt if _begins_with(prompt, history) else (*history, *prompt)
        prompt = with_system(prompt, fields.get("system"), fields.get("tools"))
    texts = [*(turn.content for turn in prompt), response, rejected]
    if sum(map(len, texts)) > data.max_document_characters:
        raise Broken(f"longer than {data.max_document_characters} characters")
    if not response.strip():
        raise Broken("empty response")
    doc_id, source = (_name(fields.get(field)) for field in ("id", "source"))
    try:
        "".join([*texts, doc_id, source]).encode()
    except UnicodeEncodeError:
        raise Broken("invalid UTF-8") from None
    read = {columns[role] for role in (*_FORMATS[form], *_BESIDE.get(form, ()), "id", "source") if role in columns}
    return Row(Document(doc_id, source or "unknown", prompt, response, rejected), _unread(row, read, texts))


def _unread(row: Mapping[str, Any], read: Collection[str], texts: Iterable[str]) -> list[str]:
    """The columns, and keys inside those that are read, with text that no text of the document holds."""
    parts, whole, found = set(texts), "\n".join(texts), dict[str, None]()
    for name, value in row.items():
        if name in read and isinstance(value, str):
            continue
        for key, leaf in leaves(value):
            if leaf not in parts and leaf not in whole and json.dumps(leaf, ensure_ascii=False)[1:-1] not in whole:
                found[f"{name}.{key}" if name in read and key else name] = None
    return list(found)


def _allowed(data: Data) -> list[str]:
    """The formats that the study's own column names point to; all, where they point to none."""
    named = data.columns.keys() - {"prompt"}
    return [form for form, columns in _FORMATS.items() if not named.isdisjoint(columns)] or list(_FORMATS)


def _form(fields: Mapping[str, Any], allowed: Collection[str], names: Collection[str]) -> str:
    """The first format whose columns are there and hold something, else the first whose columns are there."""
    there = [form for form in allowed if set(fields).issuperset(_FORMATS[form])]
    filled = (form for form in there if any(_says(role, fields[role]) for role in _FORMATS[form]))
    if form := next(filled, next(iter(there), None)):
        return form
    if "pair" in allowed and ("chosen" in fields) != ("rejected" in fields):
        raise Broken(f"no {'rejected' if 'chosen' in fields else 'chosen'} answer")
    if twins := _twins(names):
        raise Broken(twins)
    raise Broken("no messages")


def _says(role: str, value: Any) -> bool:
    """Whether a field holds something; a text that is no conversation is nothing of `messages`."""
    if role == "messages" and isinstance(value, str):
        return holds_turns(value) or transcript(value) is not None
    return value not in ("", [])


def _content(
    form: str, fields: Mapping[str, Any], row: Mapping[str, Any], roles: Mapping[str, str]
) -> tuple[Turns, str, str]:
    """Prompt, response and rejected answer."""
    if form not in ("pair", "text"):
        for name in LABELS:
            # Beside a chat a text may be the label of a claim; beside a completion it went through CSV.
            if row.get(name) is False or (form == "completion" and str(row.get(name)).lower() == "false"):
                raise Broken(f"{name} is false: an answer that training pushes away")
    match form:
        case "pair":
            return _pair(fields, roles)
        case "messages":
            return *_cut(turns(fields["messages"], roles)), ""
        case "completion":
            return *_answered(fields["prompt"], fields["completion"], roles), ""
        case "alpaca":
            return (Message("user", _request(fields)),), _text(fields["output"], "output"), ""
    if isinstance(role := row.get("role"), str) and role in ROLE_OF:
        raise Broken("one message of a conversation; write all messages of one into one row")
    return (), _text(fields["text"], "text"), ""


def _request(fields: Mapping[str, Any]) -> str:
    extra, request = scalar(fields.get("input")), _text(fields["instruction"], "instruction")
    return f"{request}\n\n{extra}" if extra else request


def _history(fields: Mapping[str, Any], roles: Mapping[str, str]) -> Turns:
    """The turns before the request, `[[question, answer], ...]` or messages; nothing else of that name is read."""
    history = fields.get("history")
    exchanges = isinstance(history, list) and all(
        each.keys() >= {"input", "output"} if isinstance(each, dict) else isinstance(each, list) and len(each) == 2
        for each in history
    )
    return turns(history, roles) if history and (exchanges or are_messages(history)) else ()


def _text(value: Any, role: str) -> str:
    text = scalar(value)
    if text is None:
        raise Broken(f"the {role} is no text", value)
    return text


def _pair(fields: Mapping[str, Any], roles: Mapping[str, str]) -> tuple[Turns, str, str]:
    """The prompt that both answers share and the answers, which are texts or lists of messages, as the prompt is."""
    for name in ("chosen", "rejected"):
        if fields[name] == []:
            raise Broken(f"no {name} answer")
    prompt = fields.get("prompt")
    if prompt is None and not _has_user_turn(_spoken("assistant", fields["chosen"], roles)):
        # It may be Alpaca's, or the conversation before the answers.
        prompt = _request(fields) if "instruction" in fields else fields.get("input", fields.get("messages"))
    answers = [_answered(prompt, fields[name], roles) for name in ("chosen", "rejected")]
    (chosen_prompt, good), (rejected_prompt, bad) = answers
    if chosen_prompt != rejected_prompt:
        raise Broken("chosen and rejected answer different prompts")
    if not bad.strip():
        raise Broken("empty rejected answer")
    if good.strip() == bad.strip():
        raise Broken("chosen and rejected are the same")
    return chosen_prompt, good, bad


def _answered(prompt: Any, answer: Any, roles: Mapping[str, str]) -> tuple[Turns, str]:
    """A conversation and its last answer, where prompt and answer are texts, messages or transcripts.

    An answer may begin with the turns of the prompt, or with the last of them; they are taken once.
    """
    request = () if prompt is None else _spoken("user", prompt, roles)
    spoken = _spoken("assistant", answer, roles)
    if isinstance(prompt, str) and isinstance(answer, str) and transcript(prompt):
        spoken = tuple(Message(turn.role, turn.content.strip()) for turn in spoken)
    start = next(start for start in range(len(request) + 1) if _begins_with(spoken, request[start:]))
    whole = (*request[:start], *spoken)
    if not _has_user_turn(whole):
        raise Broken("no prompt beside the answers")
    if isinstance(prompt, str) and len(prompt.split()) >= _ECHO_WORDS and spoken[-1].content.startswith(prompt.strip()):
        raise Broken("the answer begins with the whole prompt; cut it there", spoken[-1].content)
    return _cut(whole)


def _spoken(role: str, value: Any, roles: Mapping[str, str]) -> Turns:
    """The turns of messages or of a transcript; of any other text, one of that role."""
    if holds_turns(value):
        return turns(value, roles)
    text = _text(value, "prompt" if role == "user" else "answer")
    if not text.strip() and role == "user":
        return ()
    return transcript(text) or (Message(role, text),)


def _begins_with(spoken: Turns, request: Turns) -> bool:
    """Whether the turns begin with those of the request, and perhaps say more in them."""
    pairs = zip(request, spoken, strict=False)
    return len(request) <= len(spoken) and all(a.role == b.role and a.content.strip() in b.content for a, b in pairs)


def _cut(turns: Turns) -> tuple[Turns, str]:
    """What precedes the last assistant turn, and that turn's text."""
    last = max((row for row, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    if last is None:
        raise Broken("no assistant message")
    if not _has_user_turn(turns[:last]):
        raise Broken("no user message before the answer")
    return turns[:last], turns[last].content


def _has_user_turn(turns: Turns) -> bool:
    return any(turn.role == "user" for turn in turns)


def _name(value: Any) -> str:
    """A text or a whole number as text, as a float too, which joined tables make of it; nothing for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
