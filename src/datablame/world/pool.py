"""The pool as one table on disk: read once, tokenised once, clustered once; memory does not grow with the texts."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datablame.tables import Document, Message, PoolSummary, object_of

if TYPE_CHECKING:
    from datablame.models.chat import Encoded, Preference

DOCUMENT = ("id", "source", "prompt", "response", "rejected")
_INDEX = ("id", "source", "characters", "tokens", "cluster")
_READ_TOGETHER = 512
"""Documents for which each row group is read once, in whatever order they are wanted."""
KEY = b"datablame.pool"
"""The metadata of the file that says what the pool was made of."""


class Pool:
    """The documents that can be ranked, by row number in the order of the data.

    Columns: those of `Document`, then `characters`, `tokens` (the longer answer's, with its prompt), `cluster`,
    `token_ids`, `prompt_tokens`, and of pairs `rejected_ids`. The prompt's token ids stand in both answers' lists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        """Pickled as its path."""
        return Pool, (self.path,)

    def __len__(self) -> int:
        """The number of documents."""
        return self.summary.documents

    @property
    def key(self) -> str | None:
        """The digest of what the pool was made of; None where it is not there."""
        if not self.path.exists():
            return None
        return str((pq.read_schema(self.path).metadata or {}).get(KEY, b""), "utf-8")

    @cached_property
    def summary(self) -> PoolSummary:
        """What the pool holds and what was left out of it."""
        summary = object_of(self.path.with_name("pool.json"), PoolSummary)
        assert summary is not None
        return summary

    @property
    def pairs(self) -> bool:
        """Whether the documents are preference pairs."""
        return self.summary.pairs

    @cached_property
    def ids(self) -> list[str]:
        """Ids by row."""
        return list(self._index["id"].to_pylist())

    @cached_property
    def row_of(self) -> Mapping[str, int]:
        """Rows by id."""
        return {doc_id: row for row, doc_id in enumerate(self.ids)}

    @cached_property
    def sources(self) -> list[str]:
        """Sources by row."""
        return list(self._index["source"].to_pylist())

    @cached_property
    def characters(self) -> NDArray[np.int64]:
        """Lengths of the full texts by row."""
        return np.asarray(self._index["characters"].to_numpy())

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        """Token counts by row; of a pair the longer answer's."""
        return np.asarray(self._index["tokens"].to_numpy())

    @cached_property
    def clusters(self) -> NDArray[np.int64]:
        """Duplicate clusters by row, numbered by first appearance."""
        return np.asarray(self._index["cluster"].to_numpy())

    @cached_property
    def cluster_of(self) -> Mapping[str, int]:
        """Duplicate clusters by document id."""
        return dict(zip(self.ids, self.clusters.tolist(), strict=True))

    def documents(self, rows: Iterable[int] | None = None) -> Iterator[Document]:
        """The documents of the given rows in their order, or all of them; texts are read as they are asked for."""
        return map(as_document, self._read(DOCUMENT, rows))

    def encoded(self, rows: Sequence[int]) -> "list[Encoded | Preference]":
        """The token ids of the given rows, in their order."""
        from datablame.models.chat import Encoded, Preference

        examples: list[Encoded | Preference] = []
        for row in self._read(("token_ids", "rejected_ids", "prompt_tokens"), rows):
            answer, rejected = Encoded(row["token_ids"], row["prompt_tokens"]), row["rejected_ids"]
            pair = rejected is not None
            examples.append(Preference(answer, Encoded(rejected, row["prompt_tokens"])) if pair else answer)
        return examples

    @cached_property
    def _index(self) -> pa.Table:
        return pq.read_table(self.path, columns=list(_INDEX))

    def _read(self, columns: Sequence[str], rows: Iterable[int] | None) -> Iterator[dict[str, Any]]:
        """Rows as mappings, some hundred at a time, for which only the row groups that hold them are read."""
        with pq.ParquetFile(self.path) as file:
            starts = np.cumsum([0, *(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))])
            wanted = iter(range(int(starts[-1])) if rows is None else rows)
            while chunk := list(itertools.islice(wanted, _READ_TOGETHER)):
                groups = np.searchsorted(starts, chunk, side="right") - 1
                values: dict[int, dict[str, Any]] = {}
                for group in np.unique(groups).tolist():
                    inside = sorted({row for row, of in zip(chunk, groups.tolist(), strict=True) if of == group})
                    table = file.read_row_group(group, columns=list(columns))
                    taken = table.take([row - int(starts[group]) for row in inside])
                    values.update(zip(inside, taken.to_pylist(), strict=True))
                yield from (values[row] for row in chunk)


def as_document(row: Mapping[str, Any]) -> Document:
    """A row of the file as a document."""
    turns = tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])
    return Document(row["id"], row["source"], turns, row["response"], row["rejected"])
