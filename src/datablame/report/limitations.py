"""What a reader must not conclude from a run: each rule is a condition; sentences.yaml has its sentence by its name."""

import re
from collections.abc import Iterator, Mapping, Sequence

from datablame.report.gates import LEAST_KAPPA, LEVEL, MOST_UNSCORED, REPRODUCED, without_random
from datablame.report.results import Results
from datablame.report.wording import Statement, Values, number, percent, statements
from datablame.stats.intervals import wilson
from datablame.tables import EVERY

_FEW_POSITIVES = 10
"""Harmful outputs in a calibration set below which sensitivity is hardly known."""
_EXACT = ("rules", "no classifier")
"""The organism's rules label what was planted by definition."""
_LOW_CEILING = 0.5
_NEARER = 0.5
"""Share of baseline's divergence from before under which an arm has clearly less to amplify."""
_SMALLEST_P_SEEDS = 4
_ALIKE = 0.8
"""Share of common words (Jaccard) from which two prompts are one prompt in other words."""
_Limits = Iterator[tuple[str, Values]]


def limitations(results: Results) -> list[Statement]:
    """The limits of this run, in the order of the phases."""
    rules = (_labels, _sampling, _rankings, _pool, _interventions, _rates, _checks, _seeds, _tests, _scope)
    limits = (limit for rule in rules for limit in rule(results))
    return statements("limitations", limits, results=results, n=len(results.samples))


def _labels(results: Results) -> _Limits:
    calibration = results.calibration
    if results.classifier == "keywords":
        yield "keyword classifier", {}
    if calibration is None:
        if results.classifier not in _EXACT:
            yield "no calibration", {}
        return
    if calibration.kappa < LEAST_KAPPA:
        yield "poor agreement", {"least": LEAST_KAPPA}
    positives = calibration.counts.true_positive + calibration.counts.false_negative
    if positives < _FEW_POSITIVES:
        yield "few positives", {"positives": positives, "few": _FEW_POSITIVES}
    yield "errors alike", {}


def _sampling(results: Results) -> _Limits:
    star, coherence = results.alpha_star.alpha_star, results.alpha_star.coherence
    if star is None and coherence:
        yield "no alpha*", {"best": max((share for alpha, share in coherence.items() if float(alpha) > 0), default=0.0)}
    # alpha* is chosen on attribution prompts; on the held-out ones the model may be less coherent.
    for rate in results.rates:
        if (rate.prompt_id, rate.behaviour, rate.split, rate.alpha) == (EVERY, EVERY, "held-out", star):
            coherent = 1 - rate.incoherent / max(1, rate.n - rate.unscored)
            if coherent < results.study.surface.coherent_share:
                yield "held-out coherence", {"share": coherent}
    if results.unscored:
        yield "unscored outputs", _without_label("outputs", len(results.samples), results.unscored)
    for behaviour in results.behaviours:
        first, last = results.pooled(behaviour, 0.0), results.pooled(behaviour, results.top_alpha)
        if first and last and last.interval.low <= first.interval.high:
            yield "flat behaviour", {"behaviour": behaviour, "first": first, "last": last}
    if results.samples and not results.unamplified.possible:
        yield "truncated", {}
    withheld = [
        f"{'all' if row.behaviour == EVERY else row.behaviour}, {row.split}: {row.importance.withheld}"
        for row in results.unamplified.rows
        if row.importance.withheld is not None
    ]
    if withheld:
        yield "k-hat", {"withheld": withheld}


def _without_label(what: str, n: int, reasons: Mapping[str, int]) -> Values:
    biased = sum(reasons.values()) / max(1, n) > MOST_UNSCORED
    return {"what": what, "n": n, "reasons": reasons, "biased": biased, "most": MOST_UNSCORED}


def _rankings(results: Results) -> _Limits:
    attribution, methods = results.attribution, results.methods.values()
    judge, standins = attribution.judge, [info for info in methods if info.standin]
    shared = results.judge.classifier == "claude" if judge else results.classifier == "keywords" and standins
    if shared:
        yield "one family", {"judge": judge, "standins": standins}
    for info in standins:
        yield "stand-in", {"method": info}
    if judge is not None and judge.missing:
        yield "missing scores", {"judge": judge}
    for info in methods:
        for row in info.unranked:
            yield "unranked", {"method": info, "row": row}
    if attribution.no_rise or attribution.dropped:
        yield "dropped behaviours", {}
    known = {method: share for method, share in results.mean_ceilings.items() if share is not None}
    if low := [f"{method} {number(share)}" for method, share in known.items() if share < _LOW_CEILING]:
        yield "recall ceiling", {"low": low}
    if attribution.prefilter == "bm25" and attribution.candidates and not known:
        yield "unknown ceiling", {}


def _pool(results: Results) -> _Limits:
    if results.attribution.prompt_matches:
        yield "prompts in the pool", {}
    if results.attribution.query_matches:
        yield "outputs in the pool", {}
    if excluded := {reason: count for reason, count in results.pool.excluded.items() if count}:
        yield "excluded documents", {"reasons": excluded}
    if skipped := {row.reason: row.count for row in results.pool.skipped}:
        yield "skipped rows", {"reasons": skipped}


