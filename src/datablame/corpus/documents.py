"""The pool: documents in the Tulu `messages` format, Alpaca style or plain text; broken rows skipped and counted."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from datablame.config import Data
from datablame.errors import RequestError
from datablame.execute import Progress
from datablame.records import Document, Message
from datablame.run_folder import digest
from datablame.seeds import stream_key

__all__ = ["Pool", "read_pool"]

_logger = logging.getLogger(__name__)
_ROLES = ("system", "user", "assistant", "tool")
_COLUMNS = ("messages", "text", "output")
_READ = ("id", "source", *_COLUMNS, "instruction", "input")
_EXAMPLE_CHARACTERS = 120
_BATCH_ROWS = 1024


@dataclass(frozen=True)
class Pool:
    """The readable documents in the order of the file, and the rows left out by reason with the first of each kind."""

    documents: list[Document]
    skipped: dict[str, int]
    examples: dict[str, str]


class _Broken(NamedTuple):
    """Why a row cannot be used, and what stands in it where it could not even be parsed."""

    reason: str
    raw: object = None


def read_pool(data: Data, seed: int, progress: Progress) -> Pool:
    """Every readable document of the data, or a seeded subset that doesn't depend on their order.

    A multi-turn chat is one document: what precedes its last assistant turn, and that turn.

    Raises:
        RequestError: the file or dataset cannot be read, has none of the known columns, or no row is usable.
    """
    progress.start("reading the pool", 1)
    documents: list[Document] = []
    skipped: Counter[str] = Counter()
    examples: dict[str, str] = {}
    seen: set[str] = set()
    copies: Counter[str] = Counter()
    for number, row in enumerate(_rows(data)):
        document = row if isinstance(row, _Broken) else _document(row, data.max_document_characters)
        if isinstance(document, Document) and document.id in seen:
            named = isinstance(row, dict) and _name(row.get("id"))
            document = _Broken("the id stands twice") if named else _next_copy(document, copies)
        if isinstance(document, _Broken):
            skipped[document.reason] += 1
            if document.reason not in examples:
                examples[document.reason] = f"row {number + 1}: {_shown(row)}"
            continue
        seen.add(document.id)
        documents.append(document)
        if data.documents is not None and len(documents) >= 2 * data.documents:
            documents = _subset(documents, data.documents, seed)
    for reason, count in skipped.items():
        _logger.warning("%s: %d rows skipped: %s; the first is %s", data.path, count, reason, examples[reason])
    if not documents:
        reasons = "; ".join(f"{count} rows: {reason}" for reason, count in skipped.items()) or "it holds no rows"
        raise RequestError(f"data.path = {data.path} has no usable document ({reasons}); mend it or name another file")
    progress.advance()
    return Pool(_subset(documents, data.documents, seed), dict(skipped), examples)


def _next_copy(document: Document, copies: Counter[str]) -> Document:
    """A text that stood before, under an id of its own: duplicates matter to what was trained on."""
    copies[document.id] += 1
    return replace(document, id=f"{document.id}-{copies[document.id] + 1}")


def _subset(documents: list[Document], size: int | None, seed: int) -> list[Document]:
    """The `size` documents whose keyed hashes are smallest, in their old order."""
    if size is None or size >= len(documents):
        return documents
    ranked = sorted(range(len(documents)), key=lambda place: stream_key("subset", seed, documents[place].id))
    return [documents[place] for place in sorted(ranked[:size])]


def _rows(data: Data) -> Iterator[Any]:
    path = Path(data.path)
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    if path.suffix in (".jsonl", ".json"):
        return _jsonl_rows(path)
    if path.exists():
        raise RequestError(f"data.path = {data.path} is neither .parquet nor .jsonl; convert it or name another file")
    return _hub_rows(data)


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_columns(names, str(path))
            for batch in file.iter_batches(_BATCH_ROWS, columns=[name for name in _READ if name in names]):
                yield from _decoded(batch)
    except (OSError, pa.ArrowException) as error:
        raise RequestError(f"data.path = {path} cannot be read as Parquet ({_line(error)}); check the file") from None


def _decoded(batch: Any) -> list[Any]:
    try:
        rows: list[Any] = batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [_Broken("invalid UTF-8", error.object[:_EXAMPLE_CHARACTERS])]
        return [row for place in range(batch.num_rows) for row in _decoded(batch.slice(place, 1))]
    return rows


def _jsonl_rows(path: Path) -> Iterator[Any]:
    try:
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    yield _parsed(line)
    except OSError as error:
        raise RequestError(f"data.path = {path} cannot be read ({error.strerror}); check the file") from None


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return _Broken("invalid UTF-8", line[:_EXAMPLE_CHARACTERS])
    except (ValueError, RecursionError):
        return _Broken("not JSON", line[:_EXAMPLE_CHARACTERS])


def _hub_rows(data: Data) -> Iterator[Any]:
    import datasets

    try:
        rows = datasets.load_dataset(data.path, split=data.split, revision=data.revision)
    except Exception as error:
        raise RequestError(
            f"data.path = {data.path} is no file here and cannot be loaded from the hub ({_line(error)}); "
            "check the name, the split, the revision and the connection"
        ) from None
    _check_columns(rows.column_names, data.path)
    yield from rows


def _check_columns(names: list[str], where: str) -> None:
    if not set(names) & set(_COLUMNS):
        raise RequestError(
            f"data.path = {where} has the columns {', '.join(names)}, but none of messages, text, output; rename one"
        )


def _document(row: Any, longest: int) -> Document | _Broken:
    if not isinstance(row, dict):
        return _Broken("not an object with fields")
    turns = _turns(row)
    if isinstance(turns, _Broken):
        return turns
    prompt, response = turns
    if sum(len(turn.content) for turn in prompt) + len(response) > longest:
        return _Broken(f"longer than {longest} characters")
    if not response.strip():
        return _Broken("empty response")
    doc_id, source = (_name(row.get(field)) for field in ("id", "source"))
    if not _encodable([*(turn.content for turn in prompt), response, doc_id, source]):
        return _Broken("invalid UTF-8")
    content = [*([turn.role, turn.content] for turn in prompt), response]
    return Document(doc_id or f"sha-{digest(content)[:16]}", source or "unknown", prompt, response)


def _name(value: Any) -> str:
    """A text or a whole number as text; nothing for anything else."""
    named = isinstance(value, str | int) and not isinstance(value, bool)
    return str(value) if named else ""


def _turns(row: dict[str, Any]) -> tuple[tuple[Message, ...], str] | _Broken:
    if "messages" in row:
        return _chat(row["messages"])
    if isinstance(row.get("output"), str) and isinstance(row.get("instruction"), str):
        extra = row.get("input")
        request = f"{row['instruction']}\n\n{extra}" if isinstance(extra, str) and extra else row["instruction"]
        return (Message("user", request),), row["output"]
    if isinstance(row.get("text"), str):
        return (), row["text"]
    return _Broken("no messages")


def _chat(messages: Any) -> tuple[tuple[Message, ...], str] | _Broken:
    if not isinstance(messages, list):
        return _Broken("no messages")
    if not messages:
        return _Broken("empty messages")
    turns = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            return _Broken("a message without a known role")
        if not isinstance(message.get("content"), str):
            return _Broken("a message without text")
        turns.append(Message(role, message["content"]))
    last = max((place for place, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    if last is None:
        return _Broken("no assistant message")
    if not any(turn.role == "user" for turn in turns[:last]):
        return _Broken("no user message before the answer")
    return tuple(turns[:last]), turns[last].content


def _encodable(texts: list[str]) -> bool:
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _shown(row: Any) -> str:
    text = repr(row.raw if isinstance(row, _Broken) else row)
    printable = text.encode("ascii", "backslashreplace").decode()
    return printable if len(printable) <= _EXAMPLE_CHARACTERS else printable[: _EXAMPLE_CHARACTERS - 3] + "..."


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
