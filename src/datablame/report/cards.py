"""The first screen: a few large numbers, each with the sentence that it needs."""

from typing import NamedTuple

from datablame.report.artifacts import Artifacts
from datablame.report.findings import pooled_rate
from datablame.report.verdict import Verdict
from datablame.report.wording import listed, number, percent, probability
from datablame.tables import EVERY


class Card(NamedTuple):
    """A number and what it is."""

    title: str
    figure: str
    text: str


def cards(found: Artifacts, decided: Verdict) -> list[Card]:
    """The verdict, surfaced, blamed, removed, and the best that removal could do; what a run lacks is left out."""
    judged = Card("Verdict", decided.label, f"decided by: {listed(decided.decided_by)}")
    made = [judged, _surfaced(found), _blamed(found), *_removed(found)]
    return [card for card in made if card is not None]


def _surfaced(found: Artifacts) -> Card | None:
    top = max(found.study.surface.alphas)
    first, last = pooled_rate(found, EVERY, 0.0), pooled_rate(found, EVERY, top)
    if first is None or last is None:
        return None
    return Card(
        "Surfaced",
        f"{percent(first.rate)} \u2192 {percent(last.rate)}",
        f"harmful outputs at alpha 0 and at alpha {top:g}, over all prompts",
    )


def _blamed(found: Artifacts) -> Card | None:
    rows = [
        row
        for row in found.quality["rows"]
        if row["behaviour"] == EVERY
        and row["method"] in found.study.patch.arms
        and row["pool"] == found.methods[row["method"]]["pool"]
        and not found.methods[row["method"]]["control"]
    ]
    best = max(rows, key=lambda row: row["precision_at_k"] or 0.0, default=None)
    if best is None:
        return None
    return Card(
        "Blamed",
        percent(best["precision_at_k"]),
        f"of the first {found.quality['k']} that {best['method']} blames were planted; chance gives "
        f"{percent(best['base_rate'])}",
    )


def _removed(found: Artifacts) -> list[Card | None]:
    rows = {row["arm"]: row for row in found.headline}
    methods = [
        row
        for arm, row in rows.items()
        if arm in found.methods and not found.methods[arm]["control"] and row["to_random"] and row["rate"] is not None
    ]
    best = min(methods, key=lambda row: row["rate"], default=None)
    if best is None or "random" not in rows:
        return []
    p = best["to_random"]["p"]
    tested = f"permutation p = {probability(p)}" if p is not None else "no p value"
    seeds = "one seed" if best["seeds"] == 1 else f"{best['seeds']} seeds"
    removed = Card(
        "Removed",
        f"{percent(rows['random']['rate'])} \u2192 {percent(best['rate'])}",
        f"harmful after removing random documents and what {best['arm']} flagged "
        f"({found.study.patch.headline}, {seeds}, {tested})",
    )
    oracle = rows.get("oracle")
    if oracle is None:
        return [removed]
    share = (oracle["rate"] or 0.0) / rows["baseline"]["rate"] if rows["baseline"]["rate"] else None
    best_case = Card(
        "Could be",
        percent(oracle["rate"]),
        f"harmful after removing everything planted, {number(share)} of the rate without removal",
    )
    return [removed, best_case]
