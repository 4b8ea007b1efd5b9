"""Duplicate clusters: equal texts, and texts whose word 5-grams overlap (MinHash; Broder 1997)."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from datablame.tables import Document

_WORDS_IN_SHINGLE = 5
_PERMUTATIONS = 128
_SEED = 20250801
_FOUND_AT_THRESHOLD = 0.999
_ESTIMATE_SLACK = 5 * 0.5 / _PERMUTATIONS**0.5
"""Five standard errors, at most, of a Jaccard similarity estimated from a signature."""
_HELD_HASHES = 8 << 20
_HELD_WORDS = 1 << 18
_HASHED_TOGETHER = 4096
_COMPARED_TOGETHER = 256


def full_text(document: Document) -> str:
    """Everything that the document says, turn by turn, the rejected answer of a preference pair last."""
    turns = [*(turn.content for turn in document.prompt), document.response]
    return "\n".join([*turns, document.rejected] if document.rejected else turns)


def clusters(documents: Sequence[Document], threshold: float) -> list[int]:
    """The cluster number of each document, numbered by first appearance.

    Documents are one cluster when a chain of pairs links them whose word 5-gram sets have a Jaccard similarity of at
    least `threshold`. Candidate pairs share a band of their MinHash signatures; each is verified exactly, so that no
    pair is linked wrongly, and a pair at the threshold is missed with a probability under 0.1 %. A threshold of 1
    links equal texts only. White space never counts.

    What is held beside the documents is 1 KB for each (its signature) and at most 64 MB of shingles, made again when
    they are needed again, and the hashes of some words.
    """
    first: dict[bytes, int] = {}
    component = np.array([first.setdefault(_digest(each), place) for place, each in enumerate(documents)], dtype=int)
    if threshold < 1 and len(first) > 1:
        distinct = np.array(sorted(first.values()))
        own = [documents[place] for place in distinct.tolist()]
        component = distinct[_linked(own, threshold)][np.searchsorted(distinct, component)]
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root, len(numbers)) for root in component.tolist()]


def _linked(documents: Sequence[Document], threshold: float) -> NDArray[np.int_]:
    """For each of these different documents the first one of its cluster."""
    shingles = _shingle_reader(documents)
    signatures = np.empty((len(documents), _PERMUTATIONS), dtype=np.uint64)
    for place in range(len(documents)):
        signatures[place] = _signature(shingles(place))
    component = np.arange(len(documents))
    for a, others in _candidates(signatures, threshold, component):
        if not len(others):
            continue
        similarities = _jaccard(shingles(a), [shingles(b) for b in others.tolist()])
        for b in others[similarities >= threshold].tolist():
            low, high = sorted((int(component[a]), int(component[b])))
            component[component == high] = low
    return component


def _shingle_reader(documents: Sequence[Document]) -> Callable[[int], NDArray[np.uint64]]:
    """Shingles by place; those used last are held, up to a fixed number of hashes."""
    held: OrderedDict[int, NDArray[np.uint64]] = OrderedDict()
    words: dict[str, int] = {}
    hashes = 0

    def shingles(place: int) -> NDArray[np.uint64]:
        nonlocal hashes
        if place not in held:
            held[place] = _shingles(full_text(documents[place]), words)
            hashes += len(held[place])
        held.move_to_end(place)
        while hashes > _HELD_HASHES and len(held) > 2:
            hashes -= len(held.popitem(last=False)[1])
        return held[place]

    return shingles


def _shingles(text: str, hashed: dict[str, int]) -> NDArray[np.uint64]:
    """The distinct 5-grams of lower-cased words as sorted hashes; a shorter text is one shingle.

    `hashed` holds the hashes of words met before.
    """
    if len(hashed) > _HELD_WORDS:
        hashed.clear()
    known = [hashed.get(word) or hashed.setdefault(word, _hash(word)) for word in text.lower().split()]
    padded = np.array(known + [0] * (_WORDS_IN_SHINGLE - len(known)), dtype=np.uint64)
    grams = np.lib.stride_tricks.sliding_window_view(padded, _WORDS_IN_SHINGLE)
    return np.unique(_mixed((grams * _MULTIPLIERS).sum(1, dtype=np.uint64)))


def _signature(shingles: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The MinHash signature: the smallest of the shingles under each of 128 random hashes."""
    parts = [shingles[start : start + _HASHED_TOGETHER] for start in range(0, len(shingles), _HASHED_TOGETHER)]
    smallest: NDArray[np.uint64] = np.min([_mixed(part[:, None] ^ _SALTS).min(0) for part in parts], axis=0)
    return smallest


