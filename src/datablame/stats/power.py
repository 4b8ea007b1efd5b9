"""What a design can show and how often it cries wolf, by simulation of whole studies."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import norm
from scipy.stats import t as students_t

from datablame.stats.crossed import crossed_p_rows
from datablame.stats.intervals import wilson
from datablame.stats.permutation import holm, permutation_p_rows, smallest_p
from datablame.stats.proportions import pooled_z_p
from datablame.stats.simulated import Counts, Design, Drawn, deviation, drawn_studies, intercept, nodes

LEVEL = 0.05
PValues = NDArray[np.float64]


class Share(NamedTuple):
    """A share of the simulated studies with the Monte-Carlo error as Wilson's 95 % interval."""

    rate: float
    low: float
    high: float


class Rejections(NamedTuple):
    """How often each test of one method against random says p < .05; None where it cannot be formed."""

    samples: Share
    """Naive: pooled z over all samples."""
    prompts: Share | None
    """Naive: paired t over prompts, needs two."""
    seeds: Share
    """Ours, first: exact permutation over training seeds."""
    crossed: Share | None
    """Ours, beside it: t with the error of prompts and of seeds, needs two of each."""


class Power(NamedTuple):
    """What the simulated studies gave."""

    power: Share
    """A method that works has a Holm-adjusted p < .05, p being the larger one against random and against baseline."""
    any_false_alarm: Share
    """Where none works, the same of any method."""
    with_effect: Rejections
    without_effect: Rejections
    simulations: int


class _PValues(NamedTuple):
    """Of some studies, in the order of `Rejections`."""

    samples: PValues
    prompts: PValues | None
    seeds: PValues
    crossed: PValues | None


def simulate(design: Design, simulations: int, key: int, advance: Callable[[int], object] = lambda done: None) -> Power:
    """Simulate so many studies of a design, with and without an effect; `key` is the stream of random numbers.

    A study with an effect has one method that works beside methods - 1 that don't, which is the hardest case for Holm.
    Both kinds of study share their random numbers except for the method that works. `advance` is called with the
    number of studies done since the last call.
    """
    false_alarms: list[_PValues] = []
    detections: list[_PValues] = []
    adjusted: list[float] = []
    least: list[float] = []
    for drawn in drawn_studies(design, simulations, key):
        [working] = drawn.working
        false_alarms.append(_against_random(drawn.idle[0], drawn.random, design.samples))
        detections.append(_against_random(working, drawn.random, design.samples))
        others = [_larger_p(method, drawn) for method in drawn.idle[1:]]
        adjusted += _adjusted(working, drawn, others)
        # Holm rejects something exactly where its first step, Bonferroni of the smallest, does.
        least += np.minimum.reduce([_larger_p(drawn.idle[0], drawn), *others]).tolist()
        advance(len(working))
    return Power(
        power=_share(np.array(adjusted)),
        any_false_alarm=_share(np.array(least) * design.methods),
        with_effect=_rejections(detections),
        without_effect=_rejections(false_alarms),
        simulations=simulations,
    )


def powers(design: Design, to_rates: Sequence[float], simulations: int, key: int) -> list[Share]:
    """The `power` of `simulate` for each rate that the removal may lead to, from the same studies, without the rest."""
    adjusted: list[list[float]] = [[] for _ in to_rates]
    for drawn in drawn_studies(design, simulations, key, to_rates):
        others = [_larger_p(method, drawn) for method in drawn.idle[1:]]
        for found, working in zip(adjusted, drawn.working, strict=True):
            found += _adjusted(working, drawn, others)
    return [_share(np.array(found)) for found in adjusted]


def smallest_adjusted_p(design: Design) -> float:
    """The least Holm-adjusted p that one method can reach where the others show nothing."""
    return min(1.0, smallest_p(design.seeds, design.references) * design.methods)


def approximate_power(design: Design) -> float:
    """A formula near the simulated power, for looking at hundreds of designs.

    Seeds' means are taken as normal: they vary with the training, with the interaction over prompts and with sampling;
    prompts are common to all arms and cancel. The method passes where its mean lies a t quantile of the largest
    attainable level up to .05 / methods away from those of random and of baseline, which err independently.
    """
    least = smallest_p(design.seeds, design.references)
    level = least * (np.ceil(LEVEL / design.methods / least * (1 - 1e-9)) - 1)
    if level <= 0:
        return 0.0
    points, weights = nodes()
    errors = []
    for rate, seeds in ((design.to_rate, design.seeds), (design.from_rate, design.references)):
        p = expit(intercept(rate, design) + deviation(design) * points)
        slope = p * (1 - p)
        variance = design.seed_deviation**2 * float(weights @ slope) ** 2
        variance += design.interaction_deviation**2 * float(weights @ slope**2) / design.prompts
        variance += float(weights @ slope) / (design.prompts * design.samples)
        errors.append(float(np.sqrt(variance / seeds)))
    mine, other = errors
    critical = float(students_t.ppf(1 - level / 2, design.seeds + design.references - 2))
    room = abs(design.from_rate - design.to_rate) - critical * float(np.hypot(mine, other))
    return float(weights @ norm.cdf((room + mine * points) / other) ** 2)


def _adjusted(working: Counts, drawn: Drawn, others: list[PValues]) -> list[float]:
    """Of each study, Holm's p of the method that works, given those of the others."""
    return [holm(row)[0] for row in np.transpose([_larger_p(working, drawn), *others]).tolist()]


def _larger_p(method: Counts, drawn: Drawn) -> PValues:
    """The program's p: the larger one against random and against baseline."""
    mine = method.mean(2)
    return np.maximum(*(permutation_p_rows(mine, arm.mean(2)) for arm in (drawn.random, drawn.baseline)))


def _against_random(method: Counts, random: Counts, samples: int) -> _PValues:
    rates = (method / samples, random / samples)
    totals = [(arm.sum((1, 2)), arm.shape[1] * arm.shape[2] * samples) for arm in (method, random)]
    prompts, seeds = method.shape[2], min(method.shape[1], random.shape[1])
    return _PValues(
        samples=pooled_z_p(*totals[0], *totals[1]),
        prompts=paired_p_rows(*(each.mean(1) for each in rates)) if prompts >= 2 else None,
        seeds=permutation_p_rows(method.mean(2), random.mean(2)),
        crossed=crossed_p_rows(*rates) if prompts >= 2 and seeds >= 2 else None,
    )


def paired_p_rows(a: PValues, b: PValues) -> PValues:
    """Two-sided p of the paired t test of each row of two arrays (rows, prompts); 1 where nothing varies."""
    d = a - b
    error = d.std(1, ddof=1) / np.sqrt(d.shape[1])
    t = np.divide(d.mean(1), error, out=np.zeros(len(d)), where=error > 1e-12)
    return np.asarray(2 * students_t.sf(np.abs(t), d.shape[1] - 1))


def _rejections(blocks: list[_PValues]) -> Rejections:
    prompts = [block.prompts for block in blocks if block.prompts is not None]
    crossed = [block.crossed for block in blocks if block.crossed is not None]
    return Rejections(
        samples=_share(np.concatenate([block.samples for block in blocks])),
        prompts=_share(np.concatenate(prompts)) if prompts else None,
        seeds=_share(np.concatenate([block.seeds for block in blocks])),
        crossed=_share(np.concatenate(crossed)) if crossed else None,
    )


def _share(p_values: PValues) -> Share:
    below = int((p_values < LEVEL).sum())
    return Share(below / p_values.size, *wilson(below, p_values.size))
