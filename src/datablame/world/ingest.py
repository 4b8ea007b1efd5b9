"""The pool's file: rows stream into a draft, worker processes tokenise them, duplicates are linked, then it is there.

Never more than some row groups are held, however many or long the documents are: besides, of each document its id, its
place among the duplicates and its hashes, about 700 bytes. Equal documents give equal bytes, with any number of
workers.
"""

import functools
import logging
import operator
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from datablame.config.schema import Study
from datablame.engine.execute import Execution, Progress, run_items
from datablame.engine.files import write_atomic
from datablame.errors import RequestError
from datablame.tables import Document, PoolSummary, encoded, path_of, schema_of
from datablame.world.checks import check_kind, check_pool
from datablame.world.documents import Reader
from datablame.world.duplicates import Duplicates, Hashes, full_text, hashed
from datablame.world.pool import KEY, Pool, as_document
from datablame.world.sources import Source
from datablame.world.world import World

_logger = logging.getLogger(__name__)
_GROUP_ROWS, _GROUP_CHARACTERS = 512, 1 << 20
"""A row group of the file ends with the document that fills it; it is one work item."""
_TRUNCATED = "nothing of the response is left within attribute.max_tokens"
_REFUSED = "the chat template refuses its order of roles"
_LENGTHS, _IDS = ("characters", "tokens", "prompt_tokens"), ("token_ids", "rejected_ids")
_SCHEMA = pa.schema(
    [
        *schema_of(Document),
        *(pa.field(name, pa.int64()) for name in _LENGTHS),
        *(pa.field(name, pa.list_(pa.int32())) for name in _IDS),
    ]
)


class _Tokenised(NamedTuple):
    """What a worker makes of a row group."""

    table: pa.Table
    hashes: list[Hashes]
    excluded: Counter[str]


def write_pool(world: World, source: Source, *, execution: Execution, progress: Progress) -> None:
    """Read, tokenise, cluster and check the pool, and put `pool.parquet` and `pool.json` in their places.

    Raises:
        RequestError: the data cannot be read or used; nothing is left in the run folder.
    """
    path = world.pool.path
    missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    for left in path.parent.glob("pool.*.part"):  # by a kill
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    try:
        with tempfile.TemporaryDirectory(prefix="pool.", suffix=".part", dir=path.parent) as scratch:
            summary = _drafted(world, source, Path(scratch), part, execution, progress)
        check_pool(world, summary, Pool(part))
        write_atomic(path_of(PoolSummary, world.root), encoded(PoolSummary, summary))
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        for folder in missing:
            if not any(folder.iterdir()):
                folder.rmdir()
        raise


def _drafted(
    world: World, source: Source, scratch: Path, part: Path, execution: Execution, progress: Progress
) -> PoolSummary:
    """Write the whole pool to `part`."""
    progress.start("world: reading the pool", 1)
    reader = Reader(source, world.data, world.seed)
    raw, tokenised = scratch / "documents.parquet", scratch / "tokenised.parquet"
    with pq.ParquetWriter(raw, schema_of(Document), compression="lz4") as writer:
        for rows in _groups(reader, world.study):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema_of(Document)))
    progress.advance()
    settings, excluded, read = world.study.attribute, Counter[str](), len(reader.chosen)
    with tempfile.TemporaryFile(dir=scratch) as shingles, pq.ParquetFile(raw) as file:
        duplicates = Duplicates(settings.duplicate_threshold, shingles)
        items = _items(file, reader.chosen)
        reader.chosen.clear()
        with pq.ParquetWriter(tokenised, _SCHEMA, compression="lz4") as writer:

            def take(made: _Tokenised) -> None:
                excluded.update(made.excluded)
                for hashes in made.hashes:
                    duplicates.add(hashes)
                if len(made.table):
                    writer.write_table(made.table)

            run_items(
                functools.partial(_tokeniser, world.study, raw),
                operator.call,
                items,
                execution=execution,
                done=_in_order(list(items), take),
                progress=progress,
                description="world: tokenising the pool",
                units=lambda item: len(item[1]),
            )
        clusters = duplicates.clusters()
    for reason, lost in excluded.items():
        _logger.warning("%d of %d documents are excluded: %s", lost, read, reason)
    if not clusters:
        raise RequestError(
            f"attribute.max_tokens = {settings.max_tokens} cuts away the response of every document; raise it"
            if excluded[_TRUNCATED]
            else f"data: of all {read} documents, {_REFUSED}; mend the data"
        )
    return PoolSummary(
        documents=len(clusters),
        clusters=max(clusters) + 1,
        pairs=_with_clusters(tokenised, part, clusters, world.pool_key),
        excluded=dict(excluded),
        skipped=tuple(reader.skipped.values()),
        commit=source.commit,
    )


