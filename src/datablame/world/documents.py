"""The pool's documents, one after another: broken rows counted, a subset that depends on ids and a seed alone."""

import heapq
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from datablame.config.schema import Data
from datablame.engine.execute import Progress
from datablame.errors import RequestError
from datablame.seeds import stream_key
from datablame.tables import Document, SkippedRows
from datablame.world.formats import Broken, document, is_named
from datablame.world.sources import Source, open_source

_logger = logging.getLogger(__name__)
_EXAMPLE_CHARACTERS = 120
_TWICE = "the id stands twice"


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
        self.skipped: dict[str, int] = {}
        """Rows left out by reason."""
        self.examples: dict[str, str] = {}
        """The first of each."""
        self._source, self._data, self._seed = source, data, seed
        self._largest: list[tuple[int, str]] = []
        """A heap of the subset's negative hashes."""
        self._repeated: dict[str, tuple[int, str]] = {}
        self._copies: Counter[int] = Counter()

    def __iter__(self) -> Iterator[Document]:
        """The documents in the order of the data.

        Raises:
            RequestError: the data cannot be read, lacks a column that the study names, or no row is usable.
        """
        absent, columns = set(self._data.columns.values()), list[str]()
        for number, row in enumerate(self._source.rows):
            if isinstance(row, Mapping):
                columns = columns or list(row)
                absent.difference_update(row)
            each = document(row, self._data)
            if isinstance(each, Broken):
                self._skip(each.reason, 1, _example(number, row))
                continue
            if not is_named(row, self._data):
                each = self._numbered(each)
            if each.id in self.chosen:
                count, first = self._repeated.get(each.id, (0, ""))
                self._repeated[each.id] = count + 1, first or _example(number, row)
            elif self._enters(each.id):
                self.chosen[each.id] = None
                yield each
        self._check(absent, columns)
        for doc_id in self.chosen:
            if doc_id in self._repeated:
                self._skip(_TWICE, *self._repeated[doc_id])
        self._log()

    @property
    def skipped_rows(self) -> tuple[SkippedRows, ...]:
        """What was left out, as the pool's summary has it."""
        return tuple(SkippedRows(reason, n, self.examples.get(reason)) for reason, n in self.skipped.items())

    def _skip(self, reason: str, count: int, example: str) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + count
        self.examples.setdefault(reason, example)

    def _numbered(self, each: Document) -> Document:
        """A text without an id; one that stood before gets an id of its own."""
        text = int(each.id.removeprefix("sha-"), 16)
        self._copies[text] += 1
        return each if self._copies[text] == 1 else replace(each, id=f"{each.id}-{self._copies[text]}")

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

    def _check(self, absent: set[str], columns: list[str]) -> None:
        """Refuse a pool without documents, or one no row of which has a column that the study names."""
        data, names = self._data, ", ".join(columns) or "none"
        for role, name in data.columns.items():
            if name in absent and columns:
                raise RequestError(
                    f"data.columns.{role} = {name} is no column of {data.path}; the first row has {names}"
                )
        if not self.chosen:
            reasons = "; ".join(f"{n} rows: {reason}" for reason, n in self.skipped.items()) or "it holds no rows"
            have = f"; the columns are {names}" if columns else ""
            raise RequestError(
                f"data.path = {data.path} has no usable document ({reasons}{have}); mend it, name another file, "
                "or say in data.columns what the columns hold"
            )

    def _log(self) -> None:
        data, usable, commit = self._data, len(self.chosen), self._source.commit
        for reason, count in self.skipped.items():
            _logger.warning("%s: %d rows skipped: %s; the first is %s", data.path, count, reason, self.examples[reason])
        if data.documents is not None and usable < data.documents:
            _logger.warning(
                "data.documents = %d, but %s has %d usable; all are taken", data.documents, data.path, usable
            )
        if commit is not None and data.revision is None:
            _logger.warning(
                "%s was read at commit %s; name it as data.revision to read the same again", data.path, commit
            )


@dataclass(frozen=True)
class Documents:
    """The documents of a pool that is small enough to be held, and the rows left out by reason."""

    documents: list[Document]
    skipped: dict[str, int]
    examples: dict[str, str]
    commit: str | None = None


def read_pool(data: Data, seed: int, progress: Progress) -> Documents:
    """The whole pool at once, as `Reader` gives it.

    Raises:
        RequestError: as `Reader`.
    """
    progress.start("reading the pool", 1)
    source = open_source(data)
    reader = Reader(source, data, seed)
    documents = list(reader)
    progress.advance()
    chosen = [each for each in documents if each.id in reader.chosen]
    return Documents(chosen, reader.skipped, reader.examples, source.commit)


def _example(number: int, row: Any) -> str:
    text = repr(row.raw if isinstance(row, Broken) else row)
    printable = text.encode("ascii", "backslashreplace").decode()
    short = printable if len(printable) <= _EXAMPLE_CHARACTERS else printable[: _EXAMPLE_CHARACTERS - 3] + "..."
    return f"row {number + 1}: {short}"
