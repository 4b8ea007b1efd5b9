"""Whom do the methods blame together? Controls have no vote; the others have one each, however alike they are."""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.rankings import borda
from datablame.attribute.registry import Evidence, Votes, method


@method("ensemble", needs=(Votes,), exact=True)
def ensemble(evidence: Evidence) -> NDArray[np.float64]:
    """Points from 0 to 1 by `borda` among the documents that every voter ranks; the others have no score."""
    scores, eligible = evidence[Votes]
    points = np.full(eligible.shape, np.nan)
    for behaviour, rows in enumerate(eligible.T):
        points[rows, behaviour] = borda(np.stack([each[rows, behaviour] for each in scores.values()], 1))
    return points
