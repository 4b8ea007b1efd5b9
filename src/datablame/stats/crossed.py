"""Arms as tables (seeds, prompts): a t test with the error of both, equivalence, and how far both spread."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class CrossedT(NamedTuple):
    """The difference of the means, its standard error, and what Student's t makes of them."""

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


def crossed_t(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> CrossedT | None:
    """Two-sided t test of mean(a) - mean(b); a and b are rates as (seeds, prompts) with the same prompts.

    SE^2 = s_prompt^2(d) / P + s_seed,a^2 / S_a + s_seed,b^2 / S_b with S_a + S_b - 2 degrees of freedom, where d are
    the P differences of the prompts' means over seeds and s_seed the deviations of the seeds' means over prompts. The
    error of sampling is in all three terms, so that the test is conservative where it outweighs prompts and seeds.
    None where it cannot be formed: fewer than two prompts or seeds, or nothing varies.

    Raises:
        ValueError: an array is not two-dimensional, the numbers of prompts differ, or there is a NaN.
    """
    from scipy.special import stdtr, stdtrit

    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"need (seeds, prompts) with the same prompts, not {first.shape} and {second.shape}")
    if np.isnan(first).any() or np.isnan(second).any():
        raise ValueError("a rate is NaN; leave out prompts that were not scored in every arm and seed")
    if min(first.shape[0], second.shape[0], first.shape[1]) < 2:
        return None
    differences, errors, df = _difference(first, second)
    difference, error = float(differences), float(errors)
    # Equal rates differ by rounding.
    if error <= 1e-12:
        return None
    t = difference / error
    half = float(stdtrit(df, (1 + confidence) / 2)) * error
    p = 2 * float(stdtr(df, -abs(t)))
    return CrossedT(difference, error, df, t, p, difference - half, difference + half)


def crossed_p_rows(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The p values of `crossed_t` for arrays (rows, seeds, prompts); 1 where nothing varies."""
    from scipy.special import stdtr

    difference, error, df = _difference(a, b)
    t = np.divide(difference, error, out=np.zeros_like(difference), where=error > 1e-12)
    return np.asarray(2 * stdtr(df, -np.abs(t)))


def tost(difference: float, standard_error: float, df: float, margin: float, level: float = 0.05) -> Equivalence:
    """Two one-sided t tests (Schuirmann 1987): is the difference within +-margin, which a large p does not say?

    p is the larger of the two one-sided p values; p < level exactly where the 1 - 2 level interval (90 % for .05) lies
    inside the margin.

    Raises:
        ValueError: the margin or the degrees of freedom are not above 0, or the standard error is below 0.
    """
    from scipy.special import stdtr, stdtrit

    if not margin > 0 or not df > 0 or not standard_error >= 0:
        raise ValueError(f"margin {margin} and df {df} must be above 0, standard error {standard_error} not below it")
    half = float(stdtrit(df, 1 - level)) * standard_error
    if standard_error == 0:
        p = 0.0 if abs(difference) < margin else 1.0
    else:
        below = stdtr(df, -(difference + margin) / standard_error)
        above = stdtr(df, (difference - margin) / standard_error)
        p = float(max(below, above))
    return Equivalence(p, difference - half, difference + half, p < level)


def deviations(arms: Sequence[tuple[ArrayLike, ArrayLike]]) -> Deviations:
    """How far prompts, trainings and a prompt within a training spread: moments of a two-way random model.

    An arm is its (harmful, scored) counts, each (seeds, prompts). The cells are empirical logits
    log((k + 1/2) / (n - k + 1/2)) of variance 1/(k + 1/2) + 1/(n - k + 1/2) by sampling (Gart and Zweifel 1967). With S
    seeds and P prompts the mean squares have the expectations S s_prompt^2 + rest, P s_seed^2 + rest and
    rest = s_interaction^2 + sampling; with one training the interaction is in the prompts' deviation. A negative
    estimate counts as 0. Arms are averaged.

    Raises:
        ValueError: counts of an arm are not two arrays (seeds, prompts) of one shape with 0 <= harmful <= scored.
    """
    of_prompts, of_seeds, of_both = list[float](), list[float](), list[float]()
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
            of_both.append(rest - sampling)
            of_seeds.append(float(by_seed.var(ddof=1)) - rest / prompts)
        if prompts > 1:
            of_prompts.append(float(by_prompt.var(ddof=1)) - rest / seeds)
    return Deviations(_root_mean(of_prompts), _root_mean(of_seeds), _root_mean(of_both))


def _difference(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Difference, standard error and degrees of freedom over the last two axes (seeds, prompts)."""
    d = a.mean(-2) - b.mean(-2)
    squared = d.var(-1, ddof=1) / d.shape[-1]
    for arm in (a, b):
        squared = squared + arm.mean(-1).var(-1, ddof=1) / arm.shape[-2]
    return np.asarray(d.mean(-1)), np.sqrt(squared), a.shape[-2] + b.shape[-2] - 2


def _root_mean(variances: Sequence[float]) -> float | None:
    return float(np.sqrt(max(0.0, sum(variances) / len(variances)))) if variances else None
