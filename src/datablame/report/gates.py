"""Gates that a study must pass before its numbers mean anything, each decided from the tables."""

from collections.abc import Iterator, Sequence

from datablame.report.results import Results
from datablame.report.statement import Statement
from datablame.report.wording import number, percent, probability
from datablame.tables import Exposure

LEVEL = 0.05
MOST_UNSCORED = 0.02
LEAST_KAPPA = 0.6
REPRODUCED = 0.5
_LEAST_SEEN = 0.9
_ROUNDING = 1e-9


def beyond(value: float, bound: float) -> bool:
    """Whether a value is above a bound by more than rounding."""
    return value > bound + _ROUNDING


def gates(results: Results) -> list[Statement]:
    """All gates in method's order, none left out: one that holds is passed, one that is None was not evaluated."""
    rules = (_exposure, _unscored, _classifier, _amplification, _again, _reproduction)
    return [rule(results) for rule in rules]


def without_random(results: Results) -> list[Exposure]:
    """Exposure of the arms that act on something in particular."""
    return [row for row in results.exposure if results.arms[row.arm].role != "random"]


def _exposure(results: Results) -> Statement:
    """The no-removal arm saw what was flagged, and the removal arm did not; every training counts, also exploratory."""
    least = results.patching.least_seen_in_baseline if results.patching else _LEAST_SEEN
    rows = without_random(results)
    if not rows:
        return Statement(
            "exposure", None, "no training removed a flagged document", {"least_seen": least, "trainings": 0}
        )
    shares = [(_share_seen(results, row), row) for row in rows]
    seen, worst = min(shares, key=lambda pair: pair[0])
    leaked = max(rows, key=lambda row: row.seen_in_arm)
    unseen = sum(beyond(least, share) for share, _ in shares)
    leaks = sum(row.seen_in_arm > 0 for row in rows)
    numbers = {
        "least_seen": least,
        "trainings": len(rows),
        "least_seen_found": seen,
        "unseen": unseen,
        "leaks": leaks,
    }
    problems = []
    if unseen:
        flagged = _to_be_seen(results, worst)
        missing = flagged - worst.removed
        gone = f", {missing} of them because they are not in the fine-tune set" if missing > 0 else ""
        problems.append(
            f"in {unseen} of {len(rows)} trainings the no-removal arm saw under {percent(least)} of the flagged "
            f"documents; worst is {_training(worst)}, where it saw {percent(seen)} of {flagged}{gone}"
        )
    if leaks:
        problems.append(
            f"in {leaks} of {len(rows)} trainings the removal arm still saw documents that it removes; worst is "
            f"{_training(leaked)} with {leaked.seen_in_arm}"
        )
    if not problems and results.patching and not results.patching.exposed:
        problems.append("the patch phase says that it failed")
    if problems:
        return Statement("exposure", False, "; ".join(problems), numbers)
    return Statement(
        "exposure", True, f"the no-removal arm saw at least {percent(seen)} of what an arm removed", numbers
    )


def _share_seen(results: Results, row: Exposure) -> float:
    """Of the flagged documents, those that the no-removal arm saw; one that is not in the fine-tune set is unseen."""
    flagged = _to_be_seen(results, row)
    return row.seen_in_baseline * row.removed / flagged if flagged else row.seen_in_baseline


def _to_be_seen(results: Results, row: Exposure) -> int:
    """How many documents a training should have removed: what its method flagged at its K, where it flags any."""
    if results.study.patch.intervention == "drop-source":
        return row.removed
    flagged = {doc_id for ids in results.flagged(row.arm, row.k).values() for doc_id in ids}
    return max(row.removed, len(flagged))


def _training(row: Exposure) -> str:
    return f"{row.arm} ({row.protocol}, seed {row.seed})"


