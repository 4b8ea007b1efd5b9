"""The pool's documents, one after another: a row as one, broken rows counted, a subset by ids and a seed alone.

A row is a preference pair, a chat, a prompt with its completion, Alpaca style or plain text, as its columns say.
"""

import heapq
import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from datablame.config.schema import Column, Data
from datablame.engine.files import digest
from datablame.seeds import stream_key
from datablame.tables import DataSummary, Document, FileRows, Message, SkippedRows
from datablame.world.conversations import (
    Broken,
    Turns,
    holds_turns,
    is_null,
    leaves,
    scalar,
    transcript,
    turns,
    with_system,
)
from datablame.world.refusals import refused

if TYPE_CHECKING:
    from datablame.world.sources import Source

_logger = logging.getLogger(__name__)
_EXAMPLE_CHARACTERS, _FILE_CHARACTERS = 120, 40
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
    "messages": ("conversations", "conversation"),
    "system": ("system_prompt",),
    "tools": ("functions",),
}
"""Names of columns in common sets, read where the column of that name is not there."""
_ECHO_WORDS = 4
"""A prompt of so many words, with which its answers begin, stands in them once more."""


class Reader:
    """Every readable document of the data once; after that, what was left out, and which ids are the subset's.

    Of rows with one id and one text the first counts; another text gets an id of its own, made of both. Copies without
    an id stay apart, for they matter to what was trained on. A subset doesn't depend on shards or streaming: it is
    those whose keyed hashes are smallest. Documents that may yet leave it are given out too. No text is held, but
    every id of the subset, and 16 bytes of every row.
    """

    def __init__(self, source: "Source", data: Data, seed: int) -> None:
        self.chosen: dict[str, str] = {}
        """The ids of the pool with the files that they come from, known at the end."""
        self._source, self._data, self._seed = source, data, seed
        self._rows = Counter[str](dict.fromkeys(source.files, 0))
        self._skipped: dict[str, dict[str, SkippedRows]] = {file: {} for file in source.files}
        self._unread, self._renamed = Counter[str](), 0
        self._texts, self._copies = dict[int, int](), Counter[int]()
        self._largest: list[tuple[int, str]] = []
        """A heap of the subset's negative hashes."""

    def __iter__(self) -> Iterator[Document]:
        """In the order of the data; RequestError where it cannot be read, lacks a named column or has no usable row."""
        data, columns, absent = self._data, list[str](), set(self._data.columns.values())
        repeated: dict[tuple[str, str], SkippedRows] = {}
        for file, row in self._source.rows:
            self._rows[file] += 1
            if isinstance(row, dict):
                columns = columns or list(row)
                absent.difference_update(row)
            try:
                parsed, unread = document(row, data)
            except Broken as broken:
                shown = row if broken.raw is None else broken.raw
                _count(self._skipped[file], broken.reason, broken.reason, self._where(file), shown)
                continue
            parsed, is_new = self._named(parsed)
            self._unread.update(unread)
            if not is_new:
                if parsed.id in self.chosen:
                    _count(repeated, (file, parsed.id), "the id stands twice", self._where(file), row)
            elif self._enters(parsed.id, file):
                yield parsed
        names = ", ".join(columns) or "none"
        for role, name in data.columns.items():
            if name in absent and columns:
                raise refused("absent key", role=role, name=name, data=data, names=names)
        if not self.chosen:
            self._refuse(names if columns else None)
        for (file, doc_id), twice in repeated.items():
            if doc_id in self.chosen:
                before = self._skipped[file].get(twice.reason, replace(twice, count=0))
                self._skipped[file][twice.reason] = replace(before, count=before.count + twice.count)
        self._log()

    @property
    def summary(self) -> DataSummary:
        """What the files hold, once they are read."""
        documents = Counter(self.chosen.values())
        return DataSummary(
            files=tuple(
                FileRows(file, rows, documents[file], tuple(self._skipped[file].values()))
                for file, rows in self._rows.items()
            ),
            other_files=self._source.other_files,
            unread=dict(self._unread.most_common()),
            renamed=self._renamed,
            commit=self._source.commit,
        )

    def _named(self, parsed: Document) -> tuple[Document, bool]:
        """The document with an id that no other text has, and whether this text has not had it before."""
        if not parsed.id:
            made = _hash_of(parsed)
            self._copies[int(made, 16)] += 1
            copies = self._copies[int(made, 16)]
            return replace(parsed, id=f"sha-{made}{f'-{copies}' if copies > 1 else ''}"), True
        name, text = parsed.id, hash((parsed.prompt, parsed.response, parsed.rejected))
        while (known := self._texts.get(hash(name))) not in (None, text):
            name = f"{name}-{_hash_of(parsed)}"
        self._texts[hash(name)] = text
        self._renamed += known is None and name != parsed.id
        return replace(parsed, id=name), known is None

    def _enters(self, doc_id: str, file: str) -> bool:
        """Whether the document belongs to the subset so far; another may leave it.

        The bound only falls as documents come: what is beyond it once never belongs to the subset, nor does its copy.
        """
        if self._data.documents is not None:
            entry = (-stream_key("subset", self._seed, doc_id), doc_id)
            if len(self._largest) < self._data.documents:
                heapq.heappush(self._largest, entry)
            elif entry < self._largest[0]:
                return False
            else:
                del self.chosen[heapq.heapreplace(self._largest, entry)[1]]
        self.chosen[doc_id] = file
        return True

    def _where(self, file: str) -> str:
        return f"{file[-_FILE_CHARACTERS:]}, row {self._rows[file]}"

    def _refuse(self, names: str | None) -> None:
        skipped = self.summary.skipped
        reasons = "; ".join(f"{rows.count} rows: {rows.reason}" for rows in skipped) or "it holds no rows"
        have = f"; the columns are {names}" if names else ""
        first = f"; the first is {skipped[0].example}" if skipped else ""
        raise refused("no document", data=self._data, reasons=f"{reasons}{have}{first}")

    def _log(self) -> None:
        data, summary, usable = self._data, self.summary, len(self.chosen)
        warnings = [
            f"{data.path}: {rows.count} rows skipped: {rows.reason}; the first is {rows.example}"
            for rows in summary.skipped
        ]
        if summary.unread:
            named = ", ".join(f"{name} ({count} rows)" for name, count in summary.unread.items())
            warnings.append(f"{data.path}: text in no document: {named}; name what belongs to one in data.columns")
        if summary.other_files:
            named = ", ".join(summary.other_files)
            warnings.append(f"{data.path}: not read, since they are of other splits or subsets: {named}")
        if summary.renamed:
            warnings.append(f"{data.path}: {summary.renamed} rows have the id of another text; theirs is ID-HASH now")
        if data.documents is not None and usable < data.documents:
            warnings.append(f"data.documents = {data.documents}, but {data.path} has {usable} usable; all are taken")
        if summary.commit is not None and data.revision is None:
            commit = summary.commit
            warnings.append(f"{data.path} was read at commit {commit}; name it as data.revision to read the same again")
        for warning in warnings:
            _logger.warning(warning)


