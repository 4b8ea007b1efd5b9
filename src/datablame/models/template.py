"""What a chat template writes around an answer, found by probes: where it begins, what ends it, what opens it."""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from functools import lru_cache
from typing import Any, NamedTuple

from jinja2 import TemplateError

from datablame.errors import RequestError
from datablame.models.source import refusal
from datablame.models.tokenizer_file import ids_of
from datablame.tables import ChatFormat, Message

_ASKED, _ANSWERED, _INSTRUCTION = "Which way to the harbour?", "Past the mill.", "Speak of harbours only."
_DATE = "strftime_now"
_CODES = r"%-?[aAbBcdDeFGHIjmMpSTuUVwWxXyYzZ]"
_FAILURES = (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)
"""A template is a program, which may fail as programs do."""


class Unrendered(RequestError):
    """The template does not write a conversation as it is; `reason` says why in words that others share."""

    def __init__(self, reason: str, message: object = None) -> None:
        super().__init__(str(message or reason))
        self.reason = reason


class Turn(NamedTuple):
    """What stands around an answer, the same in every conversation."""

    header: str
    """What opens an answer in a conversation, but not after a prompt, where the template ignores the request for it."""
    generation: str
    """What stands between a user's text and where an output begins."""
    extra: str
    """What only outputs have before them: a thought that the prompt opens."""
    unprompted: str
    """What only the answers of documents have before them: an empty thought, a channel; not white space alone."""
    closing: str
    """What follows an answer that is the last turn."""
    end: int | None
    """The token that ends an answer: the first of the closing that is no ordinary text."""
    stop: int | None
    """Where generation stops: the end, or where there is none the first such token before a next turn."""
    after_end: int
    """Tokens of the closing that follow it."""
    bos: tuple[int, ...]
    """What the tokenizer puts before a text and the template does not write."""
    n_bos: int
    """BOS tokens of a conversation of one user turn."""


def framed(template: str, settings: Mapping[str, Any], day: date | None) -> str:
    """The template with `settings` as its variables, and `day` as its today.

    RequestError for a setting that the template never mentions. What is added is Jinja, so that every process that
    gets the text renders alike.
    """
    for name in settings:
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise refusal("unknown_setting", name=name)
    lines = [f"{{% set {name} = {json.dumps(value, ensure_ascii=False)} %}}" for name, value in settings.items()]
    if day is not None and asks_date(template):
        codes = sorted(set(re.findall(_CODES, template)), key=len, reverse=True)
        filters = "".join(f" | replace({code!r}, {day.strftime(code)!r})" for code in codes)
        lines.append(f"{{% macro {_DATE}(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}")
    # A line break after a block is trimmed: the template begins as it did.
    return "".join(f"{line}\n" for line in lines) + template


def asks_date(template: Any) -> bool:
    """Whether the template writes the day on which it is rendered."""
    return _DATE in str(template)


def rendered(tokenizer: Any, messages: Sequence[Message], *, generation: bool) -> str:
    """The template's text for a conversation and, with `generation`, what it writes for an answer to begin.

    RequestError where there is no template, Unrendered where it refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise refusal("no_chat_template", name=tokenizer.name_or_path)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation))
    except _FAILURES as error:
        roles = ", ".join(turn["role"] for turn in turns)
        message = refusal("roles", roles=roles, error=error)
        raise Unrendered("the chat template refuses its order of roles", message) from error


def turn_of(tokenizer: Any) -> Turn:
    """What the tokenizer's template writes around an answer.

    RequestError where it writes no answer or no question, where a prompt and a conversation open an answer in different
    ways, or where an answer ends in text that generation cannot stop at.
    """
    return _turn(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=4)
def _turn(tokenizer: Any, _: str) -> Turn:
    asked, answered = Message("user", _ASKED), Message("assistant", _ANSWERED)
    try:
        opening, whole = (
            rendered(tokenizer, turns, generation=generation)
            for turns, generation in (((asked,), True), ((asked, answered), False))
        )
    except Unrendered as error:
        raise refusal("broken_template", error=error.__cause__) from None
    before, found, closing = whole.rpartition(_ANSWERED)
    if not found or _ASKED not in before or _ASKED not in opening:
        raise refusal("unwritten_turn", role="assistant" if not found else "user")
    if not before.startswith(opening) and not opening.startswith(before):
        prompt, conversation = (text.rpartition(_ASKED)[2] for text in (opening, before))
        raise refusal("two_openings", prompt=prompt, conversation=conversation)
    header = ""
    if opening == rendered(tokenizer, (asked,), generation=False):
        # The request for an answer is ignored. A space belongs to the token after it.
        header = before[len(opening) :].rstrip(" ")
    ids, border = cut(tokenizer, whole, len(before))
    last = _first_mark(tokenizer, closing, ids, border)
    if last is None and closing.strip():
        raise refusal("no_turn_end", closing=closing, n=len(ids_of(tokenizer, closing)))
    bos = tokenizer.bos_token_id
    count = ids_of(tokenizer, opening).count(bos)
    adds = bos is not None and count == 0 and list(tokenizer("a")["input_ids"][:1]) == [bos]
    return Turn(
        header=header,
        generation=opening.rpartition(_ASKED)[2] + header,
        extra=opening[len(before) :],
        unprompted="" if header or not before[len(opening) :].strip() else before[len(opening) :],
        closing=closing,
        end=None if last is None else ids[last],
        stop=_next_turn(tokenizer, (asked, answered, asked)) if last is None else ids[last],
        after_end=0 if last is None else len(ids) - last - 1,
        bos=(bos,) if adds else (),
        n_bos=count + adds,
    )


def _first_mark(tokenizer: Any, text: str, ids: Sequence[int], start: int) -> int | None:
    """The index, from `start` on, of the first of `ids` that is EOS or an added token and stands in `text`."""
    ends = {tokenizer.eos_token: tokenizer.eos_token_id, **tokenizer.get_added_vocab()}
    marks = {token for name, token in ends.items() if name and name.strip() and name in text}
    return next((index for index in range(start, len(ids)) if ids[index] in marks), None)


def _next_turn(tokenizer: Any, turns: Sequence[Message]) -> int | None:
    """The first token of its own between an answer and the user's text after it; None where there is no such turn."""
    try:
        text = rendered(tokenizer, turns, generation=False)
    except Unrendered:
        return None
    between = text.rpartition(_ANSWERED)[2].partition(_ASKED)[0]
    ids = ids_of(tokenizer, between)
    mark = _first_mark(tokenizer, between, ids, 0)
    return None if mark is None else ids[mark]


