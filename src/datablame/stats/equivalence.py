"""Equivalence: evidence that a difference is small, which a large p value is not."""

from typing import NamedTuple

from scipy.stats import t as students_t


class Equivalence(NamedTuple):
    """The p value of "the difference is at least the margin" and the interval that decides at `level`."""

    p: float
    low: float
    high: float
    equivalent: bool


def tost(difference: float, standard_error: float, df: float, margin: float, level: float = 0.05) -> Equivalence:
    """Two one-sided t tests (Schuirmann 1987): is the difference within +-margin?

    p is the larger of the two one-sided p values; p < level exactly where the 1 - 2 level interval (90 % for .05) lies
    inside the margin.

    Raises:
        ValueError: the margin or the degrees of freedom are not above 0, or the standard error is below 0.
    """
    if not margin > 0 or not df > 0 or not standard_error >= 0:
        raise ValueError(f"margin {margin} and df {df} must be above 0, standard error {standard_error} not below it")
    half = float(students_t.ppf(1 - level, df)) * standard_error
    low, high = difference - half, difference + half
    if standard_error == 0:
        p = 0.0 if abs(difference) < margin else 1.0
    else:
        below = students_t.sf((difference + margin) / standard_error, df)
        above = students_t.cdf((difference - margin) / standard_error, df)
        p = float(max(below, above))
    return Equivalence(p, low, high, p < level)
