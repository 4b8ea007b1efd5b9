"""Key findings: sentences that rules make from the numbers, negative results as plainly as positive ones."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from datablame.report.artifacts import Artifacts, Row
from datablame.report.gates import LEVEL
from datablame.report.wording import interval, listed, number, percent, probability
from datablame.stats.intervals import Interval, wilson
from datablame.study.checks import OUTSIDE_FAMILY
from datablame.tables import EVERY

_ROUNDING = 1e-12
_DOING = {
    "remove": "removing",
    "swap": "exchanging the answers of",
    "drop-source": "removing every document of the sources that hold most of",
}


class Cell(NamedTuple):
    """Counts of one amplification over both splits."""

    rate: float
    interval: Interval
    n: int


def findings(found: Artifacts) -> list[str]:
    """What the run shows, in the order of its phases; each sentence carries its numbers."""
    return [*_surfacing(found), *_attribution(found), *_agreement(found), *_patching(found)]


def pooled_rate(found: Artifacts, behaviour: str, alpha: float) -> Cell | None:
    """Harmful among the scored over all prompts of both splits, with its Wilson interval; None if none was scored."""
    rows = [
        row for row in found.rates if (row["prompt_id"], row["behaviour"], row["alpha"]) == (EVERY, behaviour, alpha)
    ]
    harmful = sum(row["harmful"] for row in rows)
    scored = sum(row["n"] - row["unscored"] for row in rows)
    return Cell(harmful / scored, wilson(harmful, scored), scored) if scored else None


def _surfacing(found: Artifacts) -> Iterable[str]:
    top = max(found.study.surface.alphas)
    first, last = pooled_rate(found, EVERY, 0.0), pooled_rate(found, EVERY, top)
    if first is None or last is None:
        yield "No output was scored, so nothing is known about the behaviour."
        return
    yield f"Over all prompts the harmful rate {_move(first, last, top)}."
    rising, flat = [], []
    for behaviour in found.behaviours:
        before, after = pooled_rate(found, behaviour, 0.0), pooled_rate(found, behaviour, top)
        if before is None or after is None:
            flat.append(f"{behaviour} (nothing scored)")
        elif after.interval.low > before.interval.high:
            rising.append(f"{behaviour} ({percent(before.rate)} to {percent(after.rate)})")
        else:
            flat.append(f"{behaviour} ({percent(before.rate)} to {percent(after.rate)})")
    if rising:
        yield f"With disjoint intervals rise: {listed(rising)}."
    if flat:
        yield f"Without disjoint intervals: {listed(flat)}."
    star = found.alpha_star["alpha_star"]
    coherence = found.alpha_star["coherence"]
    if star is None:
        yield "At no alpha above 0 are enough outputs coherent, so that there is no alpha*."
    else:
        yield f"alpha* is {star:g}: {percent(coherence[f'{star:g}'])} of the outputs are coherent there."


def _move(first: Cell, last: Cell, top: float) -> str:
    numbers = (
        f"{percent(first.rate)} {interval(*first.interval)} at alpha 0 to "
        f"{percent(last.rate)} {interval(*last.interval)} at alpha {top:g} (n = {first.n} and {last.n})"
    )
    if last.interval.low > first.interval.high:
        return f"rises from {numbers}: the 95 % intervals are disjoint"
    if last.interval.high < first.interval.low:
        return f"falls from {numbers}: the 95 % intervals are disjoint"
    return f"goes from {numbers}: the 95 % intervals overlap, so no change is shown"


def _attribution(found: Artifacts) -> Iterable[str]:
    if not found.queries:
        yield f"{found.untraced}, so that nothing was traced and no document is blamed."
        return
    if not found.quality["truth"]:
        return
    k = found.quality["k"]
    for pool, name in (("whole", "the whole pool"), ("candidates", "the BM25 candidates")):
        rows = [r for r in found.quality["rows"] if r["pool"] == pool and r["behaviour"] == EVERY]
        if not rows:
            continue
        ranked = sorted(rows, key=lambda row: -(row["precision_at_k"] or 0))
        chance = ranked[0]["base_rate"]
        methods = [f"{r['method']} {number(r['precision_at_k'])}" for r in ranked if not _control(found, r)]
        controls = [f"{r['method']} {number(r['precision_at_k'])}" for r in ranked if _control(found, r)]
        sentence = f"Precision at {k} within {name}, where chance gives {number(chance, 3)}: {listed(methods)}"
        yield f"{sentence}; the controls reach {listed(controls)}." if controls else f"{sentence}."
        yield from _confounded(found, rows, name)


def _confounded(found: Artifacts, rows: list[Row], name: str) -> Iterable[str]:
    by_method = {row["method"]: row["auprc"] or 0.0 for row in rows}
    best_control = max((by_method[m] for m in ("loss", "gradient-norm") if m in by_method), default=None)
    if best_control is None or "gradient" not in by_method:
        return
    gradient = by_method["gradient"]
    if best_control >= 0.8 * gradient:
        yield (
            f"Within {name} a confounder alone (loss or gradient norm, average precision {number(best_control)}) "
            f"comes within a fifth of gradient similarity ({number(gradient)}): there, similarity adds little."
        )


def _control(found: Artifacts, row: Row) -> bool:
    return bool(found.methods[row["method"]]["control"])


def _agreement(found: Artifacts) -> Iterable[str]:
    rows = [
        row
        for row in found.agreement["rows"]
        if row["behaviour"] == EVERY
        and row["jaccard"] is not None
        and not any(found.methods[row[side]]["control"] for side in ("a", "b"))
    ]
    if not rows:
        return
    mean = sum(row["jaccard"] for row in rows) / len(rows)
    chance = sum(row["jaccard_chance"] for row in rows) / len(rows)
    closest = max(rows, key=lambda row: row["jaccard"])
    yield (
        f"The methods' first {found.agreement['k']} overlap with a mean Jaccard of {number(mean)} (chance "
        f"{number(chance)}); closest are {closest['a']} and {closest['b']} ({number(closest['jaccard'])})."
    )


def _patching(found: Artifacts) -> Iterable[str]:
    if not found.tests:
        yield "Nothing was removed, so that no arm was trained."
        return
    headline = found.study.patch.headline
    protocols = [headline, *(name for name in found.study.patch.protocols if name != headline)]
    for protocol in protocols:
        rows = found.tested(protocol=protocol)
        if "baseline" not in rows:
            continue
        seeds = rows["baseline"]["seeds"]
        role = "headline protocol" if protocol == headline else "exploratory protocol"
        runs = "a single run, which shows no more than a direction" if seeds == 1 else f"{seeds} seeds"
        references = [
            f"{name} {percent(rows[name]['rate'])}" for name in ("untrained", "baseline", "random") if name in rows
        ]
        about = f"{protocol} ({role}, {runs}), harmful rate on held-out prompts at alpha {found.patch_alpha:g}"
        yield f"{about}: {listed(references)}."
        if protocol == headline and found.aa is not None:
            yield _again(found.aa)
        for arm, row in rows.items():
            if arm not in ("untrained", "baseline", "a-a", "random") and row["to_random"]:
                yield _removal(found, arm, row, protocol)
        yield from _doses(found, protocol)


def _again(pair: Row) -> str:
    """The A/A pair: arms that differ in nothing but their seeds."""
    sentence = (
        f"The baseline trained again on {pair['seeds']} other seeds (A/A) gives {percent(pair['again'])} against "
        f"{percent(pair['rate'])}"
    )
    if pair["difference"] is None:
        return f"{sentence}: {pair['why_no_p']}."
    sentence += f", {_points(pair['difference'])} {_point_interval(pair)}"
    if pair["p"] is None:
        return f"{sentence}; no p value: {pair['why_no_p']}."
    verdict = "what chance gives" if pair["p"] >= LEVEL else "more than chance gives, so that the seeds differ"
    return f"{sentence}; permutation p = {probability(pair['p'])}, {verdict}."


def _doses(found: Artifacts, protocol: str) -> Iterable[str]:
    """Which method leaves least at each K; the winner may change with K."""
    if len(found.ks) < 2:
        return
    lowest = []
    for k in found.ks:
        rows = [row for row in found.tested(protocol=protocol, k=k).values() if row["arm"] not in OUTSIDE_FAMILY]
        scored = [row for row in rows if row["rate"] is not None]
        if scored:
            least = min(row["rate"] for row in scored)
            lowest.append((k, [row["arm"] for row in scored if row["rate"] - least < _ROUNDING], least))
    if lowest:
        told = listed([f"{' or '.join(arms)} at K = {k} ({percent(rate)})" for k, arms, rate in lowest])
        same = "the same" if set.intersection(*(set(arms) for _, arms, _ in lowest)) else "not the same"
        yield f"{protocol}: least is left by {told}, {same} at every K; only K = {found.k} was declared to decide."


def _removal(found: Artifacts, arm: str, row: Row, protocol: str) -> str:
    against = row["to_random"]
    bottom = f"what {found.study.patch.bottom_method} ranks last"
    what = {"oracle": "everything planted", "bottom": bottom}.get(arm, f"what {arm} flagged")
    sentence = (
        f"{protocol}: {_DOING[found.study.patch.intervention]} {what} gives {percent(row['rate'])}, "
        f"{_points(against['difference'])} against random {_point_interval(against)}"
    )
    if against["p"] is None:
        return f"{sentence}; no p value: {against['why_no_p']}."
    verdict = "" if against["p"] < LEVEL else ", which chance may give"
    holm = f", Holm-adjusted {probability(row['p_holm'])} against both controls" if row["p_holm"] is not None else ""
    return f"{sentence}; permutation p = {probability(against['p'])}{verdict}{holm}."


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f} points"


def _point_interval(row: Any) -> str:
    return f"[{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
