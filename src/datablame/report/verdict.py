"""The verdict, decided by code from the tables: the first rule that holds, in a fixed order, with its numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from datablame.report.effects import Effect, all_flag_the_same, effects, no_p_value, prompts_for, required_sample_size
from datablame.report.gates import LEVEL, beyond, gates
from datablame.report.results import Results
from datablame.report.wording import Statement, listed, points, round_percent, sentence, sentences
from datablame.tables import LEAST_RISE

Label = Literal["INVALID", "FAILURE", "SUCCESS", "PARTIAL", "INCONCLUSIVE"]
_MOST_OVERLAP = 0.5
_LEAST_SEEDS = 5


@dataclass(frozen=True)
class Verdict:
    """The label, the rows that decided it, what else a reader must know, and all numbers."""

    label: Label
    headline: str
    """What was found, in one sentence with the numbers that matter."""
    decided_by: tuple[str, ...]
    """Short names: gates, kinds of failure, methods."""
    deciding: tuple[str, ...]
    """Sentences with their numbers."""
    notes: tuple[str, ...]
    """What else a reader must know: no p value, and which gates passed or could not be evaluated."""
    gates: tuple[Statement, ...]
    methods: tuple[Effect, ...]
    best: Effect | None
    """The method that made the verdict, or the one whose removal lowers the rate most."""
    lacks: Mapping[str, Sequence[str]]
    """By arm, what a success would take that it does not have."""
    numbers: Mapping[str, Any]

    @property
    def reasons(self) -> tuple[str, ...]:
        """All sentences."""
        return (*self.deciding, *self.notes)

    @property
    def meaning(self) -> str:
        """The label in one sentence, for people who read no further."""
        return str(sentences()["meanings"][self.label])


def verdict(results: Results) -> Verdict:
    """INVALID, FAILURE, SUCCESS, PARTIAL or INCONCLUSIVE: the first whose rule holds."""
    checked, methods, margin = gates(results), effects(results), results.study.patch.margin
    rise, jaccard, stopped = results.alpha_star.rise, results.mean_jaccard, results.attribution.no_rise
    rose = rise is not None and beyond(rise.low, 0)
    proper = [method for method in methods if not method.control] or methods
    alone = proper[0].arm if len(proper) == 1 else None
    differ = alone is not None or (jaccard is not None and beyond(_MOST_OVERLAP, jaccard))
    same_flags = all_flag_the_same(results)
    dropping = [method for method in methods if method.dropped(margin)]
    droppers = [method for method in dropping if method.seeds >= _LEAST_SEEDS]
    winners = [method for method in dropping if method.significant and method.holds is True]

    def text(name: str, **values: Any) -> str:
        return sentence("verdict", name, results=results, least_rise=LEAST_RISE, most_overlap=_MOST_OVERLAP, **values)

    intervals = [
        f"{method.arm} [{points(tost.low)}, {points(tost.high)}] within +-{points(tost.margin)} points"
        for method in methods
        if (tost := method.equivalence)
    ]
    failures = {
        "nothing surfaced": not results.queries and not stopped,
        "nothing flagged": results.queries and not any(flag.k == results.attribution.k for flag in results.flags),
        "no rise": rise is not None and rise.small,
        "no effect": methods and all(method.equivalent for method in methods),
        "equal flags": same_flags,
    }
    gaps = {
        "no rise evaluated": rise is None,
        "may not rise": rise is not None and not rose,
        "no agreement": jaccard is None and not differ,
        "overlap": jaccard is not None and not differ,
        "not patched": not methods,
    }
    lacks = {method.arm: _lacks(results, method) for method in methods}
    told = {method.arm: text("method", method=method, lacks=lacks[method.arm]) for method in methods}
    lacking = [("", told[method.arm]) for method in methods if method not in winners]
    short = [*(("", f"No success: {text(name)}") for name, so in gaps.items() if so), *lacking]
    broken = [gate for gate in checked if gate.holds is False]
    label: Label
    size: Statement | None = None
    # Sentences, each after the short name of what decided; an empty name explains.
    if broken:
        label, reasons = "INVALID", [(gate.name, f"Gate failed: {gate.name}: {gate.sentence}.") for gate in broken]
    elif any(failures.values()):
        label, reasons = "FAILURE", [(name, text(name, intervals=intervals)) for name, so in failures.items() if so]
    elif rose and differ and winners:
        label = "SUCCESS"
        reasons = [("", f"{text('rise')}."), ("", text("alone" if alone else "differ", alone=alone))]
        reasons += [*((winner.arm, told[winner.arm]) for winner in winners), *lacking]
    elif rose and droppers:
        label = "PARTIAL"
        decided = [(method.arm if method in droppers else "", told[method.arm]) for method in methods]
        reasons = [("", f"{text('rise')}."), *short[: len(short) - len(lacking)], *decided]
    else:
        label, size = "INCONCLUSIVE", required_sample_size(results, methods)
        reasons = [("no other rule", ""), *short]
        if rose:
            reasons.append(("", text("not partial", dropping=dropping, least_seeds=_LEAST_SEEDS)))
        elif rise is not None and (prompts := prompts_for(rise)) is not None:
            reasons.append(("", f"To show a rise as large as this one it takes about {prompts} held-out prompts."))
        reasons += [("", size.sentence)] if size else []
    decided_by, no_p = tuple(name for name, _ in reasons if name), no_p_value(results)
    passed = [gate.name for gate in checked if gate.holds]
    unknown = [f"Gate not evaluated: {gate.name}, for {gate.sentence}." for gate in checked if gate.holds is None]
    # What stands in the way of judging removal at all is told first.
    missing = [name for name in ("no rise evaluated", "may not rise", "not patched") if gaps[name]]
    missing += [] if dropping else ["no drop"]
    name = {"INVALID": decided_by[0], "FAILURE": decided_by[0], "INCONCLUSIVE": (*missing, label)[0]}.get(label, label)
    best = max(winners or droppers or dropping or proper, key=lambda each: each.least_drop, default=None)
    return Verdict(
        label,
        headline=sentence(
            "headlines",
            name,
            results=results,
            label=label,
            gate=broken[0].numbers if broken else {},
            best=best,
        ),
        decided_by=decided_by,
        deciding=tuple(reason for _, reason in reasons if reason),
        notes=(
            *([no_p.sentence] if no_p else []),
            *([f"Gates passed: {listed(passed)}."] if passed else []),
            *unknown,
        ),
        gates=tuple(checked),
        methods=tuple(methods),
        best=best,
        lacks=lacks,
        numbers={
            "decided_by": decided_by,
            "gates": {gate.name: {"passed": gate.holds, **gate.numbers} for gate in checked},
            "rise": rise and {k: v for k, v in asdict(rise).items() if k not in ("small", "absent")},
            "jaccard": jaccard,
            "only_method": alone,
            "same_flags": same_flags,
            "methods": [asdict(method) for method in methods],
            "no_p": no_p and no_p.numbers,
            "needed": size and size.numbers,
            "thresholds": {
                **{"level": LEVEL, "margin": margin, "least_rise": LEAST_RISE, "most_overlap": _MOST_OVERLAP},
                "least_seeds_of_partial": _LEAST_SEEDS,
            },
        },
    )


def _lacks(results: Results, method: Effect) -> list[str]:
    margin = results.study.patch.margin
    lacks = {
        f"a drop of {round_percent(margin)}": not method.dropped(margin),
        "a p value": method.p_holm is None,
        f"p under {LEVEL:g}": method.p_holm is not None and not method.significant,
        "side checks, which were not evaluated": method.holds is None,
        f"side checks that hold ({'; '.join(method.why) or 'no reason given'})": method.holds is False,
    }
    return [what for what, lacking in lacks.items() if lacking]
