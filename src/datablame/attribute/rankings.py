"""Every method's scores, rounded once, as rankings: of documents, and of duplicate clusters, which K counts."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datablame.attribute.registry import Evidence, Inquiry, Method, Votes, is_voter
from datablame.engine.usage import measured
from datablame.tables import Finding, Flag, MethodInfo, Pool, Score, Unranked, schema_of
from datablame.world import World

_logger = logging.getLogger(__name__)
_DIGITS, _SCALE_DIGITS = 5, 3


Indices = NDArray[np.int64]


class Ranking(NamedTuple):
    """Rows of the pool, or duplicate clusters, most responsible first, each with its score."""

    order: Indices
    scores: NDArray[np.float64]


Rankings = Mapping[str, Mapping[str, Ranking]]
"""By method and behaviour; no behaviour where nothing is traced."""


def rounded(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores to as many decimals as give their largest magnitude 5 significant digits; NaN stays NaN.

    The errors of float32 sums are relative to the scale of what is summed, so that equal decimals hide them in every
    score. The largest magnitude counts to 3 digits, so that 0.99999994 and 1.0000001 give the same decimals.
    """
    largest = float(np.abs(scores[~np.isnan(scores)]).max(initial=0.0))
    exponent = int(f"{largest:.{_SCALE_DIGITS - 1}e}".partition("e")[2])
    # Python's round is exact for every exponent; + 0.0 turns -0.0 into 0.0.
    return np.array([round(score, _DIGITS - 1 - exponent) + 0.0 for score in scores.tolist()])


def id_order(ids: Sequence[str]) -> Indices:
    """The position of each row's document when all are sorted by id: what decides ties."""
    return np.argsort(sorted(range(len(ids)), key=ids.__getitem__)).astype(np.int64)


def ranked(rows: Indices, scores: NDArray[np.float64], by_id: Indices) -> Ranking:
    """Those of the rows that have a score, higher ones first, ties by document id (`id_order`)."""
    rows, scores = rows[~np.isnan(scores)], scores[~np.isnan(scores)]
    order = np.lexsort((by_id[rows], -scores))
    return Ranking(rows[order], scores[order])


def clustered(ranking: Ranking, clusters: Indices, among: Indices | None = None) -> Ranking:
    """Duplicate clusters by rank, each where its best document stands and with that one's score; only rows `among`."""
    chosen = slice(None) if among is None else np.isin(ranking.order, among)
    numbers, scores = clusters[ranking.order[chosen]], ranking.scores[chosen]
    first = np.sort(np.unique(numbers, return_index=True)[1])
    return Ranking(numbers[first], scores[first])


def members(clusters: Indices, by_id: Indices) -> dict[int, list[int]]:
    """The rows of every duplicate cluster, by id: whole clusters, ranked or not."""
    of: dict[int, list[int]] = {}
    for row in np.argsort(by_id).tolist():
        of.setdefault(int(clusters[row]), []).append(row)
    return of


