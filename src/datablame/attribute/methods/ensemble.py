"""Whom do the methods blame together? Their rankings joined by Borda's count.

Controls have no vote, and the methods that vote have one each, however alike they are. Where a voter ranks candidates
only, all are asked about the candidates only; else about every document that is scored.
"""

from typing import TYPE_CHECKING

from datablame.attribute.evidence import Evidence
from datablame.attribute.registry import method

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@method(
    "ensemble",
    label="ensemble (Borda)",
    description="Borda count over the study's methods that are no control: the mean share of documents ranked below.",
    needs="scores",
)
def ensemble(evidence: Evidence) -> "NDArray[np.float64]":
    """Points from 0 to 1 by `borda` among the documents that are asked about; the others have no score."""
    import numpy as np

    assert evidence.votes is not None
    found = np.full((len(evidence.documents), len(evidence.behaviours)), np.nan)
    ids = [document.id for document in evidence.documents]
    for column, behaviour in enumerate(evidence.behaviours):
        among = None if evidence.votes.whole or evidence.candidates is None else evidence.candidates[behaviour.id]
        rows = [row for row, doc_id in enumerate(ids) if among is None or doc_id in among]
        found[rows, column] = borda(np.stack([scores[rows, column] for scores in evidence.votes.scores.values()], 1))
    return found


def borda(scores: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Points of each document (row): the mean over voters (columns) of the share of the others that it stands above.

    A tie counts one half (Borda 1781, with mid-ranks), and so does a comparison that the voter did not make, for it
    gave one of the two no score (NaN): to be left out neither helps nor harms a document, and a voter has as much say
    as it made comparisons.
    """
    import numpy as np
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
