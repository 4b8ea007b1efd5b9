"""Documents in pairs: of two, which is likelier to have taught the outputs? By Claude, or by words as its stand-in.

A behaviour's candidates meet in rounds as in a Swiss tournament: those with equal points play each other, and nobody
twice. A pair is asked about in both orders, so that a judge who likes what stands first likes both, and counts only
where both were answered. Points decide who meets; what is left is the strength of each (Bradley and Terry 1952).

The stand-in compares every two documents by their `keyword_points`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.judgements import keyword_points
from datablame.attribute.rankings import borda
from datablame.attribute.registry import Inquiry, provider
from datablame.config.schema import Behaviour
from datablame.engine.phase import Work
from datablame.judge.choice import counted
from datablame.judge.claude import AttributionJudge, Meeting
from datablame.seeds import stream_key
from datablame.tables import Document, JudgeAnswers, Query
from datablame.world import World

_PRIOR = 0.5
"""Wins, and as many defeats, of everybody against a document of strength 1: strengths stay finite."""
_TOLERANCE = 1e-9


class Game(NamedTuple):
    """Two players that have met."""

    a: int
    b: int
    points: float | None
    """Of `a`, from 0 to 1, a tie one half; None where nobody knows."""


class Comparisons(NamedTuple):
    """Scores from 0 to 1 of shape (documents, behaviours), NaN for a document that is no candidate or met nobody."""

    scores: NDArray[np.float64]
    answers: JudgeAnswers | None
    """None where no model was asked."""


class _Players(NamedTuple):
    """A behaviour's candidates by lot, which pairs those with equal points: no order of the pool's or of ids does."""

    behaviour: Behaviour
    rows: Sequence[int]
    documents: Sequence[Document]
    queries: Sequence[Query]

    def meeting(self, a: int, b: int) -> Meeting:
        outputs = tuple((query.prompt, query.text) for query in self.queries)
        return Meeting(self.behaviour, self.documents[a], self.documents[b], outputs)


def _judge(world: World, work: Work) -> AttributionJudge | None:
    """Claude, where it judges in this study; RequestError without a key or a price."""
    return AttributionJudge.of(world.study, world.judge, work) if world.judge.attribution == "claude" else None


@provider("tournament", Comparisons, check=_judge, per_document=False)
def comparisons(inquiry: Inquiry) -> dict[type, Comparisons]:
    """A tournament among every behaviour's candidates."""
    claude, scores = (
        _judge(inquiry.world, inquiry.work),
        np.full((len(inquiry.scored), len(inquiry.behaviours)), np.nan),
    )
    every = [_players(inquiry, behaviour) for behaviour in inquiry.behaviours]
    answers = None
    if claude is None:
        points = [np.array([*keyword_points(each.documents, each.behaviour, each.queries)]) for each in every]
        found = [borda(each[:, None]) for each in points]
    else:
        games, answers = _played(claude, every, inquiry.world.study.judge.rounds)
        found = [win_shares(len(each.rows), own) for each, own in zip(every, games, strict=True)]
    for column, (each, own_scores) in enumerate(zip(every, found, strict=True)):
        scores[np.searchsorted(inquiry.scored, each.rows), column] = own_scores
    return {Comparisons: Comparisons(scores, answers)}


def _players(inquiry: Inquiry, behaviour: Behaviour) -> _Players:
    seed, ids = inquiry.world.seed, inquiry.world.pool.ids
    rows = inquiry.candidates[behaviour.id].tolist()
    rows.sort(key=lambda row: stream_key("tournament", seed, behaviour.id, ids[row]))
    queries = [query for query in inquiry.queries if query.behaviour == behaviour.id]
    return _Players(behaviour, rows, [*inquiry.world.pool.documents(rows)], queries)


def _played(claude: AttributionJudge, every: Sequence[_Players], rounds: int) -> tuple[list[list[Game]], JudgeAnswers]:
    """The games of each tournament; a round of all of them is asked about at once."""
    tournaments: list[list[Game]] = [[] for _ in every]
    reasons = list[str]()
    for _ in range(rounds):
        pairs = [next_round(len(each.rows), games) for each, games in zip(every, tournaments, strict=True)]
        meetings = [players.meeting(*pair) for players, own in zip(every, pairs, strict=True) for pair in own]
        given = iter(claude.compared(meetings))
        for games, own in zip(tournaments, pairs, strict=True):
            for pair, answer in zip(own, given, strict=False):
                games.append(Game(*pair, answer.score))
                reasons += answer.missing
    n = sum(map(len, tournaments))
    return tournaments, JudgeAnswers(claude.model, 2 * n, counted(reasons))


def most_comparisons(documents: int, rounds: int) -> int:
    """How often two of so many documents are compared, both orders counted, at most."""
    return 2 * min(rounds * (documents // 2), documents * (documents - 1) // 2)


def next_round(n: int, games: Sequence[Game]) -> list[tuple[int, int]]:
    """Each of `n` players, best points first, with the next one whom it has not met; who finds nobody sits out.

    To sit out, and a game whose outcome nobody knows, is half a win.
    """
    points, met = np.zeros(n), [set[int]() for _ in range(n)]
    for game in games:
        met[game.a].add(game.b)
        met[game.b].add(game.a)
        if game.points is not None:
            points[[game.a, game.b]] += (game.points - 0.5, 0.5 - game.points)
    left, pairs = np.argsort(-points, kind="stable").tolist(), []
    while left:
        first = left.pop(0)
        if (other := next((each for each in left if each not in met[first]), None)) is not None:
            left.remove(other)
            pairs.append((first, other))
    return pairs


def win_shares(n: int, games: Sequence[Game]) -> NDArray[np.float64]:
    """The probability of each of `n` players to beat one of strength 1; NaN where no game of theirs has an outcome.

    The strengths s are the most probable ones, a player winning with probability s_a / (s_a + s_b) and a tie being half
    a win, by the MM algorithm (Hunter 2004) with `_PRIOR` wins and defeats against strength 1.
    """
    known = [(game.a, game.b, game.points) for game in games if game.points is not None]
    a, b = (np.array([game[side] for game in known], dtype=np.int64) for side in (0, 1))
    points = np.array([game[2] for game in known], dtype=np.float64)

    def summed(of_a: NDArray[np.float64], of_b: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.bincount(a, of_a, n) + np.bincount(b, of_b, n)
        return total.astype(np.float64)

    wins, strength, change = _PRIOR + summed(points, 1 - points), np.ones(n), np.inf
    while change > _TOLERANCE:
        share = 1 / (strength[a] + strength[b])
        before, strength = strength, wins / (summed(share, share) + 2 * _PRIOR / (strength + 1))
        change = np.abs(np.log(strength / before)).max(initial=0.0)
    shares: NDArray[np.float64] = strength / (1 + strength)
    shares[np.bincount(np.concatenate([a, b]), minlength=n) == 0] = np.nan
    return shares
