"""BM25 of queries of 60 words against the PyPI packages rank_bm25 and bm25s.

All get texts and tokenise them in their own usual way. The text is that of duplicates.py: Zipf's words, log-normal
lengths of about 300 words.
"""

from collections.abc import Iterator
from functools import partial

from duplicates import corpus
from measure import ROUNDS, Amount, Row, interleaved

from datablame.attribute.evidence.words import bm25_scores
from datablame.world.duplicates import full_text

_QUERIES, _WORDS = 40, 60
"""Eight behaviours have five queries each."""


def rows(amount: Amount) -> Iterator[Row]:
    """The comparison at two sizes, or at one."""
    sizes = {"full": (1000, 5000), "quick": (1000,), "reduced": (200,)}
    for n in sizes[amount]:
        texts, queries = _texts(n)
        peers = {"rank_bm25": _rank_bm25, "bm25s": _bm25s}
        contenders = {name: partial(scores, texts, queries) for name, scores in {"ours": bm25_scores, **peers}.items()}
        times = interleaved(contenders, ROUNDS if amount == "full" else 3)
        note = "documents of about 300 words, CPU time"
        for peer in peers:
            yield Row(f"BM25, {_QUERIES} queries, {n:,} documents: {peer}", times["ours"].cpu / times[peer].cpu, note)


def _rank_bm25(texts: list[str], queries: list[str]) -> None:
    from rank_bm25 import BM25Okapi

    index = BM25Okapi([text.lower().split() for text in texts])
    for query in queries:
        index.get_scores(query.lower().split())


def _bm25s(texts: list[str], queries: list[str]) -> None:
    import bm25s

    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, stopwords=None, show_progress=False), show_progress=False)
    for query in queries:
        index.get_scores(query.lower().split())


def _texts(n: int) -> tuple[list[str], list[str]]:
    texts = [full_text(document) for document in corpus(n)[0]]
    return texts, [" ".join(text.split()[:_WORDS]) for text in texts[:_QUERIES]]
