"""Whom do the methods blame together? Their rankings joined by Borda's count.

Controls have no vote, and the methods that vote have one each, however alike they are. Where a voter ranks candidates
only, all are asked about the candidates only; else about every document that is scored.
"""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.registry import Evidence, Votes, method
from datablame.tables import Look


@method(
    "ensemble",
    label="ensemble (Borda)",
    description="Borda count over the study's methods that are no control: the mean share of documents ranked below.",
    needs=(Votes,),
    look=Look("#6A3D9A", "#6A3D9A", "h"),
    exact=True,
)
def ensemble(evidence: Evidence) -> NDArray[np.float64]:
    """Points from 0 to 1 by `borda` among the documents that are asked about; the others have no score."""
    scores, eligible = evidence[Votes]
    points = np.full(eligible.shape, np.nan)
    for behaviour, rows in enumerate(eligible.T):
        points[rows, behaviour] = borda(np.stack([each[rows, behaviour] for each in scores.values()], 1))
    return points


def borda(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points of each document (row): the mean over voters (columns) of the share of the others that it stands above.

    A tie counts one half (Borda 1781, with mid-ranks), and so does a comparison that the voter did not make, for it
    gave one of the two no score (NaN): to be left out neither helps nor harms a document, and a voter has as much say
    as it made comparisons.
    """
    from scipy.stats import rankdata

    n, voters = scores.shape
    if n < 2:
        return np.full(n, 0.5)
    doubled = np.zeros(n)
    for column in scores.T:
        known = ~np.isnan(column)
        doubled[known] += 2 * (rankdata(column[known]) - 1) + np.count_nonzero(~known)
        doubled[~known] += n - 1
    points: NDArray[np.float64] = doubled / (2 * (n - 1) * voters)
    return points