def _groups(documents: Iterable[Document], study: Study) -> Iterator[list[dict[str, Any]]]:
    """The rows of one row group after another; all are pairs or none is."""
    rows: list[dict[str, Any]] = []
    characters, kinds = 0, set[bool]()
    for document in documents:
        if bool(document.rejected) not in kinds:
            kinds.add(bool(document.rejected))
            check_kind(study, kinds)
        rows.append(asdict(document))
        characters += len(full_text(document))
        if len(rows) == _GROUP_ROWS or characters >= _GROUP_CHARACTERS:
            yield rows
            rows, characters = [], 0
    if rows:
        yield rows


def _items(file: pq.ParquetFile, chosen: Mapping[str, None]) -> dict[str, tuple[int, list[int]]]:
    """Row groups with the rows of them that belong to the pool, the whole pool for once not being known before."""
    items = {}
    for group in range(file.num_row_groups):
        ids = file.read_row_group(group, columns=["id"])["id"].to_pylist()
        if rows := [row for row, doc_id in enumerate(ids) if doc_id in chosen]:
            items[str(group)] = group, rows
    return items


def _in_order(keys: Sequence[str], take: Callable[[_Tokenised], None]) -> Callable[[str, _Tokenised], None]:
    """Results as they come, taken in the order of their keys."""
    waiting: dict[str, _Tokenised] = {}
    remaining = list(reversed(keys))

    def done(key: str, result: _Tokenised) -> None:
        waiting[key] = result
        while remaining and remaining[-1] in waiting:
            take(waiting.pop(remaining.pop()))

    return done


def _tokeniser(study: Study, raw: Path) -> Callable[[tuple[int, list[int]]], _Tokenised]:
    """What a worker does with a row group: of each document that the template renders, what is left of its answers."""
    from datablame.models.chat import answers, encode_document, encode_preference
    from datablame.models.pair import study_tokenizer

    tokenizer, settings, file = study_tokenizer(study), study.attribute, pq.ParquetFile(raw)

    def tokenise(item: tuple[int, list[int]]) -> _Tokenised:
        group, chosen = item
        rows, hashes, excluded = [], [], Counter[str]()
        for fields in file.read_row_group(group).take(chosen).to_pylist():
            document = as_document(fields)
            encode: Any = encode_preference if document.rejected else encode_document
            try:
                example = encode(tokenizer, document, settings.max_tokens)
            except RequestError:
                excluded[_REFUSED] += 1
                continue
            if example is None:
                excluded[_TRUNCATED] += 1
                continue
            text, encoded = full_text(document), answers(example)
            lengths = (len(text), max(len(answer.ids) for answer in encoded), encoded[0].prompt_tokens)
            ids = [pa.array(answer.ids, pa.int32()) for answer in encoded]
            rows.append({**fields, **dict(zip(_LENGTHS, lengths, strict=True)), **dict(zip(_IDS, ids, strict=False))})
            hashes.append(hashed(text, settings.duplicate_threshold))
        return _Tokenised(pa.Table.from_pylist(rows, schema=_SCHEMA), hashes, excluded)

    return tokenise


def _with_clusters(tokenised: Path, part: Path, clusters: Sequence[int], key: str) -> bool:
    """Write the file in whole; returns whether it holds pairs."""
    at = _SCHEMA.get_field_index("prompt_tokens")
    schema = _SCHEMA.insert(at, pa.field("cluster", pa.int64())).with_metadata({KEY: key.encode()})
    start = 0
    with part.open("wb") as stream, pq.ParquetFile(tokenised) as file:
        with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                numbers = pa.array(clusters[start : start + len(table)], pa.int64())
                writer.write_table(table.add_column(at, "cluster", numbers).cast(schema))
                start += len(table)
                pairs = bool(table["rejected"][0].as_py())
        stream.flush()
        os.fsync(stream.fileno())
    return pairs
