"""A method's scores as rankings: of documents, and of duplicate clusters, which are what K counts."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from datablame.tables import Score


class Ranking(NamedTuple):
    """Duplicate clusters, most responsible first, each with the score of its best document."""

    clusters: list[int]
    scores: list[float]


def ranked(behaviour: str, scores: Mapping[str, float]) -> list[Score]:
    """Documents from rank 1 on, higher scores first, ties by document id."""
    order = sorted(scores, key=lambda doc_id: (-scores[doc_id], doc_id))
    return [Score(doc_id, behaviour, scores[doc_id], rank) for rank, doc_id in enumerate(order, 1)]


def clustered(rows: Sequence[Score], cluster_of: Mapping[str, int], among: Collection[str] | None = None) -> Ranking:
    """The ranking of clusters that a ranking of documents gives, of the documents `among` if that is said."""
    best: dict[int, float] = {}
    for row in rows:
        if among is None or row.doc_id in among:
            best.setdefault(cluster_of[row.doc_id], row.score)
    return Ranking(list(best), list(best.values()))
