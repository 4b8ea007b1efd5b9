"""The pool's file: rows stream into a draft, worker processes tokenise them, duplicates are linked, then it is there.

Never more than some row groups are held, and of each document its id, its place among the duplicates and its hashes,
about 900 bytes. Equal documents give equal bytes, with any number of workers.
"""

import functools
import logging
import operator
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datablame.config.schema import Data, Study
from datablame.engine.execute import Execution, Progress, run_items
from datablame.engine.files import write_atomic
from datablame.tables import DataSummary, Document, LargestCluster, PoolSummary, encoded, path_of, schema_of
from datablame.world.documents import Reader
from datablame.world.duplicates import Hashes, clusters, full_text, hashed
from datablame.world.identity import data_identity
from datablame.world.pool import KEY, Pool, as_document, check_kind, check_pool
from datablame.world.refusals import refused
from datablame.world.sources import Source, is_local, open_source, pool_files
from datablame.world.world import World

_logger = logging.getLogger(__name__)
_GROUP_ROWS, _GROUP_CHARACTERS = 512, 1 << 20
"""A row group of the file ends with the document that fills it; it is one work item."""
FIRST_ROWS = 1000
"""Looked at of data that is not read whole, so that it takes a second or two."""
_TRUNCATED = "nothing of the response is left within attribute.max_tokens"
_NO_ROW = "a token of it has no row in the embedding of a checkpoint"
_EQUAL = "both answers are the same within attribute.max_tokens"
_COLUMNS = {
    **{name: pa.int64() for name in ("characters", "tokens", "cluster", "prompt_tokens", "rejected_prompt_tokens")},
    **{name: pa.list_(pa.int32()) for name in ("token_ids", "rejected_ids")},
}
"""The pool's columns besides those of `Document`."""
_SCHEMA = pa.schema([*schema_of(Document), *map(pa.field, _COLUMNS, _COLUMNS.values())])
_DRAFT = pa.schema([*_SCHEMA, *(pa.field(name, pa.binary()) for name in Hashes._fields)])


def write_pool(world: World, source: Source, *, execution: Execution, progress: Progress) -> None:
    """Read, tokenise, cluster and check the pool, and put `pool.parquet` and `pool.json` in their places.

    Raises RequestError where the data cannot be read or used, or is not what the world names any more; then nothing is
    left in the run folder.
    """
    path = world.pool.path
    missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    for left in path.parent.glob("pool.*.part"):  # by a kill
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    try:
        where: Any = {"prefix": "pool.", "suffix": ".part", "dir": path.parent, "ignore_cleanup_errors": True}
        with tempfile.TemporaryDirectory(**where) as scratch:
            summary = _drafted(world, source, Path(scratch), part, execution, progress)
        if data_identity(world.data) != world.identities["data"]:
            raise refused("changed data", data=world.data)
        check_pool(world, summary, Pool(part))
        write_atomic(path_of(PoolSummary, world.root), encoded(PoolSummary, summary))
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        for folder in missing:
            if not any(folder.iterdir()):
                folder.rmdir()
        raise


def look(data: Data, seed: int) -> DataSummary | None:
    """What the first rows of the data here hold, with nothing rendered, tokenised or written; None for the hub's.

    Raises RequestError where they cannot be read, or none of them has columns.
    """
    if not is_local(data):
        return None
    reader = Reader(open_source(data), data.model_copy(update={"documents": None}), seed, FIRST_ROWS)
    for _ in reader:
        pass
    return reader.summary


def are_pairs(world: World) -> bool | None:
    """Whether the documents are preference pairs, by the frozen pool or else the first one; None where neither is here.

    Raises RequestError where the data cannot be read.
    """
    if world.identities and world.pool_is_frozen:
        return world.pool.summary.pairs
    if not pool_files(world.data.path):
        return None
    reader = Reader(open_source(world.data), world.data, world.seed, FIRST_ROWS)
    return next((bool(document.rejected) for document in reader), None)


