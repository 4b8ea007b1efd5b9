"""Key findings, negative results as plainly as positive ones; sentences.yaml has their sentences by their names."""

from collections.abc import Iterator, Sequence

from datablame.report.gates import LEVEL
from datablame.report.results import Results
from datablame.report.wording import Statement, Values, number, percent, statements
from datablame.tables import EVERY, Quality

_ROUNDING = 1e-12
_LITTLE = 0.8
"""Share of a method's average precision from which a confounder alone does nearly as well."""
_POOLS = {"whole": "the whole pool", "candidates": "the BM25 candidates"}
_Findings = Iterator[tuple[str, Values]]


def findings(results: Results) -> list[Statement]:
    """What the run shows, in the order of its phases; each sentence carries its numbers."""
    rules = (_surfacing, _attribution, _agreement, _patching)
    found = (finding for rule in rules for finding in rule(results))
    return statements("findings", found, results=results, level=LEVEL)


def _surfacing(results: Results) -> _Findings:
    first, last = results.pooled(EVERY, 0.0), results.pooled(EVERY, results.top_alpha)
    if first is None or last is None:
        yield "rates", {"first": None}
        return
    disjoint = last.interval.low > first.interval.high or last.interval.high < first.interval.low
    verb = "goes" if not disjoint else "rises" if last.rate > first.rate else "falls"
    yield "rates", {"first": first, "last": last, "verb": verb}
    groups: dict[str, list[str]] = {"rising": [], "flat": []}
    for behaviour in results.behaviours:
        first, last = results.pooled(behaviour, 0.0), results.pooled(behaviour, results.top_alpha)
        if first is None or last is None:
            groups["flat"].append(f"{behaviour} (nothing scored)")
        else:
            group = "rising" if last.interval.low > first.interval.high else "flat"
            groups[group].append(f"{behaviour} ({percent(first.rate)} to {percent(last.rate)})")
    yield from ((name, {"behaviours": behaviours}) for name, behaviours in groups.items() if behaviours)
    yield "alpha*", {"star": results.alpha_star.alpha_star}


def _attribution(results: Results) -> _Findings:
    if not results.queries:
        yield "nothing traced", {}
        return
    for pool, within in _POOLS.items():
        rows = [row for row in results.quality if row.pool == pool and row.behaviour == EVERY]
        if rows:
            ranked = sorted(rows, key=lambda row: -(row.precision_at_k or 0))
            methods, controls = (
                [f"{row.method} {number(row.precision_at_k)}" for row in ranked if results.is_control(row.method) == it]
                for it in (False, True)
            )
            chance = ranked[0].base_rate
            yield "precision", {"within": within, "chance": chance, "methods": methods, "controls": controls}
            yield from _confounded(results, rows, within)


def _confounded(results: Results, rows: Sequence[Quality], within: str) -> _Findings:
    precision = {row.method: row.auprc or 0.0 for row in rows}
    for method, similarity in precision.items():
        confounders = [name for name in precision if method in results.methods[name].confounds]
        best = max((precision[name] for name in confounders), default=None)
        if best is not None and best >= _LITTLE * similarity:
            values = {"within": within, "confounders": confounders, "best": best, "similarity": similarity}
            yield "confounder", {**values, "label": results.methods[method].label}


def _agreement(results: Results) -> _Findings:
    if pairs := results.compared_methods():
        chance = sum(pair.jaccard_chance or 0.0 for pair in pairs) / len(pairs)
        yield "agreement", {"chance": chance, "closest": max(pairs, key=lambda pair: pair.jaccard or 0.0)}


def _patching(results: Results) -> _Findings:
    if not results.tests or results.alpha is None:
        yield "nothing removed", {}
        return
    for protocol in results.protocols:
        baseline = results.of_role("baseline", protocol)
        if baseline is None:
            continue
        headline = protocol == results.study.patch.headline
        references = [results.of_role("after", protocol), baseline, results.of_role("random", protocol)]
        rates = [f"{test.arm} {percent(test.rate)}" for test in references if test is not None]
        yield "references", {"protocol": protocol, "headline": headline, "seeds": baseline.seeds, "rates": rates}
        if headline and results.patching and results.patching.again is not None:
            yield "A/A pair", {"pair": results.patching.again}
        for test in results.tested(protocol):
            if results.arms[test.arm].role in ("control", "method") and test.to_random:
                yield "removal", {"test": test, "against": test.to_random}
        if len(results.ks) > 1:
            yield from _doses(results, protocol)


def _doses(results: Results, protocol: str) -> _Findings:
    """Which method leaves least at each K; the winner may change with K."""
    winners, best = [], []
    for k in results.ks:
        tests = [test for test in results.tested(protocol, k=k) if results.arms[test.arm].in_family]
        if rates := {test.arm: test.rate for test in tests if test.rate is not None}:
            least = min(rates.values())
            best.append({arm for arm, rate in rates.items() if rate - least < _ROUNDING})
            winners.append(f"{' or '.join(arm for arm in rates if arm in best[-1])} at K = {k} ({percent(least)})")
    if winners:
        yield "doses", {"protocol": protocol, "winners": winners, "same": bool(set.intersection(*best))}
