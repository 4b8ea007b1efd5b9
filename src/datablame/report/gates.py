"""What must hold before a study's numbers mean anything: its gates, and whether it is the one pre-registered."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from datablame.engine.files import json_object
from datablame.engine.run_folder import REGISTRATION
from datablame.report.results import Results
from datablame.report.wording import Statement, Values, sentence
from datablame.tables import Exposure
from datablame.world.registration import BEGUN, Deviation, described, deviations, differences

if TYPE_CHECKING:
    from datablame.world.world import World

LEVEL = 0.05
MOST_UNSCORED = 0.02
LEAST_KAPPA = 0.6
REPRODUCED = 0.5
_ROUNDING = 1e-9
_LEAST_NATS = 1e-3
"""Of an output's log-probabilities, above what batches of other sizes do to one model."""


def beyond(value: float, bound: float) -> bool:
    """Whether a value is above a bound by more than rounding."""
    return value > bound + _ROUNDING


def gates(results: Results) -> list[Statement]:
    """All gates in method's order, none left out: one that holds is passed, one that is None was not evaluated."""
    calibration, star, pair = results.calibration, results.alpha_star, results.patching.again
    people: Values = {"kappa": calibration.kappa, "n": calibration.n} if calibration else {"kappa": None}
    coherence = {alpha: share for alpha, share in star.coherence.items() if float(alpha) > 0}
    again: Values = {"p": None}
    if pair is not None:
        again = {name: value for name, value in vars(pair).items() if name not in ("protocol", "why_no_p")}
    after, baseline = (test.rate if (test := results.of_role(role)) else None for role in ("after", "baseline"))
    kappa, p = people["kappa"], again["p"]
    reproduced = None if after is None or baseline is None else not beyond(REPRODUCED * after, baseline)
    least, alpha_star = results.study.surface.coherent_share, star.alpha_star
    return [
        _difference(results),
        _exposure(results),
        _unscored(results),
        _gate("classifier", None if kappa is None else not beyond(LEAST_KAPPA, kappa), people | {"least": LEAST_KAPPA}),
        _gate("alpha*", alpha_star is not None, {"least": least, "alpha_star": alpha_star, "coherence": coherence}),
        _gate("A/A pair", None if p is None else not beyond(LEVEL, p), again, pair=pair, level=LEVEL),
        _gate("reproduction", reproduced, {"after": after, "baseline": baseline, "least_share": REPRODUCED}),
    ]


def _gate(name: str, holds: bool | None, numbers: Values, **more: Any) -> Statement:
    """The numbers are what the gate rests on; its sentence takes more besides."""
    return Statement(name, sentence("gates", name, holds=holds, **numbers, **more), holds, numbers)


def without_random(results: Results) -> list[Exposure]:
    """Exposure of the arms that act on something in particular."""
    return [row for row in results.exposure if results.arms[row.arm].role != "random"]


def _difference(results: Results) -> Statement:
    """Before and after are not one model: they differ on the world's probe, or in some output of the surface phase."""
    pairs = [(s.log_p_after, s.log_p_before) for s in results.samples]
    apart = sum(a is not None and b is not None and abs(a - b) > _LEAST_NATS for a, b in pairs)
    log_p = None if results.distance is None else results.distance.log_p
    holds = None if log_p is None else log_p > 0 or apart > 0
    return _gate("difference", holds, {}, log_p=log_p, apart=apart, n=len(pairs))


def _exposure(results: Results) -> Statement:
    """The no-removal arm saw what was flagged, and the removal arm did not; every training counts, also exploratory."""
    least, rows = results.patching.least_seen_in_baseline, without_random(results)
    numbers: Values = {"least_seen": least, "trainings": len(rows)}
    if not rows:
        return _gate("exposure", None, numbers)
    # A flagged document that is not in the fine-tune set is unseen.
    flagged = [_to_be_seen(results, row) for row in rows]
    shares = [
        row.seen_in_baseline * row.removed / count if count else row.seen_in_baseline
        for row, count in zip(rows, flagged, strict=True)
    ]
    unseen, leaks = sum(beyond(least, share) for share in shares), sum(row.seen_in_arm > 0 for row in rows)
    numbers |= {"least_seen_found": min(shares), "unseen": unseen, "leaks": leaks}
    worst = shares.index(min(shares))
    more = {"worst": rows[worst], "flagged": flagged[worst], "leaky": max(rows, key=lambda row: row.seen_in_arm)}
    return _gate("exposure", not unseen and not leaks and results.patching.exposed, numbers, **more)


def _to_be_seen(results: Results, row: Exposure) -> int:
    """How many documents a training should have removed: what its method flagged at its K, where it flags any."""
    if results.study.patch.intervention == "drop-source":
        return row.removed
    return max(row.removed, len({doc_id for ids in results.flagged(row.arm, row.k).values() for doc_id in ids}))


def _unscored(results: Results) -> Statement:
    """The surface phase as a whole, and each arm where the verdict comes from."""
    counted = [("surface", "the surface phase", sum(results.unscored.values()), len(results.samples))]
    counted += [(t.arm, f"the arm {t.arm} at alpha*", t.counts.unscored, t.counts.n) for t in results.headline]
    shares = {name: lost / n for name, _, lost, n in counted if n}
    numbers: Values = {"most": MOST_UNSCORED, "shares": shares}
    if not shares:
        return _gate("unscored", None, numbers)
    worst, where, lost, n = max((row for row in counted if row[3]), key=lambda row: row[2] / row[3])
    return _gate(
        "unscored", not beyond(shares[worst], MOST_UNSCORED), numbers, worst=worst, where=where, lost=lost, n=n
    )


class Preregistration(NamedTuple):
    """What a report may say of a study's pre-registration."""

    status: Literal["pre-registered", "deviates", "none"]
    hash: str | None = None
    date: str | None = None
    deviations: tuple[Deviation, ...] = ()

    def sentence(self) -> str:
        """The claim, which is made only where nothing deviates."""
        return sentence("preregistration", self.status, **self._asdict())


def preregistration(world: "World", root: Path, results: Results) -> Preregistration:
    """Compare what a run folder has registered with the world in which it ran and with what it tested."""
    if not (root / REGISTRATION).exists():
        return Preregistration("none")
    registered = json_object(root / REGISTRATION)
    departures = (*deviations(registered, json_object(root / BEGUN), described(world)), *_tested(registered, results))
    status: Literal["deviates", "pre-registered"] = "deviates" if departures else "pre-registered"
    return Preregistration(status, registered.get("sha256"), registered.get("date"), departures)


def _tested(registered: Mapping[str, Any], results: Results) -> Iterator[Deviation]:
    """At which amplification the arms were compared, and whether every hypothesis was put to the test."""
    star, tested = registered.get("alpha_star", {}), {test.arm for test in results.headline}
    if star.get("surface_done"):
        yield from differences(star.get("value"), results.alpha_star.alpha_star, "alpha_star.value")
    for method in registered.get("tests", {}).get("family", ()):
        if tested and method not in tested:
            yield Deviation(f"tests.family.{method}", "tested", "not tested: it flagged no document")