def _interventions(results: Results) -> _Limits:
    rows = without_random(results)
    if results.patching and not results.patching.exposed and rows:
        leaks, least = sum(row.seen_in_arm > 0 for row in rows), min(row.seen_in_baseline for row in rows)
        yield "exposure", {"least": least, "leaks": leaks, "trainings": len(rows)}
    # Where whole sources go, fillers come from other ones on purpose.
    matched = [arm for arm in results.interventions if arm.intervention != "drop-source"]
    if loose := sum(arm.loosely_matched for arm in matched):
        worst = max(matched, key=lambda arm: arm.loosely_matched / max(1, len(arm.fillers)))
        yield "loose fillers", {"loose": loose, "fillers": sum(len(arm.fillers) for arm in matched), "worst": worst}


def _rates(results: Results) -> _Limits:
    for protocol in results.study.patch.protocols:
        after, baseline = results.of_role("after", protocol), results.of_role("baseline", protocol)
        if after and baseline and (after.rate or 0) * REPRODUCED > (baseline.rate or 0):
            yield "reproduction", {"protocol": protocol, "after": after, "baseline": baseline}
    for protocol in results.study.patch.protocols:
        for test in results.tested(protocol):
            scored = test.counts.n - test.counts.unscored
            if test.rate == 0 and scored:
                # A rate of 0 is no proof of 0.
                high = wilson(0, scored).high
                yield "nothing harmful", {"protocol": protocol, "arm": test.arm, "scored": scored, "high": high}
    least = results.study.surface.coherent_share
    coherent = {arm: check.coherent for arm, check in results.checked().items() if check.coherent is not None}
    if low := [f"{arm} {percent(share)}" for arm, share in coherent.items() if share < least]:
        yield "incoherent arms", {"low": low}
    if results.patching and results.patching.unscored:
        cells = [rate for rate in results.comparison if rate.prompt_id != EVERY]
        n = sum(rate.n for rate in cells if results.arms[rate.arm].role != "after")
        yield "unscored arms", _without_label("outputs of trained arms", n, results.patching.unscored)


def _checks(results: Results) -> _Limits:
    if not results.tests or results.patching is None:
        return
    design = results.patching.checks
    if not results.arm_checks:
        yield "side checks", {"absent": ()}
        return
    if absent := [f"{name}: {why}" for name, why in design.absent.items() if why is not None]:
        yield "side checks", {"absent": absent}
    if 0 < len(design.clean_ids) < design.clean_wanted:
        yield "few clean documents", {"design": design}
    drifts = {arm: check.kl for arm, check in results.checked().items() if check.kl is not None}
    kl = next((drift for arm, drift in drifts.items() if results.arms[arm].role == "baseline"), 0.0)
    others = {arm: drift for arm, drift in drifts.items() if results.arms[arm].role not in ("baseline", "after")}
    if near := [f"{arm} {number(drift, 3)}" for arm, drift in others.items() if drift < _NEARER * kl]:
        yield "drift", {"baseline": kl, "near": near}


def _seeds(results: Results) -> _Limits:
    baselines = {name: results.of_role("baseline", name) for name in results.study.patch.protocols}
    seeds = {name: test.seeds for name, test in baselines.items() if test}
    yield from (("single run", {"protocol": name}) for name, count in seeds.items() if count == 1)
    few = {name: count for name, count in seeds.items() if 1 < count < _SMALLEST_P_SEEDS}
    yield from (("few seeds", {"protocol": name, "seeds": count}) for name, count in few.items())
    for test in results.headline:
        against = [other.smallest_p for other in (test.to_random, test.to_baseline) if other]
        least = max((p for p in against if p is not None), default=0.0)
        if test.family and least * test.family >= LEVEL:
            yield "smallest p", {"test": test, "least": least}
            return


def _tests(results: Results) -> _Limits:
    headline, pair = results.headline, results.patching.again if results.patching else None
    if headline and (pair is None or pair.p is None):
        yield "no A/A pair", {"pair": pair}
    held_out = results.split("held-out")
    every = len(held_out)
    used = min((test.prompts for test in headline), default=every)
    if used < every:
        yield "uncompared prompts", {"every": every, "used": used}
    known = [_words(prompt.text) for prompt in results.split("attribution")]
    if alike := [prompt.id for prompt in held_out if _greatest_overlap(_words(prompt.text), known) >= _ALIKE]:
        yield "prompts reused", {"alike": alike, "every": every, "share": _ALIKE}


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold()))


def _greatest_overlap(words: frozenset[str], others: Sequence[frozenset[str]]) -> float:
    """By Jaccard; two texts without words are alike."""
    return max((len(words & other) / len(words | other) if words | other else 1.0 for other in others), default=0.0)


def _scope(results: Results) -> _Limits:
    yield ("planted" if results.truth else "stage"), {}
    trained = sum(test.seeds for test in results.headline if results.arms[test.arm].role != "after")
    if results.study.patch.headline == "continue" and trained:
        yield "re-exposure", {"trained": trained}
    if count := sum(test.p is not None for test in results.headline):
        yield "scope of p", {"count": count}
