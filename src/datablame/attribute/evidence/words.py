"""Words that documents share with outputs, rare ones counting more (BM25, Robertson et al. 1994, as in Lucene)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.registry import Inquiry, provider
from datablame.words import words as split

_SHORTEST = 2
_K1, _B = 1.5, 0.75


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


class Counts(NamedTuple):
    """How often some documents, one after another, have the words that are sought: a number for each that is there."""

    lengths: NDArray[np.int64]
    """In words, of every document."""
    document: NDArray[np.int64]
    word: NDArray[np.int64]
    times: NDArray[np.int64]


def sought(queries: Iterable[str]) -> dict[str, int]:
    """The different words of the queries, numbered: nothing else has to be counted in documents."""
    return {word: number for number, word in enumerate(dict.fromkeys(w for q in queries for w in split(q, _SHORTEST)))}


def counted(texts: Iterable[str], numbers: Mapping[str, int]) -> Counts:
    """What BM25 has to know of the texts, words of at least two characters (`datablame.words`); no stop words."""
    lengths, found = list[int](), list[tuple[int, int, int]]()
    for document, text in enumerate(texts):
        every = split(text, _SHORTEST)
        lengths.append(len(every))
        found += [(document, numbers[word], n) for word, n in Counter(filter(numbers.__contains__, every)).items()]
    columns = np.array(found, dtype=np.int64).reshape(-1, 3).T
    return Counts(np.array(lengths, dtype=np.int64), *columns)


def bm25(parts: Sequence[Counts], numbers: Mapping[str, int], queries: Sequence[str]) -> NDArray[np.float64]:
    """The BM25 score of every document for every query, shape (queries, documents); `parts` follow one another.

    k1 = 1.5, b = 0.75. A query without a word that the documents have scores 0 everywhere.
    """
    from scipy.sparse import csr_array

    starts = np.cumsum([0, *(len(part.lengths) for part in parts)])
    lengths, word, times = (np.concatenate([part[field] for part in parts]) for field in (0, 2, 3))
    document = np.concatenate([part.document + start for part, start in zip(parts, starts, strict=False)])
    n = len(lengths)
    if not n or not len(word):
        return np.zeros((len(queries), n))
    having = np.bincount(word, minlength=len(numbers))
    rarity = np.log1p((n - having + 0.5) / (having + 0.5))
    saturated = times / (times + _K1 * (1 - _B + _B * lengths[document] / lengths.mean()))
    weights = csr_array((saturated * rarity[word], (document, word)), shape=(n, len(numbers)))
    asked = np.zeros((len(numbers), len(queries)))
    for column, query in enumerate(queries):
        for each in split(query, _SHORTEST):
            asked[numbers[each], column] += 1
    return np.ascontiguousarray((weights @ asked).T)


def bm25_scores(texts: Iterable[str], queries: Sequence[str]) -> NDArray[np.float64]:
    """The same of texts that are read here, once."""
    numbers = sought(queries)
    return bm25([counted(texts, numbers)], numbers, queries)
