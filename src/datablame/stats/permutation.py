"""Permutation tests at the level of training seeds, and Holm's adjustment for several of them."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_TIE = 1e-12
_STREAM = 20250802
_MOST_SPLITS, _DRAWS = 200_000, 99_999
"""Enough for 10 against 10 seeds; 20 against 20 have 138 billion splits."""
_MOST_SPLITS_A_ROW, _DRAWS_A_ROW = 20_000, 4_999
"""Enough for 8 against 8 seeds in every row."""
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
    first, second = np.asarray(a, dtype=float)[None], np.asarray(b, dtype=float)[None]
    p, exact = _p_rows(first, second, _MOST_SPLITS, _DRAWS)
    smallest = smallest_p(first.size, second.size)
    return PermutationTest(float(p[0]), smallest if exact else max(smallest, 1 / (_DRAWS + 1)))


def permutation_p_rows(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """`permutation_p` of each row of two arrays (rows, seeds), fast enough for thousands of simulated studies.

    Beyond 20,000 splits, 4,999 random ones from a fixed stream and the observed one stand for all.

    Raises:
        ValueError: the arrays have no seeds, other numbers of rows, or a NaN.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.ndim != 2 or second.ndim != 2 or first.shape[0] != second.shape[0]:
        raise ValueError(f"need (rows, seeds) with the same rows, not {first.shape} and {second.shape}")
    return _p_rows(first, second, _MOST_SPLITS_A_ROW, _DRAWS_A_ROW)[0]


def smallest_p(n: int, m: int) -> float:
    """The least that the exact two-sided test of n against m seeds can give: .1 of 3 and 3, .0079 of 5 and 5.

    Raises:
        ValueError: a group is empty.
    """
    if n < 1 or m < 1:
        raise ValueError(f"both groups need at least one seed, not {n} and {m}")
    return (2 if n == m else 1) / comb(n + m, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Step-down adjusted p values (Holm 1979), in the order given, none above 1."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        running = max(running, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = running
    return adjusted


def _p_rows(
    a: NDArray[np.float64], b: NDArray[np.float64], most_splits: int, draws: int
) -> tuple[NDArray[np.float64], bool]:
    """The p value of each row, and whether all splits were counted."""
    if not a.shape[1] or not b.shape[1] or np.isnan(a).any() or np.isnan(b).any():
        raise ValueError("both groups need at least one value and no NaN")
    pooled = np.concatenate([a, b], axis=1)
    exact = comb(pooled.shape[1], a.shape[1]) <= most_splits
    weights = _weights(pooled.shape[1], a.shape[1], None if exact else draws)
    observed = np.abs(a.mean(1) - b.mean(1)) - _TIE
    splits = weights.shape[1]
    rows = max(1, _BLOCK // splits)
    extreme = np.concatenate(
        [
            (np.abs(pooled[start : start + rows] @ weights) >= observed[start : start + rows, None]).sum(1)
            for start in range(0, len(pooled), rows)
        ]
        or [np.zeros(0)]
    )
    return np.asarray(extreme / splits if exact else (extreme + 1) / (draws + 1)), exact


@lru_cache(maxsize=4)
def _weights(n: int, size: int, draws: int | None) -> NDArray[np.float64]:
    """Of each split, in columns, the weights that turn a row into the difference of its two means; None: all splits.

    Of a split into halves and its mirror image, which is as extreme, one stands for both.
    """
    if draws is None:
        splits = np.array(list(combinations(range(n), size)))
        splits = splits[: len(splits) // 2] if n == 2 * size else splits
    else:
        random = np.random.Generator(np.random.Philox(key=_STREAM))
        splits = random.permuted(np.tile(np.arange(n), (draws, 1)), axis=1)[:, :size]
    weights = np.full((n, len(splits)), -1 / (n - size))
    weights[splits, np.arange(len(splits))[:, None]] = 1 / size
    return weights
