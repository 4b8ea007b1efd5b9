"""What a design can show and how often it cries wolf, by simulation of whole studies; the cheapest that would do."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.stats import arm_tests
from datablame.stats.arm_tests import PValues, holm, permutation_p_rows, smallest_p
from datablame.stats.intervals import Share, share

LEVEL = 0.05
TARGET = 0.8
"""The power that the cheapest design has to have."""
MOST_TRIED = 40
_SEEDS, _TIMES_PROMPTS, _SAMPLES = range(4, 21), (0.25, 0.5, 1.0, 2.0), (5, 10, 25, 50, 100)
"""Of the designs that are looked at; fewer than 4 seeds give no p value."""
_WORTH_SIMULATING = 0.78
"""The formula's power is within a few points of the simulated one."""
_BLOCK = 2_000_000
"""Cells (arm, study, seed, prompt) that are held at once."""
Counts = NDArray[np.int64]


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
        if min(self.prompts, self.samples, self.methods, self.seeds, self.references) < 1:
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

    @property
    def deviation(self) -> float:
        """Of the log odds, over prompts, trainings and prompts within a training together."""
        return float(np.sqrt(self.prompt_deviation**2 + self.seed_deviation**2 + self.interaction_deviation**2))


class Drawn(NamedTuple):
    """Harmful counts (studies, seeds, prompts) of simulated studies: `idle` methods, one `working` for each rate."""

    random: Counts
    baseline: Counts
    idle: list[Counts]
    working: list[Counts]


class Rejections(NamedTuple):
    """How often each test of one method against random says p < .05, with the Monte-Carlo error (Wilson's 95 %).

    Naive are the pooled z over all samples and the paired t over prompts; ours are the exact permutation over training
    seeds and, beside it, the t with the error of prompts and of seeds. None where it cannot be formed.
    """

    samples: Share
    prompts: Share | None
    seeds: Share
    crossed: Share | None


class Power(NamedTuple):
    """What the simulated studies gave."""

    power: Share
    """A method that works has a Holm-adjusted p < .05, p being the larger one against random and against baseline."""
    any_false_alarm: Share
    """Where none works, the same of any method."""
    with_effect: Rejections
    without_effect: Rejections
    simulations: int


class Cheapest(NamedTuple):
    """A design whose simulated power reaches the target."""

    design: Design
    power: Power


def simulate(design: Design, simulations: int, key: int, advance: Callable[[int], object] = lambda done: None) -> Power:
    """Simulate so many studies of a design, with and without an effect; `key` is the stream of random numbers.

    A study with an effect has one method that works beside methods - 1 that don't, which is the hardest case for Holm;
    all else is the same in both. `advance` is called with the number of studies done since the last call.
    """
    rejected, detected, alarmed = Counter[str](), Counter[str](), Counter[str]()
    for drawn in drawn_studies(design, simulations, key):
        [working] = drawn.working
        first, *others = [_larger_p(method, drawn) for method in drawn.idle]
        # Holm rejects something exactly where its first step, Bonferroni of the smallest, does.
        alarm = np.minimum.reduce([first, *others]) * design.methods
        for counter, tests in (
            (rejected, {"power": _adjusted(working, drawn, others), "any_false_alarm": alarm}),
            (detected, _against_random(working, drawn.random, design.samples)),
            (alarmed, _against_random(drawn.idle[0], drawn.random, design.samples)),
        ):
            counter.update({name: int((p < LEVEL).sum()) for name, p in tests.items()})
        advance(len(working))
    counters = (rejected, detected, alarmed)
    shares: list[dict[str, Any]] = [{name: share(k, simulations) for name, k in counts.items()} for counts in counters]
    power, *effects = shares
    with_effect, without_effect = (Rejections(**{"prompts": None, "crossed": None, **tests}) for tests in effects)
    return Power(**power, with_effect=with_effect, without_effect=without_effect, simulations=simulations)


def powers(design: Design, to_rates: Sequence[float], simulations: int, key: int) -> list[Share]:
    """The `power` of `simulate` for each rate that the removal may lead to, from the same studies, without the rest."""
    rejected = np.zeros(len(to_rates), dtype=int)
    for drawn in drawn_studies(design, simulations, key, to_rates):
        others = [_larger_p(method, drawn) for method in drawn.idle[1:]]
        rejected += [(_adjusted(working, drawn, others) < LEVEL).sum() for working in drawn.working]
    return [share(count, simulations) for count in rejected.tolist()]


def smallest_adjusted_p(design: Design) -> float:
    """The least Holm-adjusted p that one method can reach where the others show nothing."""
    return min(1.0, smallest_p(design.seeds, design.references) * design.methods)


def approximate_power(design: Design) -> float:
    """A formula near the simulated power, for looking at hundreds of designs.

    Seeds' means are taken as normal: they vary with the training, with the interaction over prompts and with sampling;
    prompts are common to all arms and cancel. The method passes where its mean lies a t quantile of the largest
    attainable level up to .05 / methods away from those of random and of baseline, which err independently.
    """
    from scipy.special import expit, ndtr, stdtrit

    least = smallest_p(design.seeds, design.references)
    level = least * (np.ceil(LEVEL / design.methods / least * (1 - 1e-9)) - 1)
    if level <= 0:
        return 0.0
    points, weights = _nodes()
    errors = []
    for rate, seeds in ((design.to_rate, design.seeds), (design.from_rate, design.references)):
        p = expit(_intercept(rate, design) + design.deviation * points)
        slope = p * (1 - p)
        variance = design.seed_deviation**2 * float(weights @ slope) ** 2
        variance += design.interaction_deviation**2 * float(weights @ slope**2) / design.prompts
        variance += float(weights @ slope) / (design.prompts * design.samples)
        errors.append(float(np.sqrt(variance / seeds)))
    of_method, of_reference = errors
    critical = float(stdtrit(design.seeds + design.references - 2, 1 - level / 2))
    room = abs(design.from_rate - design.to_rate) - critical * float(np.hypot(of_method, of_reference))
    return float(weights @ ndtr((room + of_method * points) / of_reference) ** 2)


