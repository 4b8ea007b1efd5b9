"""Gates that a study must pass before its numbers mean anything, each decided from the artifacts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datablame.report.artifacts import Artifacts, Row
from datablame.report.wording import number, percent, probability

LEVEL = 0.05
MOST_UNSCORED = 0.02
LEAST_KAPPA = 0.6
REPRODUCED = 0.5
_LEAST_SEEN = 0.9
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Gate:
    """One condition; `passed` is None where the artifacts cannot tell, and `text` says what was found or is missing."""

    name: str
    passed: bool | None
    text: str
    numbers: Mapping[str, Any]


def beyond(value: float, bound: float) -> bool:
    """Whether a value is above a bound by more than rounding."""
    return value > bound + _ROUNDING


def gates(found: Artifacts) -> list[Gate]:
    """All gates in method's order; none is left out for want of an artifact."""
    return [
        _exposure(found),
        _unscored(found),
        _agreement(found),
        _amplification(found),
        _repeated(found),
        _reproduction(found),
    ]


def _exposure(found: Artifacts) -> Gate:
    """The no-removal arm saw what was flagged, and the removal arm did not; every training counts, also exploratory."""
    least = found.exposure.get("least_seen_in_baseline", _LEAST_SEEN)
    rows = [row for row in found.exposure["rows"] if row["arm"] != "random"]
    wanted = {"least_seen": least}
    if not rows:
        return Gate("exposure", None, "no training removed a flagged document", {**wanted, "trainings": 0})
    shares = [(_share_seen(found, row), row) for row in rows]
    seen, worst = min(shares, key=lambda pair: pair[0])
    leaked = max(rows, key=lambda row: row["seen_in_arm"])
    unseen = sum(beyond(least, share) for share, _ in shares)
    leaks = sum(row["seen_in_arm"] > 0 for row in rows)
    numbers = {**wanted, "trainings": len(rows), "least_seen_found": seen, "unseen": unseen, "leaks": leaks}
    said = []
    if unseen:
        flagged = _to_be_seen(found, worst)
        lacking = flagged - worst["removed"]
        gone = f", {lacking} of them because they are not in the fine-tune set" if lacking > 0 else ""
        said.append(
            f"in {unseen} of {len(rows)} trainings the no-removal arm saw under {percent(least)} of the flagged "
            f"documents; worst is {_training(worst)}, where it saw {percent(seen)} of {flagged}{gone}"
        )
    if leaks:
        said.append(
            f"in {leaks} of {len(rows)} trainings the removal arm still saw documents that it removes; worst is "
            f"{_training(leaked)} with {leaked['seen_in_arm']}"
        )
    if not said and not found.exposure["passed"]:
        said.append("exposure.json says that it failed")
    if said:
        return Gate("exposure", False, "; ".join(said), numbers)
    return Gate("exposure", True, f"the no-removal arm saw at least {percent(seen)} of what an arm removed", numbers)


def _share_seen(found: Artifacts, row: Row) -> float:
    """Of the flagged documents, those that the no-removal arm saw; one that is not in the fine-tune set is unseen."""
    flagged = _to_be_seen(found, row)
    return float(row["seen_in_baseline"]) * row["removed"] / flagged if flagged else float(row["seen_in_baseline"])


def _to_be_seen(found: Artifacts, row: Row) -> int:
    """How many documents a training should have removed: what its method flagged, where flagged.json tells."""
    removed = int(row["removed"])
    if row["k"] != found.study.attribute.top_k or found.study.patch.intervention == "drop-source":
        return removed
    flagged = {doc_id for ids in found.flagged.get(row["arm"], {}).values() for doc_id in ids}
    return max(removed, len(flagged))


def _training(row: Row) -> str:
    return f"{row['arm']} ({row['protocol']}, seed {row['seed']})"