def _hash_of(parsed: Document) -> str:
    content: list[Any] = [*([turn.role, turn.content] for turn in parsed.prompt), parsed.response]
    return digest([*content, {"rejected": parsed.rejected}] if parsed.rejected else content)[:16]


def _count(skipped: dict[Any, SkippedRows], key: Any, reason: str, where: str, row: Any) -> None:
    """One more row under a key; the first of them is the example."""
    if key in skipped:
        skipped[key] = replace(skipped[key], count=skipped[key].count + 1)
        return
    text = repr(row).encode("ascii", "backslashreplace").decode()
    short = text if len(text) <= _EXAMPLE_CHARACTERS else text[: _EXAMPLE_CHARACTERS - 3] + "..."
    skipped[key] = SkippedRows(reason, 1, f"{where}: {short}")


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
    found = columns_of(names, data)
    if not any(set(_FORMATS[form]) <= set(found) for form in _allowed(data)):
        formats = [[data.columns.get(role, role) for role in _FORMATS[form]] for form in _allowed(data)]
        known = ", ".join(dict.fromkeys(" with ".join(columns) for columns in reversed(formats)))
        raise refused("no format", where=where, names=", ".join(names), known=known)


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
    if not isinstance(row, dict):
        raise Broken("not an object with fields")
    row = {name: value for name, value in row.items() if not is_null(value)}
    columns = columns_of(row, data)
    fields = {role: row[name] for role, name in columns.items()}
    form = _form(fields, _allowed(data))
    prompt, response, rejected = _content(form, fields, row, data.roles)
    if prompt:
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


