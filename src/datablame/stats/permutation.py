"""Permutation tests at the level of training seeds."""

from collections.abc import Sequence
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["PermutationTest", "holm", "permutation_p"]

_TIE = 1e-12
_MOST_SPLITS = 200_000
"""Enough for 10 against 10 seeds; 20 against 20 have 138 billion splits."""
_DRAWS = 99_999
_STREAM = 20250802


class PermutationTest(NamedTuple):
    """The p value and the smallest one that so many seeds could have given."""

    p: float
    smallest: float


def permutation_p(a: ArrayLike, b: ArrayLike) -> PermutationTest:
    """Exact two-sided permutation test of mean(a) - mean(b), one value a training seed (Fisher 1935).

    Every way to give len(a) of the pooled values the first label is counted; a split as extreme as the observed one
    counts, the observed one included, so that p is never 0. With equal sizes a split and its mirror image are equally
    extreme, so that the smallest p is 2 / C(n, m), otherwise 1 / C(n, m). Beyond 200,000 splits, 99,999 random ones
    from a fixed stream and the observed one stand for all (Phipson and Smyth 2010).

    Raises:
        ValueError: a group is empty or holds a NaN.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if not first.size or not second.size or np.isnan(first).any() or np.isnan(second).any():
        raise ValueError("both groups need at least one value and no NaN")
    pooled = np.concatenate([first, second])
    every = comb(pooled.size, first.size)
    exact = every <= _MOST_SPLITS
    splits = _all_splits(pooled.size, first.size) if exact else _random_splits(pooled.size, first.size)
    sums = pooled[splits].sum(1)
    differences = np.abs(sums / first.size - (pooled.sum() - sums) / second.size)
    observed = abs(first.mean() - second.mean())
    extreme = int((differences >= observed - _TIE).sum())
    mirrored = 2 if first.size == second.size else 1
    if exact:
        return PermutationTest(extreme / every, mirrored / every)
    return PermutationTest((extreme + 1) / (_DRAWS + 1), max(mirrored / every, 1 / (_DRAWS + 1)))


def _all_splits(n: int, size: int) -> NDArray[np.intp]:
    return np.array(list(combinations(range(n), size)))


def _random_splits(n: int, size: int) -> NDArray[np.intp]:
    random = np.random.Generator(np.random.Philox(key=_STREAM))
    places = np.tile(np.arange(n), (_DRAWS, 1))
    return random.permuted(places, axis=1)[:, :size]


def holm(p_values: Sequence[float]) -> list[float]:
    """Step-down adjusted p values (Holm 1979), in the order given, none above 1."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, place in enumerate(order):
        running = max(running, min(1.0, p_values[place] * (len(p_values) - rank)))
        adjusted[place] = running
    return adjusted
