"""Does the document share rare words with the harmful output and its prompt?"""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.words import Words
from datablame.attribute.registry import Evidence, method
from datablame.tables import Look


@method(
    "bm25",
    label="BM25 (control)",
    description="Control: words shared with prompt and harmful output, rare ones counting more; sees no model.",
    needs=(Words,),
    look=Look("#009E73", "#00855F", "s"),
    control=True,
)
def bm25(evidence: Evidence) -> NDArray[np.float64]:
    """The BM25 score averaged over the behaviour's queries."""
    return evidence.mean_over_queries(evidence[Words].scores)
