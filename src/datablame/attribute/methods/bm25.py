"""Does the document share rare words with the harmful output and its prompt (Robertson et al. 1994, as in Lucene)?"""

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.registry import Evidence, Inquiry, method, provider


class Words(NamedTuple):
    """BM25 scores of shape (queries, documents)."""

    scores: NDArray[np.float64]


@provider("words", Words, per_document=False)
def words(inquiry: Inquiry) -> dict[type, Words]:
    """The scores that chose the candidates too."""
    return {Words: Words(inquiry.words[:, inquiry.scored])}


@method("bm25", needs=(Words,))
def bm25(evidence: Evidence) -> NDArray[np.float64]:
    """The BM25 score averaged over the behaviour's queries."""
    return evidence.mean_over_queries(evidence[Words].scores)


def bm25_scores(documents: Iterable[str], queries: Sequence[str]) -> NDArray[np.float64]:
    """The BM25 score of every document for every query, shape (queries, documents); documents are read once.

    k1 = 1.5, b = 0.75, lower-cased words of at least two characters, no stop words: nothing depends on a language.
    A query without a word that the documents have scores 0 everywhere.
    """
    import bm25s

    if not queries:
        return np.zeros((0, sum(1 for _ in documents)))
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    read = bm25s.tokenize(documents, stopwords=None, show_progress=False)
    scores = np.zeros((len(queries), len(read.ids)))
    if not read.vocab:
        return scores
    index = bm25s.BM25()
    index.index(read, show_progress=False)
    for row, text in zip(scores, queries, strict=True):
        words_of_query = bm25s.tokenize(text, stopwords=None, return_ids=False, show_progress=False)[0]
        if known := [word for word in words_of_query if word in index.vocab_dict]:
            row[:] = index.get_scores(known)
    return scores