def _drafted(
    world: World, source: Source, scratch: Path, part: Path, execution: Execution, progress: Progress
) -> PoolSummary:
    """Write the whole pool to `part`."""
    progress.start("world: reading the pool", 1)
    reader = Reader(source, world.data, world.seed)
    raw = scratch / "documents.parquet"
    with pq.ParquetWriter(raw, schema_of(Document), compression="lz4") as writer:
        for rows in _groups(reader, world.study):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema_of(Document)))
    progress.advance()
    settings, excluded, summary, read = world.study.attribute, Counter[str](), reader.summary, len(reader.chosen)
    items = {}
    with pq.ParquetFile(raw) as file:
        pairs = any(file.read_row_group(0, columns=["rejected"])["rejected"].to_pylist())
        for group in range(file.num_row_groups):
            # What belongs to the pool was not known before it was read.
            ids = file.read_row_group(group, columns=["id"])["id"].to_pylist()
            if chosen := [row for row, doc_id in enumerate(ids) if doc_id in reader.chosen]:
                items[str(group)] = group, chosen
    reader.chosen.clear()
    run_items(
        functools.partial(_tokeniser, world, raw),
        operator.call,
        items,
        execution=execution,
        done=lambda _, lost: excluded.update(lost),
        progress=progress,
        description="world: tokenising the pool",
        units=lambda item: len(item[1]),
    )
    for reason, lost in sorted(excluded.items()):
        _logger.warning("%d of %d documents are excluded: %s", lost, read, reason)
    drafts = [raw.with_name(f"{group}.parquet") for group in items]
    groups = (pq.read_table(draft, columns=list(Hashes._fields)).to_pylist() for draft in drafts)
    hashes = (Hashes(**row) for group in groups for row in group)
    numbers = clusters(hashes, settings.duplicate_threshold, scratch)
    if not numbers:
        name = "cut away" if excluded[_TRUNCATED] else "no rendering"
        raise refused(name, study=world.study, read=read, why="; ".join(excluded))
    schema, start, first = _SCHEMA.with_metadata({KEY: world.pool_key.encode()}), 0, ""
    cluster, copies = Counter(numbers).most_common(1)[0]
    first_row = numbers.index(cluster)
    with part.open("wb") as stream:
        with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
            for draft in drafts:
                table = pq.read_table(draft, columns=_SCHEMA.names)
                column = pa.array(numbers[start : start + len(table)], pa.int64())
                table = table.set_column(_SCHEMA.get_field_index("cluster"), "cluster", column)
                if start <= first_row < start + len(table):
                    first = table["id"][first_row - start].as_py()
                if len(table):
                    writer.write_table(table.cast(schema))
                start += len(table)
        stream.flush()
        os.fsync(stream.fileno())
    return PoolSummary(
        documents=len(numbers),
        clusters=max(numbers) + 1,
        largest=LargestCluster(copies, first) if copies > 1 else None,
        pairs=pairs,
        excluded=dict(excluded),
        data=summary,
    )


def _groups(reader: Reader, study: Study) -> Iterator[list[dict[str, Any]]]:
    """The rows of one row group after another; all are pairs or none is."""
    rows: list[dict[str, Any]] = []
    characters, kinds = 0, set[bool]()
    for document in reader:
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


def _tokeniser(world: World, raw: Path) -> Callable[[tuple[int, list[int]]], Counter[str]]:
    """What a worker does with a row group: of each document that the template renders, what is left of its answers.

    They lie in GROUP.parquet, beside all documents; what is returned is how many are left out, by reason.
    """
    from datablame.models.chat import answers, encode_document, encode_preference
    from datablame.models.pair import agreed_tokens
    from datablame.models.template import Unrendered

    tokenizer, tokens = agreed_tokens(world.models)
    settings, file = world.study.attribute, pq.ParquetFile(raw)

    def tokenise(item: tuple[int, list[int]]) -> Counter[str]:
        group, chosen = item
        rows, excluded = [], Counter[str]()
        for fields in file.read_row_group(group).take(chosen).to_pylist():
            document = as_document(fields)
            encode: Any = encode_preference if document.rejected else encode_document
            try:
                example = encode(tokenizer, document, settings.max_tokens)
            except Unrendered as error:
                excluded[error.reason] += 1
                continue
            if example is None:
                excluded[_TRUNCATED] += 1
                continue
            encoded = answers(example)
            if max(max(answer.ids) for answer in encoded) >= min(tokens.rows):
                excluded[_NO_ROW] += 1
                continue
            if encoded[0] == encoded[-1] and len(encoded) > 1:
                excluded[_EQUAL] += 1
                continue
            ids = [pa.array(answer.ids, pa.int32()) for answer in encoded]
            fields |= dict(zip(("token_ids", "rejected_ids"), ids, strict=False))
            borders = (answer.prompt_tokens for answer in encoded)
            fields |= dict(zip(("prompt_tokens", "rejected_prompt_tokens"), borders, strict=False))
            fields["characters"] = len(full_text(document))
            fields["tokens"] = max(map(len, ids))
            rows.append(fields | hashed(document, settings.duplicate_threshold)._asdict())
        pq.write_table(pa.Table.from_pylist(rows, schema=_DRAFT), raw.with_name(f"{group}.parquet"), compression="lz4")
        return excluded

    return tokenise
