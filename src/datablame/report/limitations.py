"""What a reader must not conclude from a run: each rule is a condition; sentences.yaml has its sentence by its name."""

from collections.abc import Mapping, Sequence

from datablame.report.gates import LEAST_KAPPA, LEVEL, MOST_UNSCORED, REPRODUCED, without_random
from datablame.report.people import LEAST_LABELS
from datablame.report.results import Results
from datablame.report.wording import Given, Statement, behaviour_text, number, percent, statements
from datablame.stats.intervals import wilson
from datablame.tables import EVERY
from datablame.words import words

_FEW_POSITIVES = 10
"""Harmful outputs in a calibration set below which sensitivity is hardly known."""
_EXACT = ("rules", "no classifier")
"""The organism's rules label what was planted by definition."""
_LOW_CEILING = 0.5
_LARGE_CLUSTER = 0.01
"""Share of the pool in one duplicate cluster above which it is named."""
_NEARER = 0.5
"""Share of baseline's divergence from before under which an arm has clearly less to amplify."""
_COVERED = 0.9
"""Share of the blocks' weights that gradients and LoRA see, from which nothing is said of it."""
_SMALLEST_P_SEEDS = 4
_ALIKE = 0.8
"""Share of common words (Jaccard) from which two prompts are one prompt in other words."""
_Limits = Mapping[str, Given]


def limitations(results: Results) -> list[Statement]:
    """The limits of this run, in the order of the phases."""
    rules = (_checkpoints, _labels, _sampling, _rankings, _interventions, _rates, _checks, _tests, _scope)
    limits = (limit for rule in rules for limit in rule(results).items())
    bounds = {"least_kappa": LEAST_KAPPA, "few": _FEW_POSITIVES, "most": MOST_UNSCORED, "alike_share": _ALIKE}
    return statements("limitations", limits, results=results, n=len(results.samples), **bounds)


def _checkpoints(results: Results) -> _Limits:
    distance = results.distance
    if distance is None:
        return {}
    seen = {"before": distance.before, "after": distance.after}
    unread = [{"side": side, "weights": weights} for side, weights in seen.items() if weights.unread]
    return {
        "rounding": distance.rounding > 0 and {"distance": distance},
        "unread tensors": unread,
        "other settings": distance.settings and {"settings": distance.settings},
    }


def _labels(results: Results) -> _Limits:
    calibration, people = results.calibration, results.people
    counts = calibration.counts if calibration else None
    return {
        "keyword classifier": results.classifier == "keywords",
        "no calibration": calibration is None and people is None and results.classifier not in _EXACT,
        "few labels": people is not None and people.calibration is None and {"least": LEAST_LABELS},
        "other calibration": bool(people and people.calibration and results.study.judge.calibration),
        "stale labels": people is not None and people.stale > 0,
        "tied labels": people is not None and people.ties > 0,
        "by chance": calibration is not None and not results.corrects,
        "poor agreement": calibration is not None and calibration.kappa < LEAST_KAPPA,
        "few positives": counts is not None and counts.true_positive + counts.false_negative < _FEW_POSITIVES,
        "errors alike": results.corrects,
    }


def _sampling(results: Results) -> _Limits:
    star, coherence = results.alpha_star.alpha_star, results.alpha_star.coherence
    best = max((share for alpha, share in coherence.items() if float(alpha) > 0), default=0.0)
    # alpha* is chosen on attribution prompts; on the held-out ones the model may be less coherent.
    cell = (EVERY, EVERY, "held-out", star)
    rates = [rate for rate in results.rates if (rate.prompt_id, rate.behaviour, rate.split, rate.alpha) == cell]
    shares = [1 - rate.incoherent / max(1, rate.n - rate.unscored) for rate in rates]
    ends = {name: results.ends(name) for name in results.behaviours}
    withheld = [
        f"{behaviour_text(row.behaviour)}, {row.split}: {row.importance.withheld}"
        for row in results.unamplified.rows
        if row.importance.withheld is not None
    ]
    return {
        "no alpha*": star is None and coherence and {"best": best},
        "held-out coherence": [{"share": s} for s in shares if s < results.study.surface.coherent_share],
        "unscored outputs": results.unscored and {"what": "outputs", "reasons": results.unscored},
        "flat behaviour": [
            {"behaviour": name, "first": first, "last": last}
            for name, (first, last) in ends.items()
            if first and last and (last.low or 0.0) <= (first.high or 0.0)
        ],
        "truncated": bool(results.samples) and not results.unamplified.possible,
        "k-hat": withheld and {"withheld": withheld},
    }


def _rankings(results: Results) -> _Limits:
    attribution, judge, methods = results.attribution, results.attribution.judge, results.methods.values()
    standins = [info for info in methods if info.standin]
    known = {method: share for method, share in results.mean_ceilings.items() if share is not None}
    low = [f"{method} {number(share)}" for method, share in known.items() if share < _LOW_CEILING]
    excluded = {reason: count for reason, count in results.pool.excluded.items() if count}
    skipped, largest = {row.reason: row.count for row in results.pool.data.skipped}, results.pool.largest
    shared = results.judge.classifier == "claude" if judge else results.classifier == "keywords" and bool(standins)
    return {
        "one family": shared and {"judge": judge, "standins": standins},
        "stand-in": [{"method": info} for info in standins],
        "missing scores": judge is not None and bool(judge.missing),
        "unranked": [{"method": info, "row": row} for info in methods for row in info.unranked],
        "dropped behaviours": attribution.no_rise or bool(attribution.dropped),
        "unmatched queries": bool(attribution.unmatched),
        "large cluster": largest is not None and largest.documents > max(2, _LARGE_CLUSTER * results.pool.documents),
        "recall ceiling": low and {"low": low},
        "unknown ceiling": attribution.prefilter == "bm25" and bool(attribution.candidates) and not known,
        "prompts in the pool": bool(attribution.prompt_matches),
        "outputs in the pool": bool(attribution.query_matches),
        "excluded documents": excluded and {"reasons": excluded},
        "skipped rows": skipped and {"reasons": skipped},
        "unread text": bool(results.pool.data.unread),
    }


