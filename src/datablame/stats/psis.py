"""How heavy the upper tail of importance weights is: the k-hat of Pareto smoothed importance sampling."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST_TAIL = 5
"""Fewer exceedances cannot be fitted."""
_GRID = 30
_PRIOR_SCALE = 3
"""Of Zhang and Stephens: their prior's scale in units of the data's first quartile."""
_PRIOR_K, _PRIOR_WEIGHT = 0.5, 10
"""k-hat is drawn towards one half as if that many exceedances had said so (Vehtari et al. 2024, appendix)."""
_ALIKE = 1e-6
"""Relative difference below which two weights are one: they come from sums of float32 logarithms."""


def tail_size(n: int) -> int:
    """How many of the largest of n weights count as their tail: the smaller of n / 5 and 3 sqrt(n), rounded up."""
    return math.ceil(min(n / 5, 3 * math.sqrt(n)))


def pareto_khat(log_weights: ArrayLike) -> float | None:
    """The shape of the generalised Pareto fitted to the largest weights (Vehtari, Simpson et al. 2024, JMLR 25:72).

    Above .7 estimates from the weights are unreliable at any practical number of samples. -inf where the largest
    weights are all alike, for there is no tail then; None where fewer than five exceed the rest, for which nothing can
    be said.

    Raises:
        ValueError: a logarithm is NaN or +inf.
    """
    ordered = np.sort(np.asarray(log_weights, dtype=float).ravel())
    if np.isnan(ordered).any() or (ordered.size and ordered[-1] == np.inf):
        raise ValueError("a log weight is NaN or infinite; weigh only outputs that were drawn")
    size = tail_size(ordered.size)
    if size < LEAST_TAIL or ordered[-1] == -np.inf:
        return None
    weights = np.exp(ordered - ordered[-1])
    if weights[-size] >= 1 - _ALIKE:
        return -math.inf
    cutoff = weights[-size - 1]
    exceedances = weights[-size:] - cutoff
    exceedances = exceedances[exceedances > 0]
    return None if exceedances.size < LEAST_TAIL else _shape(exceedances)


def _shape(x: NDArray[np.float64]) -> float:
    """The generalised Pareto's k over sorted exceedances: Zhang and Stephens (2009) with the prior on k.

    The posterior mean of theta = -k / sigma over a grid by profile likelihood, then k = mean(log(1 - theta x)).
    """
    n = x.size
    grid = _GRID + math.isqrt(n)
    quartile = x[math.floor(n / 4 + 0.5) - 1]
    steps = np.arange(1, grid + 1) - 0.5
    theta = 1 / x[-1] + (1 - np.sqrt(grid / steps)) / (_PRIOR_SCALE * quartile)
    k = np.log1p(-theta[:, None] * x).mean(1)
    profile = n * (np.log(-theta / k) - k - 1)
    weight = np.exp(profile - profile.max())
    mean = (theta * weight).sum() / weight.sum()
    shape = np.log1p(-mean * x).mean()
    return float((n * shape + _PRIOR_WEIGHT * _PRIOR_K) / (n + _PRIOR_WEIGHT))
