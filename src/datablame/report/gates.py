"""What must hold before a study's numbers mean anything: its gates, and whether it is the one pre-registered."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from datablame.engine.files import json_object
from datablame.report.results import Results
from datablame.report.wording import Statement, Values, said
from datablame.tables import Exposure, Role
from datablame.world.registration import BEGUN, FILE, Deviation, described, deviations, differences

if TYPE_CHECKING:
    from datablame.world.world import World

LEVEL = 0.05
MOST_UNSCORED = 0.02
LEAST_KAPPA = 0.6
REPRODUCED = 0.5
_LEAST_SEEN = 0.9
_ROUNDING = 1e-9
_REPRODUCING: tuple[Role, ...] = ("after", "baseline")
_Gate = tuple[bool | None, Values, Values]
"""Whether it holds, the numbers that it rests on, and what its sentence takes besides."""


def beyond(value: float, bound: float) -> bool:
    """Whether a value is above a bound by more than rounding."""
    return value > bound + _ROUNDING


def gates(results: Results) -> list[Statement]:
    """All gates in method's order, none left out: one that holds is passed, one that is None was not evaluated."""
    statements = []
    for name, rule in _GATES.items():
        holds, numbers, more = rule(results)
        statements.append(Statement(name, said("gates", name, holds=holds, **(numbers | more)), holds, numbers))
    return statements


def without_random(results: Results) -> list[Exposure]:
    """Exposure of the arms that act on something in particular."""
    return [row for row in results.exposure if results.arms[row.arm].role != "random"]


def _exposure(results: Results) -> _Gate:
    """The no-removal arm saw what was flagged, and the removal arm did not; every training counts, also exploratory."""
    patching, rows = results.patching, without_random(results)
    least = patching.least_seen_in_baseline if patching else _LEAST_SEEN
    numbers: Values = {"least_seen": least, "trainings": len(rows)}
    if not rows:
        return None, numbers, {}
    shares = [_share_seen(results, row) for row in rows]
    seen, worst = min(zip(shares, rows, strict=True), key=lambda pair: pair[0])
    unseen, leaks = sum(beyond(least, share) for share in shares), sum(row.seen_in_arm > 0 for row in rows)
    numbers |= {"least_seen_found": seen, "unseen": unseen, "leaks": leaks}
    problems = []
    if unseen:
        problems.append(said("gates", "unseen", worst=worst, flagged=_to_be_seen(results, worst), **numbers))
    if leaks:
        problems.append(said("gates", "leaked", worst=max(rows, key=lambda row: row.seen_in_arm), **numbers))
    if not problems and patching and not patching.exposed:
        problems.append("the patch phase says that it failed")
    return not problems, numbers, {"problems": problems}


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


def _unscored(results: Results) -> _Gate:
    """The surface phase as a whole, and each arm where the verdict comes from."""
    counted = [("surface", "the surface phase", sum(results.unscored.values()), len(results.samples))]
    counted += [(t.arm, f"the arm {t.arm} at alpha*", t.counts.unscored, t.counts.n) for t in results.headline]
    shares = {name: unscored / n for name, _, unscored, n in counted if n}
    numbers = {"most": MOST_UNSCORED, "shares": shares}
    if not shares:
        return None, numbers, {}
    worst, where, lost, n = max((row for row in counted if row[3]), key=lambda row: row[2] / row[3])
    more = {"worst": worst, "where": where, "lost": lost, "n": n}
    return not beyond(shares[worst], MOST_UNSCORED), numbers, more


def _classifier(results: Results) -> _Gate:
    calibration = results.calibration
    if calibration is None:
        return None, {"least": LEAST_KAPPA, "kappa": None}, {}
    kappa = calibration.kappa
    return not beyond(LEAST_KAPPA, kappa), {"least": LEAST_KAPPA, "kappa": kappa, "n": calibration.n}, {}


def _amplification(results: Results) -> _Gate:
    star, least = results.alpha_star.alpha_star, results.study.surface.coherent_share
    coherent = {alpha: share for alpha, share in results.alpha_star.coherence.items() if float(alpha) > 0}
    best = max(coherent, key=lambda alpha: coherent[alpha], default=None)
    return star is not None, {"least": least, "alpha_star": star, "coherence": coherent}, {"best": best}


def _again(results: Results) -> _Gate:
    pair = results.patching.again if results.patching else None
    if pair is None:
        return None, {"p": None}, {"pair": None}
    numbers = {name: value for name, value in vars(pair).items() if name not in ("protocol", "why_no_p")}
    holds = None if pair.p is None else not beyond(LEVEL, pair.p)
    return holds, numbers, {"pair": pair, "level": LEVEL}


def _reproduction(results: Results) -> _Gate:
    rates: Values = {role: test.rate if (test := results.of_role(role)) else None for role in _REPRODUCING}
    after, baseline = rates["after"], rates["baseline"]
    numbers = {**rates, "least_share": REPRODUCED}
    if after is None or baseline is None:
        return None, numbers, {"missing": [role for role, rate in rates.items() if rate is None]}
    return not beyond(REPRODUCED * after, baseline), numbers, {}


_GATES: Mapping[str, Callable[[Results], _Gate]] = {
    "exposure": _exposure,
    "unscored": _unscored,
    "classifier": _classifier,
    "alpha*": _amplification,
    "A/A pair": _again,
    "reproduction": _reproduction,
}


class Preregistration(NamedTuple):
    """What a report may say of a study's pre-registration."""

    status: Literal["pre-registered", "deviates", "none"]
    hash: str | None = None
    date: str | None = None
    deviations: tuple[Deviation, ...] = ()

    def sentence(self) -> str:
        """The claim, which is made only where nothing deviates."""
        return said("preregistration", self.status, **self._asdict())

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