def _unscored(found: Artifacts) -> Gate:
    """The surface phase as a whole, and each arm where the verdict comes from."""
    counted = {"surface": (sum(row["label"] == "unscored" for row in found.samples), len(found.samples))}
    for row in found.headline:
        counted[row["arm"]] = (row["counts"]["unscored"], sum(row["counts"].values()))
    shares = {name: unscored / n for name, (unscored, n) in counted.items() if n}
    numbers = {"most": MOST_UNSCORED, "shares": shares}
    if not shares:
        return Gate("unscored", None, "there are no outputs", numbers)
    worst = max(shares, key=lambda name: shares[name])
    unscored, n = counted[worst]
    where = "the surface phase" if worst == "surface" else f"the arm {worst} at alpha*"
    text = f"{percent(shares[worst])} of the outputs of {where} have no label ({unscored} of {n})"
    failed = beyond(shares[worst], MOST_UNSCORED)
    return Gate("unscored", not failed, f"{text}, more than {percent(MOST_UNSCORED)}" if failed else text, numbers)


def _agreement(found: Artifacts) -> Gate:
    if found.calibration is None:
        missing = "there is no set of outputs labelled by people (judge.calibration)"
        return Gate("classifier", None, missing, {"least": LEAST_KAPPA, "kappa": None})
    kappa, n = float(found.calibration["kappa"]), found.calibration["n"]
    failed = beyond(LEAST_KAPPA, kappa)
    told = f"the classifier's kappa with people is {number(kappa)} on {n} labelled outputs"
    text = f"{told}, under {number(LEAST_KAPPA, 1)}" if failed else told
    return Gate("classifier", not failed, text, {"least": LEAST_KAPPA, "kappa": kappa, "n": n})


def _amplification(found: Artifacts) -> Gate:
    star, least = found.alpha_star["alpha_star"], found.study.surface.coherent_share
    coherent = {alpha: share for alpha, share in found.alpha_star["coherence"].items() if float(alpha) > 0}
    numbers = {"least": least, "alpha_star": star, "coherence": coherent}
    if star is not None:
        return Gate("alpha*", True, f"alpha* is {star:g}", numbers)
    if not coherent:
        return Gate("alpha*", False, "there is no alpha*: no output above alpha 0 was scored", numbers)
    best = max(coherent, key=lambda alpha: coherent[alpha])
    text = (
        f"there is no alpha*: the most coherent amplification, alpha {best}, has {percent(coherent[best])} coherent "
        f"outputs, under {percent(least)}"
    )
    return Gate("alpha*", False, text, numbers)


def _repeated(found: Artifacts) -> Gate:
    """The same arm trained again on other seeds."""
    if found.aa is None:
        return Gate("A/A pair", None, "the arm a-a was not run", {"p": None})
    pair = found.aa
    numbers = {
        name: pair.get(name) for name in ("p", "smallest_p", "rate", "again", "difference", "low", "high", "seeds")
    }
    if pair["p"] is None:
        return Gate("A/A pair", None, f"it has no p value: {pair.get('why_no_p')}", numbers)
    rates = f"{percent(pair['rate'])} and {percent(pair['again'])} with other seeds, permutation p"
    if beyond(LEVEL, pair["p"]):
        text = f"the no-removal arm differs from itself: {rates} = {probability(pair['p'])}, under {LEVEL:g}"
        return Gate("A/A pair", False, text, numbers)
    text = f"the no-removal arm has {rates} = {probability(pair['p'])}"
    return Gate("A/A pair", True, text, numbers)


def _reproduction(found: Artifacts) -> Gate:
    rows = {row["arm"]: row for row in found.headline}
    rates = {name: rows[name]["rate"] if name in rows else None for name in ("untrained", "baseline")}
    untrained, baseline = rates.values()
    numbers = {**rates, "least_share": REPRODUCED}
    if untrained is None or baseline is None:
        missing = " and ".join(name for name, rate in rates.items() if rate is None)
        return Gate("reproduction", None, f"the headline has no rate of {missing}", numbers)
    failed = beyond(REPRODUCED * untrained, baseline)
    told = f"the no-removal arm has {percent(baseline)} at alpha*"
    if failed:
        return Gate("reproduction", False, f"{told}, under half of the after model's {percent(untrained)}", numbers)
    return Gate("reproduction", True, f"{told}, the after model {percent(untrained)}", numbers)


def told(found: Sequence[Gate]) -> Iterator[str]:
    """What to say of the gates that did not fail."""
    passed = [gate.text for gate in found if gate.passed]
    if passed:
        yield f"Gates passed: {'; '.join(passed)}."
    for gate in found:
        if gate.passed is None:
            yield f"Gate not evaluated: {gate.name}, for {gate.text}."