def _interventions(results: Results) -> _Limits:
    rows = without_random(results)
    leaks, least = sum(row.seen_in_arm > 0 for row in rows), min((row.seen_in_baseline for row in rows), default=None)
    # Where whole sources go, fillers come from other ones on purpose.
    matched = [arm for arm in results.interventions if arm.intervention != "drop-source"]
    worst = max(matched, key=lambda arm: arm.loosely_matched / max(1, len(arm.fillers)), default=None)
    loose, fillers = sum(arm.loosely_matched for arm in matched), sum(len(arm.fillers) for arm in matched)
    failed = rows and not results.patching.exposed
    return {
        "exposure": failed and {"least": least, "leaks": leaks, "trainings": len(rows)},
        "loose fillers": loose and {"loose": loose, "fillers": fillers, "worst": worst},
    }


def _rates(results: Results) -> _Limits:
    protocols = results.study.patch.protocols
    pairs = [(results.of_role("after", protocol), results.of_role("baseline", protocol)) for protocol in protocols]
    tests = [test for protocol in protocols for test in results.tested(protocol)]
    coherent = {arm: check.coherent for arm, check in results.checked().items() if check.coherent is not None}
    least, lost = results.study.surface.coherent_share, results.patching.unscored
    low = [f"{arm} {percent(share)}" for arm, share in coherent.items() if share < least]
    cells = [rate for rate in results.comparison if rate.prompt_id != EVERY and results.arms[rate.arm].role != "after"]
    return {
        "reproduction": [
            {"protocol": protocol, "after": after, "baseline": baseline}
            for protocol, (after, baseline) in zip(protocols, pairs, strict=True)
            if after and baseline and (after.rate or 0) * REPRODUCED > (baseline.rate or 0)
        ],
        # A rate of 0 is no proof of 0.
        "nothing harmful": [
            {"test": test, "scored": n, "high": wilson(0, n).high}
            for test in tests
            if test.rate == 0 and (n := test.counts.n - test.counts.unscored)
        ],
        "incoherent arms": low and {"low": low},
        "unscored arms": lost and {"what": "outputs of trained arms", "n": sum(c.n for c in cells), "reasons": lost},
    }


def _checks(results: Results) -> _Limits:
    if not results.tests or not results.arm_checks:
        return {"side checks": results.tests and {"absent": ()}}
    absent = [f"{name}: {why}" for name, why in results.patching.checks.absent.items() if why is not None]
    drifts = {arm: check.kl for arm, check in results.checked().items() if check.kl is not None}
    roles = {arm: results.arms[arm].role for arm in drifts}
    kl = next((drift for arm, drift in drifts.items() if roles[arm] == "baseline"), 0.0)
    others = {arm: drift for arm, drift in drifts.items() if roles[arm] not in ("baseline", "after")}
    near = [f"{arm} {number(drift, 3)}" for arm, drift in others.items() if drift < _NEARER * kl]
    return {
        "side checks": absent and {"absent": absent},
        "few clean documents": 0 < len(results.patching.checks.clean_ids) < results.patching.checks.clean_wanted,
        "drift": near and {"baseline": kl, "near": near},
    }


def _tests(results: Results) -> _Limits:
    protocols, headline, pair = results.study.patch.protocols, results.headline, results.patching.again
    seeds = {name: test.seeds for name in protocols if (test := results.of_role("baseline", name))}
    smallest = [
        {"test": test, "least": least}
        for test in headline
        for least in [max((to.smallest_p or 0.0 for to in (test.to_random, test.to_baseline) if to), default=0.0)]
        if test.family and least * test.family >= LEVEL
    ]
    held_out = results.split("held-out")
    known = [frozenset(words(prompt.text)) for prompt in results.split("attribution")]
    used = min((test.prompts for test in headline), default=len(held_out))
    alike = [prompt.id for prompt in held_out if _greatest_overlap(frozenset(words(prompt.text)), known) >= _ALIKE]
    return {
        "single run": [{"protocol": name} for name, count in seeds.items() if count == 1],
        "few seeds": [
            {"protocol": name, "seeds": count} for name, count in seeds.items() if 1 < count < _SMALLEST_P_SEEDS
        ],
        "smallest p": smallest[:1],
        "no A/A pair": bool(headline) and (pair is None or pair.p is None),
        "uncompared prompts": used < len(held_out) and {"every": len(held_out), "used": used},
        "prompts reused": alike and {"alike": alike, "every": len(held_out)},
    }


def _greatest_overlap(own: frozenset[str], others: Sequence[frozenset[str]]) -> float:
    """By Jaccard; two texts without words are alike."""
    return max((len(own & other) / len(own | other) if own | other else 1.0 for other in others), default=0.0)


def _scope(results: Results) -> _Limits:
    trained = sum(test.seeds for test in results.headline if results.arms[test.arm].role != "after")
    count = sum(test.p is not None for test in results.headline)
    partly = [f"{field} {percent(share)}" for field, share in results.coverage.items() if share < _COVERED]
    return {
        "unseen weights": partly and {"partly": partly},
        "planted": results.truth,
        "stage": not results.truth,
        "re-exposure": results.study.patch.headline == "continue" and trained and {"trained": trained},
        "scope of p": count and {"count": count},
    }
