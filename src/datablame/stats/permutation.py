"""Permutation tests at the level of training seeds."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_TIE = 1e-12
_MOST_SPLITS = 200_000
"""Enough for 10 against 10 seeds; 20 against 20 have 138 billion splits."""
_DRAWS = 99_999
_STREAM = 20250802
_MOST_SPLITS_A_ROW = 20_000
"""Enough for 8 against 8 seeds in every row."""
_DRAWS_A_ROW = 4_999
_BLOCK = 2_000_000
"""Numbers that the test of many rows holds at once."""


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
    splits = _all_splits(pooled.size, first.size) if exact else _random_splits(pooled.size, first.size, _DRAWS)
    sums = pooled[splits].sum(1)
    differences = np.abs(sums / first.size - (pooled.sum() - sums) / second.size)
    observed = abs(first.mean() - second.mean())
    extreme = int((differences >= observed - _TIE).sum())
    smallest = smallest_p(first.size, second.size)
    if exact:
        return PermutationTest(extreme / every, smallest)
    return PermutationTest((extreme + 1) / (_DRAWS + 1), max(smallest, 1 / (_DRAWS + 1)))


def smallest_p(n: int, m: int) -> float:
    """The least that the exact two-sided test of n against m seeds can give: .1 of 3 and 3, .0079 of 5 and 5.

    Raises:
        ValueError: a group is empty.
    """
    if n < 1 or m < 1:
        raise ValueError(f"both groups need at least one seed, not {n} and {m}")
    return (2 if n == m else 1) / comb(n + m, n)


def permutation_p_rows(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """`permutation_p` of each row of two arrays (rows, seeds), fast enough for thousands of simulated studies.

    Beyond 20,000 splits, 4,999 random ones from a fixed stream and the observed one stand for all.

    Raises:
        ValueError: the arrays have no seeds, other numbers of rows, or a NaN.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.ndim != 2 or second.ndim != 2 or first.shape[0] != second.shape[0]:
        raise ValueError(f"need (rows, seeds) with the same rows, not {first.shape} and {second.shape}")
    if not first.shape[1] or not second.shape[1] or np.isnan(first).any() or np.isnan(second).any():
        raise ValueError("both groups need at least one value and no NaN")
    pooled = np.concatenate([first, second], axis=1)
    n, size = pooled.shape[1], first.shape[1]
    exact = comb(n, size) <= _MOST_SPLITS_A_ROW
    weights = _weights(n, size, exact)
    observed = np.abs(first.mean(1) - second.mean(1)) - _TIE
    splits = weights.shape[1]
    rows = max(1, _BLOCK // splits)
    extreme = np.concatenate(
        [
            (np.abs(pooled[start : start + rows] @ weights) >= observed[start : start + rows, None]).sum(1)
            for start in range(0, len(pooled), rows)
        ]
        or [np.zeros(0)]
    )
    return np.asarray(extreme / splits if exact else (extreme + 1) / (_DRAWS_A_ROW + 1))


@lru_cache(maxsize=4)
def _weights(n: int, size: int, exact: bool) -> NDArray[np.float64]:
    """Of each split, in columns, the weights that turn a row into the difference of its two means.

    Of a split into halves and its mirror image, which is as extreme, one stands for both.
    """
    splits = _all_splits(n, size) if exact else _random_splits(n, size, _DRAWS_A_ROW)
    if exact and n == 2 * size:
        splits = splits[: len(splits) // 2]
    weights = np.full((n, len(splits)), -1 / (n - size))
    weights[splits, np.arange(len(splits))[:, None]] = 1 / size
    return weights


def _all_splits(n: int, size: int) -> NDArray[np.intp]:
    return np.array(list(combinations(range(n), size)))


def _random_splits(n: int, size: int, draws: int) -> NDArray[np.intp]:
    random = np.random.Generator(np.random.Philox(key=_STREAM))
    places = np.tile(np.arange(n), (draws, 1))
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
