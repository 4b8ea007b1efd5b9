"""Words that documents share with outputs, rare ones counting more (BM25, Robertson et al. 1994, as in Lucene)."""

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.registry import Inquiry, provider
from datablame.words import words as split

_SHORTEST = 2


class Words(NamedTuple):
    """What BM25 says."""

    scores: NDArray[np.float64]
    """Of shape (queries, documents)."""
    flagged: int
    """The largest K."""


class ResponseWords(Words):
    """The same of responses alone: the output without its prompt is sought, of a pair in its chosen answer."""


@provider("words", Words, ResponseWords, per_document=False)
def words(inquiry: Inquiry) -> dict[type, Words]:
    """What was found as the documents were read; the scores of `Words` chose the candidates too."""
    largest = inquiry.world.study.ks[-1]
    return {kind: kind(scores[:, inquiry.scored], largest) for kind, scores in inquiry.words.items()}


def bm25_scores(documents: Iterable[str], queries: Sequence[str]) -> NDArray[np.float64]:
    """The BM25 score of every document for every query, shape (queries, documents); documents are read once.

    k1 = 1.5, b = 0.75, words of at least two characters (`datablame.words`), no stop words: nothing depends on a
    language. A query without a word that the documents have scores 0 everywhere.
    """
    import bm25s

    if not queries:
        return np.zeros((0, sum(1 for _ in documents)))
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    vocabulary = dict[str, int]()
    read = [[vocabulary.setdefault(word, len(vocabulary)) for word in split(text, _SHORTEST)] for text in documents]
    scores = np.zeros((len(queries), len(read)))
    if not vocabulary:
        return scores
    index = bm25s.BM25()
    index.index((read, vocabulary), show_progress=False)
    for row, text in zip(scores, queries, strict=True):
        if known := [word for word in split(text, _SHORTEST) if word in vocabulary]:
            row[:] = index.get_scores(known)
    return scores
