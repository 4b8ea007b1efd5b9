"""What the study asks of its pool and the pool does not give: refused in one line before anything is written."""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from datablame.config.schema import Study
from datablame.errors import RequestError


def check_count(study: Study, documents: int, clusters: int | None = None) -> None:
    """Refuse more flagged documents, or a larger fine-tune set, than a pool of at most so many documents allows.

    Raises:
        RequestError: `attribute.top_k` or `patch.k` is above the number of clusters, or `patch.size` leaves fewer
            documents than have to be replaced at least.
    """
    patch, most = study.patch, documents if clusters is None else clusters
    what = "documents" if clusters is None else "duplicate clusters"
    for field, k in (("attribute.top_k", study.attribute.top_k), ("patch.k", study.ks[-1])):
        if k > most:
            raise RequestError(
                f"{field} = {k} is more than the {most} {what} of the pool; lower it or enlarge the pool"
            )
    # A method of the user's own may have scores for fewer documents than it could flag.
    methods = [arm for arm in patch.arms if arm in study.attribute.methods and arm not in study.attribute.scores]
    least = study.ks[-1] if methods else 0
    if least > patch.size:
        raise RequestError(
            f"patch.size = {patch.size} is less than the {least} flagged documents; raise it or lower attribute.top_k "
            "(and the largest of patch.k)"
        )
    if patch.intervention == "swap":
        return
    if patch.size >= documents:
        raise RequestError(
            f"patch.size = {patch.size} leaves no fillers in a pool of {documents} documents; lower it or enlarge the "
            "pool"
        )
    if documents - patch.size < least:
        raise RequestError(
            f"patch.size = {patch.size} leaves {documents - patch.size} documents to stand in for at least {least} "
            "removed ones; lower it or enlarge the pool"
        )


def check_kind(study: Study, pairs: Collection[bool]) -> None:
    """Refuse a pool that holds both kinds of documents, or one without pairs where arms exchange a pair's answers.

    Args:
        study: the study.
        pairs: of some or all documents whether they are preference pairs.

    Raises:
        RequestError: the pool cannot be trained on as the study asks.
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


def check_lengths(study: Study, longest: int, contexts: Mapping[str, int]) -> None:
    """Refuse documents that are longer, cut to `attribute.max_tokens`, than a checkpoint's context.

    Raises:
        RequestError: the longest does not fit.
    """
    for field, context in contexts.items():
        if longest > context:
            raise RequestError(
                f"attribute.max_tokens = {study.attribute.max_tokens} lets a document of {longest} tokens through, "
                f"more than the context of {context} tokens of {field}; lower it to {context}"
            )


def check_scored(study: Study, ids: Callable[[], Collection[str]]) -> None:
    """Refuse precomputed scores of another pool; `ids` gives the documents, asked for where there are scores.

    Raises:
        RequestError: a document is not in the pool.
    """
    for name, path in study.attribute.scores.items():
        documents, pool = _scored(Path(path).expanduser()), set(ids())
        strangers = [doc_id for doc_id in documents if doc_id not in pool]
        if strangers:
            raise RequestError(
                f"attribute.scores.{name} = {path}: {len(strangers)} of {len(documents)} documents are not in the "
                f"pool, the first is {strangers[0]}; take them out, or score the pool that data names"
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
