"""A rate under one distribution from samples of several others: weights, estimate, error and how far to trust it."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from scipy.stats import norm

from datablame.stats.intervals import Interval
from datablame.stats.psis import pareto_khat


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

    `log_q` is (samples, distributions); `counts` says how many samples each distribution gave. Where p is among the
    distributions, w is at most 1 / pi of it. The mean of w over all samples has expectation 1.

    Raises:
        ValueError: the shapes do not fit, or no distribution gave a sample.
    """
    p, q, n = (np.asarray(each, dtype=float) for each in (log_p, log_q, counts))
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
    is that within each of these cells, for the design fixes how many samples each has.

    Raises:
        ValueError: there is no sample, or the lengths differ.
    """
    log_w, h = np.asarray(log_weights, dtype=float), np.asarray(harmful, dtype=bool)
    prompt, stratum = (np.unique(np.asarray(each), return_inverse=True)[1] for each in (prompts, strata))
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


def score_interval(rate: float, standard_error: float, n: float, confidence: float = 0.95) -> Interval:
    """Wilson's interval for a rate whose error is that of rate (1 - rate) / standard_error^2 plain samples.

    `n` plain samples are taken where the error cannot be told from the data (rate 0 or 1, or no error).
    """
    clipped = min(max(rate, 0.0), 1.0)
    effective = n
    if 0 < clipped < 1 and standard_error > 0:
        effective = clipped * (1 - clipped) / standard_error**2
    z2 = float(norm.ppf((1 + confidence) / 2)) ** 2
    centre = (clipped + z2 / (2 * effective)) / (1 + z2 / effective)
    half = math.sqrt(z2 * (clipped * (1 - clipped) / effective + z2 / (4 * effective**2))) / (1 + z2 / effective)
    return Interval(0.0 if clipped == 0 else centre - half, 1.0 if clipped == 1 else centre + half)