def borda(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points of each document (row): the mean over voters (columns) of the share of the others that it stands above.

    A tie counts one half (Borda 1781, with mid-ranks), and so does a comparison that the voter did not make, for it
    gave one of the two no score (NaN): being left out neither helps nor harms, and whoever compares little says little.
    """
    from scipy.stats import rankdata

    n, voters = scores.shape
    if n < 2:
        return np.full(n, 0.5)
    below = rankdata(scores, axis=0, nan_policy="omit") - 1 + np.isnan(scores).sum(0) / 2
    points: NDArray[np.float64] = np.where(np.isnan(scores), (n - 1) / 2, below).sum(1) / ((n - 1) * voters)
    return points


def pool_of(world: World, method: Method) -> Pool:
    """Which documents the method ranks in this study."""
    return "whole" if method.whole_pool and world.study.prefilter.method == "none" else "candidates"


def rankings_of(
    inquiry: Inquiry, methods: Sequence[Method], by_type: Mapping[type, Any]
) -> tuple[Rankings, list[MethodInfo]]:
    """Every method's ranked scores, of the documents that its pool has for a behaviour and that it gave a score.

    They are rounded first, so that no ranking and no vote hangs on the last bits of a float. Beside them stands each
    method as this study ran it.
    """
    if not inquiry.queries:
        return {method.name: {} for method in methods}, [_info(inquiry, method, {}) for method in methods]
    evidence = Evidence(inquiry.world.seed, inquiry.ids, inquiry.behaviours, inquiry.queries, by_type)
    voters = [method for method in methods if is_voter(method)]
    eligible = np.full((len(inquiry.scored), len(inquiry.behaviours)), all(voter.whole_pool for voter in voters))
    for column, behaviour in enumerate(inquiry.behaviours):
        eligible[np.searchsorted(inquiry.scored, inquiry.candidates[behaviour.id]), column] = True
    ballots: dict[str, NDArray[np.float64]] = {}
    rankings: dict[str, dict[str, Ranking]] = {}
    infos: dict[str, MethodInfo] = {}
    by_id = id_order(inquiry.world.pool.ids)
    for method in sorted(methods, key=lambda method: Votes in method.needs):
        votes = Votes({voter.name: ballots[voter.name] for voter in voters if voter.name in ballots}, eligible)
        shown = replace(evidence, by_type={**by_type, Votes: votes}, findings=[], reasons={})
        scores, taken = measured(partial(method.score, shown))
        known = ~np.isnan(scores)
        filled = scores if method.missing is None else np.where(known, scores, method.missing)
        exact = filled if method.exact else np.apply_along_axis(rounded, 0, filled)
        ballots[method.name] = np.where(known, exact, np.nan)
        for each in methods:
            if each is method or (is_voter(method) and Votes in each.needs):
                inquiry.work.timings(f"attribute/{each.name}", f"scores of {method.name}", *taken)
        rankings[method.name] = {}
        for column, behaviour in enumerate(inquiry.behaviours):
            rows = _ranked_rows(inquiry, method, behaviour.id)
            of_behaviour = exact[np.searchsorted(inquiry.scored, rows), column]
            rankings[method.name][behaviour.id] = ranked(rows, of_behaviour, by_id)
        infos[method.name] = _info(inquiry, method, rankings[method.name], shown.findings, shown.reasons)
    return {method.name: rankings[method.name] for method in methods}, [infos[method.name] for method in methods]


def _ranked_rows(inquiry: Inquiry, method: Method, behaviour: str) -> Indices:
    """The rows of the pool that the method ranks for a behaviour where it has scores for all."""
    whole = pool_of(inquiry.world, method) == "whole"
    return inquiry.scored if whole else np.sort(inquiry.candidates[behaviour])


def flags_of(world: World, rankings: Rankings) -> list[Flag]:
    """Every member of a method's first K clusters, for every K of the study, clusters in the ranking's order."""
    clusters, ids = world.pool.clusters, world.pool.ids
    rows_of = members(clusters, id_order(ids))
    flags = []
    for method, by_behaviour in rankings.items():
        firsts = {
            behaviour: clustered(ranking, clusters).order[: max(world.study.ks)].tolist()
            for behaviour, ranking in by_behaviour.items()
        }
        flags += [
            Flag(method, k, behaviour, ids[row])
            for k in world.study.ks
            for behaviour, order in firsts.items()
            for cluster in order[:k]
            for row in rows_of[cluster]
        ]
    return flags


def score_parts(rankings: Rankings, ids: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of `Score`, those of a method and behaviour at a time."""
    schema, names = schema_of(Score), pa.array(ids, pa.string())
    for method, by_behaviour in rankings.items():
        for behaviour, (order, scores) in by_behaviour.items():
            n, doc_ids = len(order), names.take(pa.array(order))
            columns = [pa.repeat(method, n), pa.repeat(behaviour, n), doc_ids, scores, np.arange(1, n + 1)]
            yield pa.table(columns, schema=schema)


def _info(
    inquiry: Inquiry,
    method: Method,
    by_behaviour: Mapping[str, Ranking],
    findings: Sequence[Finding] = (),
    reasons: Mapping[str, str] = {},
) -> MethodInfo:
    """The method as this study ran it."""
    unranked = []
    for behaviour, ranking in by_behaviour.items():
        every = len(_ranked_rows(inquiry, method, behaviour))
        if left := every - len(ranking.order):
            reason = reasons.get(behaviour, "")
            unranked.append(Unranked(behaviour, left, reason))
            message = "%s gives %d of %d documents no score for %s%s; they are not ranked"
            _logger.warning(message, method.name, left, every, behaviour, reason and f" ({reason})")
    fields = ("name", "label", "description", "standin", "control", "look", "confounds", "cost")
    about: dict[str, Any] = {field: getattr(method, field) for field in fields}
    pool = pool_of(inquiry.world, method)
    about |= {"unranked": tuple(unranked), "findings": tuple(findings)}
    return MethodInfo(**about, voter=is_voter(method), pool=pool)
