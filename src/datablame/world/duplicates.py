"""Duplicate clusters: equal documents, and those whose word 5-grams overlap (MinHash; Broder 1997).

The answers have to overlap too: after a long shared passage, opposite ones make two documents.
"""

import functools
import hashlib
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datablame.tables import Document
from datablame.words import pieces

_WORDS_IN_SHINGLE = 5
_PERMUTATIONS = 128
_SEED = 20250801
_FOUND_AT_THRESHOLD = 0.999
_ESTIMATE_SLACK = 5 * 0.5 / _PERMUTATIONS**0.5
"""Five standard errors, at most, of a Jaccard similarity estimated from a signature."""
_HASHED_TOGETHER = 4096
_COMPARED_TOGETHER = 256


class Hashes(NamedTuple):
    """What clustering keeps of a document, as bytes; all but the first are empty where only equal ones are linked."""

    digest: bytes
    """What equal documents share, whatever their white space."""
    of_response: bytes = b""
    """The distinct word 5-grams of the response, as sorted hashes of 8 bytes, and those"""
    of_rejected: bytes = b""
    """of the rejected answer, and"""
    shingles: bytes = b""
    """of the whole document."""
    bands: bytes = b""
    """The last ones' MinHash signature cut into bands, a band as one hash of 4 bytes."""
    sketch: bytes = b""
    """The last byte of each hash of that signature."""
    response_bands: bytes = b""
    """The bands of the response's signature."""


_SETS = range(1, 4)
"""The fields of `Hashes` that are sets of shingles, no one empty."""


def hashed(document: Document, threshold: float) -> Hashes:
    """The hashes of one document; a threshold of 1 needs no shingles."""
    parts = ("\n".join(turn.content for turn in document.prompt), document.response, document.rejected)
    spaced = "\0".join(" ".join(part.split()) for part in parts)
    digest = hashlib.blake2b(spaced.encode("utf-8", "replace"), digest_size=16).digest()
    if threshold == 1:
        return Hashes(digest)
    prompt, response, rejected = (list(map(_hash, pieces(part))) for part in parts)
    sets = [_shingles(words) for words in (response, rejected, [*prompt, *response, *rejected])]
    of_response, rest = _signature(sets[0]), np.setdiff1d(sets[2], sets[0], assume_unique=True)
    signature = _signature(rest)
    if len(rest) < len(sets[2]):  # A response of some words has its shingles there too.
        signature = np.minimum(signature, of_response)
    arrays: list[NDArray[Any]] = [*sets, _bands(signature, threshold), signature.astype(np.uint8)]
    arrays.append(_bands(of_response, threshold))
    return Hashes(digest, *(each.tobytes() for each in arrays))


def clusters(hashes: Iterable[Hashes], threshold: float, scratch: Path | None = None) -> list[int]:
    """The cluster number of each document, numbered by first appearance.

    Documents are one cluster when a chain of pairs links them whose word 5-gram sets have a Jaccard similarity of at
    least `threshold`, those of the whole documents, of the responses and of what is rejected; 1 links equal documents
    only. Candidate pairs share a band of their MinHash signatures and one of their responses'; each is verified
    exactly, so that none is linked wrongly, and one at the threshold is missed with a probability under 0.2 %.
    Of each different document half a KB is held; its shingles lie in a file in the folder `scratch`.
    """
    first, rows, starts = dict[bytes, int](), list[int](), array("q", [0])
    bands, sketches, response_bands = bytearray(), bytearray(), bytearray()
    with tempfile.TemporaryFile(dir=scratch) as file:
        for each in hashes:
            row = first.setdefault(each.digest, len(first))
            rows.append(row)
            if row == len(starts) // len(_SETS):
                bands += each.bands
                sketches += each.sketch
                response_bands += each.response_bands
                for field in _SETS:
                    file.write(each[field])
                    starts.append(starts[-1] + len(each[field]))

        def shingles(row: int, field: int) -> NDArray[np.uint64]:
            start, end = starts[row * len(_SETS) + field - 1 :][:2]
            file.seek(start)
            return np.frombuffer(file.read(end - start), np.uint64)

        component = np.arange(len(first))
        every = _candidates(bands, sketches, response_bands, component, threshold) if threshold < 1 else ()
        for a, others in every:
            for field in _SETS:
                similarities = _jaccard(shingles(a, field), [shingles(b, field) for b in others.tolist()])
                others = others[similarities >= threshold]
            for b in others.tolist():
                low, high = sorted((int(component[a]), int(component[b])))
                component[component == high] = low
    numbers, roots = dict[int, int](), component.tolist()
    return [numbers.setdefault(roots[row], len(numbers)) for row in rows]


