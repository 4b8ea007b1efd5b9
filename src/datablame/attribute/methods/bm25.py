"""Does the document share rare words with the harmful output and its prompt (Robertson et al. 1994, as in Lucene)?"""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.words import Words
from datablame.attribute.registry import Evidence, method


@method("bm25", needs=(Words,))
def bm25(evidence: Evidence) -> NDArray[np.float64]:
    """The BM25 score averaged over the behaviour's queries.

    None for a document without a word of theirs where those with one are fewer than K, lest ids decide what is flagged.
    """
    scores = evidence.mean_over_queries(evidence[Words].scores)
    sharing = scores > 0
    return np.where(sharing | (sharing.sum(0) >= evidence[Words].flagged), scores, np.nan)
