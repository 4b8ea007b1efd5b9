"""Intervals that carry both the choice of prompts and the training seed."""

import numpy as np
from numpy.typing import ArrayLike

from datablame.stats.intervals import Interval

_RESAMPLES = 2000


def two_way(a: ArrayLike, b: ArrayLike, key: int, resamples: int = _RESAMPLES, confidence: float = 0.95) -> Interval:
    """Percentile interval of mean(a) - mean(b); a and b are (seeds, prompts) with the same prompts.

    Prompts are drawn jointly for both, for they are the same prompts; seeds are drawn for each alone (the two-way
    bootstrap of crossed designs; Owen 2007). `key` is the stream of its random numbers.

    Raises:
        ValueError: an array is not two-dimensional or the numbers of prompts differ.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"need (seeds, prompts) with the same prompts, not {first.shape} and {second.shape}")
    random = np.random.Generator(np.random.Philox(key=key))
    prompts = random.integers(first.shape[1], size=(resamples, first.shape[1]))
    means = [
        values[random.integers(values.shape[0], size=(resamples, values.shape[0]))].mean(1)
        for values in (first, second)
    ]
    differences = np.take_along_axis(means[0] - means[1], prompts, axis=1).mean(1)
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def two_way_mean(a: ArrayLike, key: int, resamples: int = _RESAMPLES, confidence: float = 0.95) -> Interval:
    """Percentile interval of mean(a), a being (seeds, prompts), with prompts and seeds drawn again.

    Raises:
        ValueError: the array is not two-dimensional.
    """
    values = np.asarray(a, dtype=float)
    if values.ndim != 2:
        raise ValueError(f"need (seeds, prompts), not {values.shape}")
    return two_way(values, np.zeros((1, values.shape[1])), key, resamples, confidence)
