"""Time, memory and recall of duplicate clusters against the number of documents.

    python benchmarks/duplicates.py --documents 1000 5000 50000 > benchmarks/results/DATE-duplicates.md

The text is synthetic with the statistics of natural text: words drawn by Zipf's law (exponent 1.07 over 60,000 words),
lengths log-normal with a median of 220 and a mean of about 300 words, some of several thousand, one document in five
opened by one of 40 instructions that many share. Planted are exact copies, copies with every 60th to 20th word changed,
and a family: 1 % of the documents (`--family`) are one long template with four words filled in, a little less alike
than the threshold, which is the worst case: they share buckets, and every pair has to be looked at.
Each size runs in a process of its own, on one thread; seconds are those of the processor.
"""

import argparse
import multiprocessing
import os
import platform
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from datablame.attribute.evidence.words import bm25_scores
from datablame.tables import Document, Message
from datablame.world.duplicates import clusters, full_text, hashed

_WORDS = 60_000
_THRESHOLD = 0.8
_GRAM = 5


class Measured(NamedTuple):
    """One size's numbers; memory is the peak of the process above the documents themselves."""

    documents: int
    words: int
    seconds: float
    megabytes: float
    found: int
    planted: int
    wrong: int
    clusters: int
    bm25_seconds: float
    bm25_megabytes: float


def corpus(n: int, family: float = 0.01, seed: int = 0) -> tuple[list[Document], list[tuple[int, int]]]:
    """Documents in random order, and the planted pairs (places) that are at least as alike as the threshold."""
    random = np.random.default_rng(seed)
    vocabulary = np.array([f"{'aeiou'[i % 5]}{i:x}" for i in range(_WORDS)])
    weights = 1 / np.arange(1, _WORDS + 1) ** 1.07
    cumulated = np.cumsum(weights / weights.sum())
    openings = [_draw(random, cumulated, 12) for _ in range(40)]
    template = _draw(random, cumulated, 250)
    texts: list[np.ndarray] = []
    origin: list[int] = []
    for number in range(n):
        kind = random.random()
        if number and kind < 0.05:
            source = int(random.integers(number))
            words, origin_of = texts[source], source
            if kind > 0.01:
                words = words.copy()
                changed = random.random(len(words)) < 1 / random.integers(20, 61)
                words[changed] = _draw(random, cumulated, int(changed.sum()))
        elif kind < 0.05 + family:
            words, origin_of = template.copy(), -1
            words[random.integers(0, len(words), 4)] = _draw(random, cumulated, 4)
        else:
            length = min(int(random.lognormal(np.log(220), 0.8)) + 5, 12_000)
            words, origin_of = _draw(random, cumulated, length), -1
            if random.random() < 0.2:
                words = np.concatenate([openings[int(random.integers(40))], words])
        texts.append(words)
        origin.append(origin_of)
    place = random.permutation(n)
    documents: list[Document | None] = [None] * n
    for number, words in enumerate(texts):
        cut = min(15, len(words) // 2)
        asked, said = " ".join(vocabulary[words[:cut]]), " ".join(vocabulary[words[cut:]])
        documents[place[number]] = Document(f"d{number}", "made", (Message("user", asked),), said)
    pairs = [
        (int(place[a]), int(place[number]))
        for number, a in enumerate(origin)
        if a >= 0 and _jaccard(texts[a], texts[number]) >= _THRESHOLD
    ]
    return [document for document in documents if document is not None], pairs


def measure(n: int, family: float) -> Measured:
    """Clusters and BM25 of `n` documents in this process."""
    documents, pairs = corpus(n, family)
    words = sum(len(full_text(document).split()) for document in documents)
    before = _peak()
    began = time.process_time()
    numbers = clusters((hashed(document, _THRESHOLD) for document in documents), _THRESHOLD)
    seconds, after = time.process_time() - began, _peak()
    found = sum(numbers[a] == numbers[b] for a, b in pairs)
    wrong = _wrong(documents, numbers)
    texts = [full_text(document) for document in documents]
    began = time.process_time()
    bm25_scores(texts, [" ".join(text.split()[:60]) for text in texts[:5]])
    bm25_seconds = time.process_time() - began
    return Measured(
        n, words, seconds, after - before, found, len(pairs), wrong, len(set(numbers)), bm25_seconds, _peak() - before
    )


def main() -> None:
    """Print one table, a row a size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, nargs="+", default=[1000, 5000, 50_000])
    parser.add_argument("--family", type=float, default=0.01, help="share of the documents that are one template")
    asked = parser.parse_args()
    print(f"# Duplicate clusters, {date.today()}\n")
    print(f"One thread of {_processor()}, Python {platform.python_version()}, numpy {np.__version__};")
    print(f"threshold {_THRESHOLD}; {asked.family:.0%} of the documents are one template. Seconds are the processor's;")
    print("memory is the rise of the process's peak while the step ran. BM25 answers five queries of 60 words.\n")
    print(
        "| documents | words each | clusters: s | MB | planted pairs found | wrongly joined | clusters | BM25: s | MB |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for n in asked.documents:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            row = process.submit(measure, n, asked.family).result()
        share = f"{row.found} of {row.planted}"
        print(
            f"| {n:,} | {row.words / n:.0f} | {row.seconds:.1f} | {row.megabytes:.0f} | {share} | {row.wrong} "
            f"| {row.clusters:,} | {row.bm25_seconds:.1f} | {row.bm25_megabytes:.0f} |",
            flush=True,
        )
    print(
        "\n`python benchmarks/duplicates.py --documents "
        + " ".join(map(str, asked.documents))
        + f" --family {asked.family}`"
    )


def _draw(random: np.random.Generator, cumulated: np.ndarray, n: int) -> np.ndarray:
    return np.searchsorted(cumulated, random.random(n)).clip(max=_WORDS - 1)


def _grams(words: "np.ndarray | list[str]") -> set[tuple[object, ...]]:
    return {tuple(words[i : i + _GRAM]) for i in range(max(1, len(words) - _GRAM + 1))}


def _jaccard(a: "np.ndarray | list[str]", b: "np.ndarray | list[str]") -> float:
    first, second = _grams(a), _grams(b)
    return len(first & second) / len(first | second)


def _wrong(documents: list[Document], numbers: list[int]) -> int:
    """Members of up to 300 clusters that are not as alike as the threshold to any other member."""
    members: dict[int, list[int]] = {}
    for place, number in enumerate(numbers):
        members.setdefault(number, []).append(place)
    wrong = 0
    for own in [own for own in members.values() if 2 <= len(own) <= 20][:300]:
        words = [full_text(documents[place]).split() for place in own]
        for a in range(len(own)):
            wrong += not any(_jaccard(words[a], words[b]) >= _THRESHOLD for b in range(len(own)) if b != a)
    return wrong


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
