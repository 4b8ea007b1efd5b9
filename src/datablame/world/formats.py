"""Which columns hold what, and a row as a document: a chat, Alpaca style, plain text or a preference pair."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from datablame.config.schema import Column, Data
from datablame.engine.files import digest
from datablame.errors import RequestError
from datablame.tables import Document, Message

_ROLES = ("system", "user", "assistant", "tool")
_FORMATS: dict[str, tuple[Column, ...]] = {
    "pair": ("chosen", "rejected"),
    "messages": ("messages",),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
"""The columns that each format cannot do without; a row is read by the first format whose columns it has."""

Turns = tuple[Message, ...]


class Broken(NamedTuple):
    """Why a row cannot be used, and what stands in it where it could not even be parsed."""

    reason: str
    raw: object = None


class _Content(NamedTuple):
    prompt: Turns
    response: str
    rejected: str = ""


def read_columns(names: Iterable[str], data: Data) -> list[str]:
    """The columns among `names` that are read."""
    read = {data.columns.get(role, role) for role in get_args(Column)}
    return [name for name in names if name in read]


def check_columns(names: Sequence[str], data: Data, where: str) -> None:
    """Refuse a table that lacks a column named in the study, or whose columns no format can use."""
    for role, name in data.columns.items():
        if name not in names:
            raise RequestError(
                f"data.columns.{role} = {name} is no column of {where}; there are {', '.join(names) or 'none'}"
            )
    formats = [[data.columns.get(role, role) for role in _FORMATS[form]] for form in _allowed(data)]
    if not any(set(columns) <= set(names) for columns in formats):
        known = ", ".join(dict.fromkeys(" with ".join(columns) for columns in reversed(formats)))
        raise RequestError(
            f"data.path = {where} has the columns {', '.join(names)}, but none of {known}; "
            "rename one, or say in data.columns what they hold"
        )


def is_named(row: Mapping[str, Any], data: Data) -> bool:
    """Whether the row brings an id of its own."""
    return bool(_name(row.get(data.columns.get("id", "id"))))


def document(row: Any, data: Data) -> Document | Broken:
    """The document that a row holds, or why it cannot be used.

    A multi-turn chat is one document: what precedes its last assistant turn, and that turn.
    """
    if isinstance(row, Broken):
        return row
    if not isinstance(row, dict):
        return Broken("not an object with fields")
    fields = {role: row[name] for role in get_args(Column) if (name := data.columns.get(role, role)) in row}
    content = _content(fields, _allowed(data))
    if isinstance(content, Broken):
        return content
    prompt, response, rejected = content
    texts = [*(turn.content for turn in prompt), response, rejected]
    if sum(map(len, texts)) > data.max_document_characters:
        return Broken(f"longer than {data.max_document_characters} characters")
    if not response.strip():
        return Broken("empty response")
    doc_id, source = (_name(fields.get(field)) for field in ("id", "source"))
    if not _encodable([*texts, doc_id, source]):
        return Broken("invalid UTF-8")
    hashed: list[Any] = [*([turn.role, turn.content] for turn in prompt), response]
    if rejected:
        hashed.append({"rejected": rejected})
    return Document(doc_id or f"sha-{digest(hashed)[:16]}", source or "unknown", prompt, response, rejected)


def _allowed(data: Data) -> list[str]:
    """The formats that the study's own column names point to; all, where they point to none."""
    pointed = [form for form, columns in _FORMATS.items() if any(column in data.columns for column in columns)]
    return pointed or list(_FORMATS)


def _content(fields: Mapping[str, Any], allowed: Collection[str]) -> _Content | Broken:
    if "pair" in allowed and "chosen" in fields and "rejected" in fields:
        return _pair(fields["chosen"], fields["rejected"], fields.get("prompt"))
    if "messages" in allowed and "messages" in fields:
        turns = _turns(fields["messages"])
        return turns if isinstance(turns, Broken) else _cut(turns)
    if "alpaca" in allowed and isinstance(fields.get("output"), str) and isinstance(fields.get("instruction"), str):
        extra, request = fields.get("input"), fields["instruction"]
        request = f"{request}\n\n{extra}" if isinstance(extra, str) and extra else request
        return _Content((Message("user", request),), fields["output"])
    if "text" in allowed and isinstance(fields.get("text"), str):
        return _Content((), fields["text"])
    return Broken("no messages")


def _pair(chosen: Any, rejected: Any, prompt: Any) -> _Content | Broken:
    """The prompt that both answers share, the chosen and the rejected answer.

    An answer is a list of messages or a text. A text, and a list without the user's turn, needs the prompt: a text or a
    list of messages.
    """
    request: Turns | Broken = ()
    if isinstance(prompt, str) and prompt.strip():
        request = (Message("user", prompt),)
    elif isinstance(prompt, list) and prompt:
        request = _turns(prompt)
    if isinstance(request, Broken):
        return request
    good = _answer("chosen", chosen, request)
    if isinstance(good, Broken):
        return good
    bad = _answer("rejected", rejected, request)
    if isinstance(bad, Broken):
        return bad
    if good.prompt != bad.prompt:
        return Broken("chosen and rejected answer different prompts")
    if not bad.response.strip():
        return Broken("empty rejected answer")
    if good.response.strip() == bad.response.strip():
        return Broken("chosen and rejected are the same")
    return good._replace(rejected=bad.response)


def _answer(name: str, answer: Any, request: Turns) -> _Content | Broken:
    if not isinstance(answer, str | list) or answer == []:
        return Broken(f"no {name} answer")
    turns = (Message("assistant", answer),) if isinstance(answer, str) else _turns(answer)
    if isinstance(turns, Broken):
        return turns
    if not any(turn.role == "user" for turn in turns):
        if not any(turn.role == "user" for turn in request):
            return Broken("no prompt beside the answers")
        turns = (*request, *turns)
    return _cut(turns)


def _turns(messages: Any) -> Turns | Broken:
    """A list of {role, content}, every message checked."""
    if not isinstance(messages, list):
        return Broken("no messages")
    if not messages:
        return Broken("empty messages")
    turns = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            return Broken("a message without a known role")
        if not isinstance(message.get("content"), str):
            return Broken("a message without text")
        turns.append(Message(role, message["content"]))
    return tuple(turns)


def _cut(turns: Turns) -> _Content | Broken:
    """What precedes the last assistant turn, and that turn's text."""
    last = max((row for row, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    if last is None:
        return Broken("no assistant message")
    if not any(turn.role == "user" for turn in turns[:last]):
        return Broken("no user message before the answer")
    return _Content(turns[:last], turns[last].content)


def _name(value: Any) -> str:
    """A text or a whole number as text; nothing for anything else."""
    named = isinstance(value, str | int) and not isinstance(value, bool)
    return str(value) if named else ""


def _encodable(texts: list[str]) -> bool:
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
