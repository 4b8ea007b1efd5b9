"""Groups of outputs that the same documents drive, without a label or a behaviour's name.

Of amplified outputs that training made much likelier, each is known by the cosines of its loss gradient with every
document's, standardised over documents, duplicates as one. Outputs that are like the same documents are grouped:
average linkage by 1 - correlation, cut where the silhouette is highest (Rousseeuw 1987).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.blame import blame, numbered
from datablame.attribute.compare import terms_of
from datablame.attribute.evidence.gradients import OutputGradients
from datablame.attribute.queries import Amplified
from datablame.attribute.rankings import Ranking, id_order, ranked, rounded
from datablame.tables import EVERY, Discovery, GroupedOutput, GroupExample, GroupSource, OutputGroup
from datablame.world import World

Numbers = NDArray[np.float64]

MOST_GROUPS, LEAST_OUTPUTS, LEAST_SILHOUETTE = 12, 3, 0.25
"""Groups at most; outputs that make a group; a silhouette below it shows no structure (Kaufman and Rousseeuw 1990)."""
SHOWN_DOCUMENTS = 3
"""Whose texts are kept."""
_DRIVERS, _EXAMPLES, _SOURCES = 10, 3, 3
_DECIMALS = 5
_ROWS = 1 << 16
"""Documents whose similarities are in float64 at a time."""
_TOO_FEW = "{n} amplified outputs are too few to group"


class Group(NamedTuple):
    """Outputs by index, and the documents by how much they are like them."""

    outputs: list[int]
    drivers: list[int]
    """The first ten documents of different duplicate clusters."""
    ranking: Ranking
    gain: float
    drive: float

    @property
    def strength(self) -> float:
        """Drive times the mean gain times the root of the number of outputs."""
        return float(self.drive * self.gain * len(self.outputs) ** 0.5)


class Grouping(NamedTuple):
    """Groups, the strongest first, and how well they stand apart; the reason where there is none."""

    groups: list[Group]
    silhouette: float | None
    reason: str


def grouped(
    similarities: NDArray[np.floating], clusters: NDArray[np.int64], by_id: NDArray[np.int64], gains: Sequence[float]
) -> Grouping:
    """The groups of outputs (columns) and what drives them among documents (rows).

    A group's drive is the mean standardised similarity of its outputs with its first ten documents, its gain the mean
    log p_after - log p_before of its outputs. Outputs that are like no others are in no group.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform
    from sklearn.metrics import silhouette_score

    n = similarities.shape[1]
    if n < 2 * LEAST_OUTPUTS:
        return Grouping([], None, _TOO_FEW.format(n=n))
    weights = 1 / np.bincount(clusters)[clusters]
    weights /= weights.sum()
    parts = [slice(start, start + _ROWS) for start in range(0, len(similarities), _ROWS)]
    means = sum((weights[part] @ similarities[part].astype(np.float64) for part in parts), np.zeros(n))

    def centred() -> Iterator[tuple[Numbers, Numbers]]:
        return ((similarities[part] - means, weights[part, None]) for part in parts)

    covariance = sum(((of_part * weight).T @ of_part for of_part, weight in centred()), np.zeros((n, n)))
    deviations = np.sqrt(np.diag(covariance).clip(0))
    if not (deviations > 0).all():
        return Grouping([], None, "some outputs are alike to all documents")
    distances = (1 - covariance / np.outer(deviations, deviations)).clip(0).round(_DECIMALS)
    np.fill_diagonal(distances, 0)
    tree, best, labels = linkage(squareform(distances, checks=False), "average"), -1.0, np.ones(n, dtype=np.int64)
    for k in range(2, min(MOST_GROUPS, n - 1) + 1):
        cut = fcluster(tree, k, "maxclust")
        if 1 < len(set(cut.tolist())) < n:
            silhouette = round(float(silhouette_score(distances, cut, metric="precomputed")), _DECIMALS)
            best, labels = (silhouette, cut) if silhouette > best else (best, labels)
    if best < LEAST_SILHOUETTE:
        return Grouping([], best, f"the outputs do not fall into groups (silhouette under {LEAST_SILHOUETTE})")
    of_group = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    of_group = [each for each in of_group if len(each) >= LEAST_OUTPUTS]
    scores = [[(of_part[:, each] / deviations[each]).mean(1) for each in of_group] for of_part, _ in centred()]
    groups = [
        _group(each.tolist(), np.concatenate(of_documents), clusters, by_id, gains)
        for each, of_documents in zip(of_group, zip(*scores, strict=True), strict=True)
    ]
    return Grouping(sorted(groups, key=lambda group: (-round(group.strength, 3), group.outputs)), best, "")


def _group(
    outputs: list[int],
    scores: Numbers,
    clusters: NDArray[np.int64],
    by_id: NDArray[np.int64],
    gains: Sequence[float],
) -> Group:
    ranking = ranked(np.arange(len(scores)), rounded(scores), by_id)
    _, firsts = np.unique(clusters[ranking.order], return_index=True)
    firsts = np.sort(firsts)[:_DRIVERS]
    gain = float(np.mean([gains[output] for output in outputs]))
    return Group(outputs, ranking.order[firsts].tolist(), ranking, gain, float(ranking.scores[firsts].mean()))


class Discovered(NamedTuple):
    """The rows of the groups, the strongest first, and what they came from."""

    groups: list[OutputGroup]
    about: Discovery


def discovered(world: World, amplified: Amplified, similar: OutputGradients | None) -> Discovered:
    """The groups of the amplified outputs, with their words, documents and sources; similar where there are outputs."""
    outputs, gains, weak = amplified
    if similar is None:
        return Discovered([], Discovery(0, weak, None, _TOO_FEW.format(n=0)))
    pool = world.pool
    found = grouped(similar.cosines, pool.clusters, id_order(pool.ids), gains)
    sources, of_source = numbered(pool.column("source"))
    rows, members = [], [group.outputs for group in found.groups]
    for group, terms in zip(found.groups, terms_of([output.text for output in outputs], members), strict=True):
        ranking = {"": {EVERY: group.ranking}}
        blamed = blame("source", sources, of_source, ranking, pool.clusters, _DRIVERS)[:_SOURCES]
        own = [(outputs[index], gains[index]) for index in group.outputs]
        first = sorted(own, key=lambda each: -each[1])[:_EXAMPLES]
        row = OutputGroup(
            outputs=tuple(GroupedOutput(each.prompt_id, each.alpha, each.index, gain) for each, gain in own),
            gain=group.gain,
            drive=group.drive,
            strength=group.strength,
            terms=tuple(terms),
            examples=tuple(GroupExample(each.prompt, each.text, gain) for each, gain in first),
            documents=tuple(pool.ids[row] for row in group.drivers),
            sources=tuple(GroupSource(each.group, each.first, each.auc, each.low) for each in blamed),
        )
        rows.append(row)
    return Discovered(rows, Discovery(len(outputs), weak, found.silhouette, found.reason))
