"""The naive test: rates compared as if every sample were independent of prompts and of training."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm


def pooled_z_p(k1: ArrayLike, n1: int, k2: ArrayLike, n2: int) -> NDArray[np.float64]:
    """Two-sided p of k1 in n1 against k2 in n2 by the pooled two-proportion z test; 1 where all or none are yes.

    Here for comparison only: samples of one training share its luck, so that this test raises false alarms.

    Raises:
        ValueError: an n is 0 or a k is not between 0 and its n.
    """
    first, second = np.asarray(k1, dtype=float), np.asarray(k2, dtype=float)
    if n1 < 1 or n2 < 1 or ((first < 0) | (first > n1)).any() or ((second < 0) | (second > n2)).any():
        raise ValueError(f"counts must be between 0 and n1 = {n1}, n2 = {n2}, which are at least 1")
    rate = (first + second) / (n1 + n2)
    error = np.sqrt(rate * (1 - rate) * (1 / n1 + 1 / n2))
    z = np.divide(first / n1 - second / n2, error, out=np.zeros_like(error), where=error > 0)
    return np.asarray(2 * norm.sf(np.abs(z)))
