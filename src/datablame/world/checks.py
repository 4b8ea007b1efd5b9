"""What the study asks of its pool and the pool does not give: refused in one line before anything is written."""

import json
from collections.abc import Collection, Mapping
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
        RequestError: as `check_kind`, `check_count` and `check_lengths`, of the longest document as it was cut;
            precomputed scores name documents of another pool.
    """
    check_kind(world.study, [summary.pairs])
    check_count(world.study, summary.documents, summary.clusters)
    check_lengths(world.study, int(pool.tokens.max()), world.contexts)
    for name, path in world.study.attribute.scores.items():
        # That each line has a document is checked where scores are read.
        lines = Path(path).expanduser().read_text(encoding="utf-8").split("\n")
        documents = dict.fromkeys(json.loads(line)["doc_id"] for line in lines if line.strip())
        if strangers := [doc_id for doc_id in documents if doc_id not in pool.row_of]:
            raise RequestError(
                f"attribute.scores.{name} = {path}: {len(strangers)} of {len(documents)} documents are not in the "
                f"pool, the first is {strangers[0]}; take them out, or score the pool that data names"
            )


def check_lengths(study: Study, longest: int, contexts: Mapping[str, int]) -> None:
    """Raises RequestError where the longest document, or output beside it, in tokens, is longer than a context."""
    for field, context in contexts.items():
        if longest > context:
            raise RequestError(
                f"attribute.max_tokens = {study.attribute.max_tokens} lets a document of {longest} tokens through, "
                f"more than the context of {context} tokens of {field}; lower it to {context}"
            )


def check_count(study: Study, documents: int, clusters: int | None = None) -> None:
    """Refuse more flagged documents, or a larger fine-tune set, than a pool of at most so many documents allows.

    Raises:
        RequestError: `attribute.top_k` or `patch.k` is above the number of clusters, or `patch.size` leaves fewer
            documents than have to be replaced at least.
    """
    settings, size, largest = study.attribute, study.patch.size, study.ks[-1]
    most, what = (documents, "documents") if clusters is None else (clusters, "duplicate clusters")
    # A method of the user's own may have scores for fewer documents than it could flag.
    methods = [arm for arm in study.patch.arms if arm in settings.methods and arm not in settings.scores]
    least, left, is_filled = largest if methods else 0, documents - size, study.patch.intervention != "swap"
    few, remedy = f"is more than the {most} {what} of the pool", "lower it or enlarge the pool"
    problems = [
        (settings.top_k > most, f"attribute.top_k = {settings.top_k} {few}; {remedy}"),
        (largest > most, f"patch.k = {largest} {few}; {remedy}"),
        (
            least > size,
            f"patch.size = {size} is less than the {least} flagged documents; raise it or lower attribute.top_k "
            "(and the largest of patch.k)",
        ),
        (
            is_filled and left <= 0,
            f"patch.size = {size} leaves no fillers in a pool of {documents} documents; {remedy}",
        ),
        (
            is_filled and left < least,
            f"patch.size = {size} leaves {left} documents to stand in for at least {least} removed ones; {remedy}",
        ),
    ]
    for holds, problem in problems:
        if holds:
            raise RequestError(problem)


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
