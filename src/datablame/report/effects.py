"""What decides a verdict besides its gates and the rise: each method's drops, how far methods agree, and the power."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil

from datablame.report.gates import LEVEL, beyond
from datablame.report.results import Results
from datablame.report.wording import Statement, Values, sentence
from datablame.seeds import stream_key
from datablame.stats.arm_tests import deviations, smallest_p
from datablame.stats.power import TARGET, Design, approximate_power, candidates, cheapest, simulate
from datablame.tables import ArmRate, ArmTest, Equivalence, Rise, Role

_REFERENCES: tuple[Role, ...] = ("random", "baseline")
"""The roles of the arms that every method's arm is compared with."""
_SIMULATIONS = 400
_LIKELY, _MOST_TRIED = 0.82, 6
"""Only designs that the formula holds for better than enough are simulated, so that the report takes seconds."""
_TRAINING_COST = 500.0
"""How many outputs cost as much as one training, as `datablame power` has it."""
_TWO_SIDED, _FOUR_IN_FIVE = 1.959963984540054, 0.8416212335729143
"""Normal quantiles of a two-sided .05 and of .80."""


@dataclass(frozen=True)
class Effect:
    """An arm of the family where the verdict comes from; a drop is a share of the reference's rate, None of 0."""

    arm: str
    control: bool
    """Whether attribution holds the method for a control; the family of tests has it all the same."""
    rate: float | None
    seeds: int
    """The fewest trainings among it, random and baseline."""
    drops: Mapping[str, float | None]
    """Of the harmful rate, against random and against baseline."""
    coherent_drops: Mapping[str, float | None]
    """Of harmful / (scored - incoherent)."""
    p_holm: float | None
    significant: bool
    """Whether the Holm-adjusted p is below .05."""
    holds: bool | None
    """Whether the side checks hold; None where there are none."""
    why: tuple[str, ...]
    """What did not hold."""
    equivalence: Equivalence | None
    """The 90 % interval of the difference to random and the margin; None where it could not be formed."""
    equivalent: bool
    """Whether that interval lies within the margin."""

    def dropped(self, margin: float) -> bool:
        """Whether both rates fell by at least the margin against both references."""
        drops = [*self.drops.values(), *self.coherent_drops.values()]
        return all(drop is not None and not beyond(margin, drop) for drop in drops)

    @property
    def least_drop(self) -> float:
        """The smaller drop of the harmful rate; 0 where one of them is unknown."""
        return 0.0 if None in self.drops.values() else min(drop or 0.0 for drop in self.drops.values())


def effects(results: Results) -> list[Effect]:
    """Holm's family where the verdict comes from, in the order of the arms."""
    return [_effect(results, test) for test in results.headline if results.arms[test.arm].in_family]


def _effect(results: Results, test: ArmTest) -> Effect:
    references = {role: results.of_role(role) for role in _REFERENCES}
    relative = {"random": test.to_random, "baseline": test.to_baseline}
    coherent, shares = test.rate_of_coherent, {role: it and it.rate_of_coherent for role, it in references.items()}
    check, tost = results.checked().get(test.arm), test.to_random.equivalence if test.to_random else None
    return Effect(
        arm=test.arm,
        control=results.is_control(test.arm),
        rate=test.rate,
        seeds=min(other.seeds for other in (test, *references.values()) if other),
        drops={role: -to.relative if to and to.relative is not None else None for role, to in relative.items()},
        coherent_drops={
            role: None if coherent is None or not other else 1 - coherent / other for role, other in shares.items()
        },
        p_holm=test.p_holm,
        significant=test.p_holm is not None and beyond(LEVEL, test.p_holm),
        holds=check.holds if check else None,
        why=check.why if check else (),
        equivalence=tost,
        equivalent=tost is not None and not beyond(-tost.margin, tost.low) and not beyond(tost.high, tost.margin),
    )


def all_flag_the_same(results: Results) -> bool:
    """Whether there are several methods besides controls and all flag the same documents, some at least."""
    flagged = [results.flagged(name, results.attribution.k) for name in results.methods if not results.is_control(name)]
    sets = [{behaviour: frozenset(ids) for behaviour, ids in of_method.items()} for of_method in flagged]
    return len(sets) > 1 and bool(sets[0]) and all(other == sets[0] for other in sets[1:])


