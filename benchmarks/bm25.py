"""BM25 of queries of 60 words against the PyPI packages rank_bm25 and bm25s.

    python benchmarks/bm25.py

All get texts and tokenise them in their own usual way; the growth with the number of documents is ours alone. The text
is that of duplicates.py: Zipf's words, log-normal lengths of about 300 words.
"""

import argparse
from functools import partial

from duplicates import corpus
from measure import Row, interleaved, machine, table

from datablame.attribute.evidence.words import bm25_scores
from datablame.world.duplicates import full_text

_QUERIES, _WORDS = 40, 60
"""Eight behaviours have five queries each."""


def rows(reduced: bool = False) -> list[Row]:
    """The comparison at two sizes."""
    return [row for n in ((200, 400) if reduced else (1000, 5000)) for row in _rows(n)]


def _rows(n: int) -> list[Row]:
    texts, queries = _texts(n)
    peers = {"rank_bm25": _rank_bm25, "bm25s": _bm25s}
    contenders = {"ours": bm25_scores, **peers}
    times = interleaved({name: partial(scores, texts, queries) for name, scores in contenders.items()})
    note = "documents of about 300 words, CPU time"
    return [
        Row(f"BM25, {_QUERIES} queries, {n:,} documents: {peer}", times["ours"].cpu / times[peer].cpu, note)
        for peer in peers
    ]


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


def growth(sizes: list[int]) -> list[tuple[int, float]]:
    """Documents and CPU seconds, the median of five."""
    found = []
    for n in sizes:
        texts, queries = _texts(n)
        times = interleaved({"ours": partial(bm25_scores, texts, queries)})
        found.append((n, times["ours"].cpu))
    return found


def _texts(n: int) -> tuple[list[str], list[str]]:
    texts = [full_text(document) for document in corpus(n)[0]]
    return texts, [" ".join(text.split()[:_WORDS]) for text in texts[:_QUERIES]]


def main() -> None:
    """Print the table and the growth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reduced", action="store_true", help="small sizes, to see that it runs")
    options = parser.parse_args()
    print(machine(), end="\n\n")
    print(table(rows(options.reduced)))
    sizes = [200, 400] if options.reduced else [1000, 5000, 10_000, 50_000]
    found = growth(sizes)
    first = found[0][1] / found[0][0]
    print("\n| documents | time a document, relative to the first row |\n|---:|---:|")
    for n, seconds in found:
        print(f"| {n:,} | {seconds / n / first:.2f} |")


if __name__ == "__main__":
    main()
