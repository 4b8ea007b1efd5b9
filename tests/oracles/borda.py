"""Borda's count and reciprocal rank fusion as they are told: every voter compares every two documents."""

import math
from collections.abc import Sequence

__all__ = ["naive_borda", "naive_reciprocal_ranks"]


def naive_borda(scores: Sequence[Sequence[float]]) -> list[float]:
    """What `datablame.attribute.rankings.borda` promises, comparison by comparison."""
    found = []
    for mine, own in enumerate(scores):
        shares = []
        for voter in range(len(own)):
            points = []
            for other, theirs in enumerate(scores):
                if other != mine:
                    a, b = own[voter], theirs[voter]
                    silent = math.isnan(a) or math.isnan(b)
                    points.append(0.5 if silent or a == b else float(a > b))
            shares.append(sum(points) / len(points) if points else 0.5)
        found.append(sum(shares) / len(shares))
    return found


def naive_reciprocal_ranks(scores: Sequence[Sequence[float]]) -> list[float]:
    """What `reciprocal_ranks` promises: a rank is 1, 1 for everyone above and one half for everyone beside."""
    found = []
    for mine, own in enumerate(scores):
        shares = []
        for voter, score in enumerate(own):
            if not math.isnan(score):
                others = [each[voter] for other, each in enumerate(scores) if other != mine]
                shares.append(1 / (60 + 1 + sum(each > score for each in others) + 0.5 * others.count(score)))
        found.append(sum(shares) / len(shares) if shares else math.nan)
    return found
