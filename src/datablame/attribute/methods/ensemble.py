"""Whom do the methods blame together? Controls have no vote; the others have one each, however alike they are."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.rankings import borda
from datablame.attribute.registry import Evidence, Votes, method

_FIRST_RANKS = 60
"""The constant of Cormack et al.: the larger, the less it counts who is the very first."""
_Join = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@method("ensemble", needs=(Votes,), exact=True)
def ensemble(evidence: Evidence) -> NDArray[np.float64]:
    """Points from 0 to 1 by `borda` among the documents that every voter ranks; the others have no score."""
    return _joined(evidence[Votes], borda)


@method("ensemble-rrf", needs=(Votes,), exact=True)
def ensemble_rrf(evidence: Evidence) -> NDArray[np.float64]:
    """`reciprocal_ranks` among the documents that every voter ranks; the others have no score."""
    return _joined(evidence[Votes], reciprocal_ranks)


def reciprocal_ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over voters (columns) of 1 / (60 + rank), a number for each document (row); ties have mid-ranks.

    Reciprocal rank fusion (Cormack, Clarke and Büttcher 2009) sums over systems, and what one did not retrieve is far
    down. Here a voter that gave no score (NaN) has not compared, so that the mean is over the others; where all
    compare, the order is that of the sum. A document that none scored has NaN.
    """
    from scipy.stats import rankdata

    shares = 1 / (_FIRST_RANKS + rankdata(-scores, axis=0, nan_policy="omit"))
    given = [[share for share in row if share == share] for row in shares.tolist()]
    # An exact sum, whatever the order of the voters.
    return np.array([math.fsum(row) / len(row) if row else math.nan for row in given])


def _joined(votes: Votes, join: _Join) -> NDArray[np.float64]:
    """The voters' scores joined, a behaviour at a time."""
    points = np.full(votes.eligible.shape, np.nan)
    for behaviour, rows in enumerate(votes.eligible.T):
        if rows.any():
            points[rows, behaviour] = join(np.stack([each[rows, behaviour] for each in votes.scores.values()], 1))
    return points