def _candidates(
    hashed_bands: bytearray,
    hashed_sketches: bytearray,
    hashed_response_bands: bytearray,
    component: NDArray[np.int_],
    threshold: float,
) -> Iterator[tuple[int, NDArray[np.int_]]]:
    """A row and those after it that share a band with it, and one of the response, and nearly agree in their signature.

    Every pair comes once, in the first bands that it shares; pairs that `component` has linked by then are left out. Of
    a signature's hashes the last byte is compared, which agrees by chance in 1 of 256: rather too many candidates.
    """
    per_row = _PERMUTATIONS // _band_width(threshold)
    bands, responses = (np.frombuffer(b, np.uint32).reshape(-1, per_row) for b in (hashed_bands, hashed_response_bands))
    sketches = np.frombuffer(hashed_sketches, np.uint8).reshape(-1, _PERMUTATIONS)
    least = (threshold - _ESTIMATE_SLACK) * _PERMUTATIONS
    for number, bucket in _buckets(bands):
        # Thousands of answers to one long passage would make millions of pairs.
        small = len(bucket) <= _COMPARED_TOGETHER
        for of_response, rows in [(0, np.arange(len(bucket)))] if small else _buckets(responses[bucket]):
            members = bucket[rows]
            for position, a in enumerate(members[:-1].tolist()):
                others = members[position + 1 :]
                for start in range(0, len(others), _COMPARED_TOGETHER):
                    part = others[start : start + _COMPARED_TOGETHER]
                    part = part[component[part] != component[a]]
                    part = part[~(bands[part, :number] == bands[a, :number]).any(1)]
                    shared = responses[part] == responses[a]
                    part = part[shared.any(1) & ~shared[:, :of_response].any(1)]
                    part = part[np.count_nonzero(sketches[part] == sketches[a], axis=1) >= least]
                    if len(part):
                        yield a, part


def _buckets(bands: NDArray[np.uint32]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """For each band, of shape (rows, bands), the rows that have the same hash there, two of them at least."""
    for number in range(bands.shape[1]):
        rows = pa.table({"band": bands[:, number], "row": np.arange(len(bands))})
        buckets = rows.group_by("band", use_threads=False).aggregate([("row", "list")])["row_list"]
        for bucket in buckets.filter(pc.greater(pc.list_value_length(buckets), 1)):
            yield number, bucket.values.to_numpy()


def _shingles(words: list[int]) -> NDArray[np.uint64]:
    """The distinct 5-grams, sorted; a text of fewer words is one."""
    padded = np.array(words + [0] * (_WORDS_IN_SHINGLE - len(words)), dtype=np.uint64)
    grams = np.lib.stride_tricks.sliding_window_view(padded, _WORDS_IN_SHINGLE)
    return np.unique(_mixed((grams * _MULTIPLIERS).sum(1, dtype=np.uint64)))


def _signature(shingles: NDArray[np.uint64]) -> NDArray[np.uint64]:
    signature = np.full(_PERMUTATIONS, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(shingles), _HASHED_TOGETHER):
        part = shingles[start : start + _HASHED_TOGETHER]
        signature = np.minimum(signature, _mixed(part[:, None] ^ _SALTS).min(0))
    return signature


def _bands(signature: NDArray[np.uint64], threshold: float) -> NDArray[np.uint32]:
    width = _band_width(threshold)
    hashes = _mixed((signature.reshape(-1, width) * _random_words(width, salt=3)).sum(1, dtype=np.uint64))
    return hashes.astype(np.uint32)


def full_text(document: Document) -> str:
    """Everything that the document says, turn by turn, the rejected answer of a preference pair last."""
    turns = [*(turn.content for turn in document.prompt), document.response]
    return "\n".join([*turns, document.rejected] if document.rejected else turns)


def _jaccard(shingles: NDArray[np.uint64], others: Sequence[NDArray[np.uint64]]) -> NDArray[np.float64]:
    """The similarity of one set of shingles to each of the others, all sorted and none empty."""
    if not others:
        return np.zeros(0)
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
