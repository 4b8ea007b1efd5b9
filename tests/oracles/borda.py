"""Borda's count as it is told: every voter compares every two documents."""

import math
from collections.abc import Sequence

__all__ = ["naive_borda"]


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
