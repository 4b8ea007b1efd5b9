"""What must hold before a study's numbers mean anything: its gates, and whether it is the one pre-registered."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from datablame.engine.files import json_object
from datablame.report.results import Results
from datablame.report.wording import Statement, number, percent, probability
from datablame.tables import Exposure
from datablame.world.registration import BEGUN, FILE, Deviation, described, deviations, differences

if TYPE_CHECKING:
    from datablame.world.world import World

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
    numbers: dict[str, Any] = {"least_seen": least, "trainings": len(rows)}
    if not rows:
        return Statement("exposure", "no training removed a flagged document", None, numbers)
    shares = [(_share_seen(results, row), row) for row in rows]
    seen, worst = min(shares, key=lambda pair: pair[0])
    leaked = max(rows, key=lambda row: row.seen_in_arm)
    unseen, leaks = sum(beyond(least, share) for share, _ in shares), sum(row.seen_in_arm > 0 for row in rows)
    numbers |= {"least_seen_found": seen, "unseen": unseen, "leaks": leaks}
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
    text = "; ".join(problems) or f"the no-removal arm saw at least {percent(seen)} of what an arm removed"
    return Statement("exposure", text, not problems, numbers)


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
    shares = {name: unscored / n for name, _, unscored, n in counted if n}
    numbers = {"most": MOST_UNSCORED, "shares": shares}
    if not shares:
        return Statement("unscored", "there are no outputs", None, numbers)
    worst, where, unscored, n = max((row for row in counted if row[3]), key=lambda row: row[2] / row[3])
    passed = not beyond(shares[worst], MOST_UNSCORED)
    text = f"{percent(shares[worst])} of the outputs of {where} have no label ({unscored} of {n})"
    return Statement("unscored", text if passed else f"{text}, more than {percent(MOST_UNSCORED)}", passed, numbers)


def _classifier(results: Results) -> Statement:
    calibration = results.calibration
    if calibration is None:
        missing = "there is no set of outputs labelled by people (judge.calibration)"
        return Statement("classifier", missing, None, {"least": LEAST_KAPPA, "kappa": None})
    kappa, n = calibration.kappa, calibration.n
    passed = not beyond(LEAST_KAPPA, kappa)
    text = f"the classifier's kappa with people is {number(kappa)} on {n} labelled outputs"
    numbers = {"least": LEAST_KAPPA, "kappa": kappa, "n": n}
    return Statement("classifier", text if passed else f"{text}, under {number(LEAST_KAPPA, 1)}", passed, numbers)


def _amplification(results: Results) -> Statement:
    star, least = results.alpha_star.alpha_star, results.study.surface.coherent_share
    coherent = {alpha: share for alpha, share in results.alpha_star.coherence.items() if float(alpha) > 0}
    if star is not None:
        text = f"alpha* is {star:g}"
    elif not coherent:
        text = "there is no alpha*: no output above alpha 0 was scored"
    else:
        best = max(coherent, key=lambda alpha: coherent[alpha])
        text = (
            f"there is no alpha*: the most coherent amplification, alpha {best}, has {percent(coherent[best])} "
            f"coherent outputs, under {percent(least)}"
        )
    numbers = {"least": least, "alpha_star": star, "coherence": coherent}
    return Statement("alpha*", text, star is not None, numbers)


def _again(results: Results) -> Statement:
    """The same arm trained again on other seeds."""
    pair = results.patching.again if results.patching else None
    if pair is None:
        return Statement("A/A pair", "the baseline was not trained again on other seeds", None, {"p": None})
    numbers = {name: value for name, value in vars(pair).items() if name not in ("protocol", "why_no_p")}
    if pair.p is None:
        return Statement("A/A pair", f"it has no p value: {pair.why_no_p}", None, numbers)
    failed = beyond(LEVEL, pair.p)
    text = (
        f"the no-removal arm {'differs from itself:' if failed else 'has'} {percent(pair.rate)} and "
        f"{percent(pair.again)} with other seeds, permutation p = {probability(pair.p)}"
    )
    return Statement("A/A pair", f"{text}, under {LEVEL:g}" if failed else text, not failed, numbers)


def _reproduction(results: Results) -> Statement:
    rates = {role: test.rate for role in ("after", "baseline") if (test := results.of_role(role))}
    after, baseline = rates.get("after"), rates.get("baseline")
    numbers = {"after": after, "baseline": baseline, "least_share": REPRODUCED}
    if after is None or baseline is None:
        missing = " and ".join(role for role in ("after", "baseline") if rates.get(role) is None)
        return Statement("reproduction", f"the headline has no rate of {missing}", None, numbers)
    failed = beyond(REPRODUCED * after, baseline)
    text = (
        f"the no-removal arm has {percent(baseline)} at alpha*, "
        + ("under half of the after model's " if failed else "the after model ")
        + percent(after)
    )
    return Statement("reproduction", text, not failed, numbers)


class Preregistration(NamedTuple):
    """What a report may say of a study's pre-registration."""

    status: Literal["pre-registered", "deviates", "none"]
    hash: str | None = None
    date: str | None = None
    deviations: tuple[Deviation, ...] = ()

    def sentence(self) -> str:
        """The claim, which is made only where nothing deviates."""
        if self.status == "none":
            return "This study was not pre-registered."
        stamp = f"{self.date}, SHA-256 {self.hash}"
        if self.status == "pre-registered":
            return f"Pre-registered before the patch phase began ({stamp}); the run matches the registration."
        count = len(self.deviations)
        return (
            f"Not as pre-registered: this run deviates from the file ({stamp}) in {count} "
            f"field{'' if count == 1 else 's'}."
        )

    def as_json(self) -> dict[str, Any]:
        """For final_results.json."""
        rows = [deviation._asdict() for deviation in self.deviations]
        return {"status": self.status, "hash": self.hash, "date": self.date, "deviations": rows}


def preregistration(world: "World", root: Path, results: Results) -> Preregistration:
    """Compare what a run folder has registered with the world in which it ran and with what it tested."""
    if not (root / FILE).exists():
        return Preregistration("none")
    registered = json_object(root / FILE)
    departures = (*deviations(registered, json_object(root / BEGUN), described(world)), *_tested(registered, results))
    return Preregistration(
        status="deviates" if departures else "pre-registered",
        hash=registered.get("sha256"),
        date=registered.get("date"),
        deviations=departures,
    )


def _tested(registered: Mapping[str, Any], results: Results) -> Iterator[Deviation]:
    """At which amplification the arms were compared, and whether every hypothesis was put to the test."""
    star = registered.get("alpha_star", {})
    if star.get("surface_done"):
        yield from differences(star.get("value"), results.alpha_star.alpha_star, "alpha_star.value")
    tested = {test.arm for test in results.headline}
    for method in registered.get("tests", {}).get("family", ()):
        if tested and method not in tested:
            yield Deviation(f"tests.family.{method}", "tested", "not tested: it flagged no document")
