"""Duplicate clusters: equal texts, and texts whose word 5-grams overlap (MinHash; Broder 1997)."""

import functools
import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.tables import Document

_WORDS_IN_SHINGLE = 5
_PERMUTATIONS = 128
_SEED = 20250801
_FOUND_AT_THRESHOLD = 0.999
_ESTIMATE_SLACK = 5 * 0.5 / _PERMUTATIONS**0.5
"""Five standard errors, at most, of a Jaccard similarity estimated from a signature."""
_HASHED_TOGETHER = 4096
_COMPARED_TOGETHER = 256


class Hashes(NamedTuple):
    """What clustering keeps of a text."""

    digest: bytes
    """What equal texts share, whatever their white space."""
    shingles: NDArray[np.uint64]
    """The distinct word 5-grams as sorted hashes; empty where only equal texts are linked."""
    signature: NDArray[np.uint64]
    """The MinHash signature of the shingles."""


def hashed(text: str, threshold: float) -> Hashes:
    """The hashes of one text; a threshold of 1 needs no shingles."""
    digest = hashlib.blake2b(" ".join(text.split()).encode("utf-8", "replace"), digest_size=16).digest()
    if threshold == 1:
        return Hashes(digest, _NOTHING, _NOTHING)
    shingles = _shingles(text.lower().split())
    return Hashes(digest, shingles, _signature(shingles))


