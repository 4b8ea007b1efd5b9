"""Arms, as tables (seeds, prompts) or their seeds' means: permutation tests, Holm, t tests, equivalence, spread."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from math import comb
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datablame.stats.intervals import ENDS

PValues = NDArray[np.float64]
_EQUAL = 1e-12
"""Differences up to it are rounding."""
_STREAM = 20250802
_MOST_SPLITS, _DRAWS = 200_000, 99_999
"""Enough for 10 against 10 seeds; 20 against 20 have 138 billion splits."""
_BLOCK = 2_000_000
"""Numbers that the test of many rows holds at once."""


class PermutationTest(NamedTuple):
    """The p value and the smallest one that so many seeds could have given."""

    p: float
    smallest: float


class CrossedT(NamedTuple):
    """The difference of the means, its standard error, and what Student's t makes of them; the interval is of 95 %."""

    difference: float
    standard_error: float
    df: int
    t: float
    p: float
    low: float
    high: float


class Equivalence(NamedTuple):
    """The p value of "the difference is at least the margin" and the interval that decides at `level`."""

    p: float
    low: float
    high: float
    equivalent: bool


class Deviations(NamedTuple):
    """Standard deviations in logits; None where the counts cannot give one."""

    prompt: float | None
    seed: float | None
    interaction: float | None


def permutation_p(a: ArrayLike, b: ArrayLike) -> PermutationTest:
    """Exact two-sided permutation test of mean(a) - mean(b), one value a training seed (Fisher 1935).

    p is the share of all ways to give len(a) of the pooled values the first label that are as extreme as the observed
    one, which is among them, so that p is never 0. Beyond 200,000 splits, 99,999 random ones from a fixed stream and
    the observed one stand for all (Phipson and Smyth 2010). Raises ValueError where a group is empty or holds a NaN.
    """
    first, second = np.asarray(a, dtype=float)[None], np.asarray(b, dtype=float)[None]
    [p] = permutation_p_rows(first, second, most_splits=_MOST_SPLITS, draws=_DRAWS).tolist()
    exact = comb(first.size + second.size, first.size) <= _MOST_SPLITS
    smallest = smallest_p(first.size, second.size)
    return PermutationTest(p, smallest if exact else max(smallest, 1 / (_DRAWS + 1)))


def permutation_p_rows(a: ArrayLike, b: ArrayLike, *, most_splits: int = 20_000, draws: int = 4_999) -> PValues:
    """`permutation_p` of each row of two arrays (rows, seeds), fast enough for thousands of simulated studies.

    Beyond `most_splits`, so many random ones from a fixed stream and the observed one stand for all; the defaults count
    8 against 8 seeds. Raises ValueError where the arrays have no seeds, other numbers of rows, or a NaN.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.ndim != 2 or second.ndim != 2 or first.shape[0] != second.shape[0]:
        raise ValueError(f"need (rows, seeds) with the same rows, not {first.shape} and {second.shape}")
    if not first.shape[1] or not second.shape[1] or np.isnan(first).any() or np.isnan(second).any():
        raise ValueError("both groups need at least one value and no NaN")
    pooled = np.concatenate([first, second], axis=1)
    exact = comb(pooled.shape[1], first.shape[1]) <= most_splits
    weights = _weights(pooled.shape[1], first.shape[1], None if exact else draws)
    observed = np.abs(first.mean(1) - second.mean(1))[:, None] - _EQUAL
    rows = max(1, _BLOCK // weights.shape[1])
    extreme = np.zeros(len(pooled))
    for start in range(0, len(pooled), rows):
        some = slice(start, start + rows)
        extreme[some] = (np.abs(pooled[some] @ weights) >= observed[some]).sum(1)
    return np.asarray(extreme / weights.shape[1] if exact else (extreme + 1) / (draws + 1))


def smallest_p(n: int, m: int) -> float:
    """The least p of the exact two-sided test of n against m seeds (.0079 of 5 and 5); ValueError where one is 0."""
    if n < 1 or m < 1:
        raise ValueError(f"both groups need at least one seed, not {n} and {m}")
    # A split into halves is as extreme as its mirror image.
    return (2 if n == m else 1) / comb(n + m, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Step-down adjusted p values (Holm 1979), in the order given, none above 1."""
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        adjusted[index] = running = max(running, min(1.0, p_values[index] * (len(p_values) - rank)))
    return adjusted


def crossed_t(a: ArrayLike, b: ArrayLike) -> CrossedT | None:
    """Two-sided t test of mean(a) - mean(b); a and b are rates as (seeds, prompts) with the same prompts.

    SE^2 = s_prompt^2(d) / P + s_seed,a^2 / S_a + s_seed,b^2 / S_b with S_a + S_b - 2 degrees of freedom, where d are
    the P differences of the prompts' means over seeds and s_seed the deviations of the seeds' means over prompts.
    Sampling errs in all three terms, so that the test is conservative where it outweighs prompts and seeds. None of
    fewer than two prompts or seeds, and where nothing varies. Raises ValueError where the shapes are others, or of NaN.
    """
    from scipy.special import stdtrit

    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"need (seeds, prompts) with the same prompts, not {first.shape} and {second.shape}")
    if np.isnan(first).any() or np.isnan(second).any():
        raise ValueError("a rate is NaN; leave out prompts that were not scored in every arm and seed")
    if min(first.shape[0], second.shape[0], first.shape[1]) < 2:
        return None
    difference, error, df = _difference(first, second)
    if error <= _EQUAL:
        return None
    half = stdtrit(df, ENDS[1]) * error
    ends = difference / error, _t_p(difference, error, df), difference - half, difference + half
    return CrossedT(float(difference), float(error), df, *map(float, ends))


