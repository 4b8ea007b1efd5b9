"""Conversations as people write them down, as messages of a role and a text.

What is structured (parts, tool calls, tools, a thought apart) becomes text here and nowhere else, so that words, judges
and tokens are of the same: between tags, as OLMo's and Qwen's own chat templates write it (decision 031).
"""

import ast
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from datablame.config.schema import MessageRole
from datablame.tables import Message

Turns = tuple[Message, ...]

_NAMES = {
    "user": ("human", "prompter"),
    "assistant": ("gpt", "chatgpt", "model", "bot", "chatbot", "ai", "bing", "bard", "function_call", "tool_call"),
    "tool": ("observation", "tool_response", "function_response"),
}
"""What roles go by besides their names in chat templates; which of them a template writes is its own."""
ROLE_OF = {role: role for role in get_args(MessageRole)} | {name: role for role in _NAMES for name in _NAMES[role]}
_ANSWERING = ("assistant", *_NAMES["assistant"])
_CALLING = ("function_call", "tool_call")
"""ShareGPT's roles whose text is a call."""
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from", "speaker"), ("content", "value", "text", "parts")
_THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")
_NO_TEXT = {*_ROLE_KEYS, "type", "id", "tool_call_id"}
"""Keys whose texts are names for machines."""
_TRANSCRIPT = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_MARKED = re.compile(r"(?:\A|\n)<extra_id_1>(User|Assistant)\n")
"""HelpSteer's turns; the first of them has no mark."""
_REPR = re.compile(r"\s*\[\{'(?:role|content|from|value)':")


class Broken(Exception):
    """Why a row cannot be used, and what stands in it where it could not even be parsed."""

    def __init__(self, reason: str, raw: object = None) -> None:
        super().__init__(reason)
        self.reason, self.raw = reason, raw


def turns(value: Any, roles: Mapping[str, str]) -> Turns:
    """Messages from a list of them, a dict of lists, a single one, JSON of any of these, or a transcript.

    Every message is checked; `roles` says what a role means that is not known here.
    """
    if isinstance(value, str):
        if (spoken := transcript(value)) is not None:
            return spoken
        value = _literal(value)
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        value = value["messages"]
    if isinstance(value, dict):
        columns = {name: column for name, column in value.items() if column is not None}
        value = [columns]
        if columns and all(isinstance(column, list) for column in columns.values()):
            if len(set(map(len, columns.values()))) > 1:
                raise Broken("messages whose lists have different lengths")
            value = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if not isinstance(value, list):
        raise Broken("no messages")
    if not value:
        raise Broken("empty messages")
    if _is_untrained(value[-1]):
        raise Broken("its last answer has weight 0: training leaves it out")
    return tuple(turn for message in value for turn in _turns(message, roles))


def holds_turns(value: Any) -> bool:
    """Whether it is messages rather than a text: a list, a dict, or JSON of messages, or how Python shows a list."""
    if isinstance(value, str):
        if _REPR.match(value):
            return True
        if not value.lstrip().startswith(("[{", '{"messages"')):
            return False
        inside = parsed(value)
        return are_messages(inside.get("messages") if isinstance(inside, dict) else inside)
    return isinstance(value, list | dict)


def are_messages(value: Any) -> bool:
    """Whether it is a list of objects that all name a role."""
    objects = isinstance(value, list) and value and all(isinstance(each, dict) for each in value)
    return bool(objects) and not any(each.keys().isdisjoint(_ROLE_KEYS) for each in value)


def transcript(text: str) -> Turns | None:
    """The turns of a text as in Anthropic's HH data, `Human: ... Assistant: ...`, or as in NVIDIA's HelpSteer.

    None where it is no such text.
    """
    start, *pieces = _MARKED.split(text.strip())
    if pieces:
        start, pieces = "", ["User", start, *pieces] if start else pieces
    else:
        start, *pieces = _TRANSCRIPT.split(text.strip())
    if start or "Assistant" not in pieces[::2] or pieces[0] == "Assistant":
        return None
    contents = [part.strip() for part in pieces[1::2]]
    roles = ["assistant" if name == "Assistant" else "user" for name in pieces[::2]]
    if not contents[-1] and roles[-1] == "assistant":  # It only opens the answer.
        roles.pop()
    return tuple(map(Message, roles, contents))


def with_system(prompt: Turns, system: Any, tools: Any) -> Turns:
    """A conversation whose system turn says also what stands in columns of its own, and is not said there yet."""
    own, rest = (prompt[0].content, prompt[1:]) if prompt[0].role == "system" else ("", prompt)
    column = "" if system is None else _text(system) or ""
    before, after = (text if text.strip() not in own else "" for text in (column, _tools(tools)))
    joined = "\n\n".join(text for text in (before, own, after) if text)
    return (Message("system", joined), *rest) if before or after else prompt


