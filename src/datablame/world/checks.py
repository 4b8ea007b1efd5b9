"""What the study asks of its pool and the pool does not give: refused in one line before anything is written."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from datablame.config.schema import Study
from datablame.errors import RequestError
from datablame.tables import PoolSummary

if TYPE_CHECKING:
    from datablame.world.pool import Pool
    from datablame.world.world import World


def check_pool(world: "World", summary: PoolSummary, pool: "Pool") -> None:
    """Refuse a pool, in its place or not yet, that the study cannot use.

    Raises:
        RequestError: as `check_kind` and `check_count`; the longest document, cut to `attribute.max_tokens`, is longer
            than a checkpoint's context; precomputed scores name documents of another pool.
    """
    check_kind(world.study, [summary.pairs])
    check_count(world.study, summary.documents, summary.clusters)
    check_lengths(world.study, int(pool.tokens.max()), world.contexts)
    for name, path in world.study.attribute.scores.items():
        documents = _scored(Path(path).expanduser())
        if strangers := [doc_id for doc_id in documents if doc_id not in pool.row_of]:
            raise RequestError(
                f"attribute.scores.{name} = {path}: {len(strangers)} of {len(documents)} documents are not in the "
                f"pool, the first is {strangers[0]}; take them out, or score the pool that data names"
            )


def check_lengths(study: Study, longest: int, contexts: Mapping[str, int]) -> None:
    """Raises RequestError where the longest document, or output beside it, in tokens, is longer than a context."""
    most = study.attribute.max_tokens
    for field, context in contexts.items():
        if longest > context:
            raise RequestError(
                f"attribute.max_tokens = {most} lets a document of {longest} tokens through, "
                f"more than the context of {context} tokens of {field}; lower it to {context}"
            )


def check_count(study: Study, documents: int, clusters: int | None = None) -> None:
    """Refuse more flagged documents, or a larger fine-tune set, than a pool of at most so many documents allows.

    Raises:
        RequestError: `attribute.top_k` or `patch.k` is above the number of clusters, or `patch.size` leaves fewer
            documents than have to be replaced at least.
    """
    if (problem := next(_counted(study, documents, clusters), None)) is not None:
        raise RequestError(problem)


def _counted(study: Study, documents: int, clusters: int | None) -> Iterator[str]:
    patch, largest = study.patch, study.ks[-1]
    most, what = (documents, "documents") if clusters is None else (clusters, "duplicate clusters")
    for field, k in (("attribute.top_k", study.attribute.top_k), ("patch.k", largest)):
        if k > most:
            yield f"{field} = {k} is more than the {most} {what} of the pool; lower it or enlarge the pool"
    # A method of the user's own may have scores for fewer documents than it could flag.
    methods = [arm for arm in patch.arms if arm in study.attribute.methods and arm not in study.attribute.scores]
    least = largest if methods else 0
    if least > patch.size:
        yield (
            f"patch.size = {patch.size} is less than the {least} flagged documents; raise it or lower attribute.top_k "
            "(and the largest of patch.k)"
        )
    if patch.intervention != "swap":
        left, remedy = documents - patch.size, "lower it or enlarge the pool"
        if left <= 0:
            yield f"patch.size = {patch.size} leaves no fillers in a pool of {documents} documents; {remedy}"
        if left < least:
            yield (
                f"patch.size = {patch.size} leaves {left} documents to stand in for at least {least} removed ones; "
                f"{remedy}"
            )


def check_kind(study: Study, pairs: Collection[bool]) -> None:
    """Refuse documents, some or all of a pool, of which `pairs` says whether they are preference pairs.

    Raises:
        RequestError: there are both kinds, or none are pairs where arms exchange a pair's answers.
    """
    assert study.data is not None
    if len(set(pairs)) > 1:
        raise RequestError(
            f"data.path = {study.data.path} mixes preference pairs with documents of one answer, "
            "which are trained on in different ways; keep one kind"
        )
    if study.patch.intervention == "swap" and set(pairs) == {False}:
        raise RequestError(
            f"patch.intervention = swap exchanges the answers of preference pairs, and data.path = {study.data.path} "
            "has none; choose remove, or a pool of pairs"
        )


def _scored(path: Path) -> list[str]:
    """The documents that a file of scores names; what is wrong with its rows is said where they are read."""
    ids: dict[str, None] = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                ids[json.loads(line)["doc_id"]] = None
            except (ValueError, KeyError, TypeError):
                continue
    return list(ids)
