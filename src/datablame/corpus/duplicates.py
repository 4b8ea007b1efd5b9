"""Duplicate clusters: equal texts, and texts whose word 5-grams overlap (MinHash; Broder 1997)."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from datablame.records import Document

__all__ = ["clusters", "full_text"]

_WORDS_IN_SHINGLE = 5
_PERMUTATIONS = 128
_SEED = 20250801
_FOUND_AT_THRESHOLD = 0.999
_ESTIMATE_SLACK = 5 * 0.5 / _PERMUTATIONS**0.5
"""Five standard errors, at most, of a Jaccard similarity estimated from a signature."""


def full_text(document: Document) -> str:
    """Everything that the document says, turn by turn."""
    return "\n".join([*(turn.content for turn in document.prompt), document.response])


def clusters(documents: Sequence[Document], threshold: float) -> list[int]:
    """The cluster number of each document, numbered by first appearance.

    Documents are one cluster when a chain of pairs links them whose word 5-gram sets have a Jaccard similarity of at
    least `threshold`. Candidate pairs share a band of their MinHash signatures; each is verified exactly, so that no
    pair is linked wrongly, and a pair at the threshold is missed with a probability under 0.1 %. A threshold of 1
    links equal texts only. White space never counts.
    """
    texts = [" ".join(full_text(document).split()) for document in documents]
    parent = list(range(len(texts)))
    first: dict[str, int] = {}
    for place, text in enumerate(texts):
        _link(parent, first.setdefault(text, place), place)
    if threshold < 1 and len(first) > 1:
        distinct = sorted(first.values())
        shingles = _shingles([texts[place] for place in distinct])
        for a, b in _candidates(_signatures(shingles), threshold):
            low, high = distinct[a], distinct[b]
            linked = _root(parent, low) == _root(parent, high)
            if not linked and _jaccard(shingles[a], shingles[b]) >= threshold:
                _link(parent, low, high)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(_root(parent, place), len(numbers)) for place in range(len(texts))]


def _shingles(texts: Sequence[str]) -> list[NDArray[np.uint64]]:
    """Each text's distinct 5-grams of lower-cased words as sorted hashes; a shorter text is one shingle."""
    hashed: dict[str, int] = {}
    multipliers = _random_words(_WORDS_IN_SHINGLE, salt=1)
    shingles = []
    for text in texts:
        words = text.lower().split()
        known = [hashed.get(word) or hashed.setdefault(word, _hash(word)) for word in words]
        padded = np.array(known + [0] * (_WORDS_IN_SHINGLE - len(known)), dtype=np.uint64)
        grams = np.lib.stride_tricks.sliding_window_view(padded, _WORDS_IN_SHINGLE)
        shingles.append(np.unique(_mixed((grams * multipliers).sum(1, dtype=np.uint64))))
    return shingles


def _signatures(shingles: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """MinHash signatures, one row a text: the smallest of its shingles under each of 128 random hashes."""
    salts = _random_words(_PERMUTATIONS, salt=2)
    return np.stack([_mixed(own[:, None] ^ salts).min(0) for own in shingles])


def _candidates(signatures: NDArray[np.uint64], threshold: float) -> Iterator[tuple[int, int]]:
    """Pairs that share a band and whose signatures agree nearly often enough."""
    width = _band_width(threshold)
    needed = threshold - _ESTIMATE_SLACK
    seen: set[tuple[int, int]] = set()
    for start in range(0, _PERMUTATIONS - width + 1, width):
        buckets: dict[bytes, list[int]] = {}
        for place, band in enumerate(np.ascontiguousarray(signatures[:, start : start + width])):
            buckets.setdefault(band.tobytes(), []).append(place)
        for members in buckets.values():
            for position, a in enumerate(members[:-1]):
                others = np.array(members[position + 1 :])
                agreement = (signatures[others] == signatures[a]).mean(1)
                for b in others[agreement >= needed].tolist():
                    if (a, b) not in seen:
                        seen.add((a, b))
                        yield a, b


def _jaccard(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> float:
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _band_width(threshold: float) -> int:
    """The widest band with which a pair at the threshold is surely found: 1 - (1 - J^width)^bands >= 99.9 %."""
    for width in (32, 16, 8, 4, 2):
        if 1 - (1 - threshold**width) ** (_PERMUTATIONS // width) >= _FOUND_AT_THRESHOLD:
            return width
    return 1


def _hash(word: str) -> int:
    """A 64-bit hash that no process salts."""
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def _random_words(n: int, salt: int) -> NDArray[np.uint64]:
    random = np.random.Generator(np.random.Philox(key=_SEED + salt))
    return random.integers(0, 1 << 64, n, dtype=np.uint64) | np.uint64(1)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014): a bijection in which every bit depends on every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _root(parent: list[int], place: int) -> int:
    while parent[place] != place:
        parent[place] = parent[parent[place]]
        place = parent[place]
    return place


def _link(parent: list[int], a: int, b: int) -> None:
    low, high = sorted((_root(parent, a), _root(parent, b)))
    parent[high] = low
