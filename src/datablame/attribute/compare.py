"""What the scores say: how far methods agree, how well each finds planted causes, what the prefilter loses, and themes.

All but themes count duplicate clusters; their tables have a row for each behaviour, and `*`, the mean over them.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from itertools import combinations
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.rankings import Ranking, Rankings, clustered, rounded
from datablame.stats import ranking as measures
from datablame.tables import EVERY, Agreement, Ceiling, Pool, PrefilterRecall, Quality, Theme, ThemeShare

Rows = Mapping[str, NDArray[np.int64]]
"""Rows of the pool by behaviour."""
R = TypeVar("R")

_MOST_THEMES, _TERMS, _EXAMPLES = 8, 8, 2
_SILHOUETTE_SAMPLE, _SILHOUETTE_DECIMALS = 4000, 5


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
    return {
        "n": n,
        "overlap": measures.overlap(firsts[:k], seconds[:k]),
        "jaccard": _defined(measures.jaccard(firsts[:k], seconds[:k])),
        "jaccard_chance": _defined(measures.expected_jaccard(k, n)),
        "spearman": _defined(measures.spearman(first.scores, aligned)),
        "kendall": _defined(measures.kendall(first.scores, aligned)),
        "rbo": _defined(measures.rank_biased_overlap(firsts, seconds)),
    }


def _defined(number: float) -> float | None:
    return number if math.isfinite(number) else None


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
                first, scores = clustered(ranking, clusters, None if pool == "whole" else candidates[behaviour])
                order, causes = first.tolist(), _clusters_of(planted, behaviour, clusters)
                relevant = [cluster in causes for cluster in order]
                n, hits = len(order), sum(relevant)
                of_pool.append(
                    Quality(
                        method,
                        behaviour,
                        pool,
                        n=n,
                        planted=hits,
                        base_rate=hits / n if n else None,
                        precision_at_k=measures.precision_at(order, causes, min(k, n)) if n else None,
                        recall_at_k=_defined(measures.recall_at(order, causes, k)),
                        auprc=_defined(measures.average_precision(relevant, scores)),
                    )
                )
            rows += with_mean(of_pool)
    return rows


def prefilter_recall(planted: Rows, candidates: Rows, clusters: NDArray[np.int64]) -> list[PrefilterRecall]:
    """The share of planted clusters with a member among the candidates."""
    return with_mean(
        [PrefilterRecall(b, _kept(_clusters_of(planted, b, clusters), candidates, b, clusters)) for b in candidates]
    )


def ceilings(
    scored: Rankings, candidates: Rows, clusters: NDArray[np.int64], whole: Collection[str], k: int
) -> list[Ceiling]:
    """For each method in `whole`: the share of its first K clusters that the prefilter keeps."""
    rows: list[Ceiling] = []
    for method in (name for name in scored if name in whole):
        firsts = {b: set(clustered(ranking, clusters).order[:k].tolist()) for b, ranking in scored[method].items()}
        rows += with_mean([Ceiling(method, b, _kept(first, candidates, b, clusters)) for b, first in firsts.items()])
    return rows


def _clusters_of(rows: Rows, behaviour: str, clusters: NDArray[np.int64]) -> set[int]:
    return set(clusters[rows[behaviour]].tolist()) if behaviour in rows else set()


def _kept(chosen: set[int], candidates: Rows, behaviour: str, clusters: NDArray[np.int64]) -> float | None:
    """The share of the chosen clusters with a member among the candidates."""
    return len(chosen & _clusters_of(candidates, behaviour, clusters)) / len(chosen) if chosen else None


class Themes(NamedTuple):
    """Themes, the largest first, and how well they stand apart; None where there is one at most."""

    themes: list[Theme]
    silhouette: float | None


def themes(
    ids: Sequence[str], texts: Sequence[str], activations: NDArray[np.float64], flagged: Mapping[str, Collection[str]]
) -> Themes:
    """KMeans of the centred activations scaled to unit norm.

    The number of clusters, from 2 to 8, is the one whose silhouette is highest (Rousseeuw 1987), of equal ones the
    fewest. Terms are those whose TF-IDF is furthest above its mean over all candidates. Examples are nearest the
    centre. `flagged` holds for each method what it flagged, candidates or not.
    """
    if not ids:
        return Themes([], None)
    labels, distances, silhouette = _partition(activations)
    among = {method: set(chosen) & set(ids) for method, chosen in flagged.items()}
    of_theme = [np.flatnonzero(labels == number).tolist() for number in np.unique(labels)]
    of_theme.sort(key=len, reverse=True)
    rows = []
    for indices, terms in zip(of_theme, _terms(texts, of_theme), strict=True):
        members = {ids[index] for index in indices}
        nearest = sorted(indices, key=lambda index: (distances[index], ids[index]))
        rows.append(
            Theme(
                terms=tuple(terms),
                count=len(indices),
                share=len(indices) / len(ids),
                examples=tuple(ids[index] for index in nearest[:_EXAMPLES]),
                flagged=tuple(ThemeShare(m, len(of & members) / len(of) if of else None) for m, of in among.items()),
            )
        )
    return Themes(rows, silhouette)


def _partition(activations: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64], float | None]:
    """Labels, rounded distances to the centre of one's theme, and the silhouette."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    centred = activations - activations.mean(0)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    rows = np.divide(centred, norms, out=np.zeros_like(centred), where=norms > 0)
    n, distinct = len(rows), len(np.unique(rows.round(6), axis=0))
    labels, centres, best = np.zeros(n, dtype=np.intp), rows.mean(0, keepdims=True), None
    for k in range(2, min(_MOST_THEMES, distinct - 1, n - 1) + 1):
        kmeans = KMeans(k, n_init=10, random_state=0).fit(rows)
        sample = min(n, _SILHOUETTE_SAMPLE)
        score = float(silhouette_score(rows, kmeans.labels_, sample_size=sample, random_state=0))
        silhouette = round(score, _SILHOUETTE_DECIMALS)
        if best is None or silhouette > best:
            labels, centres, best = kmeans.labels_.astype(np.intp), kmeans.cluster_centers_, silhouette
    return labels, rounded(np.linalg.norm(rows - centres[labels], axis=1)), best


def _terms(texts: Sequence[str], of_theme: Sequence[Sequence[int]]) -> list[list[str]]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(any(character.isalnum() for character in text) for text in texts):
        return [[] for _ in of_theme]
    vectorizer = TfidfVectorizer(token_pattern=r"\w+", sublinear_tf=True)
    weights = vectorizer.fit_transform(texts)
    names = vectorizer.get_feature_names_out()
    overall = np.asarray(weights.mean(0)).ravel()
    terms = []
    for indices in of_theme:
        # One theme has nothing to stand out from.
        above = overall if len(of_theme) == 1 else np.asarray(weights[indices].mean(0)).ravel() - overall
        above = above.round(9)
        order = sorted(np.flatnonzero(above > 0).tolist(), key=lambda word: (-above[word], names[word]))
        terms.append([str(names[word]) for word in order[:_TERMS]])
    return terms
