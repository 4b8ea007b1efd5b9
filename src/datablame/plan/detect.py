"""What a design can show at best: the smallest p that its seeds can give, and its power by simulation."""

from typing import NamedTuple

from datablame.config.schema import Patch
from datablame.patch.compare import MIN_SEEDS
from datablame.patch.registry import arm_kinds
from datablame.seeds import stream_key
from datablame.stats.arm_tests import smallest_p
from datablame.stats.intervals import Share, wilson
from datablame.stats.power import LEVEL, Design, powers
from datablame.world import World

_RATES = (0.1, 0.5)
"""Harmful rates without removal for which power is told: a rare behaviour and a common one."""
_FEWEST, _MOST = 100, 400
_CELLS = 500_000
"""Cells (arm, study, seed, prompt) to simulate, so that a plan takes a second or two."""


class Effect(NamedTuple):
    """The share of simulated studies of this design that see one method lower the rate so far."""

    what: str
    from_rate: float
    to_rate: float
    power: Share
    simulations: int


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
    effects: tuple[Effect, ...]
    """Empty where no effect whatever can be shown: no p value, none below the level, no method, no prompt."""
    cell_zero_high: float
    """Upper Wilson end where a cell of the surface phase shows nothing."""


def detectable(world: World) -> Detectable:
    """The limits of the study's design."""
    study, patch = world.study, world.study.patch
    seeds = len(patch.seeds_of(patch.headline))
    methods = tuple(kind.name for kind in arm_kinds(study) if kind.in_family)
    least = smallest_p(seeds, seeds) if seeds >= MIN_SEEDS else None
    adjusted = None if least is None else min(1.0, least * max(1, len(methods)))
    prompts = len(world.split("held-out"))
    possible = adjusted is not None and adjusted < LEVEL and methods and prompts
    return Detectable(
        seeds=seeds,
        family=methods,
        smallest_p=least,
        smallest_adjusted_p=adjusted,
        outputs=prompts * patch.samples,
        effects=_effects(patch, prompts, seeds, len(methods)) if possible else (),
        cell_zero_high=wilson(0, study.surface.samples).high,
    )


def _effects(patch: Patch, prompts: int, seeds: int, methods: int) -> tuple[Effect, ...]:
    """A drop of the margin, a halving and a full cure, each of a rare and of a common behaviour.

    Prompts, trainings and prompts within a training deviate as in `datablame power` by default.
    """
    simulations = max(_FEWEST, min(_MOST, _CELLS // ((methods + 5) * seeds * prompts)))
    shrinkage = {f"a drop of {100 * patch.margin:g} %": 1 - patch.margin, "a halving": 0.5, "a cure": 0.0}
    effects: list[Effect] = []
    for rate in _RATES:
        design = Design(rate, 0.0, prompts, patch.samples, seeds, methods)
        to_rates = [rate * left for left in shrinkage.values()]
        shares = powers(design, to_rates, simulations, stream_key("plan"))
        effects += [Effect(*each, simulations) for each in zip(shrinkage, [rate] * 3, to_rates, shares, strict=True)]
    return tuple(effects)
