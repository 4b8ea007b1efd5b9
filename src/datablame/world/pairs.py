"""Preference pairs: two answers to one prompt, as whole chats, as last turns, or as texts beside the prompt."""

from typing import Any

from datablame.tables import Message
from datablame.world.turns import Broken, cut, turns_of


def pair(chosen: Any, rejected: Any, prompt: Any) -> tuple[tuple[Message, ...], str, str] | Broken:
    """The prompt that both answers share, the chosen and the rejected answer.

    An answer is a list of messages or a text. A text, and a list without the user's turn, needs the prompt: a text or a
    list of messages.
    """
    asked = _asked(prompt)
    if isinstance(asked, Broken):
        return asked
    found = []
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        turns = _turns(name, answer, asked)
        if isinstance(turns, Broken):
            return turns
        found.append(turns)
    (before, wanted), (before_rejected, unwanted) = found
    if before != before_rejected:
        return Broken("chosen and rejected answer different prompts")
    if not unwanted.strip():
        return Broken("empty rejected answer")
    if wanted.strip() == unwanted.strip():
        return Broken("chosen and rejected are the same")
    return before, wanted, unwanted


def _asked(prompt: Any) -> tuple[Message, ...] | Broken:
    if isinstance(prompt, str) and prompt.strip():
        return (Message("user", prompt),)
    return turns_of(prompt) if isinstance(prompt, list) and prompt else ()


def _turns(name: str, answer: Any, asked: tuple[Message, ...]) -> tuple[tuple[Message, ...], str] | Broken:
    if isinstance(answer, str):
        turns: tuple[Message, ...] | Broken = (Message("assistant", answer),)
    elif isinstance(answer, list) and answer:
        turns = turns_of(answer)
    else:
        return Broken(f"no {name} answer")
    if isinstance(turns, Broken):
        return turns
    if not any(turn.role == "user" for turn in turns):
        if not any(turn.role == "user" for turn in asked):
            return Broken("no prompt beside the answers")
        turns = (*asked, *turns)
    return cut(turns)
