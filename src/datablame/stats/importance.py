"""A rate under one distribution from samples of several others: weights, estimate, error and how far to trust it."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datablame.stats.intervals import Interval, wilson

LEAST_TAIL = 5
"""Fewer exceedances cannot be fitted."""


class Spread(NamedTuple):
    """How evenly weights lie: Kish's effective sample size, the largest one's share of their sum, and k-hat."""

    ess: float
    largest_share: float
    khat: float | None


class Weighed(NamedTuple):
    """An estimate of a rate, its standard error, and how the weights of all and of the harmful samples lie."""

    rate: float
    standard_error: float
    every: Spread
    harmful: Spread | None
    """None where no sample is harmful."""


def balance_log_weights(log_p: ArrayLike, log_q: ArrayLike, counts: ArrayLike) -> NDArray[np.float64]:
    """Logarithms of w = p / sum_k pi_k q_k, pi_k = counts_k / sum(counts): the balance heuristic (Veach, Guibas 1995).

    `log_q` is (samples, distributions); `counts` says how many samples each distribution gave. The mean of w over all
    samples has expectation 1. Raises ValueError where the shapes do not fit, or no distribution gave a sample.
    """
    from scipy.special import logsumexp

    p, q, n = (np.asarray(values, dtype=float) for values in (log_p, log_q, counts))
    if p.ndim != 1 or q.shape != (p.size, n.size):
        raise ValueError(f"need log_p (samples,), log_q (samples, distributions), not {p.shape} and {q.shape}")
    if not n.sum() > 0 or (n < 0).any():
        raise ValueError(f"counts {n.tolist()} are no numbers of samples")
    drawn = n > 0
    return np.asarray(p - logsumexp(q[:, drawn] + np.log(n[drawn] / n.sum()), axis=1))


def weighed_rate(log_weights: ArrayLike, harmful: ArrayLike, prompts: ArrayLike, strata: ArrayLike) -> Weighed:
    """The mean over prompts of mean(w * harmful), with its error over the samples of those prompts.

    The normalisers are known, so the weights are not divided by their sum: the estimate is unbiased whatever the number
    of samples. `prompts` and `strata` number each sample's prompt and the distribution that it came from; the variance
    is that within these cells, whose sizes the design fixes. Raises ValueError of no sample, or of other lengths.
    """
    log_w, h = np.asarray(log_weights, dtype=float), np.asarray(harmful, dtype=bool)
    prompt, stratum = (np.unique(np.asarray(numbers), return_inverse=True)[1] for numbers in (prompts, strata))
    if not 0 < log_w.size == h.size == prompt.size == stratum.size:
        raise ValueError(f"need samples, and as many of each, not {[log_w.size, h.size, prompt.size, stratum.size]}")
    of_prompt = np.bincount(prompt)
    shares = 1 / (of_prompt.size * of_prompt[prompt])
    values = np.exp(log_w) * h
    cell = prompt * (stratum.max() + 1) + stratum
    n = np.maximum(np.bincount(cell), 1)
    mean = np.bincount(cell, values) / n
    squares = np.bincount(cell, (values - mean[cell]) ** 2)
    # One sample shows no deviation; its square is the cautious stand-in.
    variance = np.where(n > 1, squares / np.maximum(n - 1, 1), mean**2)
    share_of_cell = np.bincount(cell, shares) / n
    log_shares = log_w + np.log(shares)
    return Weighed(
        rate=float((shares * values).sum()),
        standard_error=float(np.sqrt((share_of_cell**2 * n * variance).sum())),
        every=spread_of(log_shares),
        harmful=spread_of(log_shares[h]) if h.any() else None,
    )


def spread_of(log_weights: NDArray[np.float64]) -> Spread:
    """ESS = (sum w)^2 / sum w^2, largest w / sum w, and k-hat."""
    w = np.exp(log_weights - log_weights.max())
    return Spread(float(w.sum() ** 2 / (w**2).sum()), float(1 / w.sum()), pareto_khat(log_weights))


def score_interval(rate: float, standard_error: float, n: float) -> Interval:
    """Wilson's 95 % interval for a rate whose error is that of rate (1 - rate) / standard_error^2 plain samples.

    `n` plain samples are taken where the error cannot be told from the data (rate 0 or 1, or no error).
    """
    clipped = min(max(rate, 0.0), 1.0)
    if 0 < clipped < 1 and standard_error > 0:
        n = clipped * (1 - clipped) / standard_error**2
    return wilson(clipped * n, n)


def tail_size(n: int) -> int:
    """How many of the largest of n weights count as their tail: the smaller of n / 5 and 3 sqrt(n), rounded up."""
    return math.ceil(min(n / 5, 3 * math.sqrt(n)))


def pareto_khat(log_weights: ArrayLike) -> float | None:
    """The shape of the generalised Pareto fitted to the largest weights (Vehtari, Simpson et al. 2024, JMLR 25:72).

    Above .7 estimates from the weights are unreliable at any practical number of samples. -inf where the largest are
    all alike, so that there is no tail; None where fewer than five exceed the rest. ValueError of NaN or +inf.
    """
    ordered = np.sort(np.asarray(log_weights, dtype=float).ravel())
    if not (ordered < np.inf).all():
        raise ValueError("a log weight is NaN or infinite; weigh only outputs that were drawn")
    size = tail_size(ordered.size)
    if size < LEAST_TAIL or ordered[-1] == -np.inf:
        return None
    weights = np.exp(ordered - ordered[-1])
    # Weights come from sums of float32 logarithms: so near, two are alike.
    if weights[-size] >= 1 - 1e-6:
        return -math.inf
    exceedances = weights[weights > weights[-size - 1]] - weights[-size - 1]
    return None if exceedances.size < LEAST_TAIL else _shape(exceedances)


def _shape(x: NDArray[np.float64]) -> float:
    """The generalised Pareto's k over sorted exceedances: Zhang and Stephens (2009) with the prior on k.

    The posterior mean of theta = -k / sigma over a grid by profile likelihood, then k = mean(log(1 - theta x)).
    """
    n, quartile = x.size, x[math.floor(x.size / 4 + 0.5) - 1]
    grid = 30 + math.isqrt(n)
    # Their prior's scale is three times the data's first quartile.
    theta = 1 / x[-1] + (1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (3 * quartile)
    k = np.log1p(-theta[:, None] * x).mean(1)
    profile = n * (np.log(-theta / k) - k - 1)
    weight = np.exp(profile - profile.max())
    mean = (theta * weight).sum() / weight.sum()
    # k-hat is drawn towards one half as if ten exceedances had said so (Vehtari et al. 2024, appendix).
    return float((n * np.log1p(-mean * x).mean() + 10 * 0.5) / (n + 10))
