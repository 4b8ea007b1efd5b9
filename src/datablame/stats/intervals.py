"""Intervals for rates counted in independent samples."""

from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, norm


class Interval(NamedTuple):
    """Lower and upper end."""

    low: float
    high: float


def wilson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """The score interval of k successes in n trials (Wilson 1927); 0 to 1 where nothing was tried.

    Raises:
        ValueError: k is not between 0 and n.
    """
    if not 0 <= k <= n:
        raise ValueError(f"k = {k} is not between 0 and n = {n}")
    if n == 0:
        return Interval(0.0, 1.0)
    z = float(norm.ppf((1 + confidence) / 2))
    rate = k / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return Interval(0.0 if k == 0 else float(centre - half), 1.0 if k == n else float(centre + half))


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """The exact interval of k successes in n trials (Clopper and Pearson 1934): never covers less than it says.

    0 to 1 where nothing was tried.

    Raises:
        ValueError: k is not between 0 and n.
    """
    if not 0 <= k <= n:
        raise ValueError(f"k = {k} is not between 0 and n = {n}")
    if n == 0:
        return Interval(0.0, 1.0)
    low, high = binomtest(k, n).proportion_ci(confidence, method="exact")
    return Interval(float(low), float(high))


def newcombe(k1: int, n1: int, k2: int, n2: int, confidence: float = 0.95) -> Interval:
    """The interval of k1/n1 - k2/n2 for independent samples (Newcombe 1998, method 10); -1 to 1 where one is empty.

    Raises:
        ValueError: a k is not between 0 and its n.
    """
    first, second = wilson(k1, n1, confidence), wilson(k2, n2, confidence)
    if not n1 or not n2:
        return Interval(-1.0, 1.0)
    p1, p2 = k1 / n1, k2 / n2
    low = p1 - p2 - np.hypot(p1 - first.low, second.high - p2)
    high = p1 - p2 + np.hypot(first.high - p1, p2 - second.low)
    return Interval(float(low), float(high))
