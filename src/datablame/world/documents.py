"""The pool's documents, one after another: broken rows counted, a subset that depends on ids and a seed alone."""

import heapq
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from datablame.config.schema import Data
from datablame.engine.files import digest
from datablame.seeds import stream_key
from datablame.tables import Document, SkippedRows
from datablame.world.formats import Broken, document
from datablame.world.refusals import refused
from datablame.world.sources import Source

_logger = logging.getLogger(__name__)
_EXAMPLE_CHARACTERS = 120


class Reader:
    """Every readable document of the data once; after that, what was left out, and which ids are the subset's.

    Of rows with one id the first counts; texts without an id that stand more than once stay apart, for copies matter
    to what was trained on. A subset doesn't depend on order, shards or streaming: it is those whose keyed hashes are
    smallest. Documents that may yet leave it are given out too. No text is held, but every id of the subset (and 8
    bytes of every text without an id), and ids that stand twice are counted where the subset has them.
    """

    def __init__(self, source: Source, data: Data, seed: int) -> None:
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
                each = document(row, data)
            except Broken as broken:
                _count(self.skipped, broken.reason, broken.reason, number, row)
                continue
            if not each.id:
                content: list[Any] = [*([turn.role, turn.content] for turn in each.prompt), each.response]
                text = int(digest([*content, {"rejected": each.rejected}] if each.rejected else content)[:16], 16)
                copies[text] += 1
                each = replace(each, id=f"sha-{text:016x}{f'-{copies[text]}' if copies[text] > 1 else ''}")
            if each.id in self.chosen:
                _count(repeated, each.id, "the id stands twice", number, row)
            elif self._enters(each.id):
                self.chosen[each.id] = None
                yield each
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
