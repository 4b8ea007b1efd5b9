"""Which columns hold what, and a row as a document: a chat, Alpaca style, plain text or a preference pair."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

from datablame.config.schema import Column, Data
from datablame.tables import Document, Message
from datablame.world.refusals import refused

_ROLES = ("system", "user", "assistant", "tool")
_FORMATS: dict[str, tuple[Column, ...]] = {
    "pair": ("chosen", "rejected"),
    "messages": ("messages",),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
"""The columns that each format cannot do without; a row is read by the first format whose columns it has."""

Turns = tuple[Message, ...]


class Broken(Exception):
    """Why a row cannot be used, and what stands in it where it could not even be parsed."""

    def __init__(self, reason: str, raw: object = None) -> None:
        super().__init__(reason)
        self.reason, self.raw = reason, raw


def read_columns(names: Sequence[str], data: Data, where: str) -> list[str]:
    """Which of a table's columns are read; RequestError where one that is named, or every format's, is absent."""
    for role, name in data.columns.items():
        if name not in names:
            raise refused("absent column", role=role, name=name, where=where, names=", ".join(names) or "none")
    formats = [[data.columns.get(role, role) for role in _FORMATS[form]] for form in _allowed(data)]
    if not any(set(columns) <= set(names) for columns in formats):
        known = ", ".join(dict.fromkeys(" with ".join(columns) for columns in reversed(formats)))
        raise refused("no format", where=where, names=", ".join(names), known=known)
    read = {data.columns.get(role, role) for role in get_args(Column)}
    return [name for name in names if name in read]


def document(row: Any, data: Data) -> Document:
    """The document that a row holds, without an id where the row has none; `Broken` where it cannot be used.

    A multi-turn chat is one document: what precedes its last assistant turn, and that turn.
    """
    if isinstance(row, Broken):
        raise row
    if not isinstance(row, dict):
        raise Broken("not an object with fields")
    fields = {role: row[name] for role in get_args(Column) if (name := data.columns.get(role, role)) in row}
    prompt, response, rejected = _content(fields, _allowed(data))
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
    return Document(doc_id, source or "unknown", prompt, response, rejected)


def _allowed(data: Data) -> list[str]:
    """The formats that the study's own column names point to; all, where they point to none."""
    pointed = [form for form, columns in _FORMATS.items() if any(column in data.columns for column in columns)]
    return pointed or list(_FORMATS)


def _content(fields: Mapping[str, Any], allowed: Collection[str]) -> tuple[Turns, str, str]:
    """Prompt, response and rejected answer."""
    if "pair" in allowed and "chosen" in fields and "rejected" in fields:
        return _pair(fields["chosen"], fields["rejected"], fields.get("prompt"))
    if "messages" in allowed and "messages" in fields:
        return *_cut(_turns(fields["messages"])), ""
    if "alpaca" in allowed and isinstance(fields.get("output"), str) and isinstance(fields.get("instruction"), str):
        extra, request = fields.get("input"), fields["instruction"]
        request = f"{request}\n\n{extra}" if isinstance(extra, str) and extra else request
        return (Message("user", request),), fields["output"], ""
    if "text" in allowed and isinstance(fields.get("text"), str):
        return (), fields["text"], ""
    raise Broken("no messages")


def _pair(chosen: Any, rejected: Any, prompt: Any) -> tuple[Turns, str, str]:
    """The prompt that both answers share and the answers, which are texts or lists of messages, as the prompt is."""
    request: Turns = ()
    if isinstance(prompt, str) and prompt.strip():
        request = (Message("user", prompt),)
    elif isinstance(prompt, list) and prompt:
        request = _turns(prompt)
    answers = []
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(answer, str | list) or answer == []:
            raise Broken(f"no {name} answer")
        turns = (Message("assistant", answer),) if isinstance(answer, str) else _turns(answer)
        if not _is_asked(turns):
            if not _is_asked(request):
                raise Broken("no prompt beside the answers")
            turns = (*request, *turns)
        answers.append(_cut(turns))
    (asked, good), (also_asked, bad) = answers
    if asked != also_asked:
        raise Broken("chosen and rejected answer different prompts")
    if not bad.strip():
        raise Broken("empty rejected answer")
    if good.strip() == bad.strip():
        raise Broken("chosen and rejected are the same")
    return asked, good, bad


def _turns(messages: Any) -> Turns:
    """A list of {role, content}, every message checked."""
    if not isinstance(messages, list):
        raise Broken("no messages")
    if not messages:
        raise Broken("empty messages")
    turns = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            raise Broken("a message without a known role")
        if not isinstance(message.get("content"), str):
            raise Broken("a message without text")
        turns.append(Message(role, message["content"]))
    return tuple(turns)


def _cut(turns: Turns) -> tuple[Turns, str]:
    """What precedes the last assistant turn, and that turn's text."""
    last = max((row for row, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    if last is None:
        raise Broken("no assistant message")
    if not _is_asked(turns[:last]):
        raise Broken("no user message before the answer")
    return turns[:last], turns[last].content


def _is_asked(turns: Turns) -> bool:
    return any(turn.role == "user" for turn in turns)


def _name(value: Any) -> str:
    """A text or a whole number as text; nothing for anything else."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