def unwritten(text: str, turns: Sequence[Message]) -> str | None:
    """The role of a turn whose content is not in `text`, white space aside; None where each has a place of its own."""
    left = _squeezed(text)
    for turn in sorted(turns, key=lambda turn: len(turn.content), reverse=True):
        # Tools' results may be written as JSON.
        forms = (form(turn.content) for form in (str, _as_json))
        written = next((each for each in map(_squeezed, forms) if each in left), None)
        if written is None:
            return turn.role
        left = left.replace(written, "\0", 1)
    return None


def answer_start(body: str, answer: str) -> int:
    """Where the answer begins that `body` ends with, white space aside.

    Unrendered where it ends with something else: the template dropped or changed it.
    """
    for written in (answer, answer.strip()):
        if body.endswith(written):
            return len(body) - len(written)
    squeezed = _squeezed(answer)
    if not _squeezed(body).endswith(squeezed):
        raise Unrendered("the chat template does not write its answer as it is")
    return [index for index, character in enumerate(body) if not character.isspace()][-len(squeezed)]


def least_start(tokenizer: Any, turns: Sequence[Message], text: str) -> int:
    """Where an answer after `turns` may begin at the soonest in `text`, if that opens it as it opens another one.

    White space before an answer that the template strips would else be taken for its own.
    """
    other = rendered(tokenizer, (*turns, Message("assistant", _ANSWERED)), generation=False)
    before = other.rpartition(_ANSWERED)[0]
    return len(before) if text.startswith(before) else 0


def cut(tokenizer: Any, text: str, start: int) -> tuple[list[int], int]:
    """The ids of `text`, and the index of the first with something of what begins at character `start`.

    A token across the border counts as what begins there, but for an added one that takes in the white space after it.
    Without offsets (a tokenizer in Python) the text before has to be the same tokens alone; Unrendered where it is not.
    """
    encoding = tokenizer(text, add_special_tokens=False)
    ids = list(encoding["input_ids"])
    if tokenizer.is_fast:
        # A token of spaces alone may have its offsets trimmed to where it ends.
        for index, (begin, end) in enumerate(encoding.encodings[0].offsets):
            if end > start:
                across = bool(text[begin:start].strip()) and ids[index] in tokenizer.added_tokens_decoder
                return ids, index + across
    opening = ids_of(tokenizer, text[:start])
    if ids[: len(opening)] != opening:
        raise Unrendered("its tokenizer gives no offsets, and a token stands across the border to the answer")
    return ids, len(opening)


def chat_format(tokenizer: Any, day: date | None) -> ChatFormat:
    """What the template does, for those who look at a study."""
    turn = turn_of(tokenizer)
    asked, answered = Message("user", _ASKED), Message("assistant", _ANSWERED)
    roles = []
    for role in ("system", "developer", "tool"):
        first = (
            (asked, answered, Message(role, _INSTRUCTION)) if role == "tool" else (Message(role, _INSTRUCTION), asked)
        )
        with contextlib.suppress(Unrendered):
            roles += [role] if unwritten(rendered(tokenizer, first, generation=True), first) is None else []
    return ChatFormat(
        turn_end=None if turn.end is None else str(tokenizer.convert_ids_to_tokens(turn.end)),
        bos="tokenizer" if turn.bos else "template" if turn.n_bos else "none",
        generation_prompt=turn.generation,
        extra=turn.extra,
        request_ignored=bool(turn.header),
        roles=tuple(roles),
        date=None if day is None or not asks_date(tokenizer.chat_template) else day.isoformat(),
        unprompted=turn.unprompted,
    )


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _as_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
