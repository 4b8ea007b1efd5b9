"""What decides a verdict besides its gates and the rise: each method's drops, and how far methods agree."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datablame.report.artifacts import Artifacts, Row
from datablame.report.gates import LEVEL, beyond
from datablame.study.checks import OUTSIDE_FAMILY
from datablame.tables import EVERY

_REFERENCES = ("random", "baseline")


@dataclass(frozen=True)
class Candidate:
    """One patched method in the headline comparison; drops are shares of the reference's rate, None where it is 0."""

    arm: str
    control: bool
    """Whether attribution holds the method for a control, as BM25; the family of tests has it all the same."""
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
    equivalence: Row | None
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
        return it is not None and not beyond(-it["margin"], it["low"]) and not beyond(it["high"], it["margin"])

    @property
    def least_drop(self) -> float | None:
        """The smaller drop of the harmful rate; None where there is none."""
        known = [drop for drop in self.drops.values() if drop is not None]
        return min(known) if len(known) == len(_REFERENCES) else None

    def as_json(self) -> dict[str, Any]:
        """Its numbers."""
        values = {name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(self).items()}
        return {**values, "why": list(self.why), "significant": self.significant, "equivalent": self.equivalent}


def candidates(found: Artifacts) -> list[Candidate]:
    """Holm's family where the verdict comes from, in the order of the arms."""
    rows = {row["arm"]: row for row in found.headline}
    checks = {
        arm["arm"]: arm
        for arm in found.checks.get("arms", ())
        if arm["protocol"] == found.study.patch.headline and arm["k"] == found.k
    }
    return [_candidate(found, row, rows, checks.get(arm)) for arm, row in rows.items() if arm not in OUTSIDE_FAMILY]


def _candidate(found: Artifacts, row: Row, rows: Mapping[str, Row], check: Row | None) -> Candidate:
    against = {name: row[f"to_{name}"] for name in _REFERENCES}
    relative = {name: other and other["relative"] for name, other in against.items()}
    shares = {name: rows[name]["rate_of_coherent"] if name in rows else None for name in _REFERENCES}
    to_random = against["random"] or {}
    return Candidate(
        arm=row["arm"],
        control=bool(found.methods.get(row["arm"], {}).get("control")),
        rate=row["rate"],
        seeds=min(rows[name]["seeds"] for name in (row["arm"], *_REFERENCES) if name in rows),
        drops={name: None if value is None else -value for name, value in relative.items()},
        coherent_drops={name: _drop(row["rate_of_coherent"], other) for name, other in shares.items()},
        p_holm=row["p_holm"],
        holds=None if check is None else check["holds"],
        why=() if check is None else _reasons(check["why"]),
        equivalence=to_random.get("equivalence"),
    )


def _reasons(why: Any) -> tuple[str, ...]:
    return (why,) if isinstance(why, str) else tuple(map(str, why or ()))


def _drop(rate: float | None, reference: float | None) -> float | None:
    return None if rate is None or not reference else 1 - rate / reference


def mean_jaccard(found: Artifacts) -> float | None:
    """Of the first K, over all pairs of methods that are no controls; None where there is no pair."""
    values = [
        row["jaccard"]
        for row in found.agreement["rows"]
        if row["behaviour"] == EVERY and row["jaccard"] is not None
        if not any(found.methods.get(row[side], {}).get("control") for side in ("a", "b"))
    ]
    return sum(values) / len(values) if values else None


def all_flag_the_same(found: Artifacts) -> bool:
    """Whether there are several methods besides controls and all flag the same documents, some at least."""
    proper = [own for name, own in found.flagged.items() if not found.methods.get(name, {}).get("control")]
    sets = [{behaviour: frozenset(ids) for behaviour, ids in own.items() if ids} for own in proper]
    return len(sets) > 1 and bool(sets[0]) and all(other == sets[0] for other in sets[1:])


def no_p_value(found: Artifacts) -> Row | None:
    """Why the headline has no p value, with how many trainings; None where it has one."""
    for row in found.headline:
        if row["arm"] not in OUTSIDE_FAMILY and row["to_random"] and row["to_random"]["p"] is None:
            return {"seeds": row["seeds"], "why": row["to_random"].get("why_no_p")}
    return None