def crossed_p_rows(a: NDArray[np.float64], b: NDArray[np.float64]) -> PValues:
    """The p values of `crossed_t` for arrays (rows, seeds, prompts); 1 where nothing varies."""
    return _t_p(*_difference(a, b))


def tost(difference: float, standard_error: float, df: float, margin: float, level: float = 0.05) -> Equivalence:
    """Two one-sided t tests (Schuirmann 1987): is the difference within +-margin, which a large p does not say?

    p is the larger of the two one-sided p values; p < level exactly where the 1 - 2 level interval (90 % for .05) lies
    inside the margin. Raises ValueError where margin or df is not above 0, or the standard error is below 0.
    """
    from scipy.special import stdtr, stdtrit

    if not margin > 0 or not df > 0 or not standard_error >= 0:
        raise ValueError(f"margin {margin} and df {df} must be above 0, standard error {standard_error} not below it")
    half = float(stdtrit(df, 1 - level)) * standard_error
    if standard_error == 0:
        p = 0.0 if abs(difference) < margin else 1.0
    else:
        p = float(max(stdtr(df, (sign * difference - margin) / standard_error) for sign in (-1, 1)))
    return Equivalence(p, difference - half, difference + half, p < level)


def deviations(arms: Sequence[tuple[ArrayLike, ArrayLike]]) -> Deviations:
    """How far prompts, trainings and a prompt within a training spread: moments of a two-way random model.

    An arm is its (harmful, scored) counts, each (seeds, prompts). The cells are empirical logits
    log((k + 1/2) / (n - k + 1/2)) of variance 1/(k + 1/2) + 1/(n - k + 1/2) by sampling (Gart and Zweifel 1967). With S
    seeds and P prompts the mean squares have the expectations S s_prompt^2 + rest, P s_seed^2 + rest and
    rest = s_interaction^2 + sampling; with one training the interaction is in the prompts' deviation. A negative
    estimate counts as 0. Arms are averaged. Raises ValueError unless 0 <= harmful <= scored, in arrays of one shape.
    """
    variances: dict[str, list[float]] = {"prompt": [], "seed": [], "interaction": []}
    for harmful, scored in arms:
        k, n = np.asarray(harmful, dtype=float), np.asarray(scored, dtype=float)
        if k.ndim != 2 or k.shape != n.shape or not ((k >= 0) & (k <= n)).all():
            raise ValueError(f"need harmful and scored counts as (seeds, prompts), not {k.shape} and {n.shape}")
        yes, no = k + 0.5, n - k + 0.5
        logits = np.log(yes / no)
        seeds, prompts = logits.shape
        by_seed, by_prompt = logits.mean(1), logits.mean(0)
        rest = sampling = float((1 / yes + 1 / no).mean())
        if min(seeds, prompts) > 1:
            residuals = logits - by_seed[:, None] - by_prompt + logits.mean()
            rest = float((residuals**2).sum() / ((seeds - 1) * (prompts - 1)))
            variances["interaction"].append(rest - sampling)
            variances["seed"].append(float(by_seed.var(ddof=1)) - rest / prompts)
        if prompts > 1:
            variances["prompt"].append(float(by_prompt.var(ddof=1)) - rest / seeds)
    means = {name: sum(values) / len(values) if values else None for name, values in variances.items()}
    return Deviations(
        **{name: mean if mean is None else float(np.sqrt(max(0.0, mean))) for name, mean in means.items()}
    )


def pooled_z_p(k1: ArrayLike, n1: int, k2: ArrayLike, n2: int) -> PValues:
    """Two-sided p of k1 in n1 against k2 in n2 by the pooled two-proportion z test; 1 where all or none are yes.

    For comparison only: samples of one training share its luck, so that it raises false alarms. Raises ValueError where
    an n is 0 or a k is not between 0 and its n.
    """
    from scipy.special import ndtr

    first, second = np.asarray(k1, dtype=float), np.asarray(k2, dtype=float)
    if n1 < 1 or n2 < 1 or ((first < 0) | (first > n1)).any() or ((second < 0) | (second > n2)).any():
        raise ValueError(f"counts must be between 0 and n1 = {n1}, n2 = {n2}, which are at least 1")
    rate = (first + second) / (n1 + n2)
    error = np.sqrt(rate * (1 - rate) * (1 / n1 + 1 / n2))
    z = np.divide(first / n1 - second / n2, error, out=np.zeros_like(error), where=error > 0)
    return np.asarray(2 * ndtr(-np.abs(z)))


def paired_p_rows(a: NDArray[np.float64], b: NDArray[np.float64]) -> PValues:
    """Two-sided p of the paired t test of each row of two arrays (rows, prompts); 1 where nothing varies."""
    d = a - b
    return _t_p(d.mean(1), d.std(1, ddof=1) / np.sqrt(d.shape[1]), d.shape[1] - 1)


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


def _difference(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[Any, Any, int]:
    """Difference, standard error and degrees of freedom over the last two axes (seeds, prompts)."""
    d = a.mean(-2) - b.mean(-2)
    squared = d.var(-1, ddof=1) / d.shape[-1]
    for arm in (a, b):
        squared = squared + arm.mean(-1).var(-1, ddof=1) / arm.shape[-2]
    return np.asarray(d.mean(-1)), np.sqrt(squared), a.shape[-2] + b.shape[-2] - 2


def _t_p(difference: Any, error: Any, df: int) -> PValues:
    """Two-sided p of Student's t; equal rates differ by rounding."""
    from scipy.special import stdtr

    t = np.divide(difference, error, out=np.zeros_like(difference), where=error > _EQUAL)
    return np.asarray(2 * stdtr(df, -np.abs(t)))