def _form(fields: Mapping[str, Any], allowed: Collection[str]) -> str:
    """The first format whose columns are there and hold something, else the first whose columns are there."""
    there = [form for form in allowed if set(fields).issuperset(_FORMATS[form])]
    filled = (form for form in there if any(fields[role] not in ("", []) for role in _FORMATS[form]))
    if form := next(filled, next(iter(there), None)):
        return form
    if "pair" in allowed and ("chosen" in fields) != ("rejected" in fields):
        raise Broken(f"no {'rejected' if 'chosen' in fields else 'chosen'} answer")
    raise Broken("no messages")


def _content(
    form: str, fields: Mapping[str, Any], row: Mapping[str, Any], roles: Mapping[str, str]
) -> tuple[Turns, str, str]:
    """Prompt, response and rejected answer."""
    match form:
        case "pair":
            return _pair(fields, roles)
        case "messages":
            return *_cut(turns(fields["messages"], roles)), ""
        case "completion":
            if row.get("label") is False:
                raise Broken("label is false: an answer that training pushes away")
            return *_answered(fields["prompt"], fields["completion"], roles), ""
        case "alpaca":
            extra = scalar(fields.get("input"))
            request = _text(fields["instruction"], "instruction")
            request = f"{request}\n\n{extra}" if extra else request
            return (Message("user", request),), _text(fields["output"], "output"), ""
    return (), _text(fields["text"], "text"), ""


def _text(value: Any, role: str) -> str:
    text = scalar(value)
    if text is None:
        raise Broken(f"the {role} is no text", value)
    return text


def _pair(fields: Mapping[str, Any], roles: Mapping[str, str]) -> tuple[Turns, str, str]:
    """The prompt that both answers share and the answers, which are texts or lists of messages, as the prompt is."""
    answers = []
    for name in ("chosen", "rejected"):
        if fields[name] == []:
            raise Broken(f"no {name} answer")
        answers.append(_answered(fields.get("prompt"), fields[name], roles))
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
    request = () if prompt is None else _said("user", prompt, roles)
    said = _said("assistant", answer, roles)
    if isinstance(prompt, str) and isinstance(answer, str) and transcript(prompt):
        said = tuple(Message(turn.role, turn.content.strip()) for turn in said)
    start = next(start for start in range(len(request) + 1) if _begins_with(said, request[start:]))
    whole = (*request[:start], *said)
    if not _has_user_turn(whole):
        raise Broken("no prompt beside the answers")
    if isinstance(prompt, str) and len(prompt.split()) >= _ECHO_WORDS and said[-1].content.startswith(prompt.strip()):
        raise Broken("the answer begins with the whole prompt; cut it there", said[-1].content)
    return _cut(whole)


def _said(role: str, value: Any, roles: Mapping[str, str]) -> Turns:
    """The turns of messages or of a transcript; of any other text, one of that role."""
    if holds_turns(value):
        return turns(value, roles)
    text = _text(value, "prompt" if role == "user" else "answer")
    if not text.strip() and role == "user":
        return ()
    return transcript(text) or (Message(role, text),)


def _begins_with(said: Turns, request: Turns) -> bool:
    """Whether the turns begin with those of the request, and perhaps say more in them."""
    pairs = zip(request, said, strict=False)
    return len(request) <= len(said) and all(a.role == b.role and a.content.strip() in b.content for a, b in pairs)


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
