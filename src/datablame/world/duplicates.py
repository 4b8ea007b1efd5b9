"""Duplicate clusters: equal texts, and texts whose word 5-grams overlap (MinHash; Broder 1997)."""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
    """What clustering keeps of a text, as bytes; all but the first are empty where only equal texts are linked."""

    digest: bytes
    """What equal texts share, whatever their white space."""
    shingles: bytes = b""
    """The distinct word 5-grams as sorted hashes of 8 bytes."""
    bands: bytes = b""
    """Their MinHash signature cut into bands, a band as one hash of 4 bytes."""
    sketch: bytes = b""
    """The last byte of each hash of the signature."""


def hashed(text: str, threshold: float) -> Hashes:
    """The hashes of one text; a threshold of 1 needs no shingles."""
    digest = hashlib.blake2b(" ".join(text.split()).encode("utf-8", "replace"), digest_size=16).digest()
    if threshold == 1:
        return Hashes(digest)
    # A text of fewer words is one shingle.
    words = list(map(_hash, text.lower().split()))
    padded = np.array(words + [0] * (_WORDS_IN_SHINGLE - len(words)), dtype=np.uint64)
    grams = np.lib.stride_tricks.sliding_window_view(padded, _WORDS_IN_SHINGLE)
    shingles = np.unique(_mixed((grams * _MULTIPLIERS).sum(1, dtype=np.uint64)))
    parts = [shingles[start : start + _HASHED_TOGETHER] for start in range(0, len(shingles), _HASHED_TOGETHER)]
    signature: NDArray[np.uint64] = np.min([_mixed(part[:, None] ^ _SALTS).min(0) for part in parts], axis=0)
    width = _band_width(threshold)
    bands = _mixed((signature.reshape(-1, width) * _random_words(width, salt=3)).sum(1, dtype=np.uint64))
    sketch = signature.astype(np.uint8)
    return Hashes(digest, shingles.tobytes(), bands.astype(np.uint32).tobytes(), sketch.tobytes())


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
        self._threshold, self._file = threshold, scratch
        self._first: dict[bytes, int] = {}
        """The row among different texts by digest."""
        self._rows: list[int] = []
        """Of every text its row among the different ones."""
        self._bands, self._sketches = bytearray(), bytearray()
        self._starts: list[int] = [0]
        """Where the shingles of each different text begin, in bytes."""

    def add(self, hashes: Hashes) -> None:
        """Take the next text."""
        row = self._first.setdefault(hashes.digest, len(self._first))
        self._rows.append(row)
        if row == len(self._starts) - 1:
            self._bands += hashes.bands
            self._sketches += hashes.sketch
            self._file.write(hashes.shingles)
            self._starts.append(self._starts[-1] + len(hashes.shingles))

    def clusters(self) -> list[int]:
        """The cluster number of each text, numbered by first appearance."""
        component = np.arange(len(self._first))
        for a, others in self._candidates(component) if self._threshold < 1 else ():
            if not len(others):
                continue
            similarities = _jaccard(self._shingles(a), [self._shingles(b) for b in others.tolist()])
            for b in others[similarities >= self._threshold].tolist():
                low, high = sorted((int(component[a]), int(component[b])))
                component[component == high] = low
        numbers: dict[int, int] = {}
        roots = component.tolist()
        return [numbers.setdefault(roots[row], len(numbers)) for row in self._rows]

    def _shingles(self, row: int) -> NDArray[np.uint64]:
        start, end = self._starts[row : row + 2]
        self._file.seek(start)
        return np.frombuffer(self._file.read(end - start), np.uint64)

    def _candidates(self, component: NDArray[np.int_]) -> Iterator[tuple[int, NDArray[np.int_]]]:
        """A row and those after it that share a band with it and whose signatures agree nearly often enough.

        Every pair comes once, in the first band that it shares; pairs that `component` has linked by then are left
        out. Of a signature's hashes the last byte is compared, which agrees by chance in 1 of 256: too many candidates
        rather than too few.
        """
        bands = np.frombuffer(self._bands, np.uint32).reshape(-1, _PERMUTATIONS // _band_width(self._threshold))
        sketches = np.frombuffer(self._sketches, np.uint8).reshape(-1, _PERMUTATIONS)
        least = (self._threshold - _ESTIMATE_SLACK) * _PERMUTATIONS
        for number in range(bands.shape[1]):
            rows = pa.table({"band": bands[:, number], "row": np.arange(len(bands))})
            buckets = rows.group_by("band", use_threads=False).aggregate([("row", "list")])["row_list"]
            for bucket in buckets.filter(pc.greater(pc.list_value_length(buckets), 1)):
                members = bucket.values.to_numpy()
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


def _jaccard(shingles: NDArray[np.uint64], others: Sequence[NDArray[np.uint64]]) -> NDArray[np.float64]:
    """The similarity of one set of shingles to each of the others, all sorted and none empty."""
    lengths = np.array([len(other) for other in others])
    every = np.concatenate(others)
    shared_ones = shingles[np.searchsorted(shingles, every).clip(max=len(shingles) - 1)] == every
    shared = np.add.reduceat(shared_ones, np.cumsum(lengths) - lengths, dtype=np.int64)
    similarities: NDArray[np.float64] = shared / (len(shingles) + lengths - shared)
    return similarities


@functools.cache
def _band_width(threshold: float) -> int:
    """The widest band with which a pair at the threshold is surely found: 1 - (1 - J^width)^bands >= 99.9 %."""
    found = {width: 1 - (1 - threshold**width) ** (_PERMUTATIONS // width) for width in (32, 16, 8, 4, 2)}
    return next((width for width, share in found.items() if share >= _FOUND_AT_THRESHOLD), 1)


@functools.lru_cache(1 << 16)
def _hash(word: str) -> int:
    """A 64-bit hash that no process salts."""
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")


@functools.cache
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
