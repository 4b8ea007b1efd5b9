"""Intervals for rates counted in independent samples."""

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """Lower and upper end."""

    low: float
    high: float


def wilson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """The score interval of k successes in n trials (Wilson 1927); 0 to 1 where nothing was tried.

    Raises:
        ValueError: k is not between 0 and n.
    """
    from scipy.special import ndtri

    if not 0 <= k <= n:
        raise ValueError(f"k = {k} is not between 0 and n = {n}")
    if n == 0:
        return Interval(0.0, 1.0)
    z = float(ndtri((1 + confidence) / 2))
    rate = k / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return Interval(0.0 if k == 0 else float(centre - half), 1.0 if k == n else float(centre + half))