def scalar(value: Any) -> str | None:
    """A text, or a number or truth value as JSON writes it; None for anything else."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, bool | int | float) and not is_null(value) else None


def is_null(value: Any) -> bool:
    """Whether a joined table has nothing there: null, or NaN."""
    return value is None or (isinstance(value, float) and value != value)


def parsed(text: str) -> Any:
    """JSON as what it holds; any other text as it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _literal(text: str) -> Any:
    """What JSON or a Python literal says; any other text as it is. Tables that went through CSV have the latter."""
    value = parsed(text)
    if isinstance(value, str) and _REPR.match(text):
        # NumPy shows the items of an array without commas; within a text of theirs a line break is escaped.
        commas = re.sub(r"\}\n\s*\{", "}, {", text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return ast.literal_eval(commas.strip())
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                pass
    return value


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text inside a value, with the outermost key that leads to it; names for machines are left out."""
    if isinstance(value, str):
        inside = parsed(value) if value.lstrip()[:1] in ("{", "[") else value
        if isinstance(inside, str):
            yield key, value.strip()
            return
        value = inside
    value = _map(value)
    if isinstance(value, dict):
        for name, each in value.items():
            if name not in _NO_TEXT:
                yield from leaves(each, key or str(name))
    elif isinstance(value, list | tuple):
        is_turn = len(value) == 2 and isinstance(value[0], str) and value[0].strip().lower() in ROLE_OF
        for each in value[is_turn:]:
            yield from leaves(each, key)


def _turns(message: Any, roles: Mapping[str, str]) -> Iterator[Message]:
    """One turn, or a question and its answer: `[question, answer]`, or Capybara's `{input, output}`."""
    message = _map(message)
    if isinstance(message, dict) and message.keys() >= {"input", "output"}:
        message = [message["input"], message["output"]]
    if isinstance(message, list) and len(message) == 2 and all(isinstance(text, str) for text in message):
        if (role := ROLE_OF.get(message[0].strip().lower())) is not None:
            yield Message(role, message[1])
        else:
            yield from map(Message, ("user", "assistant"), message)
    else:
        yield _turn(message, roles)


def _map(value: Any) -> Any:
    """A map of Arrow's, which is a list of keys with values, as a dict; anything else as it is."""
    return dict(value) if isinstance(value, list) and value and all(type(each) is tuple for each in value) else value


def _is_untrained(message: Any) -> bool:
    """Whether training leaves an answer out (OpenAI's `weight: 0`, as Mistral and Axolotl read it too)."""
    return isinstance(message, dict) and message.get("weight") == 0 and _first(message, _ROLE_KEYS) in _ANSWERING


def _turn(message: Any, roles: Mapping[str, str]) -> Message:
    written = _first(message, _ROLE_KEYS) if isinstance(message, dict) else None
    if written is None:
        raise Broken("messages that do not name their role", message)
    written = written if isinstance(written, str) else repr(written)
    name = written.strip().lower()
    role = roles.get(written) or roles.get(name) or ROLE_OF.get(name)
    if role is None:
        raise Broken("a message without a known role; data.roles can name it", {"role": written})
    content = _first(message, _CONTENT_KEYS)
    structured = isinstance(content, dict) and role not in ("user", "assistant", "system", "developer")
    text = _json(content) if structured and "text" not in content else _text(content)
    if name in _CALLING:
        text = _tagged("tool_call", text)
    if len(message) > 2 or text is None:
        text = _with_structured(message, text)
    if text is None:
        raise Broken("a message without text", message)
    return Message(role, text)


def _with_structured(message: Mapping[str, Any], text: str | None) -> str | None:
    """The text with what a message says beside its content: one thought before it, anything else after it."""
    for key, value in message.items():
        if value and (piece := _structured(key, value)):
            text = f"{text}{piece}" if text else piece.lstrip()
    thought = _first(message, _THOUGHT_KEYS)
    return f"<think>\n{_json(thought).strip()}\n</think>\n\n{text or ''}" if thought else text


def _first(message: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((message[key] for key in keys if message.get(key) is not None), None)


def _structured(key: str, value: Any) -> str:
    """What stands in a key beside the content, as text after it; nothing where it belongs to no turn."""
    match key:
        case "functions":
            return f" <functions>{_json(value)}</functions>"
        case "function_calls":
            return f"<function_calls>{_json(value)}</function_calls>"
        case "tools":
            return f"\n\n{_tools(value)}"
        case "tool_calls" | "function_call":
            inside = parsed(value) if isinstance(value, str) else value
            return "".join(f"\n{_call(call)}" for call in (inside if isinstance(inside, list) else [inside]))
    return ""


def _text(value: Any) -> str | None:
    """The text of a content: itself, or its parts one after another; None where there is none."""
    if isinstance(value, dict):
        value = value.get("parts", [value])
    return "".join(map(_part, value)) if isinstance(value, list) else scalar(value)


def _part(part: Any) -> str:
    match part:
        case str():
            return part
        case {"type": "tool_use"}:
            return f"\n{_call(part)}"
        case {"type": "tool_result", "content": content}:
            return _text(content) or ""
        case {"type": "thinking", "thinking": str(thought)}:
            return f"<think>\n{thought.strip()}\n</think>\n\n"
        case {"text": str(text)}:
            return text
    raise Broken("a message with a part that is no text", part)


def _call(call: Any) -> str:
    """A call as Qwen's templates write it; arguments in JSON are not quoted again."""
    inside = call["function"] if isinstance(call, dict) and isinstance(call.get("function"), dict) else call
    if isinstance(inside, dict) and "name" in inside:
        arguments = _first(inside, ("arguments", "parameters", "input"))
        arguments = parsed(arguments) if isinstance(arguments, str) else arguments
        inside = {"name": inside["name"], "arguments": {} if arguments is None else arguments}
    return _tagged("tool_call", _json(inside))


def _tools(value: Any) -> str:
    """A column or key of tools, one a line; nothing where it has none."""
    inside = parsed(value) if isinstance(value, str) else value
    if not inside or not isinstance(inside, str | list | dict):
        return ""
    return _tagged("tools", "\n".join(map(_json, inside if isinstance(inside, list) else [inside])))


def _tagged(tag: str, text: str | None) -> str:
    return f"<{tag}>\n{text or ''}\n</{tag}>"


def _json(value: Any) -> str:
    """A text as it is, anything else as JSON; without the nulls with which Arrow fills keys that an object lacks."""
    return value if isinstance(value, str) else json.dumps(_known(value), ensure_ascii=False, default=str)


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _known(each) for key, each in value.items() if each is not None}
    return [_known(each) for each in value] if isinstance(value, list) else value