def cost(design: Design, training_cost: float) -> float:
    """All trainings, one being worth `training_cost` outputs, and all outputs; prompts cost nothing."""
    return design.trainings * training_cost + design.outputs


def candidates(design: Design, training_cost: float) -> list[Design]:
    """Designs for the same effect that the formula holds for able to show it, the cheapest first.

    Looked at are 4 to 20 seeds in every arm, a quarter to twice the prompts, 5 to 100 samples, and the design's own.
    """
    prompts = sorted({max(2, round(share * design.prompts)) for share in _TIMES_PROMPTS})
    every = [
        replace(design, seeds=s, reference_seeds=None, prompts=p, samples=n)
        for s, p, n in product(sorted({*_SEEDS, design.seeds}), prompts, sorted({*_SAMPLES, design.samples}))
    ]
    likely = [other for other in every if approximate_power(other) >= _WORTH_SIMULATING]
    return sorted(likely, key=lambda other: (cost(other, training_cost), other.prompts))


def cheapest(
    designs: Sequence[Design], simulations: int, key: int, advance: Callable[[int], object] = lambda done: None
) -> Cheapest | None:
    """The first design with a simulated power of at least .8, None among the first 40; `advance(1)` after each."""
    for design in designs[:MOST_TRIED]:
        simulated = simulate(design, simulations, key)
        advance(1)
        if simulated.power.rate >= TARGET:
            return Cheapest(design, simulated)
    return None


def drawn_studies(design: Design, simulations: int, key: int, to_rates: Sequence[float] = ()) -> Iterator[Drawn]:
    """Blocks of simulated studies; `to_rates` stand for the design's own where several effects are looked at."""
    from scipy.special import expit

    rates = to_rates or (design.to_rate,)
    random = np.random.Generator(np.random.Philox(key=key))
    cells = (2 * design.references + (design.methods + len(rates)) * design.seeds) * design.prompts
    block = max(1, _BLOCK // cells)
    idle, *working = (_intercept(rate, design) for rate in (design.from_rate, *rates))
    for start in range(0, simulations, block):
        studies = min(block, simulations - start)
        prompts = random.normal(0, design.prompt_deviation, (studies, 1, design.prompts))

        def arm(centre: float, seeds: int, prompts: NDArray[np.float64] = prompts) -> Counts:
            log_odds = centre + prompts + random.normal(0, design.seed_deviation, (len(prompts), seeds, 1))
            log_odds = log_odds + random.normal(0, design.interaction_deviation, (len(prompts), seeds, design.prompts))
            return np.asarray(random.binomial(design.samples, expit(log_odds)))

        yield Drawn(
            random=arm(idle, design.references),
            baseline=arm(idle, design.references),
            idle=[arm(idle, design.seeds) for _ in range(design.methods)],
            working=[arm(centre, design.seeds) for centre in working],
        )


@lru_cache(maxsize=1)
def _nodes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points and weights that turn a sum into a mean over a standard normal (Gauss and Hermite)."""
    points, weights = np.polynomial.hermite_e.hermegauss(101)
    return points, weights / weights.sum()


def _intercept(rate: float, design: Design) -> float:
    """The log odds at which the mean rate over all deviations is `rate`."""
    from scipy.optimize import brentq
    from scipy.special import expit, logit

    if rate == 0:
        return float("-inf")
    points, weights = _nodes()
    centre, far = float(logit(rate)), 10 * (1 + design.deviation**2)
    return float(brentq(lambda at: weights @ expit(at + design.deviation * points) - rate, centre - far, centre + far))


def _adjusted(working: Counts, drawn: Drawn, others: list[PValues]) -> PValues:
    """Of each study, Holm's p of the method that works, given those of the others."""
    return np.array([holm(row)[0] for row in np.transpose([_larger_p(working, drawn), *others]).tolist()])


def _larger_p(method: Counts, drawn: Drawn) -> PValues:
    """The program's p: the larger one against random and against baseline."""
    by_seed = method.mean(2)
    return np.maximum(*(permutation_p_rows(by_seed, arm.mean(2)) for arm in (drawn.random, drawn.baseline)))


def _against_random(method: Counts, random: Counts, samples: int) -> dict[str, PValues]:
    """The p values of some studies by the tests of `Rejections` that can be formed."""
    rates = (method / samples, random / samples)
    totals = [(arm.sum((1, 2)), arm.shape[1] * arm.shape[2] * samples) for arm in (method, random)]
    tests = {
        "samples": arm_tests.pooled_z_p(*totals[0], *totals[1]),
        "seeds": permutation_p_rows(method.mean(2), random.mean(2)),
    }
    if method.shape[2] >= 2:
        tests["prompts"] = arm_tests.paired_p_rows(*(rate.mean(1) for rate in rates))
        if min(method.shape[1], random.shape[1]) >= 2:
            tests["crossed"] = arm_tests.crossed_p_rows(*rates)
    return tests
