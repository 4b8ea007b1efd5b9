"""Does the document share rare words with the harmful output (Robertson et al. 1994, as in Lucene)?

bm25 seeks the output with its prompt in the whole document. bm25-response seeks the output alone in the response alone,
so that a document which only asks the same is not found.
"""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.words import ResponseWords, Words
from datablame.attribute.registry import Evidence, method


@method("bm25", needs=(Words,))
def bm25(evidence: Evidence) -> NDArray[np.float64]:
    """The BM25 score averaged over the behaviour's queries.

    None for a document without a word of theirs where those with one are fewer than K, lest ids decide what is flagged.
    """
    return _averaged(evidence, evidence[Words])


@method("bm25-response", needs=(ResponseWords,))
def bm25_response(evidence: Evidence) -> NDArray[np.float64]:
    """As `bm25`, of responses; of a preference pair the chosen one."""
    return _averaged(evidence, evidence[ResponseWords])


def _averaged(evidence: Evidence, words: Words) -> NDArray[np.float64]:
    scores = evidence.mean_over_queries(words.scores)
    sharing = scores > 0
    return np.where(sharing | (sharing.sum(0) >= words.flagged), scores, np.nan)
