"""BM25 (Robertson et al. 1994, as Lucene scores it) of texts against queries."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def scores(documents: Sequence[str], queries: Sequence[str]) -> "NDArray[np.float64]":
    """The BM25 score of every document for every query, shape (queries, documents).

    k1 = 1.5, b = 0.75, lower-cased words of at least two characters, no stop words: nothing depends on a language.
    A query without a word that the documents have scores 0 everywhere.
    """
    import bm25s
    import numpy as np

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    found = np.zeros((len(queries), len(documents)))
    words = _words(documents)
    if not any(words):
        return found
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    for row, asked in zip(found, _words(queries), strict=True):
        known = [word for word in asked if word in index.vocab_dict]
        if known:
            row[:] = index.get_scores(known)
    return found


def top(scores: "NDArray[np.float64]", ids: Sequence[str], n: int) -> list[str]:
    """The ids of the `n` highest scores, best first, ties by id."""
    order = sorted(range(len(ids)), key=lambda place: (-scores[place], ids[place]))
    return [ids[place] for place in order[:n]]


def _words(texts: Sequence[str]) -> list[list[str]]:
    import bm25s

    words: list[list[str]] = bm25s.tokenize(list(texts), stopwords=None, return_ids=False, show_progress=False)
    return words
