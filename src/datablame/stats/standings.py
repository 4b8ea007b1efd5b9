"""Methods compared over organisms of several kinds and seeds; numbers in, numbers out.

Organisms of one seed share the model that their fine-tunes began with, so that the seed is what repeats: intervals are
Student's t over the seeds' means, each over that seed's organisms, and speak of these kinds.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datablame.stats.intervals import ENDS, Interval

Values = Mapping[tuple[str, int], float]
"""A number for each organism, by kind and seed."""


class Estimate(NamedTuple):
    """A mean or median with its 95 % interval, None where too few have a value, over `n` organisms."""

    value: float
    low: float | None
    high: float | None
    n: int


def over_seeds(values: Values) -> Estimate | None:
    """The mean over seeds of each one's mean, with Student's t; None without values."""
    from scipy.stats import t

    if not values:
        return None
    seeds = sorted({seed for _, seed in values})
    means = np.array([np.mean([value for (_, own), value in values.items() if own == seed]) for seed in seeds])
    mean, n = float(means.mean()), len(seeds)
    if n < 2:
        return Estimate(mean, None, None, len(values))
    half = float(t.ppf(ENDS[1], n - 1) * means.std(ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half, len(values))


def median(values: Values) -> Estimate | None:
    """The median over organisms, for what a busy machine multiplies; None without values."""
    if not values:
        return None
    middle, interval = median_interval([*values.values()])
    low, high = interval or (None, None)
    return Estimate(middle, low, high, len(values))


def paired(a: Values, b: Values) -> Estimate | None:
    """The mean of a - b over the organisms that both have."""
    return over_seeds({organism: a[organism] - b[organism] for organism in a if organism in b})


def beats(a: Values, b: Values) -> bool:
    """Whether the interval of the paired difference a - b lies above 0."""
    difference = paired(a, b)
    return difference is not None and difference.low is not None and difference.low > 0


def ranks(by_method: Mapping[str, Values]) -> dict[str, int]:
    """For each method with values 1 + the number of methods that beat it: those tied with the best have rank 1."""
    return {
        method: 1 + sum(beats(other, values) for other in by_method.values())
        for method, values in by_method.items()
        if values
    }


def mean_ranks(by_method: Mapping[str, Values]) -> dict[str, Estimate]:
    """The mean over organisms of each method's rank there, 1 for the highest, mid-ranks for ties."""
    from scipy.stats import rankdata

    per: dict[str, dict[tuple[str, int], float]] = {method: {} for method in by_method}
    for organism in dict.fromkeys(organism for values in by_method.values() for organism in values):
        present = [method for method, values in by_method.items() if organism in values]
        for method, rank in zip(present, rankdata([-by_method[m][organism] for m in present]), strict=True):
            per[method][organism] = float(rank)
    return {method: made for method, values in per.items() if (made := over_seeds(values)) is not None}


def share_of_oracle(baseline: float, rate: float, oracle: float, least: float) -> float | None:
    """(baseline - rate) / (baseline - oracle); None where the oracle lowers the rate by less than `least`."""
    return (baseline - rate) / (baseline - oracle) if baseline - oracle >= least else None


def halved_at(removed: Sequence[int], rates: Sequence[float], baseline: float) -> float | None:
    """The fewest removed documents at which the rate is half of the baseline's or less.

    Infinite where it never is (censored at the most that were removed); None where there is no rate to halve.
    """
    if baseline <= 0 or not removed:
        return None
    return min((n for n, rate in zip(removed, rates, strict=True) if rate <= baseline / 2), default=math.inf)


def median_interval(values: Sequence[float]) -> tuple[float, Interval | None]:
    """The lower median and its 95 % interval by order statistics (Conover 1999), None for fewer than 6 values.

    It asks for order alone, so that infinite (censored) values count as what they are: more than any other.
    """
    from scipy.stats import binom

    ordered, n = sorted(values), len(values)
    # How many values may lie below the lower end: P(Bin(n, 1/2) <= outside) is less than 2.5 %.
    outside = int(binom.ppf(ENDS[0], n, 0.5)) - 1
    interval = Interval(ordered[outside], ordered[n - 1 - outside]) if outside >= 0 else None
    return ordered[(n - 1) // 2], interval


def pareto(costs: Mapping[str, Values], gains: Mapping[str, Values]) -> set[str]:
    """The methods with both of which no other gains at least as much at no more cost, and more or for less.

    Two methods are compared by their mean differences over the organisms that both have; one that some of the other's
    organisms lack stands in for it nowhere else, and is no better.
    """

    def betters(other: str, own: str) -> bool:
        if not gains[own].keys() <= gains[other].keys():
            return False
        saved, gained = paired(costs[own], costs[other]), paired(gains[other], gains[own])
        if saved is None or gained is None:
            return False
        return saved.value >= 0 and gained.value >= 0 and saved.value + gained.value > 0

    placed = [name for name, values in gains.items() if values and costs.get(name)]
    return {own for own in placed if not any(betters(other, own) for other in placed)}


def datamodeling_score(
    true: ArrayLike, predicted: ArrayLike, key: int, resamples: int = 2000
) -> tuple[float, Interval] | None:
    """The linear datamodeling score and its 95 % percentile interval over subsets.

    Both have the shape (subsets, outputs): what models trained on a subset make of an output, and the sum of the
    scores of the subset's documents. Spearman's correlation over subsets, averaged over outputs (Ilyas et al.,
    arXiv 2202.00622; Park et al., arXiv 2303.14186). None where a method predicts nothing that varies.
    """
    a, b = np.asarray(true, dtype=float), np.asarray(predicted, dtype=float)
    random = np.random.Generator(np.random.Philox(key=key))
    drawn = random.integers(len(a), size=(resamples, len(a)))
    score = _mean_spearman(a[None], b[None])
    if not np.isfinite(score).all():
        return None
    return float(score[0]), Interval(*np.nanquantile(_mean_spearman(a[drawn], b[drawn]), ENDS).tolist())


def _mean_spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of (resamples, subsets, outputs) arrays; the means over outputs."""
    from scipy.stats import rankdata

    x, y = (rankdata(values, axis=1) for values in (a, b))
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        rho: NDArray[np.float64] = (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))
    means: NDArray[np.float64] = rho.mean(1)
    return means
