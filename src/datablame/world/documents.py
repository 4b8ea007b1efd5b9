"""The pool's documents, one after another: a row as one, broken rows counted, a subset by ids and a seed alone.

A row is a chat, Alpaca style, plain text or a preference pair, as its columns say.
"""

import heapq
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from datablame.config.schema import Column, Data
from datablame.engine.files import digest
from datablame.seeds import stream_key
from datablame.tables import Document, Message, SkippedRows
from datablame.world.refusals import refused

if TYPE_CHECKING:
    from datablame.world.sources import Source

_logger = logging.getLogger(__name__)
_EXAMPLE_CHARACTERS = 120
_ROLES = ("system", "user", "assistant", "tool")
_FORMATS: dict[str, tuple[Column, ...]] = {
    "pair": ("chosen", "rejected"),
    "messages": ("messages",),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
"""The columns that each format cannot do without; a row is read by the first format whose columns it has."""

Turns = tuple[Message, ...]


class Reader:
    """Every readable document of the data once; after that, what was left out, and which ids are the subset's.

    Of rows with one id the first counts; copies without an id stay apart, for they matter to what was trained on. A
    subset doesn't depend on order, shards or streaming: it is those whose keyed hashes are smallest. Documents that may
    yet leave it are given out too. No text is held, but every id of the subset, and 8 bytes of a text without one.
    """

    def __init__(self, source: "Source", data: Data, seed: int) -> None:
        self.chosen: dict[str, None] = {}
        """The ids of the pool, known at the end."""
        self.skipped: dict[str, SkippedRows] = {}
        """Rows left out by reason."""
        self._source, self._data, self._seed = source, data, seed
        self._largest: list[tuple[int, str]] = []
        """A heap of the subset's negative hashes."""

    def __iter__(self) -> Iterator[Document]:
        """In the order of the data; RequestError where it cannot be read, lacks a named column or has no usable row."""
        data, columns, absent = self._data, list[str](), set(self._data.columns.values())
        copies, repeated = Counter[int](), dict[str, SkippedRows]()
        for number, row in enumerate(self._source.rows, 1):
            if isinstance(row, Mapping):
                columns = columns or list(row)
                absent.difference_update(row)
            try:
                parsed = document(row, data)
            except Broken as broken:
                _count(self.skipped, broken.reason, broken.reason, number, row)
                continue
            if not parsed.id:
                content: list[Any] = [*([turn.role, turn.content] for turn in parsed.prompt), parsed.response]
                text = int(digest([*content, {"rejected": parsed.rejected}] if parsed.rejected else content)[:16], 16)
                copies[text] += 1
                parsed = replace(parsed, id=f"sha-{text:016x}{f'-{copies[text]}' if copies[text] > 1 else ''}")
            if parsed.id in self.chosen:
                _count(repeated, parsed.id, "the id stands twice", number, row)
            elif self._enters(parsed.id):
                self.chosen[parsed.id] = None
                yield parsed
        names = ", ".join(columns) or "none"
        for role, name in data.columns.items():
            if name in absent and columns:
                raise refused("absent key", role=role, name=name, data=data, names=names)
        if not self.chosen:
            reasons = "; ".join(f"{rows.count} rows: {rows.reason}" for rows in self.skipped.values())
            have = f"; the columns are {names}" if columns else ""
            raise refused("no document", data=data, reasons=f"{reasons or 'it holds no rows'}{have}")
        for twice in (repeated[doc_id] for doc_id in self.chosen if doc_id in repeated):
            before = self.skipped.setdefault(twice.reason, replace(twice, count=0))
            self.skipped[twice.reason] = replace(before, count=before.count + twice.count)
        self._log()

    def _enters(self, doc_id: str) -> bool:
        """Whether the document belongs to the subset so far; another may leave it.

        The bound only falls as documents come: what is beyond it once never belongs to the subset, nor does its copy.
        """
        if self._data.documents is None:
            return True
        entry = (-stream_key("subset", self._seed, doc_id), doc_id)
        if len(self._largest) < self._data.documents:
            heapq.heappush(self._largest, entry)
        elif entry < self._largest[0]:
            return False
        else:
            del self.chosen[heapq.heapreplace(self._largest, entry)[1]]
        return True

    def _log(self) -> None:
        data, usable, commit = self._data, len(self.chosen), self._source.commit
        warnings = [
            f"{data.path}: {rows.count} rows skipped: {rows.reason}; the first is {rows.example}"
            for rows in self.skipped.values()
        ]
        if data.documents is not None and usable < data.documents:
            warnings.append(f"data.documents = {data.documents}, but {data.path} has {usable} usable; all are taken")
        if commit is not None and data.revision is None:
            warnings.append(f"{data.path} was read at commit {commit}; name it as data.revision to read the same again")
        for warning in warnings:
            _logger.warning(warning)


def _count(skipped: dict[str, SkippedRows], key: str, reason: str, number: int, row: Any) -> None:
    """One more row under a key; the first of them is the example."""
    if key in skipped:
        skipped[key] = replace(skipped[key], count=skipped[key].count + 1)
        return
    text = repr(row.raw if isinstance(row, Broken) else row).encode("ascii", "backslashreplace").decode()
    short = text if len(text) <= _EXAMPLE_CHARACTERS else text[: _EXAMPLE_CHARACTERS - 3] + "..."
    skipped[key] = SkippedRows(reason, 1, f"row {number}: {short}")


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
        if not _has_user_turn(turns):
            if not _has_user_turn(request):
                raise Broken("no prompt beside the answers")
            turns = (*request, *turns)
        answers.append(_cut(turns))
    (chosen_prompt, good), (rejected_prompt, bad) = answers
    if chosen_prompt != rejected_prompt:
        raise Broken("chosen and rejected answer different prompts")
    if not bad.strip():
        raise Broken("empty rejected answer")
    if good.strip() == bad.strip():
        raise Broken("chosen and rejected are the same")
    return chosen_prompt, good, bad


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
    if not _has_user_turn(turns[:last]):
        raise Broken("no user message before the answer")
    return turns[:last], turns[last].content


def _has_user_turn(turns: Turns) -> bool:
    return any(turn.role == "user" for turn in turns)


def _name(value: Any) -> str:
    """A text or a whole number as text; nothing for anything else."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