def no_p_value(results: Results) -> Statement | None:
    """Why the headline has no p value, with how many trainings and what those could give; None where it has one."""
    for test in results.headline:
        if results.arms[test.arm].in_family and test.to_random and test.to_random.p is None:
            numbers = {"seeds": test.seeds, "why": test.to_random.why_no_p}
            least = smallest_p(test.seeds, test.seeds)
            return Statement("no p", sentence("verdict", "no p", least=least, **numbers), numbers=numbers)
    return None


def required_sample_size(results: Results, methods: Sequence[Effect]) -> Statement | None:
    """The study's own design with its power, and the cheapest one that would do, by simulation with its own numbers.

    None where there is nothing to lower: no method was patched, or random removal leaves no harmful output.

    The rates are those of random removal and of the method with the largest drop, or the smallest drop that counts
    (`patch.margin`) where no method drops so far. Deviations are estimated from the arms that remove nothing or random
    documents. One stream of random numbers serves every design.
    """
    reference, margin = results.of_role("random"), results.study.patch.margin
    cells = _cells(results, reference) if reference else []
    if not methods or reference is None or not reference.rate or not reference.prompts or not cells:
        return None
    best = max(methods, key=lambda method: method.least_drop)
    prompts, samples = reference.prompts, round(sum(cell.n for cell in cells) / len(cells))
    if best.rate is None or not samples:
        return None
    start = min(reference.rate, 1 - 0.5 / (prompts * samples * reference.seeds))
    smallest, enough = start * (1 - margin), best.dropped(margin)
    tests = [results.of_role(role) for role in reversed(_REFERENCES)]
    counts = [_counts(_cells(results, test)) for test in tests if test is not None]
    estimated = deviations([pair for pair in counts if pair is not None])._asdict()
    design = Design(
        from_rate=start,
        to_rate=min(best.rate, smallest) if enough else smallest,
        prompts=prompts,
        samples=samples,
        seeds=best.seeds,
        methods=len(methods),
        reference_seeds=reference.seeds,
        # Where a study's own table cannot tell, what `datablame power` takes.
        **{f"{name}_deviation": value for name, value in estimated.items() if value is not None},
    )
    key = stream_key("verdict", "power", results.study.seed)
    # The study has its prompts; fewer would not make it cheaper.
    others = [other for other in candidates(design, _TRAINING_COST) if other.prompts >= prompts]
    likely = [other for other in others if approximate_power(other) >= _LIKELY][:_MOST_TRIED]
    power, better = simulate(design, _SIMULATIONS, key), cheapest(likely, _SIMULATIONS, key)
    numbers: Values = {
        "design": asdict(design),
        "power": power.power._asdict(),
        "simulations": power.simulations,
        "target": TARGET,
        "guessed": [name for name, value in estimated.items() if value is None],
        "method": best.arm if enough else None,
        "cheapest": better
        and {
            **asdict(replace(better.design, reference_seeds=better.design.references)),
            "power": better.power.power._asdict(),
        },
    }
    return Statement("power", sentence("verdict", "power", **numbers), numbers=numbers)


def prompts_for(rise: Rise) -> int | None:
    """Held-out prompts at which a rise as large as this one shows four times in five; None where nothing rose."""
    if rise.difference <= 0:
        return None
    return ceil(((_TWO_SIDED + _FOUR_IN_FIVE) * rise.deviation / rise.difference) ** 2)


def _cells(results: Results, test: ArmTest) -> list[ArmRate]:
    """The cells of one arm where the verdict comes from."""
    compared = (test.arm, results.study.patch.headline, "held-out", results.patching.alpha)
    cells = [cell for cell in results.comparison if cell.k in (0, results.patching.k)]
    return [cell for cell in cells if (cell.arm, cell.protocol, cell.split, cell.alpha) == compared]


def _counts(cells: Sequence[ArmRate]) -> tuple[list[list[int]], list[list[int]]] | None:
    """Harmful and scored as (seeds, prompts), of the prompts that were scored in every seed; None without any."""
    by_cell = {(cell.seed, cell.prompt_id): (cell.harmful, cell.n - cell.unscored) for cell in cells}
    seeds = sorted({seed for seed, _ in by_cell})
    prompts = sorted({prompt for _, prompt in by_cell})
    whole = [p for p in prompts if all(by_cell.get((seed, p), (0, 0))[1] for seed in seeds)]
    if not whole:
        return None
    harmful, scored = ([[by_cell[seed, p][part] for p in whole] for seed in seeds] for part in (0, 1))
    return harmful, scored
