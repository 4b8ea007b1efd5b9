"""The verdict, decided by code from the tables: the first rule that holds, in a fixed order, with its numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from datablame.report.effects import (
    Effect,
    all_flag_the_same,
    effects,
    no_p_value,
    prompts_for,
    required_sample_size,
)
from datablame.report.gates import LEVEL, beyond, gates
from datablame.report.results import Results
from datablame.report.wording import Statement, listed, number, percent, points, round_percent, said
from datablame.tables import LEAST_RISE, Rise

Label = Literal["INVALID", "FAILURE", "SUCCESS", "PARTIAL", "INCONCLUSIVE"]

MEANINGS: Mapping[Label, str] = {
    "INVALID": "A gate failed, so that the numbers of this study say nothing about attribution or removal.",
    "FAILURE": "The study could answer, and the answer is negative.",
    "SUCCESS": (
        "The behaviour surfaces, the methods differ, and removing what one of them flagged lowers it beyond chance."
    ),
    "PARTIAL": "Removing what a method flagged lowers the behaviour, but not everything that a success takes is shown.",
    "INCONCLUSIVE": "This study can neither show an effect nor rule one out.",
}
"""One sentence for each, for people who read no further."""

_MOST_OVERLAP = 0.5
_LEAST_SEEDS = 5


@dataclass(frozen=True)
class Verdict:
    """The label, the rows that decided it, what else a reader must know, and all numbers."""

    label: Label
    decided_by: tuple[str, ...]
    """Short names: gates, kinds of failure, methods."""
    deciding: tuple[str, ...]
    """Sentences with their numbers."""
    notes: tuple[str, ...]
    """What else a reader must know: no p value, gates that passed and gates that nobody could evaluate."""
    numbers: Mapping[str, Any]

    @property
    def reasons(self) -> tuple[str, ...]:
        """All sentences."""
        return (*self.deciding, *self.notes)

    @property
    def meaning(self) -> str:
        """The label in one sentence."""
        return MEANINGS[self.label]

    def as_json(self) -> dict[str, Any]:
        """As it stands in final_results.json."""
        return {"label": self.label, "reasons": list(self.reasons), "numbers": dict(self.numbers)}


class _Evidence(NamedTuple):
    """All that any rule looks at."""

    results: Results
    gates: Sequence[Statement]
    methods: Sequence[Effect]
    winners: Sequence[Effect]
    """Methods for which every condition of a success holds."""
    dropping: Sequence[Effect]
    """Methods that drop far enough."""
    droppers: Sequence[Effect]
    """Those of them with enough seeds."""
    same_flags: bool
    rise: Rise | None
    rose: bool
    jaccard: float | None
    differ: bool
    margin: float


Reasons = Iterator[tuple[str, str]]
"""Sentences, each after the short name of what decided; an empty name explains. A rule that gives none fails."""


def verdict(results: Results) -> Verdict:
    """INVALID, FAILURE, SUCCESS, PARTIAL or INCONCLUSIVE: the first whose rule holds."""
    methods, margin = effects(results), results.study.patch.margin
    dropping = [method for method in methods if method.dropped(margin)]
    rise, jaccard = results.alpha_star.rise, results.mean_jaccard
    it = _Evidence(
        results=results,
        gates=gates(results),
        methods=methods,
        winners=[method for method in dropping if method.significant and method.holds is True],
        dropping=dropping,
        droppers=[method for method in dropping if method.seeds >= _LEAST_SEEDS],
        same_flags=all_flag_the_same(results),
        rise=rise,
        rose=rise is not None and beyond(rise.low, 0),
        jaccard=jaccard,
        differ=jaccard is not None and beyond(_MOST_OVERLAP, jaccard),
        margin=margin,
    )
    size: Statement | None = None
    rules = ((label, list(rule(it))) for label, rule in _RULES.items())
    label, reasons = next(((label, reasons) for label, reasons in rules if reasons), ("INCONCLUSIVE", []))
    if label == "INCONCLUSIVE":
        size = required_sample_size(results, methods)
        reasons = [("no other rule", ""), *_inconclusive(it, size)]
    decided_by, no_p = tuple(name for name, _ in reasons if name), no_p_value(results)
    passed = "; ".join(gate.sentence for gate in it.gates if gate.holds)
    unknown = [f"Gate not evaluated: {gate.name}, for {gate.sentence}." for gate in it.gates if gate.holds is None]
    return Verdict(
        label,
        decided_by=decided_by,
        deciding=tuple(text for _, text in reasons if text),
        notes=(*([no_p.sentence] if no_p else []), *([f"Gates passed: {passed}."] if passed else []), *unknown),
        numbers={
            "decided_by": list(decided_by),
            "gates": {gate.name: {"passed": gate.holds, **gate.numbers} for gate in it.gates},
            "rise": rise and {k: v for k, v in asdict(rise).items() if k not in ("small", "absent")},
            "jaccard": jaccard,
            "same_flags": it.same_flags,
            "methods": [method.as_json() for method in methods],
            "no_p": no_p and no_p.numbers,
            "needed": size and size.numbers,
            "thresholds": {
                **{"level": LEVEL, "margin": margin, "least_rise": LEAST_RISE, "most_overlap": _MOST_OVERLAP},
                "least_seeds_of_partial": _LEAST_SEEDS,
            },
        },
    )


def _invalid(it: _Evidence) -> Reasons:
    yield from ((g.name, f"Gate failed: {g.name}: {g.sentence}.") for g in it.gates if g.holds is False)


def _failure(it: _Evidence) -> Reasons:
    results, stopped = it.results, it.results.attribution.no_rise
    intervals = [
        f"{method.arm} [{points(own.low)}, {points(own.high)}] within +-{points(own.margin)} points"
        for method in it.methods
        if (own := method.equivalence)
    ]
    kinds = {
        "nothing surfaced": not results.queries and not stopped,
        "nothing flagged": results.queries and not any(flag.k == results.attribution.k for flag in results.flags),
        "no rise": it.rise is not None and it.rise.small,
        "no effect": it.methods and all(method.equivalent for method in it.methods),
        "equal flags": it.same_flags,
    }
    values = {"rise": it.rise, "least_rise": LEAST_RISE, "stopped": stopped, "margin": it.margin}
    for name, holds in kinds.items():
        if holds:
            yield name, said("verdict", name, intervals=intervals, **values)


def _success(it: _Evidence) -> Reasons:
    if it.rose and it.differ and it.winners:
        yield "", f"{said('verdict', 'rise', rise=it.rise)}."
        yield "", f"The methods differ: their mean Jaccard is {number(it.jaccard, 3)}, under {_MOST_OVERLAP}."
        yield from ((winner.arm, f"{_method_text(winner)}: every condition holds.") for winner in it.winners)
        yield from (("", _lacking(method, it.margin)) for method in it.methods if method not in it.winners)


def _partial(it: _Evidence) -> Reasons:
    if it.rose and it.droppers:
        yield "", f"{said('verdict', 'rise', rise=it.rise)}."
        yield from ((dropper.arm, f"{_method_text(dropper)}.") for dropper in it.droppers)
        yield from (("", f"No success: {text}") for text in _short_of_success(it))


def _inconclusive(it: _Evidence, size: Statement | None) -> Reasons:
    yield from (("", f"No success: {text}") for text in _short_of_success(it))
    if it.rose and not it.droppers:
        seeds = min((method.seeds for method in it.dropping), default=0)
        values = {"arms": [method.arm for method in it.dropping], "seeds": seeds, "least_seeds": _LEAST_SEEDS}
        yield "", said("verdict", "not partial", margin=it.margin, **values)
    if it.rise is not None and not it.rose and (prompts := prompts_for(it.rise)) is not None:
        yield "", f"To show a rise as large as this one it takes about {prompts} held-out prompts."
    if size is not None:
        yield "", size.sentence


_RULES: Mapping[Label, Callable[[_Evidence], Reasons]] = {
    "INVALID": _invalid,
    "FAILURE": _failure,
    "SUCCESS": _success,
    "PARTIAL": _partial,
}
"""In this order."""


def _short_of_success(it: _Evidence) -> Iterator[str]:
    if it.rise is None:
        yield said("verdict", "no rise evaluated")
    elif not it.rose:
        yield said("verdict", "may not rise", rise=it.rise)
    if it.jaccard is None:
        yield said("verdict", "no agreement")
    elif not it.differ:
        yield f"the methods' mean Jaccard is {number(it.jaccard, 3)}, not under {_MOST_OVERLAP}."
    if not it.methods:
        yield "no method was patched."
    yield from (_lacking(method, it.margin) for method in it.methods if method not in it.winners)


def _lacking(method: Effect, margin: float) -> str:
    lacks = {
        f"a drop of {round_percent(margin)} in both rates against both": not method.dropped(margin),
        "a p value": method.p_holm is None,
        f"p under {LEVEL:g}": method.p_holm is not None and not method.significant,
        "side checks, which were not evaluated": method.holds is None,
        f"side checks that hold ({'; '.join(method.why) or 'no reason given'})": method.holds is False,
    }
    return f"{_method_text(method)}: it lacks {listed([what for what, lacking in lacks.items() if lacking])}."


def _method_text(method: Effect) -> str:
    """What acting on a method's documents did, by every number that counts."""
    against = [f"{_change(drop)} {name}" for name, drop in method.drops.items()]
    coherent = [_change(drop).removesuffix(" than") for drop in method.coherent_drops.values()]
    return said("verdict", "method", method=method, against=against, coherent=coherent)


def _change(drop: float | None) -> str:
    if drop is None:
        return "not comparable with"
    return f"{percent(abs(drop))} {'less' if drop >= 0 else 'more'} than"
