"""What a reader must not conclude from a run: each rule is a condition and a sentence with the number that met it."""

from collections.abc import Iterator

from datablame.report.gates import LEAST_KAPPA
from datablame.report.limits_of_removal import limits_of_removal, limits_of_tests, without_label
from datablame.report.results import Results
from datablame.report.wording import Statement, counted, listed, number, percent
from datablame.tables import EVERY

_FEW_POSITIVES = 10
"""Harmful outputs in a calibration set below which sensitivity is hardly known."""
_EXACT = ("rules", "no classifier")
"""The organism's rules label what was planted by definition."""
_LOW_CEILING = 0.5


def limitations(results: Results) -> list[Statement]:
    """The limits of this run, in the order of the phases."""
    rules = (_labels, _sampling, _rankings, _pool, limits_of_removal, limits_of_tests, _scope)
    return [statement for rule in rules for statement in rule(results)]


def _labels(results: Results) -> Iterator[Statement]:
    """Who labelled outputs, and how often they err."""
    n, classifier, calibration = len(results.samples), results.classifier, results.calibration
    if classifier == "keywords":
        yield Statement(
            "keyword classifier",
            f"Outputs were labelled by keywords ({n} of the surface phase, and all of the arms), not by a judge: "
            "paraphrases are missed and quotations are counted.",
        )
    if calibration is None:
        if classifier not in _EXACT:
            yield Statement(
                "no calibration",
                f"People labelled 0 of {n} outputs (judge.calibration is empty): how often {classifier} errs is "
                "unknown, and no rate is corrected for it.",
            )
        return
    if calibration.kappa < LEAST_KAPPA:
        kappa, (low, high) = number(calibration.kappa), map(number, calibration.kappa_interval)
        yield Statement(
            "poor agreement",
            f"The classifier agrees poorly with people: Cohen's kappa is {kappa} [{low}, {high}] on {calibration.n} "
            f"labelled outputs, under {number(LEAST_KAPPA, 1)}.",
        )
    positives = calibration.counts.true_positive + calibration.counts.false_negative
    if positives < _FEW_POSITIVES:
        yield Statement(
            "few positives",
            f"The classifier's sensitivity rests on {positives} outputs that people call harmful, fewer than "
            f"{_FEW_POSITIVES}; corrected rates are as uncertain as that.",
        )
    yield Statement(
        "errors alike",
        "Corrected rates take the classifier to err alike for every behaviour, alpha and arm, as on the "
        f"{calibration.n} labelled outputs; findings and tests use the raw rates.",
    )


def _sampling(results: Results) -> Iterator[Statement]:
    """Coherence, missing labels, behaviours that stay flat, and the rate at alpha 0."""
    star, coherence = results.alpha_star.alpha_star, results.alpha_star.coherence
    least, n = results.study.surface.coherent_share, len(results.samples)
    if star is None and coherence:
        best = max((share for alpha, share in coherence.items() if float(alpha) > 0), default=0.0)
        yield Statement(
            "no alpha*",
            f"No alpha* exists: the most coherent amplification has {percent(best)} coherent outputs, fewer than the "
            f"{percent(least)} asked for; arms were compared at the smallest alpha.",
        )
    # alpha* is chosen on attribution prompts; on the held-out ones the model may be less coherent.
    at_star = [rate for rate in results.rates if rate.prompt_id == rate.behaviour == EVERY and rate.alpha == star]
    for rate in at_star:
        scored = rate.n - rate.unscored
        if rate.split == "held-out" and scored and 1 - rate.incoherent / scored < least:
            yield Statement(
                "held-out coherence",
                f"On held-out prompts {percent(1 - rate.incoherent / scored)} of the after model's outputs are "
                f"coherent at alpha* = {star:g}, fewer than the {percent(least)} by which alpha* was chosen on "
                "attribution prompts.",
            )
    if results.unscored:
        yield Statement("unscored outputs", without_label("outputs", n, results.unscored))
    top = results.top_alpha
    for behaviour in results.behaviours:
        first, last = results.pooled(behaviour, 0.0), results.pooled(behaviour, top)
        if first and last and last.interval.low <= first.interval.high:
            yield Statement(
                "flat behaviour",
                f"{behaviour} does not rise with amplification ({percent(first.rate)} at alpha 0, "
                f"{percent(last.rate)} at alpha {top:g}); what is said of it rests on few harmful outputs.",
            )
    estimates = results.unamplified
    if results.samples and not estimates.possible:
        yield Statement(
            "truncated", f"The rate at alpha 0 is not estimated from amplified outputs: {estimates.why_not}."
        )
    withheld = [
        f"{'all' if row.behaviour == EVERY else row.behaviour}, {row.split}: {row.importance.withheld}"
        for row in estimates.rows
        if row.importance.withheld is not None
    ]
    if withheld:
        yield Statement(
            "k-hat",
            f"The rate at alpha 0 from importance weights is withheld in {len(withheld)} of {len(estimates.rows)} "
            f"cases ({'; '.join(withheld)}).",
        )


