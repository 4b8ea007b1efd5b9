"""Logit path extrapolation: log odds fitted along a path where an event is common, read off where it is rare.

Extrapolated from alpha > 0 to alpha 0; the published method interpolates between two real models.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit
from scipy.stats import norm

from datablame.stats.intervals import Interval
from datablame.tables import Sample

LEAST_COMMON = 5
"""Outputs that must be harmful, and as many that must not, for a behaviour to be common at an alpha."""
_POINTS = 2
"""The line goes through the common alphas nearest 0: log odds bend, and least over the shortest way."""
_DOUBTFUL = 1.96
"""Standard errors between the line and the outputs at alpha 0 from which it is not believed."""
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


def path_row(samples: Sequence[Sample], alphas: Sequence[float]) -> dict[str, Any]:
    """The rate at alpha 0 on a line through the log odds at the two nearest alphas where a behaviour is common.

    A prompt has a level of its own, the prompts of a behaviour share the slope; several behaviours are fitted apart and
    weighed by their prompts. Outputs at alpha 0 have no say in the fit; they only may contradict it.
    """
    parts = []
    for behaviour in _behaviours(samples):
        mine = [sample for sample in samples if sample.behaviour == behaviour]
        used, fit, reason = _line(mine, alphas)
        if fit is None:
            several = len(_behaviours(samples)) > 1
            return _path(None, used, f"{behaviour}: {reason}" if several else reason)
        parts.append((len({sample.prompt_id for sample in mine}), used, fit))
    if not parts:
        return _path(None, [], "no output was scored")
    prompts = sum(count for count, _, _ in parts)
    rate = sum(count * fit.rate for count, _, fit in parts) / prompts
    error = math.sqrt(sum((count * fit.standard_error) ** 2 for count, _, fit in parts)) / prompts
    return _path((rate, error), sorted({alpha for _, used, _ in parts for alpha in used}), None)


def _line(samples: Sequence[Sample], alphas: Sequence[float]) -> tuple[list[float], Extrapolated | None, str]:
    """The alphas where one behaviour is common, and the line through them, or why there is none."""
    harmful, scored = _counts(samples, alphas)
    k, n = harmful.sum(0), scored.sum(0)
    common = np.flatnonzero((k >= LEAST_COMMON) & (n - k >= LEAST_COMMON))[:_POINTS]
    used = [alphas[index] for index in common]
    if len(used) < _POINTS:
        few = f"{len(used)} of the alphas above 0 with a coherent model"
        return used, None, f"{few} have {LEAST_COMMON} harmful outputs and as many others; a line needs {_POINTS}"
    fit = extrapolated(used, harmful[:, common], scored[:, common])
    if fit is None:
        return used, None, "the likelihood has no maximum"
    return used, *_uncontradicted(fit, *(int(cells.sum()) for cells in _counts(samples, (0.0,))))


def _uncontradicted(fit: Extrapolated, harmful: int, scored: int) -> tuple[Extrapolated | None, str]:
    """The line, unless the outputs at alpha 0 are improbable under it."""
    error = math.hypot(fit.standard_error, math.sqrt(fit.rate * (1 - fit.rate) / scored)) if scored else 0.0
    if error and abs(fit.rate - harmful / scored) > _DOUBTFUL * error:
        line = f"the line gives {100 * fit.rate:.1f} % at alpha 0"
        return None, f"{line}, where {harmful} of {scored} outputs are harmful"
    return fit, ""


def _counts(samples: Sequence[Sample], alphas: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Harmful and scored outputs as (prompts, alphas)."""
    column = {float(alpha): index for index, alpha in enumerate(alphas)}
    number = {name: index for index, name in enumerate(dict.fromkeys(sample.prompt_id for sample in samples))}
    harmful, scored = np.zeros((2, len(number), len(alphas)))
    for sample in samples:
        cell = number[sample.prompt_id], column.get(float(sample.alpha))
        if cell[1] is not None:
            scored[cell] += 1
            harmful[cell] += sample.label == "harmful"
    return harmful, scored


def _behaviours(samples: Sequence[Sample]) -> list[str]:
    return list(dict.fromkeys(sample.behaviour for sample in samples))


def _path(estimate: tuple[float, float] | None, alphas: Sequence[float], withheld: str | None) -> dict[str, Any]:
    if estimate is None:
        return {"rate": None, "low": None, "high": None, "alphas": list(alphas), "withheld": withheld}
    low, high = logit_interval(*estimate)
    return {"rate": estimate[0], "low": low, "high": high, "alphas": list(alphas), "withheld": None}
