"""The pool as one table on disk, read, tokenised and clustered once, and what a study asks of it before it runs.

Memory does not grow with the texts. What a pool does not give is refused in one line before anything is written.
"""

import contextlib
import itertools
import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datablame.config.schema import Study
from datablame.errors import RequestError
from datablame.tables import Document, Message, PoolSummary, object_of
from datablame.world.refusals import refused

if TYPE_CHECKING:
    from datablame.models.chat import Encoded, Preference
    from datablame.world.world import World

_logger = logging.getLogger(__name__)
DOCUMENT = ("id", "source", "prompt", "response", "rejected")
_ANSWERS = (("token_ids", "prompt_tokens"), ("rejected_ids", "rejected_prompt_tokens"))
_INDEX = ("id", "source", "characters", "tokens", "cluster")
_SUFFIX_CHARACTERS = len("-0123456789abcdef")
"""Of an id that was made of one that another text has."""
_READ_TOGETHER = 512
"""Documents for which each row group is read once, in whatever order they are wanted."""
KEY = b"datablame.pool"
"""The metadata of the file that says what the pool was made of."""


class Pool:
    """The documents that can be ranked, by row number in the order of the data.

    Columns: those of `Document`, then `characters`, `tokens` (the longer answer's, with its prompt), `cluster`,
    `token_ids`, `prompt_tokens`, and of pairs `rejected_ids`, `rejected_prompt_tokens`. The prompt's token ids stand
    in both answers' lists.
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
        """The digest of what the pool was made of; None where it is not there whole."""
        try:
            metadata = pq.read_schema(self.path).metadata or {}
            if object_of(self.path.with_name("pool.json"), PoolSummary) is None:
                return None
        except (OSError, pa.ArrowException, RequestError):
            return None
        return str(metadata.get(KEY, b""), "utf-8")

    @cached_property
    def summary(self) -> PoolSummary:
        """What the pool holds and what was left out of it."""
        summary = object_of(self.path.with_name("pool.json"), PoolSummary)
        assert summary is not None
        return summary

    @cached_property
    def ids(self) -> list[str]:
        """Ids by row."""
        return self.column("id")

    @cached_property
    def row_of(self) -> Mapping[str, int]:
        """Rows by id."""
        return {doc_id: row for row, doc_id in enumerate(self.ids)}

    @cached_property
    def clusters(self) -> NDArray[np.int64]:
        """Duplicate clusters by row, numbered by first appearance."""
        return np.asarray(self._index["cluster"].to_numpy())

    def column(self, name: str) -> list[Any]:
        """`id`, `source`, `characters` (of the full text), `tokens` (of a pair the longer answer's) or `cluster`."""
        return list(self._index[name].to_pylist())

    @cached_property
    def response_tokens(self) -> NDArray[np.int64]:
        """Tokens by row that are in the loss: those after the prompt, of a pair those of both answers."""
        counts = []
        with pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                counts.append(np.zeros(file.metadata.row_group(group).num_rows, dtype=np.int64))
                for ids, prompt in _ANSWERS:
                    table = file.read_row_group(group, columns=[ids, prompt])
                    tokens = pc.subtract(pc.list_value_length(table[ids]), table[prompt])
                    counts[-1] += pc.fill_null(tokens, 0).to_numpy()
        return np.concatenate(counts)

    def documents(self, rows: Iterable[int] | None = None) -> Iterator[Document]:
        """The documents of the given rows in their order, or all of them; texts are read as they are asked for."""
        return map(as_document, self._read(DOCUMENT, rows))

    def encoded(self, rows: Sequence[int]) -> "list[Encoded | Preference]":
        """The token ids of the given rows, in their order."""
        from datablame.models.chat import Encoded, Preference

        examples: list[Encoded | Preference] = []
        for row in self._read(("token_ids", "rejected_ids", "prompt_tokens", "rejected_prompt_tokens"), rows):
            answer, rejected = Encoded(row["token_ids"], row["prompt_tokens"]), row["rejected_ids"]
            pair = rejected is not None
            examples.append(Preference(answer, Encoded(rejected, row["rejected_prompt_tokens"])) if pair else answer)
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


def check_pool(world: "World", summary: PoolSummary, pool: Pool) -> None:
    """Refuse a pool, in its place or not yet, that the study cannot use.

    Raises RequestError as `check_kind`, `check_count` and `check_lengths`, the last of the longest document as it was
    cut, where planted documents go by an id that several texts have, and where truth or precomputed scores name
    documents of another pool.
    """
    check_kind(world.study, [summary.pairs])
    check_count(world.study, summary.documents, summary.clusters)
    check_lengths(world.study, max(pool.column("tokens")), world.contexts)
    if summary.data.renamed:
        planted = frozenset[str]().union(*(world.truth or {}).values())
        shared = {name for doc_id in pool.ids if (name := doc_id[:-_SUFFIX_CHARACTERS]) in planted}
        if shared:
            raise refused("shared id", study=world.study, n=len(shared), first=min(shared))
    for name, path in world.study.attribute.scores.items():
        documents: dict[str, None] = {}
        with Path(path).expanduser().open(encoding="utf-8", errors="replace") as file:
            for line in file:
                # What is wrong with a row is said where scores are read.
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    documents[json.loads(line)["doc_id"]] = None
        if strangers := [doc_id for doc_id in documents if doc_id not in pool.row_of]:
            raise refused("other pool", name=name, path=path, n=len(strangers), of=len(documents), first=strangers[0])
    for behaviour, planted in (world.truth or {}).items():
        if absent := sorted(planted - pool.row_of.keys()):
            if len(absent) == len(planted) and world.data.documents is None:
                values = {"study": world.study, "behaviour": behaviour, "n": len(planted), "first": absent[0]}
                raise refused("truth of another pool", **values)
            which = f"{len(absent)} of {len(planted)} documents that truth names for {behaviour}"
            _logger.warning("%s are not in the pool and count nowhere; the first is %s", which, absent[0])


def check_lengths(study: Study, longest: int, contexts: Mapping[str, int]) -> None:
    """Raises RequestError where the longest document, or output beside it, in tokens, is longer than a context."""
    for field, context in contexts.items():
        if longest > context:
            raise refused("long document", study=study, longest=longest, context=context, field=field)


def check_count(study: Study, documents: int, clusters: int | None = None) -> None:
    """Refuse more flagged documents, or a larger fine-tune set, than a pool of at most so many documents allows.

    Raises RequestError where `attribute.top_k` or `patch.k` is above the number of clusters, or `patch.size` leaves
    fewer documents than have to be replaced at least.
    """
    settings, patch, k = study.attribute, study.patch, study.ks[-1]
    most, what = (documents, "documents") if clusters is None else (clusters, "duplicate clusters")
    # A method of the user's own may have scores for fewer documents than it could flag.
    flags = any(arm in settings.methods and arm not in settings.scores for arm in patch.arms)
    least, left, is_filled = k if flags else 0, documents - patch.size, patch.intervention != "swap"
    problems = {
        "large top_k": settings.top_k > most,
        "large k": k > most,
        "small size": least > patch.size,
        "no fillers": is_filled and left <= 0,
        "few fillers": is_filled and left < least,
    }
    values = {"k": k, "most": most, "what": what, "least": least, "left": left, "documents": documents}
    for name, holds in problems.items():
        if holds:
            raise refused(name, study=study, **values)


def check_kind(study: Study, pairs: Collection[bool]) -> None:
    """Refuse documents, some or all of a pool, of which `pairs` says whether they are preference pairs.

    Raises RequestError where there are both kinds, or none are pairs where arms exchange a pair's answers.
    """
    if len(set(pairs)) > 1:
        raise refused("two kinds", study=study)
    if study.patch.intervention == "swap" and set(pairs) == {False}:
        raise refused("nothing to swap", study=study)
