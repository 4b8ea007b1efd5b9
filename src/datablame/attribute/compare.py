"""What the scores say: how far methods agree, how well each finds planted causes, what the prefilter loses, and themes.

All but themes count duplicate clusters; their tables have a row for each behaviour, and `*`, the mean over them.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, groupby
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.rankings import Indices, Rankings, clustered, rounded
from datablame.stats import ranking as measures
from datablame.tables import EVERY, Agreement, Ceiling, Pool, PrefilterRecall, Quality, Theme, ThemeShare
from datablame.words import words

Rows = Mapping[str, Indices]
"""Rows of the pool by behaviour."""
R = TypeVar("R")

_MOST_THEMES, _TERMS, _EXAMPLES = 8, 8, 2
_SILHOUETTE_SAMPLE, _SILHOUETTE_DECIMALS = 4000, 5


def agreement(scored: Rankings, clusters: Indices, k: int) -> list[Agreement]:
    """Every pair of methods and every behaviour: rankings of the documents that both scored, duplicates as one.

    n counts clusters that both scored, overlap is that of the first K, beside its Jaccard and what two random sets of K
    would have on average; an undefined coefficient is None.
    """

    def compared(a: str, b: str, behaviour: str) -> Agreement:
        both = np.intersect1d(scored[a][behaviour].order, scored[b][behaviour].order)
        one, other = (clustered(scored[method][behaviour], clusters, both) for method in (a, b))
        n, orders = len(one.order), (one.order, other.order)
        if not n:
            return Agreement(a, b, behaviour, 0, *[None] * 6)
        firsts = [order[:k].tolist() for order in orders]
        scores = [each.scores[np.argsort(each.order)] for each in (one, other)]
        jaccard, chance = measures.jaccard(*firsts), measures.expected_jaccard(min(k, n), n)
        spearman, kendall = measures.spearman(*scores), measures.kendall(*scores)
        coefficients = (jaccard, chance, spearman, kendall, measures.rank_biased_overlap(*orders))
        return Agreement(a, b, behaviour, n, measures.overlap(*firsts), *map(_defined, coefficients))

    return with_means(compared(a, b, behaviour) for a, b in combinations(scored, 2) for behaviour in scored[a])


def with_means(rows: Iterable[R]) -> list[R]:
    """The rows; after those that differ in their behaviour alone the means over those that have a number, else None."""

    def names(row: R) -> list[str]:
        return [value for name, value in vars(row).items() if isinstance(value, str) and name != "behaviour"]

    every: list[R] = []
    for _, alike in groupby(rows, names):
        group: list[Any] = list(alike)
        means: dict[str, float | None] = {}
        for name in (name for name, value in vars(group[0]).items() if not isinstance(value, str)):
            known = [value for row in group if (value := getattr(row, name)) is not None]
            means[name] = sum(known) / len(known) if known else None
        every += [*group, replace(group[0], behaviour=EVERY, **means)]
    return every


def _defined(number: float) -> float | None:
    return number if math.isfinite(number) else None


def quality(
    scored: Rankings, planted: Rows, candidates: Rows, clusters: Indices, whole: Collection[str], k: int
) -> list[Quality]:
    """Every method, behaviour and pool, the whole one for the methods in `whole`.

    Where nothing is planted nobody knows how good a method is: precision, recall and area are None. n and planted count
    clusters that were ranked, base_rate is their share and what chance gives as precision; recall refers to everything
    planted in the pool of documents, ranked or not.
    """

    def measured(method: str, behaviour: str, pool: Pool) -> Quality:
        among = None if pool == "whole" else candidates[behaviour]
        ranked = clustered(scored[method][behaviour], clusters, among)
        first, causes, n = ranked.order[:k].tolist(), _clusters_of(planted, behaviour, clusters), len(ranked.order)
        relevant = np.isin(ranked.order, [*causes])
        precision = measures.precision_at(first, causes, min(k, n)) if n and causes else None
        recall, area = measures.recall_at(first, causes, k), measures.average_precision(relevant, ranked.scores)
        hits = int(relevant.sum())
        rate = hits / n if n else None
        return Quality(method, behaviour, pool, n, hits, rate, precision, _defined(recall), _defined(area))

    pools: tuple[Pool, ...] = ("whole", "candidates")
    pairs = [(method, pool) for method in scored for pool in pools if pool == "candidates" or method in whole]
    return with_means(measured(method, behaviour, pool) for method, pool in pairs for behaviour in scored[method])


def prefilter_recall(planted: Rows, candidates: Rows, clusters: Indices) -> list[PrefilterRecall]:
    """The share of planted clusters with a member among the candidates."""
    causes = {behaviour: _clusters_of(planted, behaviour, clusters) for behaviour in candidates}
    return with_means(PrefilterRecall(b, _recall(chosen, candidates, b, clusters)) for b, chosen in causes.items())


def ceilings(scored: Rankings, candidates: Rows, clusters: Indices, whole: Collection[str], k: int) -> list[Ceiling]:
    """For each method in `whole`: the share of its first K clusters that the prefilter keeps."""
    rankings = [(method, *each) for method in scored if method in whole for each in scored[method].items()]
    firsts = [(method, b, {*clustered(ranking, clusters).order[:k].tolist()}) for method, b, ranking in rankings]
    return with_means(Ceiling(method, b, _recall(first, candidates, b, clusters)) for method, b, first in firsts)


def _clusters_of(rows: Rows, behaviour: str, clusters: Indices) -> set[int]:
    return set(clusters[rows[behaviour]].tolist()) if behaviour in rows else set()


def _recall(chosen: set[int], candidates: Rows, behaviour: str, clusters: Indices) -> float | None:
    """The share of the chosen clusters with a member among the candidates."""
    return len(chosen & _clusters_of(candidates, behaviour, clusters)) / len(chosen) if chosen else None


class Themes(NamedTuple):
    """Themes, the largest first, and how well they stand apart; None where there is one at most."""

    themes: list[Theme]
    silhouette: float | None
    labels: tuple[int, ...]
    """The index of each document's theme."""


