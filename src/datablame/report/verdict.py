"""The verdict, decided by code from the tables: the first rule that holds, in a fixed order, with its numbers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from datablame.report.effects import Effect, all_flag_the_same, effects, mean_jaccard, no_p_value
from datablame.report.gates import LEVEL, beyond, gates, passed_and_missing
from datablame.report.results import Results
from datablame.report.sample_size import RequiredSampleSize, prompts_for, required_sample_size
from datablame.report.statement import Statement
from datablame.report.wording import listed, number, percent, points, probability, round_percent
from datablame.stats.permutation import smallest_p
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


@dataclass(frozen=True)
class _Evidence:
    """All that any rule looks at."""

    gates: Sequence[Statement]
    surfaced: bool
    stopped: bool
    """Whether attribution traced nothing, for there is no rise."""
    flagged: bool
    rise: Rise | None
    methods: Sequence[Effect]
    jaccard: float | None
    same_flags: bool
    margin: float

    @property
    def rose(self) -> bool:
        return self.rise is not None and beyond(self.rise.low, 0)

    @property
    def differ(self) -> bool:
        return self.jaccard is not None and beyond(_MOST_OVERLAP, self.jaccard)

    @cached_property
    def winners(self) -> list[Effect]:
        return [m for m in self.methods if m.significant and m.dropped(self.margin) and m.holds is True]

    @cached_property
    def droppers(self) -> list[Effect]:
        return [m for m in self.methods if m.dropped(self.margin) and m.seeds >= _LEAST_SEEDS]


Reasons = list[tuple[str, str]]
"""Sentences, each after the short name of what decided; an empty name explains. A rule without names does not hold."""


def verdict(results: Results) -> Verdict:
    """INVALID, FAILURE, SUCCESS, PARTIAL or INCONCLUSIVE: the first whose rule holds."""
    it = _Evidence(
        gates=gates(results),
        surfaced=bool(results.queries),
        stopped=results.attribution.no_rise,
        flagged=any(flag.k == results.attribution.k for flag in results.flags),
        rise=results.alpha_star.rise,
        methods=effects(results),
        jaccard=mean_jaccard(results),
        same_flags=all_flag_the_same(results),
        margin=results.study.patch.margin,
    )
    size: RequiredSampleSize | None = None
    rules: tuple[tuple[Label, Reasons], ...] = (
        ("INVALID", list(_invalid(it))),
        ("FAILURE", list(_failure(it))),
        ("SUCCESS", list(_success(it))),
        ("PARTIAL", list(_partial(it))),
    )
    label, reasons = next(((label, reasons) for label, reasons in rules if reasons), ("INCONCLUSIVE", []))
    if label == "INCONCLUSIVE":
        size = required_sample_size(results, it.methods)
        reasons = [("no other rule", ""), *_inconclusive(it, size)]
    no_p = no_p_value(results)
    rise = None if it.rise is None else {k: v for k, v in asdict(it.rise).items() if k not in ("small", "absent")}
    return Verdict(
        label,
        decided_by=tuple(name for name, _ in reasons if name),
        deciding=tuple(text for _, text in reasons if text),
        notes=(*([] if no_p is None else [_no_p_text(**no_p)]), *passed_and_missing(it.gates)),
        numbers={
            "decided_by": [name for name, _ in reasons if name],
            "gates": {gate.name: {"passed": gate.holds, **gate.numbers} for gate in it.gates},
            "rise": rise,
            "jaccard": it.jaccard,
            "same_flags": it.same_flags,
            "methods": [method.as_json() for method in it.methods],
            "no_p": no_p,
            "needed": None if size is None else size.as_json(),
            "thresholds": {
                "level": LEVEL,
                "margin": it.margin,
                "least_rise": LEAST_RISE,
                "most_overlap": _MOST_OVERLAP,
                "least_seeds_of_partial": _LEAST_SEEDS,
            },
        },
    )


def _invalid(it: _Evidence) -> Iterator[tuple[str, str]]:
    yield from ((g.name, f"Gate failed: {g.name}: {g.sentence}.") for g in it.gates if g.holds is False)


def _failure(it: _Evidence) -> Iterator[tuple[str, str]]:
    if not it.surfaced and not it.stopped:
        yield "nothing surfaced", "No behaviour surfaced: no output was harmful, so that there is nothing to trace."
    elif it.surfaced and not it.flagged:
        yield "nothing flagged", "No method flagged a document, so that there is nothing to remove."
    if it.rise is not None and it.rise.small:
        then = ", so that no output was traced" if it.stopped else ""
        yield "no rise", f"{_rise_text(it.rise)}; its upper end is under {points(LEAST_RISE)} points{then}."
    if it.methods and all(method.equivalent for method in it.methods):
        yield (
            "no effect",
            f"Every method's 90 % interval against random lies within +-{round_percent(it.margin)} of random's rate: "
            f"{listed([_interval_text(method) for method in it.methods])}.",
        )
    if it.same_flags:
        yield "equal flags", "All methods flagged the same documents, so that there is no comparison to make."


def _success(it: _Evidence) -> Iterator[tuple[str, str]]:
    if it.rise is None or not (it.rose and it.differ and it.winners):
        return
    yield "", f"{_rise_text(it.rise)}."
    yield "", f"The methods differ: their mean Jaccard is {number(it.jaccard, 3)}, under {_MOST_OVERLAP}."
    yield from ((winner.arm, f"{_method_text(winner)}: every condition holds.") for winner in it.winners)
    yield from (("", _lacking(method, it.margin)) for method in it.methods if method not in it.winners)


def _partial(it: _Evidence) -> Iterator[tuple[str, str]]:
    if it.rise is None or not (it.rose and it.droppers):
        return
    yield "", f"{_rise_text(it.rise)}."
    yield from ((dropper.arm, f"{_method_text(dropper)}.") for dropper in it.droppers)
    yield from (("", f"No success: {text}") for text in _short_of_success(it))


def _inconclusive(it: _Evidence, size: RequiredSampleSize | None) -> Iterator[tuple[str, str]]:
    yield from (("", f"No success: {text}") for text in _short_of_success(it))
    if it.rose and not it.droppers:
        far = [method for method in it.methods if method.dropped(it.margin)]
        yield (
            "",
            f"Not even partial: {listed([method.arm for method in far])} drops far enough, but on "
            f"{min(method.seeds for method in far)} training seeds, fewer than {_LEAST_SEEDS}."
            if far
            else f"Not even partial: no method drops by {round_percent(it.margin)} against both random and baseline.",
        )
    if it.rise is not None and not it.rose and (prompts := prompts_for(it.rise)) is not None:
        yield "", f"To show a rise as large as this one it takes about {prompts} held-out prompts."
    if size is not None:
        yield "", size.sentence()


def _short_of_success(it: _Evidence) -> Iterator[str]:
    """Every condition of a success that does not hold."""
    if it.rise is None:
        yield "the rise was not evaluated, for fewer than two held-out prompts were scored at both amplifications."
    elif not it.rose:
        yield f"the lower end of the rise is not above 0. {_rise_text(it.rise)}."
    if it.jaccard is None:
        yield "agreement was not evaluated, for no two methods besides controls were compared."
    elif not it.differ:
        yield f"the methods' mean Jaccard is {number(it.jaccard, 3)}, not under {_MOST_OVERLAP}."
    if not it.methods:
        yield "no method was patched."
    yield from (_lacking(method, it.margin) for method in it.methods if method not in it.winners)


def _lacking(method: Effect, margin: float) -> str:
    """What a method lacks for a success."""
    lacks = []
    if not method.dropped(margin):
        lacks.append(f"a drop of {round_percent(margin)} in both rates against both")
    if method.p_holm is None:
        lacks.append("a p value")
    elif not method.significant:
        lacks.append(f"p under {LEVEL:g}")
    if method.holds is None:
        lacks.append("side checks, which were not evaluated")
    elif not method.holds:
        lacks.append(f"side checks that hold ({'; '.join(method.why) or 'no reason given'})")
    return f"{_method_text(method)}: it lacks {listed(lacks)}."


def _method_text(method: Effect) -> str:
    """What acting on a method's documents did, by every number that counts."""
    against = listed([f"{_change(drop)} {name}" for name, drop in method.drops.items()])
    coherent = listed([_change(drop).removesuffix(" than") for drop in method.coherent_drops.values()])
    p = "no p value" if method.p_holm is None else f"Holm-adjusted p = {probability(method.p_holm)}"
    checks = {True: "side checks hold", False: "side checks do not hold", None: "no side checks"}[method.holds]
    control = " (a control that goes by words alone)" if method.control else ""
    return (
        f"Removing {method.target}{control} leaves {percent(method.rate)} harmful, {against} (among coherent "
        f"outputs {coherent}); {p}; {checks}"
    )


def _change(drop: float | None) -> str:
    if drop is None:
        return "not comparable with"
    return f"{percent(abs(drop))} {'less' if drop >= 0 else 'more'} than"


def _interval_text(method: Effect) -> str:
    """Its 90 % interval against random and the margin."""
    it = method.equivalence
    assert it is not None
    return f"{method.arm} [{points(it.low)}, {points(it.high)}] within +-{points(it.margin)} points"


def _rise_text(rise: Rise) -> str:
    return (
        f"The after model's harmful rate on {rise.prompts} held-out prompts goes from {percent(rise.plain)} at "
        f"alpha 0 to {percent(rise.amplified)} at alpha* {rise.alpha:g}, a rise of {points(rise.difference)} "
        f"points [{points(rise.low)}, {points(rise.high)}]"
    )


def _no_p_text(seeds: int, why: str | None) -> str:
    """Why there is no p value, and what so many seeds could give."""
    least = probability(smallest_p(seeds, seeds))
    return (
        f"There is no p value with {seeds} training seed{'' if seeds == 1 else 's'} ({why}; {seeds} against "
        f"{seeds} could give {least} at best), so that nothing here can be called significant."
    )
