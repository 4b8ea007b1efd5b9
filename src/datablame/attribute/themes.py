"""What the candidates are about: KMeans over their activations, each cluster told by its words."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.rankings import rounded
from datablame.tables import Theme, ThemeShare

_MOST_THEMES, _TERMS, _EXAMPLES = 8, 8, 2
_SILHOUETTE_SAMPLE, _SILHOUETTE_DECIMALS = 4000, 5


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
