"""What decides a verdict besides its gates and the rise: each method's drops, and how far methods agree."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from datablame.report.gates import LEVEL, beyond
from datablame.report.results import Results
from datablame.tables import ArmCheck, ArmTest, Difference, Equivalence

Reference = Literal["random", "baseline"]
REFERENCES: tuple[Reference, ...] = ("random", "baseline")
"""The roles of the arms that every method's arm is compared with."""


@dataclass(frozen=True)
class Effect:
    """An arm of the family where the verdict comes from; a drop is a share of the reference's rate, None of 0."""

    arm: str
    target: str
    """What it acts on, in words."""
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
    holds: bool | None
    """Whether the side checks hold; None where there are none."""
    why: tuple[str, ...]
    """What did not hold."""
    equivalence: Equivalence | None
    """The 90 % interval of the difference to random and the margin; None where it could not be formed."""

    def dropped(self, margin: float) -> bool:
        """Whether both rates fell by at least the margin against both references."""
        drops = [*self.drops.values(), *self.coherent_drops.values()]
        return all(drop is not None and not beyond(margin, drop) for drop in drops)

    @property
    def significant(self) -> bool:
        """Whether the Holm-adjusted p is below .05."""
        return self.p_holm is not None and beyond(LEVEL, self.p_holm)

    @property
    def equivalent(self) -> bool:
        """Whether the 90 % interval against random lies within the margin."""
        it = self.equivalence
        return it is not None and not beyond(-it.margin, it.low) and not beyond(it.high, it.margin)

    @property
    def least_drop(self) -> float | None:
        """The smaller drop of the harmful rate; None where there is none."""
        known = [drop for drop in self.drops.values() if drop is not None]
        return min(known) if len(known) == len(REFERENCES) else None

    def as_json(self) -> dict[str, Any]:
        """Its numbers."""
        values = {name: value for name, value in asdict(self).items() if name != "target"}
        return {**values, "significant": self.significant, "equivalent": self.equivalent}


def effects(results: Results) -> list[Effect]:
    """Holm's family where the verdict comes from, in the order of the arms."""
    references = {role: results.of_role(role, results.headline) for role in REFERENCES}
    checks = {
        check.arm: check
        for check in results.arm_checks
        if check.protocol == results.study.patch.headline and check.k == results.k
    }
    family = [test for test in results.headline if results.arms[test.arm].in_family]
    return [_effect(results, test, references, checks.get(test.arm)) for test in family]


def difference_to(test: ArmTest, role: Reference) -> Difference | None:
    """An arm's difference to one of its references."""
    return test.to_random if role == "random" else test.to_baseline


def _effect(
    results: Results, test: ArmTest, references: Mapping[Reference, ArmTest | None], check: ArmCheck | None
) -> Effect:
    relative = {role: (other.relative if (other := difference_to(test, role)) else None) for role in REFERENCES}
    shares = {role: other.rate_of_coherent if other else None for role, other in references.items()}
    return Effect(
        arm=test.arm,
        target=results.arms[test.arm].target,
        control=results.is_control(test.arm),
        rate=test.rate,
        seeds=min(other.seeds for other in (test, *references.values()) if other),
        drops={role: None if value is None else -value for role, value in relative.items()},
        coherent_drops={role: _drop(test.rate_of_coherent, other) for role, other in shares.items()},
        p_holm=test.p_holm,
        holds=check.holds if check else None,
        why=check.why if check else (),
        equivalence=test.to_random.equivalence if test.to_random else None,
    )


def _drop(rate: float | None, reference: float | None) -> float | None:
    return None if rate is None or not reference else 1 - rate / reference


def mean_jaccard(results: Results) -> float | None:
    """Of the first K, over all pairs of methods that are no controls; None where there is no pair."""
    values = [pair.jaccard for pair in results.compared_methods() if pair.jaccard is not None]
    return sum(values) / len(values) if values else None


def all_flag_the_same(results: Results) -> bool:
    """Whether there are several methods besides controls and all flag the same documents, some at least."""
    methods = [name for name, info in results.methods.items() if not info.control]
    sets = [
        {behaviour: frozenset(ids) for behaviour, ids in results.flagged(name, results.attribution.k).items()}
        for name in methods
    ]
    return len(sets) > 1 and bool(sets[0]) and all(other == sets[0] for other in sets[1:])


def no_p_value(results: Results) -> dict[str, Any] | None:
    """Why the headline has no p value, with how many trainings; None where it has one."""
    for test in results.headline:
        if results.arms[test.arm].in_family and test.to_random and test.to_random.p is None:
            return {"seeds": test.seeds, "why": test.to_random.why_no_p}
    return None
