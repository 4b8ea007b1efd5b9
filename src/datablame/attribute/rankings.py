"""A method's scores as rankings: of documents, and of duplicate clusters, which are what K counts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_DIGITS = 5
_SCALE_DIGITS = 3


class Ranking(NamedTuple):
    """Rows of the pool, or duplicate clusters, most responsible first, each with its score."""

    order: NDArray[np.int64]
    scores: NDArray[np.float64]


def rounded(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores to as many decimals as give their largest magnitude 5 significant digits; NaN stays NaN.

    The errors of float32 sums are relative to the scale of what is summed, so that equal decimals hide them in every
    score. The largest magnitude counts to 3 digits, so that 0.99999994 and 1.0000001 give the same decimals.
    """
    largest = float(np.abs(scores[~np.isnan(scores)]).max(initial=0.0))
    exponent = int(f"{largest:.{_SCALE_DIGITS - 1}e}".partition("e")[2])
    # Python's round is exact for every exponent; + 0.0 turns -0.0 into 0.0.
    return np.array([round(score, _DIGITS - 1 - exponent) + 0.0 for score in scores.tolist()])


def id_order(ids: Sequence[str]) -> NDArray[np.int64]:
    """The position of each row's document when all are sorted by id: what decides ties."""
    positions = np.empty(len(ids), dtype=np.int64)
    positions[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
    return positions


def ranked(rows: NDArray[np.int64], scores: NDArray[np.float64], by_id: NDArray[np.int64]) -> Ranking:
    """Those of the rows that have a score, higher ones first, ties by document id (`id_order`)."""
    rows, scores = rows[~np.isnan(scores)], scores[~np.isnan(scores)]
    order = np.lexsort((by_id[rows], -scores))
    return Ranking(rows[order], scores[order])


def clustered(ranking: Ranking, clusters: NDArray[np.int64], among: NDArray[np.int64] | None = None) -> Ranking:
    """The ranking of clusters that a ranking of documents gives, each where its best one stands; only rows `among`."""
    order, scores = ranking
    if among is not None:
        chosen = np.isin(order, among)
        order, scores = order[chosen], scores[chosen]
    first = np.sort(np.unique(clusters[order], return_index=True)[1])
    return Ranking(clusters[order][first], scores[first])


class Members:
    """The documents of every duplicate cluster."""

    def __init__(self, clusters: NDArray[np.int64], by_id: NDArray[np.int64]) -> None:
        self._order = np.lexsort((by_id, clusters))
        self._sorted = clusters[self._order]

    def of(self, clusters: Sequence[int]) -> list[int]:
        """Rows of the pool, clusters in their order, members by id: whole clusters, ranked or not."""
        starts, ends = (np.searchsorted(self._sorted, clusters, side) for side in ("left", "right"))
        return [row for start, end in zip(starts, ends, strict=True) for row in self._order[start:end].tolist()]
