"""Exact tests at the level of training seeds."""

from collections.abc import Sequence
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["PermutationTest", "holm", "permutation_p"]

_TIE = 1e-12


class PermutationTest(NamedTuple):
    """The p value and the smallest one that so many seeds could have given."""

    p: float
    smallest: float


def permutation_p(a: ArrayLike, b: ArrayLike) -> PermutationTest:
    """Exact two-sided permutation test of mean(a) - mean(b), one value a training seed (Fisher 1935).

    Every way to give len(a) of the pooled values the first label is counted; a split as extreme as the observed one
    counts, the observed one included, so that p is never 0. With equal sizes a split and its mirror image are equally
    extreme, so that the smallest p is 2 / C(n, m), otherwise 1 / C(n, m).

    Raises:
        ValueError: a group is empty or holds a NaN.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if not first.size or not second.size or np.isnan(first).any() or np.isnan(second).any():
        raise ValueError("both groups need at least one value and no NaN")
    pooled = np.concatenate([first, second])
    splits = np.array(list(combinations(range(pooled.size), first.size)))
    sums = pooled[splits].sum(1)
    differences = np.abs(sums / first.size - (pooled.sum() - sums) / second.size)
    observed = abs(first.mean() - second.mean())
    p = float((differences >= observed - _TIE).mean())
    mirrored = 2 if first.size == second.size else 1
    return PermutationTest(p, mirrored / comb(pooled.size, first.size))


def holm(p_values: Sequence[float]) -> list[float]:
    """Step-down adjusted p values (Holm 1979), in the order given, none above 1."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, place in enumerate(order):
        running = max(running, min(1.0, p_values[place] * (len(p_values) - rank)))
        adjusted[place] = running
    return adjusted
