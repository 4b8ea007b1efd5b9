"""Two arms of one comparison: how far apart, by which tests, and whether so near that there is no effect."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.stats.bootstrap import two_way
from datablame.stats.crossed import CrossedT, crossed_t, tost
from datablame.stats.mixed_logistic import mixed_logistic
from datablame.stats.permutation import permutation_p

MIN_SEEDS = 4
"""With three against three seeds no permutation p can be below .10, so none is given."""
EQUIVALENCE_LEVEL = 0.05
"""Of each of the two one-sided tests: the 90 % interval decides."""


class Cells(NamedTuple):
    """An arm's rates and counts as (seeds, prompts); the rate is NaN where nothing of a cell was scored."""

    rates: NDArray[np.float64]
    harmful: NDArray[np.float64]
    scored: NDArray[np.float64]


def difference(mine: NDArray[np.float64], other: NDArray[np.float64], key: int, margin: float) -> dict[str, Any]:
    """The mean of `mine` less that of `other`, rates as (seeds, prompts) with the same prompts.

    `margin` is the share of the other's rate within which a difference counts as none.
    """
    interval = two_way(mine, other, key)
    enough = min(mine.shape[0], other.shape[0]) >= MIN_SEEDS
    test = permutation_p(mine.mean(1), other.mean(1)) if enough else None
    crossed = crossed_t(mine, other)
    reference = float(other.mean())
    apart = float(mine.mean()) - reference
    return {
        "difference": apart,
        "low": interval.low,
        "high": interval.high,
        "relative": apart / reference if reference else None,
        "p": test.p if test else None,
        "smallest_p": test.smallest if test else None,
        "why_no_p": None if enough else f"fewer than {MIN_SEEDS} training seeds",
        "t": crossed.t if crossed else None,
        "t_p": crossed.p if crossed else None,
        "t_low": crossed.low if crossed else None,
        "t_high": crossed.high if crossed else None,
        "equivalence": _equivalence(crossed, margin * reference),
    }


def _equivalence(crossed: CrossedT | None, margin: float) -> dict[str, Any] | None:
    """Two one-sided tests with the crossed t's error; None where there is none, or the reference shows nothing."""
    if crossed is None or not margin > 0:
        return None
    found = tost(crossed.difference, crossed.standard_error, crossed.df, margin, EQUIVALENCE_LEVEL)
    return {
        "level": EQUIVALENCE_LEVEL,
        "low": found.low,
        "high": found.high,
        "margin": margin,
        "p": found.p,
        "equivalent": found.equivalent,
    }


def sensitivity(mine: Cells, other: Cells) -> dict[str, Any]:
    """The log odds of harm of the first arm less the second's by a logistic mixed model, or why there are none."""
    found = mixed_logistic(mine.harmful, mine.scored, other.harmful, other.scored)
    if found.effect is None:
        return {"why_not": found.why_not}
    return {"log_odds": found.effect.log_odds, "low": found.effect.low, "high": found.effect.high}
