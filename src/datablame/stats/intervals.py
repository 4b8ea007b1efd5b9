"""Intervals for rates counted in independent samples, and those that carry prompts and the training seed."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]
ENDS = ((1 - 0.95) / 2, (1 + 0.95) / 2)
"""The quantiles between which 95 % lie."""
_HALVINGS = 50
"""Of an interval: what is left is rounding."""


class Interval(NamedTuple):
    """Lower and upper end."""

    low: float
    high: float


class Share(NamedTuple):
    """A rate and the ends of its interval."""

    rate: float
    low: float
    high: float


def wilson(k: float, n: float) -> Interval:
    """The 95 % score interval of k in n trials (Wilson 1927); 0 to 1 of none. ValueError unless 0 <= k <= n."""
    from scipy.special import ndtri

    if not 0 <= k <= n:
        raise ValueError(f"k = {k} is not between 0 and n = {n}")
    if n == 0:
        return Interval(0.0, 1.0)
    z = float(ndtri(ENDS[1]))
    rate = k / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return Interval(0.0 if k == 0 else float(centre - half), 1.0 if k == n else float(centre + half))


def share(k: int, n: int) -> Share:
    """K of n with Wilson's 95 % interval; NaN, 0 and 1 of nothing."""
    return Share(k / n if n else float("nan"), *wilson(k, n))


def auc_intervals(auc: Numbers, n: Numbers, m: Numbers) -> tuple[Numbers, Numbers]:
    """Ends of 95 % intervals for AUCs of n against m items (pseudo-score, Newcombe 2006, part 2, method 5).

    They are where |auc - t| = z sqrt(V(t)), with Hanley and McNeil's variance of an AUC t, both sample sizes put at
    their mean: V(t) = t (1 - t) / (n m) (1 + ((n + m) / 2 - 1) ((1 - t) / (2 - t) + t / (1 + t))). Raises ValueError
    unless every AUC lies between 0 and 1 and every n and m is positive.
    """
    from scipy.special import ndtri

    if not (((auc >= 0) & (auc <= 1)).all() and (n >= 1).all() and (m >= 1).all()):
        raise ValueError("an AUC is not between 0 and 1, or a number of items is not positive")
    z = float(ndtri(ENDS[1]))
    ends = []
    for bound in (0.0, 1.0):
        far, near = np.full(auc.shape, bound), auc
        for _ in range(_HALVINGS):
            t = (far + near) / 2
            spread = 1 + ((n + m) / 2 - 1) * ((1 - t) / (2 - t) + t / (1 + t))
            outside = (auc - t) ** 2 > z * z * t * (1 - t) / (n * m) * spread
            far, near = np.where(outside, t, far), np.where(outside, near, t)
        ends.append(far)
    return ends[0], ends[1]


def two_way(a: ArrayLike, b: ArrayLike | None, key: int, resamples: int = 2000) -> Interval:
    """95 % percentile interval of mean(a) - mean(b), or of mean(a); a and b are (seeds, prompts) with the same prompts.

    Prompts are drawn jointly for both, seeds for each alone (the two-way bootstrap of crossed designs; Owen 2007).
    `key` is the stream of random numbers. Raises ValueError where the arrays do not have two axes and equal prompts.
    """
    first = np.asarray(a, dtype=float)
    second = np.zeros((1, *first.shape[1:])) if b is None else np.asarray(b, dtype=float)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"need (seeds, prompts) with the same prompts, not {first.shape} and {second.shape}")
    random = np.random.Generator(np.random.Philox(key=key))
    prompts = random.integers(first.shape[1], size=(resamples, first.shape[1]))
    means = [arm[random.integers(len(arm), size=(resamples, len(arm)))].mean(1) for arm in (first, second)]
    differences = np.take_along_axis(means[0] - means[1], prompts, axis=1).mean(1)
    return Interval(*np.quantile(differences, ENDS).tolist())
