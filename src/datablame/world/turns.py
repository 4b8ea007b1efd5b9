"""A row's messages as turns of a chat, cut where its last answer ends."""

from typing import Any, NamedTuple

from datablame.tables import Message

_ROLES = ("system", "user", "assistant", "tool")


class Broken(NamedTuple):
    """Why a row cannot be used, and what stands in it where it could not even be parsed."""

    reason: str
    raw: object = None


def answered(messages: Any) -> tuple[tuple[Message, ...], str] | Broken:
    """What precedes the last assistant turn, and that turn's text."""
    turns = turns_of(messages)
    return turns if isinstance(turns, Broken) else cut(turns)


def turns_of(messages: Any) -> tuple[Message, ...] | Broken:
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


def cut(turns: tuple[Message, ...]) -> tuple[tuple[Message, ...], str] | Broken:
    """The same for turns that are known to be sound."""
    last = max((place for place, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    if last is None:
        return Broken("no assistant message")
    if not any(turn.role == "user" for turn in turns[:last]):
        return Broken("no user message before the answer")
    return turns[:last], turns[last].content


def text_of(value: Any) -> str:
    """A text, or nothing for anything else."""
    return value if isinstance(value, str) else ""
