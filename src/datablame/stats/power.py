"""What a design can show and how often it cries wolf, by simulation of whole studies."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm
from scipy.stats import t as students_t

from datablame.stats.crossed import crossed_p_rows
from datablame.stats.intervals import wilson
from datablame.stats.permutation import holm, permutation_p_rows, smallest_p
from datablame.stats.proportions import pooled_z_p

__all__ = [
    "LEVEL",
    "Design",
    "Power",
    "Rejections",
    "Share",
    "approximate_power",
    "paired_p_rows",
    "simulate",
    "smallest_adjusted_p",
]

LEVEL = 0.05
_BLOCK = 2_000_000
"""Cells (arm, study, seed, prompt) that are held at once."""
_NODES = 101
Counts = NDArray[np.int64]
PValues = NDArray[np.float64]


@dataclass(frozen=True)
class Design:
    """A study of `methods` methods, of which at most one works, with arms `random` and `baseline` to compare with.

    The log odds of a harmful sample are arm + prompt + training + interaction: normal deviations of a prompt (the same
    in every arm and training), of one training, and of one prompt in one training. Samples are binomial given them.
    """

    from_rate: float
    """Mean harmful rate over prompts and trainings without removal."""
    to_rate: float
    """The same where the removal works; the log odds of all prompts are shifted alike."""
    prompts: int = 40
    samples: int = 25
    """Outputs of one training for one prompt."""
    seeds: int = 5
    """Trainings of a method."""
    methods: int = 3
    """The family of Holm's adjustment."""
    reference_seeds: int | None = None
    """Trainings of random and of baseline; as many as of a method where None."""
    prompt_deviation: float = 1.0
    seed_deviation: float = 0.25
    interaction_deviation: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be simulated."""
        if not 0 < self.from_rate < 1 or not 0 <= self.to_rate < 1 or self.from_rate == self.to_rate:
            raise ValueError(f"rates {self.from_rate} and {self.to_rate} must differ and be shares between 0 and 1")
        if min(self.prompts, self.samples, self.methods) < 1 or min(self.seeds, self.references) < 1:
            raise ValueError("prompts, samples, seeds and methods must be at least 1")
        if min(self.prompt_deviation, self.seed_deviation, self.interaction_deviation) < 0:
            raise ValueError("deviations must not be below 0")

    @property
    def references(self) -> int:
        """Trainings of random and of baseline."""
        return self.seeds if self.reference_seeds is None else self.reference_seeds

    @property
    def trainings(self) -> int:
        """Of all methods, random and baseline."""
        return self.methods * self.seeds + 2 * self.references

    @property
    def outputs(self) -> int:
        """Of all trainings."""
        return self.trainings * self.prompts * self.samples


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


class _Drawn(NamedTuple):
    """Harmful counts (studies, seeds, prompts) of some simulated studies."""

    random: Counts
    baseline: Counts
    idle: list[Counts]
    """A method each; nothing works."""
    working: Counts


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
    for drawn in _studies(design, simulations, key):
        false_alarms.append(_against_random(drawn.idle[0], drawn.random, design.samples))
        detections.append(_against_random(drawn.working, drawn.random, design.samples))
        idle = [_larger_p(method, drawn) for method in drawn.idle]
        working = _larger_p(drawn.working, drawn)
        for first, *others in np.transpose([working, *idle[1:]]).tolist():
            adjusted.append(holm([first, *others])[0])
        # Holm rejects something exactly where its first step, Bonferroni of the smallest, does.
        least += np.minimum.reduce(idle).tolist()
        advance(len(working))
    return Power(
        power=_share(np.array(adjusted)),
        any_false_alarm=_share(np.array(least) * design.methods),
        with_effect=_rejections(detections),
        without_effect=_rejections(false_alarms),
        simulations=simulations,
    )


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
    points, weights = _nodes()
    errors = []
    for rate, seeds in ((design.to_rate, design.seeds), (design.from_rate, design.references)):
        p = expit(_intercept(rate, design) + _deviation(design) * points)
        slope = p * (1 - p)
        variance = design.seed_deviation**2 * float(weights @ slope) ** 2
        variance += design.interaction_deviation**2 * float(weights @ slope**2) / design.prompts
        variance += float(weights @ slope) / (design.prompts * design.samples)
        errors.append(float(np.sqrt(variance / seeds)))
    mine, other = errors
    critical = float(students_t.ppf(1 - level / 2, design.seeds + design.references - 2))
    room = abs(design.from_rate - design.to_rate) - critical * float(np.hypot(mine, other))
    return float(weights @ norm.cdf((room + mine * points) / other) ** 2)


def _studies(design: Design, simulations: int, key: int) -> Iterator[_Drawn]:
    random = np.random.Generator(np.random.Philox(key=key))
    cells = (2 * design.references + (design.methods + 1) * design.seeds) * design.prompts
    block = max(1, _BLOCK // cells)
    idle, working = _intercept(design.from_rate, design), _intercept(design.to_rate, design)
    for start in range(0, simulations, block):
        studies = min(block, simulations - start)
        prompts = random.normal(0, design.prompt_deviation, (studies, 1, design.prompts))

        def arm(intercept: float, seeds: int, prompts: PValues = prompts) -> Counts:
            log_odds = intercept + prompts + random.normal(0, design.seed_deviation, (len(prompts), seeds, 1))
            log_odds = log_odds + random.normal(0, design.interaction_deviation, (len(prompts), seeds, design.prompts))
            return np.asarray(random.binomial(design.samples, expit(log_odds)))

        yield _Drawn(
            random=arm(idle, design.references),
            baseline=arm(idle, design.references),
            idle=[arm(idle, design.seeds) for _ in range(design.methods)],
            working=arm(working, design.seeds),
        )


def _larger_p(method: Counts, drawn: _Drawn) -> PValues:
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


def _deviation(design: Design) -> float:
    return float(np.sqrt(design.prompt_deviation**2 + design.seed_deviation**2 + design.interaction_deviation**2))


@lru_cache(maxsize=1)
def _nodes() -> tuple[PValues, PValues]:
    points, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return points, weights / weights.sum()


def _intercept(rate: float, design: Design) -> float:
    """The log odds at which the mean rate over all deviations is `rate`."""
    if rate == 0:
        return float("-inf")
    points, weights = _nodes()
    spread = _deviation(design) * points
    centre, far = float(logit(rate)), 10 * (1 + _deviation(design) ** 2)
    return float(brentq(lambda at: weights @ expit(at + spread) - rate, centre - far, centre + far))
