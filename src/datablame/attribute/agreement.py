"""How far methods agree: each pair's rankings of the documents that both scored, duplicates taken as one."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from datablame.attribute.rankings import clustered
from datablame.stats.ranking import expected_jaccard, jaccard, kendall, overlap, rank_biased_overlap, spearman
from datablame.tables import EVERY, Score

Scored = Mapping[str, Mapping[str, Sequence[Score]]]
"""Ranked scores by method and behaviour."""


def agreement(scored: Scored, cluster_of: Mapping[str, int], k: int) -> list[dict[str, Any]]:
    """Rows of every pair of methods and every behaviour, and their mean over behaviours under `*`.

    A row has `a, b, behaviour, n, overlap, jaccard, jaccard_chance, spearman, kendall, rbo`: n clusters that both
    scored, overlap of the first K in clusters, its Jaccard and what two random sets of K would have on average;
    an undefined coefficient is null.
    """
    rows = []
    for a, b in combinations(scored, 2):
        own = [
            {
                "a": a,
                "b": b,
                "behaviour": behaviour,
                **_compared(scored[a][behaviour], scored[b][behaviour], cluster_of, k),
            }
            for behaviour in scored[a]
            if behaviour in scored[b]
        ]
        if own:
            rows += [*own, averaged(own, {"a": a, "b": b})]
    return rows


def averaged(rows: Sequence[Mapping[str, Any]], names: Mapping[str, Any]) -> dict[str, Any]:
    """The mean of each number over the behaviours that have it, null where none does."""
    fields = [field for field in rows[0] if field not in names and field != "behaviour"]
    means: dict[str, float | None] = {}
    for field in fields:
        values = [row[field] for row in rows if row[field] is not None]
        means[field] = sum(values) / len(values) if values else None
    return {**names, "behaviour": EVERY, **means}


def _compared(a: Sequence[Score], b: Sequence[Score], cluster_of: Mapping[str, int], k: int) -> dict[str, Any]:
    both = {row.doc_id for row in a} & {row.doc_id for row in b}
    first, second = clustered(a, cluster_of, both), clustered(b, cluster_of, both)
    n = len(first.clusters)
    if not n:
        fields = ("overlap", "jaccard", "jaccard_chance", "spearman", "kendall", "rbo")
        return {"n": 0, **dict.fromkeys(fields)}
    k = min(k, n)
    second_scores = dict(zip(second.clusters, second.scores, strict=True))
    aligned = [second_scores[cluster] for cluster in first.clusters]
    top_a, top_b = first.clusters[:k], second.clusters[:k]
    found = {
        "jaccard": jaccard(top_a, top_b),
        "jaccard_chance": expected_jaccard(k, n),
        "spearman": spearman(first.scores, aligned),
        "kendall": kendall(first.scores, aligned),
        "rbo": rank_biased_overlap(first.clusters, second.clusters),
    }
    defined = {name: value if math.isfinite(value) else None for name, value in found.items()}
    return {"n": n, "overlap": overlap(top_a, top_b), **defined}
