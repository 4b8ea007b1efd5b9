"""Does the document share rare words with any one of the harmful outputs?"""

from typing import Any

import numpy as np

from datablame.attribute.evidence.words import Words
from datablame.attribute.registry import Evidence, method


@method(
    "bm25-max",
    label="BM25, best query (control)",
    description="Control: as bm25, with the query that the document is nearest to instead of the mean over all.",
    cost="words",
    needs=(Words,),
    control=True,
)
def bm25_max(evidence: Evidence) -> Any:
    """The highest BM25 score over the behaviour's queries."""
    columns = []
    for behaviour in evidence.behaviours:
        best = evidence[Words].scores[evidence.queries_of(behaviour)].max(0)
        columns.append(best if best.any() else evidence.no_score(behaviour, "no document has a word of its outputs"))
    return np.stack(columns, 1)
