"""The cheapest design that shows an effect four times in five."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

from datablame.stats.power import Power, approximate_power, simulate
from datablame.stats.simulated import Design

TARGET = 0.8
MOST_TRIED = 40
_SEEDS = range(4, 21)
"""Training seeds an arm; fewer than 4 give no p value."""
_PROMPTS = (0.25, 0.5, 1.0, 2.0)
"""Times the prompts that there are."""
_SAMPLES = (5, 10, 25, 50, 100)
_WORTH_SIMULATING = 0.78
"""The formula's power is within a few points of the simulated one."""


class Cheapest(NamedTuple):
    """A design whose simulated power reaches the target, its power and its cost in outputs."""

    design: Design
    power: Power
    cost: float


def cost(design: Design, training_cost: float) -> float:
    """All trainings, one being worth `training_cost` outputs, and all outputs; prompts cost nothing."""
    return design.trainings * training_cost + design.outputs


def candidates(design: Design, training_cost: float) -> list[Design]:
    """Designs for the same effect that the formula holds for able to show it, the cheapest first.

    4 to 20 seeds in every arm, a quarter to twice the prompts, 5 to 100 samples, and the design's own numbers. Of
    equally cheap designs those with fewer prompts come first.
    """
    prompts = sorted({max(2, round(share * design.prompts)) for share in _PROMPTS})
    samples = sorted({*_SAMPLES, design.samples})
    seeds = sorted({*_SEEDS, design.seeds})
    every = [
        replace(design, seeds=s, reference_seeds=None, prompts=p, samples=n)
        for s, p, n in product(seeds, prompts, samples)
    ]
    every.sort(key=lambda other: (cost(other, training_cost), other.prompts))
    return [other for other in every if approximate_power(other) >= _WORTH_SIMULATING]


def cheapest(
    designs: Sequence[Design],
    training_cost: float,
    simulations: int,
    key: int,
    advance: Callable[[int], object] = lambda done: None,
) -> Cheapest | None:
    """The first of the designs with a simulated power of at least .8; None where none of the first 40 has it.

    `advance` is called with 1 for every design that was simulated.
    """
    for design in designs[:MOST_TRIED]:
        found = simulate(design, simulations, key)
        advance(1)
        if found.power.rate >= TARGET:
            return Cheapest(design, found, cost(design, training_cost))
    return None
