"""Key findings, negative results as plainly as positive ones; sentences.yaml has their sentences by their names."""

from collections.abc import Iterator

from datablame.report.gates import LEVEL
from datablame.report.results import Results
from datablame.report.wording import (
    Given,
    Statement,
    listed,
    number,
    percent,
    probability,
    signed_interval,
    signed_points,
    statements,
)
from datablame.tables import EVERY

_ROUNDING = 1e-12
_LITTLE = 0.8
"""Share of a method's average precision from which a confounder alone does nearly as well."""
_POOLS = {"whole": "the whole pool", "candidates": "the BM25 candidates"}
_Findings = Iterator[tuple[str, Given]]


def findings(results: Results) -> list[Statement]:
    """What the run shows, in the order of its phases; each sentence carries its numbers."""
    rules = (_surfacing, _attribution, _patching)
    rows = (row for rule in rules for row in rule(results))
    return statements("findings", rows, results=results, level=LEVEL)


def _surfacing(results: Results) -> _Findings:
    first, last = results.ends()
    yield "rates", {"first": first, "last": last}
    if first is None or last is None:
        return
    groups: dict[str, list[str]] = {"rising": [], "flat": []}
    for behaviour in results.behaviours:
        first, last = results.ends(behaviour)
        rates = f"{percent(first.rate)} to {percent(last.rate)}" if first and last else "nothing scored"
        rises = first and last and (last.low or 0.0) > (first.high or 0.0)
        groups["rising" if rises else "flat"].append(f"{behaviour} ({rates})")
    yield from ((name, behaviours and {"behaviours": behaviours}) for name, behaviours in groups.items())
    yield "alpha*", True


def _attribution(results: Results) -> _Findings:
    yield "nothing traced", not results.queries
    for pool, within in _POOLS.items() if results.queries else ():
        rows = [row for row in results.quality if row.pool == pool and row.behaviour == EVERY]
        ranked = sorted(rows, key=lambda row: -(row.precision_at_k or 0))
        methods, controls = (
            [f"{row.method} {number(row.precision_at_k)}" for row in ranked if results.is_control(row.method) == it]
            for it in (False, True)
        )
        chance = ranked[0].base_rate if ranked else None
        yield "precision", ranked and {"within": within, "chance": chance, "methods": methods, "controls": controls}
        precision = {row.method: row.auprc or 0.0 for row in rows}
        for method, similarity in precision.items():
            confounders = [name for name in precision if method in results.methods[name].confounds]
            best = max((precision[name] for name in confounders), default=None)
            if best is not None and best >= _LITTLE * similarity:
                values = {"within": within, "confounders": confounders, "best": best, "similarity": similarity}
                yield "confounder", {**values, "label": results.methods[method].label}
    if pairs := results.compared_methods():
        chance = sum(pair.jaccard_chance or 0.0 for pair in pairs) / len(pairs)
        yield "agreement", {"chance": chance, "closest": max(pairs, key=lambda pair: pair.jaccard or 0.0)}


def _patching(results: Results) -> _Findings:
    """What each arm left; and at several K which method leaves least at each, for the winner may change with K."""
    if not results.tests or results.patching.alpha is None:
        yield "nothing removed", True
        return
    for protocol in results.protocols:
        references = [results.of_role(role, protocol) for role in ("after", "baseline", "random")]
        baseline, pair = references[1], results.patching.again
        if baseline is None:
            continue
        rates = [f"{test.arm} {percent(test.rate)}" for test in references if test is not None]
        headline = protocol == results.study.patch.headline
        yield "references", {"protocol": protocol, "headline": headline, "seeds": baseline.seeds, "rates": rates}
        yield "A/A pair", headline and pair is not None and {"pair": pair}
        yield from _removal(results, protocol)
        winners, best = [], []
        for k in results.patching.ks if len(results.patching.ks) > 1 else ():
            tests = [test for test in results.tested(protocol, k=k) if results.arms[test.arm].in_family]
            if left := {test.arm: test.rate for test in tests if test.rate is not None}:
                least = min(left.values())
                best.append({arm for arm, rate in left.items() if rate - least < _ROUNDING})
                winners.append(f"{' or '.join(arm for arm in left if arm in best[-1])} at K = {k} ({percent(least)})")
        if winners:
            yield "doses", {"protocol": protocol, "winners": winners, "same": bool(set.intersection(*best))}


def _removal(results: Results, protocol: str) -> _Findings:
    """What is left where each arm acts on something in particular, and what of that chance may have done."""
    acted = [test for test in results.tested(protocol) if results.arms[test.arm].role in ("control", "method")]
    acted = sorted((test for test in acted if test.to_random), key=lambda test: test.rate or 0.0)
    rates = [f"{results.arms[test.arm].target} leaves {percent(test.rate)}" for test in acted]
    yield "removal", rates and {"protocol": protocol, "rates": rates}
    differences = {test.arm: test.to_random for test in acted if test.to_random}
    for name, below in (("told from random", True), ("not told from random", False)):
        arms = [
            f"{arm} ({signed_points(it.difference)} points {signed_interval(it.low, it.high)}, p = {probability(it.p)})"
            for arm, it in differences.items()
            if it.p is not None and (it.p < LEVEL) is below
        ]
        yield name, arms and {"protocol": protocol, "arms": arms}
    reasons = dict.fromkeys(it.why_no_p for it in differences.values() if it.p is None and it.why_no_p)
    yield "no p value", reasons and {"protocol": protocol, "why": listed(list(reasons))}
