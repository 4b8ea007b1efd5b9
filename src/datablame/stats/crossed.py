"""A t test of two arms that share prompts and differ in training seeds, with the error of both."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as students_t


class CrossedT(NamedTuple):
    """The difference of the means, its standard error, and what Student's t makes of them."""

    difference: float
    standard_error: float
    df: int
    t: float
    p: float
    low: float
    high: float


def crossed_t(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> CrossedT | None:
    """Two-sided t test of mean(a) - mean(b); a and b are rates as (seeds, prompts) with the same prompts.

    SE^2 = s_prompt^2(d) / P + s_seed,a^2 / S_a + s_seed,b^2 / S_b with S_a + S_b - 2 degrees of freedom, where d are
    the P differences of the prompts' means over seeds and s_seed the deviations of the seeds' means over prompts. The
    error of sampling is in all three terms, so that the test is conservative where it outweighs prompts and seeds.
    None where it cannot be formed: fewer than two prompts or seeds, or nothing varies.

    Raises:
        ValueError: an array is not two-dimensional, the numbers of prompts differ, or there is a NaN.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"need (seeds, prompts) with the same prompts, not {first.shape} and {second.shape}")
    if np.isnan(first).any() or np.isnan(second).any():
        raise ValueError("a rate is NaN; leave out prompts that were not scored in every arm and seed")
    if min(first.shape[0], second.shape[0], first.shape[1]) < 2:
        return None
    differences, errors, df = _parts(first, second)
    difference, error = float(differences), float(errors)
    # Equal rates differ by rounding.
    if error <= 1e-12:
        return None
    t = difference / error
    half = float(students_t.ppf((1 + confidence) / 2, df)) * error
    p = 2 * float(students_t.sf(abs(t), df))
    return CrossedT(difference, error, df, t, p, difference - half, difference + half)


def crossed_p_rows(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The p values of `crossed_t` for arrays (rows, seeds, prompts); 1 where nothing varies."""
    difference, error, df = _parts(a, b)
    varies = error > 1e-12
    t = np.divide(difference, error, out=np.zeros_like(difference), where=varies)
    return np.asarray(2 * students_t.sf(np.abs(t), df))


def _parts(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Difference, standard error and degrees of freedom over the last two axes (seeds, prompts)."""
    d = a.mean(-2) - b.mean(-2)
    squared = d.var(-1, ddof=1) / d.shape[-1]
    for arm in (a, b):
        squared = squared + arm.mean(-1).var(-1, ddof=1) / arm.shape[-2]
    return np.asarray(d.mean(-1)), np.sqrt(squared), a.shape[-2] + b.shape[-2] - 2
