"""Duplicate clusters by MinHash against the PyPI packages datasketch and rensa, on the text of duplicates.py.

All get documents and give clusters at a Jaccard similarity of .8 of word 5-grams, by 128 permutations. The peers link
what shares a band and is as alike by its signature; ours verifies each pair on the words, and the answers as well.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from duplicates import corpus
from measure import ROUNDS, Amount, Row, interleaved

from datablame.tables import Document
from datablame.world.duplicates import clusters, full_text, hashed

_THRESHOLD, _PERMUTATIONS, _GRAM, _BANDS = 0.8, 128, 5, 16


def rows(amount: Amount) -> Iterator[Row]:
    """The comparison at one size."""
    n = {"full": 20_000, "quick": 2000, "reduced": 200}[amount]
    documents, pairs = corpus(n)
    contenders: dict[str, Callable[[], list[int]]] = {
        name: partial(linked, documents)
        for name, linked in (("ours", _ours), ("datasketch", _datasketch), ("rensa", _rensa))
    }
    found = {name: linked() for name, linked in contenders.items()}
    share = {name: sum(of[a] == of[b] for a, b in pairs) for name, of in found.items()}
    times = interleaved(contenders, ROUNDS if amount == "full" else 2)
    for peer in ("datasketch", "rensa"):
        note = f"CPU time; of {len(pairs)} planted pairs ours links {share['ours']}, it {share[peer]}; "
        note += f"{len(set(found['ours'])):,} clusters against {len(set(found[peer])):,}"
        yield Row(f"Duplicate clusters, {n:,} documents: {peer}", times["ours"].cpu / times[peer].cpu, note)


def _ours(documents: list[Document]) -> list[int]:
    return clusters((hashed(document, _THRESHOLD) for document in documents), _THRESHOLD)


def _datasketch(documents: list[Document]) -> list[int]:
    from datasketch import MinHash, MinHashLSH

    def signature(grams: list[str]) -> Any:
        made = MinHash(num_perm=_PERMUTATIONS)
        made.update_batch([gram.encode() for gram in grams])
        return made

    return _joined(documents, signature, MinHashLSH(threshold=_THRESHOLD, num_perm=_PERMUTATIONS))


def _rensa(documents: list[Document]) -> list[int]:
    from rensa import RMinHash, RMinHashLSH

    def signature(grams: list[str]) -> Any:
        made = RMinHash(num_perm=_PERMUTATIONS, seed=1)
        made.update(grams)
        return made

    return _joined(documents, signature, RMinHashLSH(_THRESHOLD, _PERMUTATIONS, _BANDS))


def _joined(documents: list[Document], signature: Callable[[list[str]], Any], index: Any) -> list[int]:
    root = list(range(len(documents)))
    made: list[Any] = []
    for row, document in enumerate(documents):
        words = full_text(document).split()
        own = signature([" ".join(words[i : i + _GRAM]) for i in range(max(1, len(words) - _GRAM + 1))])
        for other in index.query(own):
            if own.jaccard(made[other]) >= _THRESHOLD:
                low, high = sorted((_root(root, row), _root(root, other)))
                root[high] = low
        index.insert(row, own)
        made.append(own)
    return [_root(root, row) for row in range(len(documents))]


def _root(root: list[int], row: int) -> int:
    while root[row] != row:
        row = root[row]
    return row