class Duplicates:
    """Texts added one after another, then linked.

    Documents are one cluster when a chain of pairs links them whose word 5-gram sets have a Jaccard similarity of at
    least `threshold`. Candidate pairs share a band of their MinHash signatures; each is verified exactly, so that no
    pair is linked wrongly, and a pair at the threshold is missed with a probability under 0.1 %. A threshold of 1
    links equal texts only. White space never counts.

    Of each different text are held 4 bytes a band and 1 a permutation, which is a quarter of a KB; its shingles lie in
    `scratch`, an open binary file.
    """

    def __init__(self, threshold: float, scratch: BinaryIO) -> None:
        self._threshold = threshold
        self._width = _band_width(threshold)
        self._first: dict[bytes, int] = {}
        """The row among different texts by digest."""
        self._rows: list[int] = []
        """Of every text its row among the different ones."""
        self._bands, self._sketches = bytearray(), bytearray()
        self._starts: list[int] = [0]
        self._file = scratch

    def add(self, hashes: Hashes) -> None:
        """Take the next text."""
        row = self._first.setdefault(hashes.digest, len(self._first))
        self._rows.append(row)
        if row == len(self._starts) - 1 and self._threshold < 1:
            self._bands += _bands(hashes.signature, self._width).astype(np.uint32).tobytes()
            self._sketches += hashes.signature.astype(np.uint8).tobytes()
            self._file.write(hashes.shingles.tobytes())
            self._starts.append(self._starts[-1] + len(hashes.shingles))

    def clusters(self) -> list[int]:
        """The cluster number of each text, numbered by first appearance."""
        component = self._linked() if self._threshold < 1 else np.arange(len(self._first))
        numbers: dict[int, int] = {}
        return [numbers.setdefault(root, len(numbers)) for root in component[self._rows].tolist()] if self._rows else []

    def _linked(self) -> NDArray[np.int_]:
        """For each different text the first one of its cluster."""
        component = np.arange(len(self._first))
        for a, others in self._candidates(component):
            if not len(others):
                continue
            similarities = _jaccard(self._shingles(a), [self._shingles(b) for b in others.tolist()])
            for b in others[similarities >= self._threshold].tolist():
                low, high = sorted((int(component[a]), int(component[b])))
                component[component == high] = low
        return component

    def _shingles(self, row: int) -> NDArray[np.uint64]:
        start, end = self._starts[row : row + 2]
        self._file.seek(8 * start)
        return np.frombuffer(self._file.read(8 * (end - start)), np.uint64)

    def _candidates(self, component: NDArray[np.int_]) -> Iterator[tuple[int, NDArray[np.int_]]]:
        """A row and those after it that share a band with it and whose signatures agree nearly often enough.

        Every pair comes once, in the first band that it shares; pairs that `component` has linked by then are left
        out. Of a signature's hashes the last byte is compared, which agrees by chance in 1 of 256: too many candidates
        rather than too few.
        """
        bands = np.frombuffer(self._bands, np.uint32).reshape(-1, _PERMUTATIONS // self._width)
        sketches = np.frombuffer(self._sketches, np.uint8).reshape(-1, _PERMUTATIONS)
        least = (self._threshold - _ESTIMATE_SLACK) * _PERMUTATIONS
        for number in range(bands.shape[1]):
            for members in _buckets(bands[:, number]):
                for position, a in enumerate(members[:-1].tolist()):
                    others = members[position + 1 :]
                    for start in range(0, len(others), _COMPARED_TOGETHER):
                        part = others[start : start + _COMPARED_TOGETHER]
                        part = part[component[part] != component[a]]
                        part = part[~(bands[part, :number] == bands[a, :number]).any(1)]
                        agreeing = np.count_nonzero(sketches[part] == sketches[a], axis=1)
                        yield a, part[agreeing >= least]


def full_text(document: Document) -> str:
    """Everything that the document says, turn by turn, the rejected answer of a preference pair last."""
    turns = [*(turn.content for turn in document.prompt), document.response]
    return "\n".join([*turns, document.rejected] if document.rejected else turns)


def clusters(documents: Iterable[Document], threshold: float) -> list[int]:
    """The cluster number of each document, numbered by first appearance (see `Duplicates`)."""
    with tempfile.TemporaryFile() as scratch:
        duplicates = Duplicates(threshold, scratch)
        for document in documents:
            duplicates.add(hashed(full_text(document), threshold))
        return duplicates.clusters()


def _shingles(words: Sequence[str]) -> NDArray[np.uint64]:
    """The 5-grams of lower-cased words; a shorter text is one shingle."""
    hashes = list(map(_hash, words))
    padded = np.array(hashes + [0] * (_WORDS_IN_SHINGLE - len(hashes)), dtype=np.uint64)
    grams = np.lib.stride_tricks.sliding_window_view(padded, _WORDS_IN_SHINGLE)
    return np.unique(_mixed((grams * _MULTIPLIERS).sum(1, dtype=np.uint64)))


def _signature(shingles: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The smallest of the shingles under each of 128 random hashes."""
    parts = [shingles[start : start + _HASHED_TOGETHER] for start in range(0, len(shingles), _HASHED_TOGETHER)]
    smallest: NDArray[np.uint64] = np.min([_mixed(part[:, None] ^ _SALTS).min(0) for part in parts], axis=0)
    return smallest


def _bands(signature: NDArray[np.uint64], width: int) -> NDArray[np.uint64]:
    """A signature cut into bands, a band as one hash."""
    return _mixed((signature.reshape(-1, width) * _random_words(width, salt=3)).sum(1, dtype=np.uint64))


def _buckets(band: NDArray[np.unsignedinteger]) -> Iterator[NDArray[np.int_]]:
    """The rows that share a hash, in order, where there are at least two."""
    order = np.argsort(band, kind="stable")
    starts = np.flatnonzero(np.diff(band[order], prepend=~band[order[:1]]))
    lengths = np.diff(starts, append=len(order))
    for start, length in zip(starts[lengths > 1].tolist(), lengths[lengths > 1].tolist(), strict=True):
        yield order[start : start + length]


def _jaccard(shingles: NDArray[np.uint64], others: Sequence[NDArray[np.uint64]]) -> NDArray[np.float64]:
    """The similarity of one set of shingles to each of the others, all sorted and none empty."""
    lengths = np.array([len(other) for other in others])
    every = np.concatenate(others)
    shared_ones = shingles[np.searchsorted(shingles, every).clip(max=len(shingles) - 1)] == every
    shared = np.add.reduceat(shared_ones, np.cumsum(lengths) - lengths, dtype=np.int64)
    similarities: NDArray[np.float64] = shared / (len(shingles) + lengths - shared)
    return similarities


def _band_width(threshold: float) -> int:
    """The widest band with which a pair at the threshold is surely found: 1 - (1 - J^width)^bands >= 99.9 %."""
    found = {width: 1 - (1 - threshold**width) ** (_PERMUTATIONS // width) for width in (32, 16, 8, 4, 2)}
    return next((width for width, share in found.items() if share >= _FOUND_AT_THRESHOLD), 1)


@functools.lru_cache(1 << 16)
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


_NOTHING = np.empty(0, np.uint64)
_MULTIPLIERS = _random_words(_WORDS_IN_SHINGLE, salt=1)
_SALTS = _random_words(_PERMUTATIONS, salt=2)
