"""The pool: documents, broken rows skipped and counted, and a subset that depends on the documents and a seed alone."""

import heapq
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from datablame.engine.execute import Progress
from datablame.errors import RequestError
from datablame.seeds import stream_key
from datablame.study.schema import Data
from datablame.tables import Document
from datablame.world.formats import document, is_named
from datablame.world.rows import open_source
from datablame.world.turns import Broken

_logger = logging.getLogger(__name__)
_EXAMPLE_CHARACTERS = 120
_TWICE = "the id stands twice"


@dataclass(frozen=True)
class Pool:
    """The readable documents in the order of the data, and the rows left out by reason with the first of each kind."""

    documents: list[Document]
    skipped: dict[str, int]
    examples: dict[str, str]
    commit: str | None = None
    """What the revision of a hub dataset stood for."""


def read_pool(data: Data, seed: int, progress: Progress) -> Pool:
    """Every readable document of the data, or a seeded subset that doesn't depend on order, shards or streaming.

    Of rows with one id the first counts; texts without an id that stand more than once are kept apart, for copies
    matter to what was trained on. With a subset, never more than twice its size is held (and 8 bytes of every text
    without an id), and ids that stand twice are counted where the subset has them.

    Raises:
        RequestError: the data cannot be read, lacks a column, or no row is usable.
    """
    progress.start("reading the pool", 1)
    source = open_source(data)
    pool = _pool(source.rows, data, seed)
    for reason, count in pool.skipped.items():
        _logger.warning("%s: %d rows skipped: %s; the first is %s", data.path, count, reason, pool.examples[reason])
    usable = len(pool.documents)
    if data.documents is not None and usable < data.documents:
        _logger.warning("data.documents = %d, but %s has %d usable; all are taken", data.documents, data.path, usable)
    if source.commit is not None and data.revision is None:
        _logger.warning(
            "%s was read at commit %s; name it as data.revision to read the same again", data.path, source.commit
        )
    progress.advance()
    return replace(pool, commit=source.commit)


def _pool(rows: Iterable[Any], data: Data, seed: int) -> Pool:
    kept: dict[str, Document] = {}
    again: dict[str, list[str]] = {}
    copies: Counter[int] = Counter()
    skipped: Counter[str] = Counter()
    examples: dict[str, str] = {}
    absent = set(data.columns.values())
    columns: list[str] = []
    bound = None
    for number, row in enumerate(rows):
        if isinstance(row, Mapping):
            columns = columns or list(row)
            absent.difference_update(row)
        each = document(row, data)
        if isinstance(each, Broken):
            skipped[each.reason] += 1
            examples.setdefault(each.reason, _example(number, row))
            continue
        if not is_named(row, data):
            each = _numbered(each, copies)
        if bound is not None and _key(each.id, seed) > bound:
            continue
        if each.id in kept:
            again.setdefault(each.id, []).append(_example(number, row))
            continue
        kept[each.id] = each
        if data.documents is not None and len(kept) >= 2 * data.documents:
            kept, bound = _smallest(kept, data.documents, seed)
    _check(data, absent, columns, skipped, kept)
    if data.documents is not None and len(kept) > data.documents:
        kept, _ = _smallest(kept, data.documents, seed)
    twice = [example for doc_id in kept for example in again.get(doc_id, ())]
    if twice:
        skipped[_TWICE], examples[_TWICE] = len(twice), twice[0]
    return Pool(list(kept.values()), dict(skipped), examples)


def _numbered(each: Document, copies: Counter[int]) -> Document:
    """A text without an id; one that stood before gets an id of its own."""
    text = int(each.id.removeprefix("sha-"), 16)
    copies[text] += 1
    return each if copies[text] == 1 else replace(each, id=f"{each.id}-{copies[text]}")


def _key(doc_id: str, seed: int) -> int:
    return stream_key("subset", seed, doc_id)


def _smallest(documents: Mapping[str, Document], size: int, seed: int) -> tuple[dict[str, Document], int]:
    """The `size` documents whose keyed hashes are smallest, in their old order, and the largest of these hashes.

    The bound only falls as documents come: what is beyond it once never belongs to the subset, nor does its copy.
    """
    ranked = heapq.nsmallest(size, ((_key(doc_id, seed), doc_id) for doc_id in documents))
    chosen = {doc_id for _, doc_id in ranked}
    return {doc_id: each for doc_id, each in documents.items() if doc_id in chosen}, ranked[-1][0]


def _check(
    data: Data, absent: Iterable[str], columns: list[str], skipped: Mapping[str, int], kept: Mapping[str, Document]
) -> None:
    """Refuse a pool without documents, or one no row of which has a column that the study names."""
    there = ", ".join(columns) or "none"
    for role, name in data.columns.items():
        if name in absent and columns:
            raise RequestError(f"data.columns.{role} = {name} is no column of {data.path}; the first row has {there}")
    if not kept:
        reasons = "; ".join(f"{count} rows: {reason}" for reason, count in skipped.items()) or "it holds no rows"
        have = f"; the columns are {there}" if columns else ""
        raise RequestError(
            f"data.path = {data.path} has no usable document ({reasons}{have}); mend it, name another file, "
            "or say in data.columns what the columns hold"
        )


def _example(number: int, row: Any) -> str:
    text = repr(row.raw if isinstance(row, Broken) else row)
    printable = text.encode("ascii", "backslashreplace").decode()
    short = printable if len(printable) <= _EXAMPLE_CHARACTERS else printable[: _EXAMPLE_CHARACTERS - 3] + "..."
    return f"row {number + 1}: {short}"
