"""Studies drawn at random: an effect that is known, prompts and trainings that deviate, harmful outputs counted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
_BLOCK = 2_000_000
"""Cells (arm, study, seed, prompt) that are held at once."""
_NODES = 101


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


class Drawn(NamedTuple):
    """Harmful counts (studies, seeds, prompts) of some simulated studies."""

    random: Counts
    baseline: Counts
    idle: list[Counts]
    """A method each; nothing works."""
    working: list[Counts]
    """One for each rate that removal may lead to."""


def drawn_studies(
    design: Design, simulations: int, key: int, to_rates: Sequence[float] | None = None
) -> Iterator[Drawn]:
    """Blocks of simulated studies; `to_rates` stand for the design's own where several effects are looked at."""
    from scipy.special import expit

    rates = (design.to_rate,) if to_rates is None else to_rates
    random = np.random.Generator(np.random.Philox(key=key))
    cells = (2 * design.references + (design.methods + len(rates)) * design.seeds) * design.prompts
    block = max(1, _BLOCK // cells)
    idle = intercept(design.from_rate, design)
    working = [intercept(rate, design) for rate in rates]
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


def deviation(design: Design) -> float:
    """Of the log odds, over prompts, trainings and prompts within a training together."""
    return float(np.sqrt(design.prompt_deviation**2 + design.seed_deviation**2 + design.interaction_deviation**2))


@lru_cache(maxsize=1)
def nodes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points and weights that turn a sum into a mean over a standard normal (Gauss and Hermite)."""
    points, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return points, weights / weights.sum()


def intercept(rate: float, design: Design) -> float:
    """The log odds at which the mean rate over all deviations is `rate`."""
    from scipy.optimize import brentq
    from scipy.special import expit, logit

    if rate == 0:
        return float("-inf")
    points, weights = nodes()
    spread = deviation(design) * points
    centre, far = float(logit(rate)), 10 * (1 + deviation(design) ** 2)
    return float(brentq(lambda at: weights @ expit(at + spread) - rate, centre - far, centre + far))
