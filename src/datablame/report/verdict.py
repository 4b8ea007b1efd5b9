"""The verdict, decided by code from the artifacts: the first rule that holds, in a fixed order, with its numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from datablame.report.artifacts import Artifacts, Row
from datablame.report.effects import Candidate, all_flag_the_same, candidates, mean_jaccard, no_p_value
from datablame.report.gates import LEVEL, Gate, beyond, gates, told
from datablame.report.needed import Needed, needed, prompts_for
from datablame.report.verdict_wording import interval_text, lacking, method_text, no_p_text, points, rise_text, share
from datablame.report.wording import listed, number
from datablame.surface.rise import LEAST_RISE, Rise, rise

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
    """The label, what decided it as short names and as sentences with their numbers, and all numbers."""

    label: Label
    decided_by: tuple[str, ...]
    deciding: tuple[str, ...]
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

    gates: list[Gate]
    surfaced: bool
    stopped: bool
    """Whether attribution traced nothing, for there is no rise."""
    flagged: bool
    rise: Rise | None
    methods: list[Candidate]
    jaccard: float | None
    same_flags: bool
    margin: float
    no_p: Row | None

    @property
    def rose(self) -> bool:
        return self.rise is not None and beyond(self.rise.low, 0)

    @property
    def differ(self) -> bool:
        return self.jaccard is not None and beyond(_MOST_OVERLAP, self.jaccard)

    @property
    def winners(self) -> list[Candidate]:
        return [m for m in self.methods if m.significant and m.dropped(self.margin) and m.holds is True]

    @property
    def droppers(self) -> list[Candidate]:
        return [m for m in self.methods if m.dropped(self.margin) and m.seeds >= _LEAST_SEEDS]


class _Decision(NamedTuple):
    by: list[str]
    """Short names of what decided; empty: the rule does not hold."""
    reasons: list[str]


def verdict(found: Artifacts) -> Verdict:
    """INVALID, FAILURE, SUCCESS, PARTIAL or INCONCLUSIVE: the first whose rule holds."""
    evidence = _Evidence(
        gates=gates(found),
        surfaced=bool(found.queries),
        stopped=found.no_rise,
        flagged=any(ids for own in found.flagged.values() for ids in own.values()),
        rise=rise(found.rates, found.alpha_star["alpha_star"], found.study.seed),
        methods=candidates(found),
        jaccard=mean_jaccard(found),
        same_flags=all_flag_the_same(found),
        margin=found.study.patch.margin,
        no_p=no_p_value(found),
    )
    for label, rule in _ORDER:
        decided = rule(evidence)
        if decided.by:
            return _made(label, decided, evidence, None)
    missing = needed(found, evidence.methods)
    return _made("INCONCLUSIVE", _inconclusive(evidence, missing), evidence, missing)


def _made(label: Label, decided: _Decision, evidence: _Evidence, missing: Needed | None) -> Verdict:
    seeds = [] if evidence.no_p is None else [no_p_text(evidence.no_p)]
    numbers = {
        "decided_by": decided.by,
        "gates": {gate.name: {"passed": gate.passed, **gate.numbers} for gate in evidence.gates},
        "rise": None if evidence.rise is None else asdict(evidence.rise),
        "jaccard": evidence.jaccard,
        "same_flags": evidence.same_flags,
        "methods": [method.as_json() for method in evidence.methods],
        "no_p": None if evidence.no_p is None else dict(evidence.no_p),
        "needed": None if missing is None else missing.as_json(),
        "thresholds": {
            "level": LEVEL,
            "margin": evidence.margin,
            "least_rise": LEAST_RISE,
            "most_overlap": _MOST_OVERLAP,
            "least_seeds_of_partial": _LEAST_SEEDS,
        },
    }
    notes = (*seeds, *told(evidence.gates))
    return Verdict(label, tuple(decided.by), tuple(decided.reasons), notes, numbers)


def _invalid(it: _Evidence) -> _Decision:
    failed = [gate for gate in it.gates if gate.passed is False]
    return _Decision([gate.name for gate in failed], [f"Gate failed: {gate.name}: {gate.text}." for gate in failed])


def _failure(it: _Evidence) -> _Decision:
    found = {}
    if not it.surfaced and not it.stopped:
        found["nothing surfaced"] = "No behaviour surfaced: no output was harmful, so that there is nothing to trace."
    elif it.surfaced and not it.flagged:
        found["nothing flagged"] = "No method flagged a document, so that there is nothing to remove."
    if it.rise is not None and it.rise.small:
        then = ", so that no output was traced" if it.stopped else ""
        found["no rise"] = f"{rise_text(it.rise)}; its upper end is under {points(LEAST_RISE)} points{then}."
    if it.methods and all(method.equivalent for method in it.methods):
        found["no effect"] = (
            f"Every method's 90 % interval against random lies within +-{share(it.margin)} of random's rate: "
            f"{listed([interval_text(method) for method in it.methods])}."
        )
    if it.same_flags:
        found["equal flags"] = "All methods flagged the same documents, so that there is no comparison to make."
    return _Decision(list(found), list(found.values()))


def _success(it: _Evidence) -> _Decision:
    winners = it.winners if it.rose and it.differ else []
    if not winners:
        return _Decision([], [])
    assert it.rise is not None
    reasons = [
        f"{rise_text(it.rise)}.",
        f"The methods differ: their mean Jaccard is {number(it.jaccard, 3)}, under {_MOST_OVERLAP}.",
    ]
    reasons += [f"{method_text(winner)}: every condition holds." for winner in winners]
    reasons += [lacking(method, it.margin) for method in it.methods if method not in winners]
    return _Decision([winner.arm for winner in winners], reasons)


def _partial(it: _Evidence) -> _Decision:
    droppers = it.droppers if it.rose else []
    if not droppers:
        return _Decision([], [])
    assert it.rise is not None
    reasons = [f"{rise_text(it.rise)}.", *(f"{method_text(dropper)}." for dropper in droppers)]
    reasons += [f"No success: {text}" for text in _short_of_success(it)]
    return _Decision([dropper.arm for dropper in droppers], reasons)


def _inconclusive(it: _Evidence, missing: Needed | None) -> _Decision:
    reasons = [f"No success: {text}" for text in _short_of_success(it)]
    if it.rose and not it.droppers:
        far = [method for method in it.methods if method.dropped(it.margin)]
        reasons.append(
            f"Not even partial: {listed([method.arm for method in far])} drops far enough, but on "
            f"{min(method.seeds for method in far)} training seeds, fewer than {_LEAST_SEEDS}."
            if far
            else f"Not even partial: no method drops by {share(it.margin)} against both random and baseline."
        )
    if it.rise is not None and not it.rose and (prompts := prompts_for(it.rise)) is not None:
        reasons.append(f"To show a rise as large as this one it takes about {prompts} held-out prompts.")
    if missing is not None:
        reasons.append(missing.sentence())
    return _Decision(["no other rule"], reasons)


_ORDER: Sequence[tuple[Label, Callable[[_Evidence], _Decision]]] = (
    ("INVALID", _invalid),
    ("FAILURE", _failure),
    ("SUCCESS", _success),
    ("PARTIAL", _partial),
)


def _short_of_success(it: _Evidence) -> Iterator[str]:
    """Every condition of a success that does not hold."""
    if it.rise is None:
        yield "the rise was not evaluated, for fewer than two held-out prompts were scored at both amplifications."
    elif not it.rose:
        yield f"the lower end of the rise is not above 0. {rise_text(it.rise)}."
    if it.jaccard is None:
        yield "agreement was not evaluated, for no two methods besides controls were compared."
    elif not it.differ:
        yield f"the methods' mean Jaccard is {number(it.jaccard, 3)}, not under {_MOST_OVERLAP}."
    if not it.methods:
        yield "no method was patched."
    for method in it.methods:
        if method not in it.winners:
            yield lacking(method, it.margin)
