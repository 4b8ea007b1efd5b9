"""A method's scores as rankings: of documents, and of duplicate clusters, which are what K counts."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from datablame.tables import Score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DIGITS = 5
_SCALE_DIGITS = 3


class Ranking(NamedTuple):
    """Duplicate clusters, most responsible first, each with the score of its best document."""

    clusters: list[int]
    scores: list[float]


def rounded(scores: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Scores to as many decimals as give their largest magnitude 5 significant digits; NaN stays NaN.

    The errors of float32 sums are relative to the scale of what is summed, so that equal decimals hide them in every
    score. The largest magnitude counts to 3 digits, so that 0.99999994 and 1.0000001 give the same decimals.
    """
    import numpy as np

    largest = float(np.abs(scores[~np.isnan(scores)]).max(initial=0.0))
    exponent = int(f"{largest:.{_SCALE_DIGITS - 1}e}".partition("e")[2])
    # Python's round is exact for every exponent; + 0.0 turns -0.0 into 0.0.
    return np.array([round(score, _DIGITS - 1 - exponent) + 0.0 for score in scores.tolist()])


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
