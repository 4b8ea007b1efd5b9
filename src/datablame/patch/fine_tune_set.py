"""The fine-tune set, what is drawn from it at random, and what stands in for what is removed: pure functions."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate
from statistics import median
from typing import NamedTuple

import numpy as np

from datablame.errors import RequestError
from datablame.seeds import generator, stream_key

BANDS = 5

Stratum = tuple[str, int]


class Item(NamedTuple):
    """What matching looks at: never the truth."""

    doc_id: str
    source: str
    characters: int
    cluster: int


def strata(pool: Sequence[Item]) -> dict[str, Stratum]:
    """The (source, length band) of every document; bands are the fifths of the pool's lengths in characters."""
    if not pool:
        return {}
    lengths = np.array([item.characters for item in pool])
    edges = np.quantile(lengths, np.linspace(0, 1, BANDS + 1)[1:-1])
    bands = np.searchsorted(edges, lengths).tolist()
    return {item.doc_id: (item.source, band) for item, band in zip(pool, bands, strict=True)}


def outside(pool: Sequence[Item], used: Iterable[str]) -> list[Item]:
    """The documents that are in no duplicate cluster of the used ones."""
    taken = set(used)
    barred = {item.cluster for item in pool if item.doc_id in taken}
    return [item for item in pool if item.cluster not in barred]


def fine_tune_set(
    pool: Sequence[Item], size: int, flagged: Iterable[str], candidates: Iterable[str], seed: int, *, spare: bool = True
) -> list[str]:
    """`size` documents in the pool's order: every flagged one, then candidates, then others in a keyed random order.

    `spare` asks for documents outside the set, which stand in for what arms take out of it.

    Raises:
        RequestError: the flagged documents alone are more than `size`, or none is left to spare.
    """
    first, second = set(flagged), set(candidates)
    known = {item.doc_id for item in pool}
    if len(first & known) > size:
        raise RequestError(
            f"patch.size = {size} is less than the {len(first & known)} flagged documents; raise it or lower "
            "attribute.top_k (and the largest of patch.k)"
        )
    if spare and size >= len(pool):
        raise RequestError(
            f"patch.size = {size} leaves no fillers in a pool of {len(pool)} documents; lower it or enlarge the pool"
        )
    order = sorted(known, key=lambda d: (d not in first, d not in second, stream_key("fine-tune set", seed, d)))
    chosen = set(order[:size])
    return [item.doc_id for item in pool if item.doc_id in chosen]


def replaced(
    pool: Sequence[Item],
    members: Sequence[str],
    flagged: Iterable[str],
    removed: Collection[str],
    seed: int,
    barred_sources: Collection[str] = (),
) -> tuple[dict[str, str], int]:
    """A filler for every removed member, of the same source and length band while there are any, and how many are not.

    Fillers stand outside the fine-tune set and every flagged cluster, in an order keyed by the study's seed. Where
    sources are barred, a filler is of any other source and matches in length alone.

    Raises:
        RequestError: fewer documents remain than have to be replaced.
    """
    inside, gone = set(members), set(removed)
    leaving = [doc_id for doc_id in members if doc_id in gone]
    if not leaving:
        return {}, 0
    strangers = outside(pool, [*flagged, *gone])
    free = [item.doc_id for item in strangers if item.doc_id not in inside and item.source not in barred_sources]
    if len(leaving) > len(free):
        of_sources = f" of other sources than {', '.join(sorted(barred_sources))}" if barred_sources else ""
        remedy = ", or choose patch.intervention = remove" if barred_sources else ""
        raise RequestError(
            f"patch.size = {len(members)} leaves {len(free)} documents{of_sources} to stand in for {len(leaving)} "
            f"removed ones; lower it or enlarge the pool{remedy}"
        )
    stratum_of = strata([item._replace(source="") for item in pool] if barred_sources else pool)
    reserve: dict[Stratum, list[str]] = {}
    for doc_id in sorted(free, key=lambda doc_id: stream_key("filler", seed, doc_id), reverse=True):
        reserve.setdefault(stratum_of[doc_id], []).append(doc_id)
    fillers, loose = {}, 0
    for doc_id in leaving:
        source, band = stratum_of[doc_id]
        nearest = min((s for s in reserve if reserve[s]), key=lambda s: (s[0] != source, abs(s[1] - band), s))
        loose += nearest != (source, band)
        fillers[doc_id] = reserve[nearest].pop()
    return fillers, loose


def draw_random(
    pool: Sequence[Item], members: Sequence[str], flagged_by: Mapping[str, Sequence[str]], seed: int, arm_seed: int
) -> list[str]:
    """As many clusters of the fine-tune set as methods flag (their median), in the proportions of what they flag.

    Proportions are those of the methods' pooled flagged documents over sources and length bands, by largest remainders;
    a stratum that runs out is made up for by others. Whole clusters are taken; each training seed draws anew.
    """
    cluster_of, stratum_of = {item.doc_id: item.cluster for item in pool}, strata(pool)
    flagged = [known for ids in flagged_by.values() if (known := [doc_id for doc_id in ids if doc_id in cluster_of])]
    if not flagged:
        return []
    count = round(median(len({cluster_of[doc_id] for doc_id in ids}) for ids in flagged))
    weights = Counter(stratum_of[doc_id] for ids in flagged for doc_id in ids)
    shares = {stratum: count * weight / weights.total() for stratum, weight in weights.items()}
    quota = Counter({stratum: int(share) for stratum, share in shares.items()})
    by_remainder = sorted(shares, key=lambda stratum: (quota[stratum] - shares[stratum], stratum))
    quota.update(by_remainder[: count - quota.total()])
    order = generator("random arm", seed, arm_seed).permutation(len(members)).tolist()
    chosen, taken = set[int](), Counter[Stratum]()
    for strict in (True, False):
        for index in order:
            stratum, cluster = stratum_of[members[index]], cluster_of[members[index]]
            fits = taken[stratum] < quota[stratum] if strict else len(chosen) < count
            if fits and cluster not in chosen:
                chosen.add(cluster)
                taken[stratum] += 1
    return [doc_id for doc_id in members if cluster_of[doc_id] in chosen]


def majority_sources(sources: Iterable[str]) -> frozenset[str]:
    """The fewest sources that together hold more than half of the documents, each named once a document."""
    counts = Counter(sources)
    ranked = sorted(counts, key=lambda source: (-counts[source], source))
    held_before = accumulate((counts[source] for source in ranked), initial=0)
    return frozenset(source for source, held in zip(ranked, held_before, strict=False) if 2 * held <= counts.total())
