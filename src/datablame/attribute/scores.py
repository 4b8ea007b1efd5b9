"""Every method's scores, rounded once; what they rank and flag, and the votes that they are."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datablame.attribute.rankings import Members, Ranking, clustered, id_order, ranked, rounded
from datablame.attribute.registry import Evidence, Inquiry, Method, Votes, is_voter
from datablame.tables import Flag, MethodInfo, Pool, Score, Unranked, schema_of
from datablame.world import World

_logger = logging.getLogger(__name__)

Rankings = Mapping[str, Mapping[str, Ranking]]
"""Ranked rows of the pool by method and behaviour; no behaviour where nothing is traced."""


def pool_of(world: World, method: Method) -> Pool:
    """Which documents the method ranks in this study."""
    return "whole" if method.whole_pool and world.study.prefilter.method == "none" else "candidates"


def rankings_of(inquiry: Inquiry, methods: Sequence[Method], evidence: Evidence) -> Rankings:
    """Every method's ranked scores, of the documents that its pool has for a behaviour and that it gave a score.

    They are rounded before anything ranks them or counts them as votes, so that no ranking hangs on the last bits of a
    float.
    """
    ballots: dict[str, NDArray[np.float64]] = {}
    matrices: dict[str, NDArray[np.float64]] = {}
    for method in sorted(methods, key=lambda method: Votes in method.needs):
        began = time.perf_counter()
        votes = _votes(inquiry, [voter for voter in methods if is_voter(voter)], ballots)
        by_type = {**evidence.by_type, Votes: votes} if Votes in method.needs else evidence.by_type
        scores = method.score(replace(evidence, by_type=by_type))
        known = ~np.isnan(scores)
        filled = scores if method.missing is None else np.where(known, scores, method.missing)
        matrices[method.name] = filled if method.exact else np.apply_along_axis(rounded, 0, filled)
        ballots[method.name] = np.where(known, matrices[method.name], np.nan)
        inquiry.work.timings(f"attribute/{method.name}", "scores", time.perf_counter() - began)
    by_id = id_order(evidence.ids)
    rankings: dict[str, dict[str, Ranking]] = {}
    for method in methods:
        rankings[method.name] = {}
        for column, behaviour in enumerate(inquiry.behaviours):
            rows = _ranked_rows(inquiry, method, behaviour.id)
            indices = np.searchsorted(inquiry.scored, rows)
            ranking = ranked(indices, matrices[method.name][indices, column], by_id)
            rankings[method.name][behaviour.id] = Ranking(inquiry.scored[ranking.order], ranking.scores)
    return rankings


def _ranked_rows(inquiry: Inquiry, method: Method, behaviour: str) -> NDArray[np.int64]:
    """The rows of the pool that the method ranks for a behaviour where it has scores for all."""
    whole = pool_of(inquiry.world, method) == "whole"
    return inquiry.scored if whole else np.sort(inquiry.candidates[behaviour])


def _votes(inquiry: Inquiry, voters: Sequence[Method], ballots: Mapping[str, NDArray[np.float64]]) -> Votes:
    every = all(voter.whole_pool for voter in voters)
    eligible = np.full((len(inquiry.scored), len(inquiry.behaviours)), every)
    for column, behaviour in enumerate(inquiry.behaviours):
        eligible[np.searchsorted(inquiry.scored, inquiry.candidates[behaviour.id]), column] = True
    return Votes({voter.name: ballots[voter.name] for voter in voters if voter.name in ballots}, eligible)


def flags_of(world: World, rankings: Rankings) -> list[Flag]:
    """Every member of a method's first K clusters, for every K of the study, clusters in the ranking's order."""
    clusters, ids = world.pool.clusters, world.pool.ids
    members = Members(clusters, id_order(ids))
    flags = []
    for name, by_behaviour in rankings.items():
        firsts = {behaviour: clustered(ranking, clusters).order for behaviour, ranking in by_behaviour.items()}
        flags += [
            Flag(name, k, behaviour, ids[row])
            for k in world.study.ks
            for behaviour, order in firsts.items()
            for row in members.of(order[:k].tolist())
        ]
    return flags


def score_table(rankings: Rankings, ids: Sequence[str]) -> pa.Table:
    """The rows of `Score`, column by column."""
    schema, names = schema_of(Score), pa.array(ids, pa.string())
    parts = [
        pa.table(
            {
                "method": pa.repeat(method, len(ranking.order)),
                "behaviour": pa.repeat(behaviour, len(ranking.order)),
                "doc_id": names.take(pa.array(ranking.order)),
                "score": ranking.scores,
                "rank": np.arange(1, len(ranking.order) + 1),
            },
            schema=schema,
        )
        for method, by_behaviour in rankings.items()
        for behaviour, ranking in by_behaviour.items()
    ]
    return pa.concat_tables([schema.empty_table(), *parts]).combine_chunks()


def method_info(inquiry: Inquiry, method: Method, by_behaviour: Mapping[str, Ranking]) -> MethodInfo:
    """The method as this study ran it."""
    unranked = []
    for behaviour, ranking in by_behaviour.items():
        every = len(_ranked_rows(inquiry, method, behaviour))
        left = every - len(ranking.order)
        if left:
            unranked.append(Unranked(behaviour, left))
            share = f"{left} of {every} documents"
            _logger.warning("%s gives %s no score for %s; they are not ranked", method.name, share, behaviour)
    return MethodInfo(
        name=method.name,
        label=method.label,
        description=method.description,
        standin=method.standin,
        control=method.control,
        voter=is_voter(method),
        pool=pool_of(inquiry.world, method),
        look=method.look,
        unranked=tuple(unranked),
        confounds=method.confounds,
    )
