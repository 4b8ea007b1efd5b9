"""Which columns hold what, and a row as a document: a chat, Alpaca style, plain text or a preference pair."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from datablame.engine.run_folder import digest
from datablame.errors import RequestError
from datablame.study.schema import Column, Data
from datablame.tables import Document, Message
from datablame.world.pairs import pair
from datablame.world.turns import Broken, answered, text_of

_FORMATS: dict[str, tuple[Column, ...]] = {
    "pair": ("chosen", "rejected"),
    "messages": ("messages",),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
"""The columns that each format cannot do without; a row is read by the first format whose columns it has."""


class _Turns(NamedTuple):
    prompt: tuple[Message, ...]
    response: str
    rejected: str = ""


def wanted(names: Iterable[str], data: Data) -> list[str]:
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
    turns = _turns(fields, _allowed(data))
    if isinstance(turns, Broken):
        return turns
    texts = [*(turn.content for turn in turns.prompt), turns.response, turns.rejected]
    if sum(map(len, texts)) > data.max_document_characters:
        return Broken(f"longer than {data.max_document_characters} characters")
    if not turns.response.strip():
        return Broken("empty response")
    doc_id, source = (_name(fields.get(field)) for field in ("id", "source"))
    if not _encodable([*texts, doc_id, source]):
        return Broken("invalid UTF-8")
    content: list[Any] = [*([turn.role, turn.content] for turn in turns.prompt), turns.response]
    if turns.rejected:
        content.append({"rejected": turns.rejected})
    return Document(
        doc_id or f"sha-{digest(content)[:16]}", source or "unknown", turns.prompt, turns.response, turns.rejected
    )


def _allowed(data: Data) -> list[str]:
    """The formats that the study's own column names point to; all, where they point to none."""
    pointed = [form for form, columns in _FORMATS.items() if any(column in data.columns for column in columns)]
    return pointed or list(_FORMATS)


def _turns(fields: Mapping[str, Any], allowed: Collection[str]) -> _Turns | Broken:
    if "pair" in allowed and "chosen" in fields and "rejected" in fields:
        both = pair(fields["chosen"], fields["rejected"], fields.get("prompt"))
        return both if isinstance(both, Broken) else _Turns(*both)
    if "messages" in allowed and "messages" in fields:
        chat = answered(fields["messages"])
        return chat if isinstance(chat, Broken) else _Turns(*chat)
    if "alpaca" in allowed and isinstance(fields.get("output"), str) and isinstance(fields.get("instruction"), str):
        extra = text_of(fields.get("input"))
        request = f"{fields['instruction']}\n\n{extra}" if extra else fields["instruction"]
        return _Turns((Message("user", request),), fields["output"])
    if "text" in allowed and isinstance(fields.get("text"), str):
        return _Turns((), fields["text"])
    return Broken("no messages")


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
