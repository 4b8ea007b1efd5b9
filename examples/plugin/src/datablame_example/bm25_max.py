"""Does the document share rare words with any one of the harmful outputs?"""

from typing import Any

import numpy as np

from datablame.attribute.evidence.words import Words
from datablame.attribute.registry import Evidence, method


@method(
    "bm25-max",
    label="BM25, best query (control)",
    description="Control: as bm25, with the query that the document is nearest to instead of the mean over all.",
    needs=(Words,),
    control=True,
)
def bm25_max(evidence: Evidence) -> Any:
    """The highest BM25 score over the behaviour's queries."""
    scores = evidence[Words].scores
    return np.stack([scores[evidence.queries_of(each)].max(0) for each in evidence.behaviours], 1)
