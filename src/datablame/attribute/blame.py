"""Blame summed up: how high the documents of one source, or of one theme, rank.

Two numbers for each group. The AUC is the chance that a duplicate cluster of the group ranks above one outside of it
(Mann and Whitney 1947): it knows ranks only, so that methods whose scores have other scales can be compared and no
single document carries a group. The lift is the group's share of the first K over its share of all that were ranked: it
sees a few documents in a large group, which the AUC does not.
"""

from collections.abc import Sequence

import numpy as np

from datablame.attribute.rankings import Indices, Ranking, Rankings, clustered
from datablame.stats.intervals import auc_intervals, share
from datablame.tables import Blame, GroupKind

MOST_GROUPS = 100
"""Rows that a method and behaviour have at most: the others rank lower still."""


def numbered(names: Sequence[str]) -> tuple[list[str], Indices]:
    """The distinct names in their order, and the index of each name among them."""
    distinct = sorted(set(names))
    number_of = {name: number for number, name in enumerate(distinct)}
    return distinct, np.array([number_of[name] for name in names], dtype=np.int64)


def blame(
    kind: GroupKind, names: Sequence[str], labels: Indices, scored: Rankings, clusters: Indices, k: int
) -> list[Blame]:
    """A row for each method, behaviour and group, those first whose AUC has the highest lower end.

    `labels` is each document's index into `names`, -1 where it is in no group: such a document is left out, as if it
    had not been ranked. A duplicate cluster counts once in every group that it has a document in, at its best rank. A
    group that nothing, or everything, ranked is in has no row.
    """
    among = np.flatnonzero(labels >= 0)
    pairs = np.unique(np.stack([clusters[among], labels[among]], 1), axis=0)
    return [
        row
        for method, by_behaviour in scored.items()
        for behaviour, ranking in by_behaviour.items()
        for row in _of_ranking(method, behaviour, kind, names, pairs, clustered(ranking, clusters, among), k)
    ]


def _of_ranking(
    method: str,
    behaviour: str,
    kind: GroupKind,
    names: Sequence[str],
    pairs: Indices,
    ranked: Ranking,
    k: int,
) -> list[Blame]:
    """`pairs` are a cluster and one of its groups each, `ranked` the clusters with their scores, best first."""
    from scipy.stats import rankdata

    total, first = len(ranked.order), min(k, len(ranked.order))
    place = np.full(1 + max(pairs[:, 0].max(initial=-1), ranked.order.max(initial=-1)), -1)
    place[ranked.order] = np.arange(total)
    indices = place[pairs[:, 0]]
    known = indices >= 0
    indices, groups = indices[known], pairs[known, 1]
    counts = np.bincount(groups, minlength=len(names))
    firsts = np.bincount(groups[indices < first], minlength=len(names))
    midranks = rankdata(ranked.scores)[indices]
    sums = np.bincount(groups, weights=midranks, minlength=len(names))
    some = np.flatnonzero((counts > 0) & (counts < total))
    n = counts[some].astype(np.float64)
    auc = (sums[some] - n * (n + 1) / 2) / (n * (total - n))
    low, high = auc_intervals(auc, n, total - n)
    rows, numbers = [], some.tolist()
    for index in sorted(range(len(some)), key=lambda index: (-low[index], names[numbers[index]]))[:MOST_GROUPS]:
        group, of_all = numbers[index], float(n[index]) / total
        lift = [value / of_all for value in share(int(firsts[group]), first)]
        measured = float(auc[index]), float(low[index]), float(high[index])
        about = method, behaviour, kind, names[group], int(counts[group]), of_all
        rows.append(Blame(*about, *measured, int(firsts[group]), *lift))
    return rows
