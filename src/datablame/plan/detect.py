"""What a design can show at best: the smallest p that its seeds can give, and what sampling error alone hides."""

from math import sqrt
from typing import NamedTuple

from datablame.config import Study
from datablame.config_checks import OUTSIDE_FAMILY
from datablame.patch.compare import MIN_SEEDS
from datablame.plan.subject import Subject
from datablame.stats.intervals import wilson
from datablame.stats.permutation import smallest_p

__all__ = ["Detectable", "detectable", "outputs_needed", "smallest_drop"]

_Z_LEVEL, _Z_SHARE = 1.959963984540054, 0.8416212335729143
"""Normal quantiles of a two-sided .05 and of .80."""
_RATES = (0.1, 0.5)
_BISECTIONS = 60


class Detectable(NamedTuple):
    """Of the headline protocol."""

    seeds: int
    family: tuple[str, ...]
    """The methods that Holm adjusts for."""
    smallest_p: float | None
    """None with too few seeds for a p value."""
    smallest_adjusted_p: float | None
    outputs: int
    """Held-out outputs of one training at one alpha: prompts times samples."""
    drops: dict[float, float | None]
    """For a rate without removal, the largest rate with removal that differs from it by more than sampling error."""
    cell_zero_high: float
    """Upper Wilson end where a cell of the surface phase shows nothing."""


def detectable(study: Study, subject: Subject) -> Detectable:
    """The limits of the study's design."""
    patch = study.patch
    seeds = len(patch.seeds_of(patch.headline))
    methods = tuple(arm for arm in patch.arms if arm not in OUTSIDE_FAMILY)
    least = smallest_p(seeds, seeds) if seeds >= MIN_SEEDS else None
    outputs = len(subject.held_out) * patch.samples
    return Detectable(
        seeds=seeds,
        family=methods,
        smallest_p=least,
        smallest_adjusted_p=None if least is None else min(1.0, least * max(1, len(methods))),
        outputs=outputs,
        drops={rate: smallest_drop(rate, outputs) for rate in _RATES},
        cell_zero_high=wilson(0, study.surface.samples).high,
    )


def outputs_needed(first: float, second: float) -> float:
    """Outputs an arm to tell two rates apart four times in five at a two-sided .05 (Fleiss 1981, uncorrected).

    n = (z_.975 sqrt(2 q (1 - q)) + z_.80 sqrt(p1 (1 - p1) + p2 (1 - p2)))^2 / (p1 - p2)^2 with q the mean of both.
    """
    mean = (first + second) / 2
    spread = _Z_LEVEL * sqrt(2 * mean * (1 - mean))
    spread += _Z_SHARE * sqrt(first * (1 - first) + second * (1 - second))
    return float((spread / (first - second)) ** 2)


def smallest_drop(rate: float, outputs: int) -> float | None:
    """The largest rate below `rate` that so many outputs an arm tell from it; None where not even 0 is."""
    if outputs_needed(rate, 0.0) > outputs:
        return None
    low, high = 0.0, rate
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if outputs_needed(rate, middle) <= outputs else (low, middle)
    return low