def themes(
    ids: Sequence[str], texts: Sequence[str], activations: NDArray[np.float64], flagged: Mapping[str, Collection[str]]
) -> Themes:
    """KMeans of the centred activations scaled to unit norm.

    The number of clusters, from 2 to 8, is the one whose silhouette is highest (Rousseeuw 1987), of equal ones the
    fewest. Terms are those whose TF-IDF is furthest above its mean over all candidates. Examples are nearest the
    centre. `flagged` holds for each method what it flagged, candidates or not.
    """
    if not ids:
        return Themes([], None, ())
    labels, distances, silhouette = _partition(activations)
    among = {method: set(chosen) & set(ids) for method, chosen in flagged.items()}
    of_theme = [np.flatnonzero(labels == number).tolist() for number in np.unique(labels)]
    of_theme.sort(key=len, reverse=True)
    rows, numbers = [], dict[int, int]()
    for number, indices in enumerate(of_theme):
        numbers |= dict.fromkeys(indices, number)
    for indices, terms in zip(of_theme, terms_of(texts, of_theme), strict=True):
        members = {ids[index] for index in indices}
        nearest = sorted(indices, key=lambda index: (distances[index], ids[index]))
        examples = tuple(ids[index] for index in nearest[:_EXAMPLES])
        shares = tuple(ThemeShare(m, len(of & members) / len(of) if of else None) for m, of in among.items())
        rows.append(Theme(tuple(terms), len(indices), len(indices) / len(ids), examples, shares))
    return Themes(rows, silhouette, tuple(numbers[index] for index in range(len(ids))))


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


def terms_of(texts: Sequence[str], of_theme: Sequence[Sequence[int]]) -> list[list[str]]:
    """For each theme, indices of texts, the words whose TF-IDF is furthest above its mean over all texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(map(words, texts)):
        return [[] for _ in of_theme]
    vectorizer = TfidfVectorizer(analyzer=words, sublinear_tf=True)
    weights = vectorizer.fit_transform(texts)
    names = vectorizer.get_feature_names_out()
    # One theme has nothing to stand out from.
    overall = weights.mean(0) if len(of_theme) > 1 else 0.0
    terms = []
    for indices in of_theme:
        above = np.asarray(weights[indices].mean(0) - overall).ravel().round(9)
        order = sorted(np.flatnonzero(above > 0).tolist(), key=lambda word: (-above[word], names[word]))
        terms.append([str(names[word]) for word in order[:_TERMS]])
    return terms
