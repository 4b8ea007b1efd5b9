"""The fine-tune set, what is drawn from it at random, and what stands in for what is removed: pure functions."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
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


class Replacement(NamedTuple):
    """Fillers in the places of removed documents; `loose` counts those from another source or length band."""

    fillers: dict[str, str]
    loose: int


def strata(pool: Sequence[Item]) -> dict[str, Stratum]:
    """The (source, length band) of every document; bands are the fifths of the pool's lengths in characters."""
    if not pool:
        return {}
    lengths = np.array([item.characters for item in pool])
    edges = np.quantile(lengths, np.linspace(0, 1, BANDS + 1)[1:-1])
    bands = np.searchsorted(edges, lengths).tolist()
    return {item.doc_id: (item.source, band) for item, band in zip(pool, bands, strict=True)}


def fine_tune_set(
    pool: Sequence[Item], size: int, flagged: Iterable[str], candidates: Iterable[str], seed: int, *, spare: bool = True
) -> list[str]:
    """`size` documents in the pool's order: every flagged one, then candidates, then others in a keyed random order.

    `spare` asks for documents outside the set, which stand in for what arms take out of it.

    Raises:
        RequestError: the flagged documents alone are more than `size`, or none is left to spare.
    """
    known = {item.doc_id for item in pool}
    first = [doc_id for doc_id in dict.fromkeys(flagged) if doc_id in known]
    if len(first) > size:
        raise RequestError(
            f"patch.size = {size} is less than the {len(first)} flagged documents; raise it or lower attribute.top_k "
            "(and the largest of patch.k)"
        )
    if spare and size >= len(pool):
        raise RequestError(
            f"patch.size = {size} leaves no fillers in a pool of {len(pool)} documents; lower it or enlarge the pool"
        )
    others = sorted(known, key=lambda doc_id: stream_key("fine-tune set", seed, doc_id))
    shuffled = sorted(set(candidates) & known, key=lambda doc_id: stream_key("fine-tune set", seed, doc_id))
    chosen = set(list(dict.fromkeys([*first, *shuffled, *others]))[:size])
    return [item.doc_id for item in pool if item.doc_id in chosen]


def replaced(
    pool: Sequence[Item],
    members: Sequence[str],
    flagged: Iterable[str],
    removed: Iterable[str],
    seed: int,
    barred_sources: Collection[str] = (),
) -> Replacement:
    """A filler for every removed member, of the same source and length band while there are any.

    Fillers stand outside the fine-tune set and outside every flagged cluster, in an order keyed by the study's seed.
    Where sources are barred, a filler is of any other source and matches in length alone.

    Raises:
        RequestError: fewer documents remain than have to be replaced.
    """
    inside, gone = set(members), set(removed)
    if not gone & inside:
        return Replacement({}, 0)
    cluster_of = {item.doc_id: item.cluster for item in pool}
    barred = {cluster_of[doc_id] for doc_id in [*flagged, *gone] if doc_id in cluster_of}
    free = [
        item
        for item in pool
        if item.doc_id not in inside and item.cluster not in barred and item.source not in barred_sources
    ]
    stratum_of = strata([item._replace(source="") for item in pool] if barred_sources else pool)
    reserve: dict[Stratum, list[str]] = {}
    for item in sorted(free, key=lambda item: stream_key("filler", seed, item.doc_id), reverse=True):
        reserve.setdefault(stratum_of[item.doc_id], []).append(item.doc_id)
    leaving = [doc_id for doc_id in members if doc_id in gone]
    if len(leaving) > len(free):
        of_sources = f" of other sources than {', '.join(sorted(barred_sources))}" if barred_sources else ""
        remedy = ", or choose patch.intervention = remove" if barred_sources else ""
        raise RequestError(
            f"patch.size = {len(members)} leaves {len(free)} documents{of_sources} to stand in for {len(leaving)} "
            f"removed ones; lower it or enlarge the pool{remedy}"
        )
    fillers, loose = {}, 0
    for doc_id in leaving:
        source, band = stratum_of[doc_id]
        nearest = min((s for s in reserve if reserve[s]), key=lambda s: (s[0] != source, abs(s[1] - band), s))
        loose += nearest != (source, band)
        fillers[doc_id] = reserve[nearest].pop()
    return Replacement(fillers, loose)


def draw_random(
    pool: Sequence[Item], members: Sequence[str], flagged_by: Mapping[str, Sequence[str]], seed: int, arm_seed: int
) -> list[str]:
    """As many clusters of the fine-tune set as methods flag (their median), in the proportions of what they flag.

    Proportions are those of the methods' pooled flagged documents over sources and length bands; a stratum that runs
    out is made up for by others. Whole clusters are taken; each training seed draws anew.
    """
    cluster_of = {item.doc_id: item.cluster for item in pool}
    stratum_of = strata(pool)
    flagged = [[doc_id for doc_id in ids if doc_id in cluster_of] for ids in flagged_by.values()]
    counts = [len({cluster_of[doc_id] for doc_id in ids}) for ids in flagged if ids]
    if not counts:
        return []
    count = round(median(counts))
    quota = _apportioned(Counter(stratum_of[doc_id] for ids in flagged for doc_id in ids), count)
    order = generator("random arm", seed, arm_seed).permutation(len(members)).tolist()
    chosen: set[int] = set()
    taken: Counter[Stratum] = Counter()
    for strict in (True, False):
        for index in order:
            stratum, cluster = stratum_of[members[index]], cluster_of[members[index]]
            fits = taken[stratum] < quota.get(stratum, 0) if strict else len(chosen) < count
            if fits and cluster not in chosen:
                chosen.add(cluster)
                taken[stratum] += 1
    return [doc_id for doc_id in members if cluster_of[doc_id] in chosen]


def majority_sources(sources: Iterable[str]) -> frozenset[str]:
    """The fewest sources that together hold more than half of the documents, each named once a document."""
    ranked = sorted(Counter(sources).items(), key=lambda pair: (-pair[1], pair[0]))
    total, held, majority = sum(count for _, count in ranked), 0, []
    for source, count in ranked:
        if 2 * held > total:
            break
        majority.append(source)
        held += count
    return frozenset(majority)


def _apportioned(weights: Mapping[Stratum, int], seats: int) -> dict[Stratum, int]:
    """Seats in proportion to weights by largest remainders."""
    total = sum(weights.values())
    exact = {stratum: seats * weight / total for stratum, weight in weights.items()}
    seated = {stratum: int(share) for stratum, share in exact.items()}
    by_remainder = sorted(exact, key=lambda stratum: (seated[stratum] - exact[stratum], stratum))
    for stratum in by_remainder[: seats - sum(seated.values())]:
        seated[stratum] += 1
    return seated