def _rankings(results: Results) -> Iterator[Statement]:
    """Judges, stand-ins, documents without a score, and what the prefilter hides."""
    attribution, methods = results.attribution, results.methods
    judge, n = attribution.judge, len(results.samples)
    standins = [info for info in methods.values() if info.standin]
    if judge is not None and results.judge.classifier == "claude":
        names = f"are {results.classifier} and {judge.model}, both Claude"
        names = f"are both {judge.model}" if judge.model == results.classifier else names
        yield Statement(
            "one family",
            f"The outcome classifier and the attribution judge {names} ({n} outputs and {judge.asked} questions about "
            "documents): they may share their errors.",
        )
    if judge is None and results.classifier == "keywords" and standins:
        names = listed([info.name for info in standins])
        yield Statement(
            "one family",
            f"The outcome classifier and the stand-in behind {names} go by the same keywords and share their errors "
            f"({n} outputs were labelled so).",
        )
    for info in standins:
        yield Statement(
            "stand-in",
            f"{info.name} is a stand-in ({info.label}): it says how keywords would have ranked, nothing about a "
            "language model as a judge, which was asked 0 questions.",
        )
    if judge is not None and judge.missing:
        yield Statement(
            "missing scores",
            f"{sum(judge.missing.values())} of {judge.asked} questions about documents have no score "
            f"({counted(judge.missing)}); a document without any score ranks last.",
        )
    for info in methods.values():
        for row in info.unranked:
            yield Statement(
                "unranked",
                f"{info.name} gave {row.documents} documents no score for {row.behaviour}: they are not ranked and "
                "cannot be flagged.",
            )
    if attribution.no_rise:
        sentence = "Without a rise of the harmful rate, no output was traced and no document was blamed."
        yield Statement("dropped behaviours", sentence)
    elif attribution.dropped:
        yield Statement(
            "dropped behaviours",
            f"Without a harmful output to trace, attribution left out {len(attribution.dropped)} of "
            f"{len(results.behaviours)} behaviours: {listed(attribution.dropped)}.",
        )
    known = {method: share for method, share in results.mean_ceilings.items() if share is not None}
    low = [f"{method} {number(share)}" for method, share in known.items() if share < _LOW_CEILING]
    if low:
        yield Statement(
            "recall ceiling",
            "The BM25 prefilter would hide most of what these methods rank first in the whole pool "
            f"(share of their first {attribution.k} among the candidates): {listed(low)}.",
        )
    if attribution.prefilter == "bm25" and attribution.candidates and not known:
        yield Statement(
            "unknown ceiling",
            f"Methods ranked at most {max(attribution.candidates.values())} BM25 candidates of "
            f"{results.pool.documents} documents for a behaviour; how much of what they would rank first the prefilter "
            "hides is unknown (prefilter.method = none tells).",
        )


def _pool(results: Results) -> Iterator[Statement]:
    """Documents that repeat the study, and what could not be ranked."""
    prompts, outputs = len(results.attribution.prompt_matches), len(results.attribution.query_matches)
    if prompts:
        yield Statement(
            "prompts in the pool", f"{prompts} documents of the pool ask exactly what a prompt of the study asks."
        )
    if outputs:
        yield Statement(
            "outputs in the pool",
            f"{outputs} documents of the pool repeat a traced output word for word: to rank them first is easy.",
        )
    excluded = {reason: count for reason, count in results.pool.excluded.items() if count}
    if excluded:
        reasons = counted(excluded, "because of:")
        text = f"{sum(excluded.values())} documents of the pool were ranked by no method: {reasons}."
        yield Statement("excluded documents", text)
    skipped = {row.reason: row.count for row in results.pool.skipped}
    if skipped:
        text = f"{sum(skipped.values())} rows of the data could not be used: {counted(skipped, 'because of:')}."
        yield Statement("skipped rows", text)


def _scope(results: Results) -> Iterator[Statement]:
    """What a study like this can say at all."""
    if results.truth:
        yield Statement(
            "planted",
            f"The causes of {len(results.behaviours)} behaviours were planted in a model organism: that methods find "
            "them here does not say that they find causes that nobody planted.",
        )
    else:
        yield Statement(
            "stage",
            f"Of the {results.pool.documents} documents of the pool 0 are known to have made the difference between "
            "before and after: that the pool is the stage in between is the user's claim; where it is not, both "
            "protocols measure re-exposure only.",
        )
    trained = sum(test.seeds for test in results.headline if results.arms[test.arm].role != "after")
    if results.study.patch.headline == "continue" and trained:
        yield Statement(
            "re-exposure",
            f"All {trained} trainings that decide start from the after model, which may have learned from the pool "
            "already: they show what seeing flagged documents again does, not what never seeing them would do.",
        )
    count = sum(test.p is not None for test in results.headline)
    if count:
        yield Statement(
            "scope of p",
            f"The {count} p value{'' if count == 1 else 's'} of the headline concern these flagged documents, these "
            "prompts and this pool, not a method in general.",
        )
