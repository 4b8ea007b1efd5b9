"""The pool's documents, one after another: broken rows counted file by file, a subset by ids and a seed alone."""

import heapq
import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from datablame.config.schema import Data
from datablame.engine.files import digest
from datablame.seeds import stream_key
from datablame.tables import DataSummary, Document, FileRows, SkippedRows
from datablame.world.conversations import Broken
from datablame.world.refusals import refused
from datablame.world.rows import check_answers, document

if TYPE_CHECKING:
    from datablame.world.sources import Source

_logger = logging.getLogger(__name__)
_EXAMPLE_CHARACTERS, _FILE_CHARACTERS = 120, 40


class Reader:
    """Every readable document of the data once; after that, what was left out, and which ids are the subset's.

    Of rows with one id and one text the first counts; another text gets an id of its own, made of both. Copies without
    an id stay apart, for they matter to what was trained on. A subset doesn't depend on shards or streaming: it is
    those whose keyed hashes are smallest. Documents that may yet leave it are given out too. No text is held, but
    every id of the subset, and 16 bytes of every row.
    """

    def __init__(self, source: "Source", data: Data, seed: int, most_rows: int | None = None) -> None:
        self.chosen: dict[str, str] = {}
        """The ids of the pool with the files that they come from, known at the end."""
        self._source, self._data, self._seed, self._most_rows = source, data, seed, most_rows
        self._rows = Counter[str](dict.fromkeys(source.files, 0))
        self._skipped: dict[str, dict[str, SkippedRows]] = {file: {} for file in source.files}
        self._unread, self._renamed = Counter[str](), 0
        self._texts, self._copies = dict[int, int](), Counter[int]()
        self._largest: list[tuple[int, str]] = []
        """A heap of the subset's negative hashes."""

    def __iter__(self) -> Iterator[Document]:
        """In the order of the data; RequestError where it cannot be read, lacks a named column or has no usable row.

        Of the first rows alone it is refused where none has columns: what they lack may come later.
        """
        data, columns, absent = self._data, list[str](), set(self._data.columns.values())
        repeated: dict[tuple[str, str], SkippedRows] = {}
        for file, row in itertools.islice(self._source.rows, self._most_rows):
            self._rows[file] += 1
            if isinstance(row, dict):
                if not columns:
                    columns = list(row)
                    check_answers(columns, data, data.path)
                absent.difference_update(row)
            try:
                parsed, unread = document(row, data)
            except (Broken, RecursionError) as error:
                broken = error if isinstance(error, Broken) else Broken("nested too deeply", "")
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
        if sum(self._rows.values()) == self._most_rows and (columns or self.chosen):
            return
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
    try:
        text = repr(row).encode("ascii", "backslashreplace").decode()
    except RecursionError:
        text = "..."
    short = text if len(text) <= _EXAMPLE_CHARACTERS else text[: _EXAMPLE_CHARACTERS - 3] + "..."
    skipped[key] = SkippedRows(reason, 1, f"{where}: {short}")
