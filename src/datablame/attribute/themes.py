"""What the candidates are about: KMeans over their activations, each cluster told by its words."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.rankings import rounded
from datablame.tables import Theme, ThemeShare

_MOST_THEMES = 8
_TERMS = 8
_EXAMPLES = 2
_SILHOUETTE_SAMPLE = 4000
_SILHOUETTE_DECIMALS = 5
_SEED = 0


class _Partition(NamedTuple):
    labels: NDArray[np.intp]
    distances: NDArray[np.float64]
    """From each document to the centre of its theme, rounded."""
    silhouette: float | None


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
    partition = _partition(activations)
    numbers = sorted(set(partition.labels.tolist()), key=lambda i: (-int((partition.labels == i).sum()), i))
    among = {method: set(chosen) & set(ids) for method, chosen in flagged.items()}
    terms = _terms(texts, [partition.labels == number for number in numbers])
    rows = []
    for number, terms_of_theme in zip(numbers, terms, strict=True):
        indices = np.flatnonzero(partition.labels == number).tolist()
        members = {ids[index] for index in indices}
        nearest = sorted(indices, key=lambda index: (partition.distances[index], ids[index]))
        rows.append(
            Theme(
                terms=tuple(terms_of_theme),
                count=len(indices),
                share=len(indices) / len(ids),
                examples=tuple(ids[index] for index in nearest[:_EXAMPLES]),
                flagged=tuple(ThemeShare(m, len(of & members) / len(of) if of else None) for m, of in among.items()),
            )
        )
    return Themes(rows, partition.silhouette)


def _partition(activations: NDArray[np.float64]) -> _Partition:
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    centred = activations - activations.mean(0)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    rows = np.divide(centred, norms, out=np.zeros_like(centred), where=norms > 0)
    n, distinct = len(rows), len(np.unique(rows.round(6), axis=0))
    best = _Partition(np.zeros(n, dtype=np.intp), rounded(np.linalg.norm(rows - rows.mean(0), axis=1)), None)
    for k in range(2, min(_MOST_THEMES, distinct - 1, n - 1) + 1):
        kmeans = KMeans(k, n_init=10, random_state=_SEED).fit(rows)
        sample = min(n, _SILHOUETTE_SAMPLE)
        score = float(silhouette_score(rows, kmeans.labels_, sample_size=sample, random_state=_SEED))
        silhouette = round(score, _SILHOUETTE_DECIMALS)
        if best.silhouette is None or silhouette > best.silhouette:
            distances = rounded(np.linalg.norm(rows - kmeans.cluster_centers_[kmeans.labels_], axis=1))
            best = _Partition(kmeans.labels_.astype(np.intp), distances, silhouette)
    return best


def _terms(texts: Sequence[str], memberships: Sequence[NDArray[np.bool_]]) -> list[list[str]]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(any(character.isalnum() for character in text) for text in texts):
        return [[] for _ in memberships]
    vectorizer = TfidfVectorizer(token_pattern=r"\w+", sublinear_tf=True)
    weights = vectorizer.fit_transform(texts)
    names = vectorizer.get_feature_names_out()
    overall = np.asarray(weights.mean(0)).ravel()
    terms = []
    for members in memberships:
        # One theme has nothing to stand out from.
        above = overall if len(memberships) == 1 else np.asarray(weights[members].mean(0)).ravel() - overall
        above = above.round(9)
        order = sorted(np.flatnonzero(above > 0).tolist(), key=lambda word: (-above[word], names[word]))
        terms.append([str(names[word]) for word in order[:_TERMS]])
    return terms
