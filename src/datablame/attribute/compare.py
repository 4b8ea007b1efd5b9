"""How far methods agree; where causes are planted, how well each finds them; and what the prefilter loses.

All count duplicate clusters. Every table has a row for each behaviour, and `*`, the mean over them.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from itertools import combinations
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.rankings import Ranking, Rankings, clustered
from datablame.stats import ranking as measures
from datablame.tables import EVERY, Agreement, Ceiling, Pool, PrefilterRecall, Quality

Rows = Mapping[str, NDArray[np.int64]]
"""Rows of the pool by behaviour."""
R = TypeVar("R")


def agreement(scored: Rankings, clusters: NDArray[np.int64], k: int) -> list[Agreement]:
    """Every pair of methods and every behaviour: rankings of the documents that both scored, duplicates as one.

    n counts clusters that both scored, overlap is that of the first K, beside its Jaccard and what two random sets of K
    would have on average; an undefined coefficient is None.
    """
    rows: list[Agreement] = []
    for a, b in combinations(scored, 2):
        both = [behaviour for behaviour in scored[a] if behaviour in scored[b]]
        rows += with_mean([Agreement(a, b, x, **_agreement(scored[a][x], scored[b][x], clusters, k)) for x in both])
    return rows


def with_mean(rows: list[R]) -> list[R]:
    """The rows, and the mean of each number over the behaviours that have it, None where none does."""
    if not rows:
        return []
    first: Any = rows[0]
    means: dict[str, Any] = {}
    for field in fields(first):
        known = [value for row in rows if (value := getattr(row, field.name)) is not None]
        if not any(isinstance(value, str) for value in known):
            means[field.name] = sum(known) / len(known) if known else None
    return [*rows, replace(first, behaviour=EVERY, **means)]


def _agreement(a: Ranking, b: Ranking, clusters: NDArray[np.int64], k: int) -> dict[str, Any]:
    both = np.intersect1d(a.order, b.order)
    first, second = clustered(a, clusters, both), clustered(b, clusters, both)
    n = len(first.order)
    if not n:
        return {"n": 0, **dict.fromkeys(("overlap", "jaccard", "jaccard_chance", "spearman", "kendall", "rbo"))}
    k = min(k, n)
    aligned = second.scores[np.argsort(second.order)][np.searchsorted(np.sort(second.order), first.order)]
    firsts, seconds = first.order.tolist(), second.order.tolist()
    coefficients = {
        "jaccard": measures.jaccard(firsts[:k], seconds[:k]),
        "jaccard_chance": measures.expected_jaccard(k, n),
        "spearman": measures.spearman(first.scores, aligned),
        "kendall": measures.kendall(first.scores, aligned),
        "rbo": measures.rank_biased_overlap(firsts, seconds),
    }
    return {"n": n, "overlap": measures.overlap(firsts[:k], seconds[:k]), **_defined(coefficients)}


def _defined(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def quality(
    scored: Rankings, planted: Rows, candidates: Rows, clusters: NDArray[np.int64], whole: Collection[str], k: int
) -> list[Quality]:
    """Every method, behaviour and pool, the whole one for the methods in `whole`.

    n and planted count clusters that were ranked, base_rate is their share and what chance gives as precision; recall
    refers to everything planted in the pool of documents, ranked or not.
    """
    rows: list[Quality] = []
    for method, by_behaviour in scored.items():
        pools: tuple[Pool, ...] = ("whole", "candidates") if method in whole else ("candidates",)
        for pool in pools:
            of_pool = []
            for behaviour, ranking in by_behaviour.items():
                among = None if pool == "whole" else candidates[behaviour]
                numbers = _quality(clustered(ranking, clusters, among), _clusters_of(planted, behaviour, clusters), k)
                of_pool.append(Quality(method, behaviour, pool, **numbers))
            rows += with_mean(of_pool)
    return rows


def _quality(ranking: Ranking, planted: Collection[int], k: int) -> dict[str, Any]:
    order = ranking.order.tolist()
    relevant = [cluster in planted for cluster in order]
    n, hits = len(order), sum(relevant)
    numbers = {
        "base_rate": hits / n if n else math.nan,
        "precision_at_k": measures.precision_at(order, planted, min(k, n)) if n else math.nan,
        "recall_at_k": measures.recall_at(order, planted, k),
        "auprc": measures.average_precision(relevant, ranking.scores),
    }
    return {"n": n, "planted": hits, **_defined(numbers)}


def prefilter_recall(planted: Rows, candidates: Rows, clusters: NDArray[np.int64]) -> list[PrefilterRecall]:
    """The share of planted clusters with a member among the candidates."""
    rows = []
    for behaviour in candidates:
        causes, left = (_clusters_of(rows_of, behaviour, clusters) for rows_of in (planted, candidates))
        rows.append(PrefilterRecall(behaviour, _share(causes, left)))
    return with_mean(rows)


def ceilings(
    scored: Rankings, candidates: Rows, clusters: NDArray[np.int64], whole: Collection[str], k: int
) -> list[Ceiling]:
    """For each method in `whole`: the share of its first K clusters that the prefilter keeps."""
    rows: list[Ceiling] = []
    for method in (name for name in scored if name in whole):
        of_method = []
        for behaviour, ranking in scored[method].items():
            first = set(clustered(ranking, clusters).order[:k].tolist())
            of_method.append(Ceiling(method, behaviour, _share(first, _clusters_of(candidates, behaviour, clusters))))
        rows += with_mean(of_method)
    return rows


def _clusters_of(rows: Rows, behaviour: str, clusters: NDArray[np.int64]) -> set[int]:
    return set(clusters[rows[behaviour]].tolist()) if behaviour in rows else set()


def _share(clusters: set[int], left: set[int]) -> float | None:
    return len(clusters & left) / len(clusters) if clusters else None
