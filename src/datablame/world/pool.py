"""The pool as one table on disk: read once, tokenised once, clustered once; memory does not grow with the texts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datablame.tables import Document, Message, PoolSummary, object_of

if TYPE_CHECKING:
    from datablame.models.chat import Encoded, Preference


_INDEX = ("id", "source", "characters", "tokens", "cluster")


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
        return len(self.ids)

    @cached_property
    def summary(self) -> PoolSummary:
        """What the pool holds and what was left out of it."""
        found = object_of(self.path.with_name("pool.json"), PoolSummary)
        assert found is not None
        return found

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
        for each in self._read(("id", "source", "prompt", "response", "rejected"), rows):
            turns = tuple(Message(turn["role"], turn["content"]) for turn in each["prompt"])
            yield Document(each["id"], each["source"], turns, each["response"], each["rejected"])

    def encoded(self, rows: Sequence[int]) -> "list[Encoded | Preference]":
        """The token ids of the given rows, in their order."""
        from datablame.models.chat import Encoded, Preference

        found: list[Encoded | Preference] = []
        for each in self._read(("token_ids", "rejected_ids", "prompt_tokens"), rows):
            answer = Encoded(each["token_ids"], each["prompt_tokens"])
            pair = each["rejected_ids"] is not None
            found.append(Preference(answer, Encoded(each["rejected_ids"], each["prompt_tokens"])) if pair else answer)
        return found

    @cached_property
    def _index(self) -> Any:
        import pyarrow.parquet as pq

        return pq.read_table(self.path, columns=list(_INDEX))

    def _read(self, columns: Sequence[str], rows: Iterable[int] | None) -> Iterator[dict[str, Any]]:
        """Rows as mappings; only the row groups that hold them are read, one at a time."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            starts = np.cumsum([0, *(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))])
            group, held = -1, None
            for row in range(int(starts[-1])) if rows is None else rows:
                wanted = int(np.searchsorted(starts, row, side="right")) - 1
                if wanted != group:
                    group, held = wanted, file.read_row_group(wanted, columns=list(columns)).to_pylist()
                assert held is not None
                yield held[row - int(starts[group])]