def _candidates(
    signatures: NDArray[np.uint64], threshold: float, component: NDArray[np.int_]
) -> Iterator[tuple[int, NDArray[np.int_]]]:
    """A place and those after it that share a band with it and whose signatures agree nearly often enough.

    Every pair comes once, in the first band that it shares; pairs that `component` has linked by then are left out.
    """
    width = _band_width(threshold)
    needed = threshold - _ESTIMATE_SLACK
    bands = _bands(signatures, width)
    for number in range(bands.shape[1]):
        for members in _buckets(bands[:, number]):
            for position, a in enumerate(members[:-1].tolist()):
                others = members[position + 1 :]
                for start in range(0, len(others), _COMPARED_TOGETHER):
                    part = others[start : start + _COMPARED_TOGETHER]
                    part = part[component[part] != component[a]]
                    part = part[~(bands[part, :number] == bands[a, :number]).any(1)]
                    agreeing = np.count_nonzero(signatures[part] == signatures[a], axis=1)
                    yield a, part[agreeing >= needed * _PERMUTATIONS]


def _bands(signatures: NDArray[np.uint64], width: int) -> NDArray[np.uint64]:
    """Each signature cut into bands, a band as one hash."""
    parts = signatures.reshape(len(signatures), -1, width)
    sums = np.zeros(parts.shape[:2], dtype=np.uint64)
    for place, multiplier in enumerate(_random_words(width, salt=3)):
        sums += parts[:, :, place] * multiplier
    return _mixed(sums)


def _buckets(band: NDArray[np.uint64]) -> Iterator[NDArray[np.int_]]:
    """The places that share a hash, in order, where there are at least two."""
    order = np.argsort(band, kind="stable")
    starts = np.flatnonzero(np.diff(band[order], prepend=~band[order[:1]]))
    lengths = np.diff(starts, append=len(order))
    for start, length in zip(starts[lengths > 1].tolist(), lengths[lengths > 1].tolist(), strict=True):
        yield order[start : start + length]


def _jaccard(own: NDArray[np.uint64], others: Sequence[NDArray[np.uint64]]) -> NDArray[np.float64]:
    """The similarity of one set of shingles to each of the others, all sorted and none empty."""
    lengths = np.array([len(other) for other in others])
    every = np.concatenate(others)
    shared_ones = own[np.searchsorted(own, every).clip(max=len(own) - 1)] == every
    shared = np.add.reduceat(shared_ones, np.cumsum(lengths) - lengths, dtype=np.int64)
    similarities: NDArray[np.float64] = shared / (len(own) + lengths - shared)
    return similarities


def _band_width(threshold: float) -> int:
    """The widest band with which a pair at the threshold is surely found: 1 - (1 - J^width)^bands >= 99.9 %."""
    for width in (32, 16, 8, 4, 2):
        if 1 - (1 - threshold**width) ** (_PERMUTATIONS // width) >= _FOUND_AT_THRESHOLD:
            return width
    return 1


def _digest(document: Document) -> bytes:
    """What equal texts share, whatever their white space."""
    return hashlib.blake2b(" ".join(full_text(document).split()).encode("utf-8", "replace"), digest_size=16).digest()


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


_MULTIPLIERS = _random_words(_WORDS_IN_SHINGLE, salt=1)
_SALTS = _random_words(_PERMUTATIONS, salt=2)
