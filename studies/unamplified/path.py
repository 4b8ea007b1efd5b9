"""Logit path extrapolation: log odds fitted along a path where an event is common, read off where it is rare."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit
from scipy.stats import norm

from datablame.stats.intervals import Interval

_STEPS = 60
_LARGEST_LOGIT = 30.0


class Extrapolated(NamedTuple):
    """The mean rate at 0, its standard error, the fit's dispersion, and the last coefficient in standard errors."""

    rate: float
    standard_error: float
    dispersion: float
    z: float


def extrapolated(places: ArrayLike, events: ArrayLike, trials: ArrayLike, degree: int = 1) -> Extrapolated | None:
    """The mean over rows of the rate at place 0, from logit(rate) = a_row + b_1 place + ... + b_degree place^degree.

    `events` and `trials` are (rows, places): a row has a level of its own, all rows share the trend. Fitted by maximum
    likelihood, which weighs each logit by trials * rate * (1 - rate); the error is by the delta method, its variance
    scaled by Pearson's dispersion where that is above 1. A row without any event counts as 0, one with nothing but
    events as 1. None where the trend cannot be told: too few places, or the likelihood has no maximum.

    Raises:
        ValueError: the shapes do not fit, or there are more events than trials.
    """
    x, k, n = (np.asarray(each, dtype=float) for each in (places, events, trials))
    if k.shape != n.shape or k.ndim != 2 or k.shape[1] != x.size:
        raise ValueError(f"need events and trials as (rows, places), not {k.shape}, {n.shape} at {x.size} places")
    if (k > n).any() or (k < 0).any():
        raise ValueError("events are between 0 and trials")
    total = k.sum(1)
    told = (total > 0) & (total < n.sum(1))
    rows, certain = int(told.sum()), int((total[~told] > 0).sum())
    if not rows or np.unique(x[n[told].sum(0) > 0]).size < degree + 1:
        return None
    design = _design(x, rows, degree)
    fit = _maximum(design, k[told].ravel(), n[told].ravel())
    if fit is None:
        return None
    coefficients, covariance, pearson = fit
    cells = int((n[told] > 0).sum())
    free = cells - coefficients.size
    dispersion = max(1.0, pearson / free) if free > 0 else 1.0
    covariance = covariance * dispersion
    level = expit(coefficients[:rows])
    rate = (level.sum() + certain) / len(k)
    gradient = np.concatenate([level * (1 - level) / len(k), np.zeros(degree)])
    return Extrapolated(
        rate=float(rate),
        standard_error=float(np.sqrt(gradient @ covariance @ gradient)),
        dispersion=dispersion,
        z=float(coefficients[-1] / np.sqrt(covariance[-1, -1])),
    )


def logit_interval(rate: float, standard_error: float, confidence: float = 0.95) -> Interval:
    """The standard error carried to the logit scale and back, so that the interval stays within 0 and 1."""
    if not 0 < rate < 1:
        return Interval(rate, rate)
    half = float(norm.ppf((1 + confidence) / 2)) * standard_error / (rate * (1 - rate))
    centre = float(logit(rate))
    return Interval(float(expit(centre - half)), float(expit(centre + half)))


def _design(x: NDArray[np.float64], rows: int, degree: int) -> NDArray[np.float64]:
    """An intercept for each row, then the powers of the place; a line for each cell, row by row."""
    powers = np.stack([x**power for power in range(1, degree + 1)], axis=1)
    return np.hstack([np.repeat(np.eye(rows), x.size, axis=0), np.tile(powers, (rows, 1))])


def _maximum(
    design: NDArray[np.float64], k: NDArray[np.float64], n: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float] | None:
    """Coefficients, their covariance and Pearson's chi-square by iteratively reweighted least squares."""
    eta = logit((k + 0.5) / (n + 1))
    for _ in range(_STEPS):
        p = expit(eta)
        variance = n * p * (1 - p)
        information = design.T @ (variance[:, None] * design)
        try:
            covariance = np.linalg.inv(information)
        except np.linalg.LinAlgError:
            return None
        coefficients = covariance @ (design.T @ (variance * eta + k - n * p))
        last, eta = eta, design @ coefficients
        if not np.isfinite(eta).all() or np.abs(eta[n > 0]).max() > _LARGEST_LOGIT:
            return None
        if np.abs(eta - last).max() < 1e-9:
            p = expit(eta)
            variance = n * p * (1 - p)
            pearson = float((np.divide((k - n * p) ** 2, variance, where=n > 0, out=np.zeros_like(k))).sum())
            return coefficients, covariance, pearson
    return None
