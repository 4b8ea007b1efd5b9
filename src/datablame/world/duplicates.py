"""Duplicate clusters: equal texts, and texts whose word 5-grams overlap (MinHash; Broder 1997)."""

import functools
import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

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


def clusters(hashes: Iterable[Hashes], threshold: float, scratch: Path | None = None) -> list[int]:
    """The cluster number of each text, numbered by first appearance.

    Documents are one cluster when a chain of pairs links them whose word 5-gram sets have a Jaccard similarity of at
    least `threshold`; 1 links equal texts only. Candidate pairs share a band of their MinHash signatures; each is
    verified exactly, so that none is linked wrongly, and one at the threshold is missed with a probability under 0.1 %.
    Of each different text a quarter of a KB is held; its shingles lie in a file in the folder `scratch`.
    """
    first, rows, starts, bands, sketches = dict[bytes, int](), list[int](), [0], bytearray(), bytearray()
    with tempfile.TemporaryFile(dir=scratch) as file:
        for text in hashes:
            row = first.setdefault(text.digest, len(first))
            rows.append(row)
            if row == len(starts) - 1:
                bands += text.bands
                sketches += text.sketch
                file.write(text.shingles)
                starts.append(starts[-1] + len(text.shingles))

        def shingles(row: int) -> NDArray[np.uint64]:
            file.seek(starts[row])
            return np.frombuffer(file.read(starts[row + 1] - starts[row]), np.uint64)

        component = np.arange(len(first))
        for a, others in _candidates(bands, sketches, component, threshold) if threshold < 1 else ():
            similarities = _jaccard(shingles(a), [shingles(b) for b in others.tolist()])
            for b in others[similarities >= threshold].tolist():
                low, high = sorted((int(component[a]), int(component[b])))
                component[component == high] = low
    numbers, roots = dict[int, int](), component.tolist()
    return [numbers.setdefault(roots[row], len(numbers)) for row in rows]


def _candidates(
    hashed_bands: bytearray, hashed_sketches: bytearray, component: NDArray[np.int_], threshold: float
) -> Iterator[tuple[int, NDArray[np.int_]]]:
    """A row and those after it that share a band with it and whose signatures agree nearly often enough.

    Every pair comes once, in the first band that it shares; pairs that `component` has linked by then are left out. Of
    a signature's hashes the last byte is compared, which agrees by chance in 1 of 256: rather too many candidates.
    """
    bands = np.frombuffer(hashed_bands, np.uint32).reshape(-1, _PERMUTATIONS // _band_width(threshold))
    sketches = np.frombuffer(hashed_sketches, np.uint8).reshape(-1, _PERMUTATIONS)
    least = (threshold - _ESTIMATE_SLACK) * _PERMUTATIONS
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
                    part = part[np.count_nonzero(sketches[part] == sketches[a], axis=1) >= least]
                    if len(part):
                        yield a, part


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
    probabilities = {width: 1 - (1 - threshold**width) ** (_PERMUTATIONS // width) for width in (32, 16, 8, 4, 2)}
    return next((width for width, probability in probabilities.items() if probability >= _FOUND_AT_THRESHOLD), 1)


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