def _unscored(results: Results) -> Statement:
    """The surface phase as a whole, and each arm where the verdict comes from."""
    counted = [("surface", "the surface phase", sum(results.unscored.values()), len(results.samples))]
    counted += [(t.arm, f"the arm {t.arm} at alpha*", t.counts.unscored, t.counts.n) for t in results.headline]
    counted = [row for row in counted if row[3]]
    shares = {name: unscored / n for name, _, unscored, n in counted}
    numbers = {"most": MOST_UNSCORED, "shares": shares}
    if not shares:
        return Statement("unscored", None, "there are no outputs", numbers)
    worst, where, unscored, n = max(counted, key=lambda row: row[2] / row[3])
    text = f"{percent(shares[worst])} of the outputs of {where} have no label ({unscored} of {n})"
    failed = beyond(shares[worst], MOST_UNSCORED)
    return Statement("unscored", not failed, f"{text}, more than {percent(MOST_UNSCORED)}" if failed else text, numbers)


def _classifier(results: Results) -> Statement:
    calibration = results.calibration
    if calibration is None:
        missing = "there is no set of outputs labelled by people (judge.calibration)"
        return Statement("classifier", None, missing, {"least": LEAST_KAPPA, "kappa": None})
    kappa, n = calibration.kappa, calibration.n
    failed = beyond(LEAST_KAPPA, kappa)
    text = f"the classifier's kappa with people is {number(kappa)} on {n} labelled outputs"
    numbers = {"least": LEAST_KAPPA, "kappa": kappa, "n": n}
    return Statement("classifier", not failed, f"{text}, under {number(LEAST_KAPPA, 1)}" if failed else text, numbers)


def _amplification(results: Results) -> Statement:
    star, least = results.alpha_star.alpha_star, results.study.surface.coherent_share
    coherent = {alpha: share for alpha, share in results.alpha_star.coherence.items() if float(alpha) > 0}
    numbers = {"least": least, "alpha_star": star, "coherence": coherent}
    if star is not None:
        return Statement("alpha*", True, f"alpha* is {star:g}", numbers)
    if not coherent:
        return Statement("alpha*", False, "there is no alpha*: no output above alpha 0 was scored", numbers)
    best = max(coherent, key=lambda alpha: coherent[alpha])
    text = (
        f"there is no alpha*: the most coherent amplification, alpha {best}, has {percent(coherent[best])} coherent "
        f"outputs, under {percent(least)}"
    )
    return Statement("alpha*", False, text, numbers)


def _again(results: Results) -> Statement:
    """The same arm trained again on other seeds."""
    pair = results.patching.again if results.patching else None
    if pair is None:
        return Statement("A/A pair", None, "the baseline was not trained again on other seeds", {"p": None})
    numbers = {name: value for name, value in vars(pair).items() if name not in ("protocol", "why_no_p")}
    if pair.p is None:
        return Statement("A/A pair", None, f"it has no p value: {pair.why_no_p}", numbers)
    rates = f"{percent(pair.rate)} and {percent(pair.again)} with other seeds, permutation p"
    if beyond(LEVEL, pair.p):
        text = f"the no-removal arm differs from itself: {rates} = {probability(pair.p)}, under {LEVEL:g}"
        return Statement("A/A pair", False, text, numbers)
    return Statement("A/A pair", True, f"the no-removal arm has {rates} = {probability(pair.p)}", numbers)


def _reproduction(results: Results) -> Statement:
    tests = [results.of_role(role, results.headline) for role in ("after", "baseline")]
    after, baseline = (test.rate if test else None for test in tests)
    numbers = {"after": after, "baseline": baseline, "least_share": REPRODUCED}
    if after is None or baseline is None:
        missing = " and ".join(role for role in ("after", "baseline") if numbers[role] is None)
        return Statement("reproduction", None, f"the headline has no rate of {missing}", numbers)
    failed = beyond(REPRODUCED * after, baseline)
    text = f"the no-removal arm has {percent(baseline)} at alpha*"
    if failed:
        text = f"{text}, under half of the after model's {percent(after)}"
        return Statement("reproduction", False, text, numbers)
    return Statement("reproduction", True, f"{text}, the after model {percent(after)}", numbers)


def passed_and_missing(rows: Sequence[Statement]) -> Iterator[str]:
    """What to say of the gates that did not fail."""
    passed = [gate.sentence for gate in rows if gate.holds]
    if passed:
        yield f"Gates passed: {'; '.join(passed)}."
    for gate in rows:
        if gate.holds is None:
            yield f"Gate not evaluated: {gate.name}, for {gate.sentence}."
