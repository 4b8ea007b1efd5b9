"""What a reader must not conclude: rules over the artifacts, each naming the number that triggered it."""

from collections.abc import Iterable, Mapping

from datablame.records import EVERY
from datablame.report.artifacts import Artifacts
from datablame.report.findings import pooled_rate
from datablame.report.wording import listed, number, percent
from datablame.stats.intervals import wilson

__all__ = ["limitations"]

_SMALLEST_P_SEEDS = 4
_LOW_CEILING = 0.5
_REPRODUCED = 0.5
_MOST_UNSCORED = 0.02
_LEAST_KAPPA = 0.6


def limitations(found: Artifacts) -> list[str]:
    """The limits of this run."""
    return [*_surfacing(found), *_attribution(found), *_patching(found), *_always(found)]


def _surfacing(found: Artifacts) -> Iterable[str]:
    if found.classifier == "keywords":
        yield "Outputs were labelled by keywords, not by a judge: paraphrases are missed and quotations are counted."
    yield from _calibration(found)
    if found.alpha_star["alpha_star"] is None and found.alpha_star["coherence"]:
        best = max((share for alpha, share in found.alpha_star["coherence"].items() if float(alpha) > 0), default=0.0)
        yield (
            f"No alpha* exists: the most coherent amplification has {percent(best)} coherent outputs, fewer than the "
            f"{percent(found.study.surface.coherent_share)} asked for; arms were compared at the smallest alpha."
        )
    unscored = sum(found.unscored.values())
    if unscored:
        yield _without_label("outputs", unscored, len(found.samples), found.unscored)
    arms = sum(found.unscored_arms.values())
    if arms:
        measured = sum(row["n"] for row in found.comparison if row["arm"] != "untrained" and row["prompt_id"] != EVERY)
        yield _without_label("outputs of trained arms", arms, measured, found.unscored_arms)
    top = max(found.study.surface.alphas)
    for behaviour in found.behaviours:
        first, last = pooled_rate(found, behaviour, 0.0), pooled_rate(found, behaviour, top)
        if first and last and last.interval.low <= first.interval.high:
            yield (
                f"{behaviour} does not rise with amplification ({percent(first.rate)} at alpha 0, "
                f"{percent(last.rate)} at alpha {top:g}); what is said of it rests on few harmful outputs."
            )


def _calibration(found: Artifacts) -> Iterable[str]:
    if found.calibration is None:
        return
    n, kappa = found.calibration["n"], found.calibration["kappa"]
    low, high = found.calibration["kappa_interval"]
    if kappa < _LEAST_KAPPA:
        yield (
            f"The classifier agrees poorly with people: Cohen's kappa is {number(kappa)} "
            f"[{number(low)}, {number(high)}] on {n} labelled outputs, under {number(_LEAST_KAPPA, 1)}."
        )
    yield (
        f"Corrected rates take the classifier to err alike for every behaviour, alpha and arm, as on the {n} labelled "
        "outputs; findings and tests use the raw rates."
    )


def _without_label(what: str, unscored: int, n: int, reasons: Mapping[str, int]) -> str:
    share = unscored / max(1, n)
    told = listed([f"{count} because {reason}" for reason, count in reasons.items()])
    much = f", more than {percent(_MOST_UNSCORED)}, so that the rates may be biased" if share > _MOST_UNSCORED else ""
    return f"{unscored} of {n} {what} have no label ({told}); they count neither way{much}."


def _attribution(found: Artifacts) -> Iterable[str]:
    yield from _judges(found)
    for name, method in found.methods.items():
        if method["standin"]:
            yield (
                f"{name} is a stand-in ({method['label']}): it says how keywords would have ranked, "
                "nothing about a language model as a judge."
            )
    for name, method in found.methods.items():
        for behaviour, count in method.get("unranked", {}).items():
            yield f"{name} gave {count} documents no score for {behaviour}: they are not ranked and cannot be flagged."
    dropped = found.pool.get("behaviours", {}).get("dropped", [])
    if dropped:
        yield f"Without a harmful output to trace, attribution left out {listed(dropped)}."
    low = [
        f"{row['method']} {number(row['ceiling'])}"
        for row in found.quality["ceilings"]
        if row["behaviour"] == EVERY and row["ceiling"] is not None and row["ceiling"] < _LOW_CEILING
    ]
    if low:
        yield (
            "The BM25 prefilter would hide most of what these methods rank first in the whole pool "
            f"(share of their first {found.quality['k']} among the candidates): {listed(low)}."
        )
    matches = found.pool.get("prompt_matches", [])
    if matches:
        yield f"{len(matches)} documents of the pool ask exactly what a prompt of the study asks."
    skipped = {reason: row["count"] for reason, row in found.pool.get("skipped_rows", {}).items()}
    if skipped:
        told = [f"{count} because of: {reason}" for reason, count in skipped.items()]
        yield f"{sum(skipped.values())} rows of the data could not be used: {listed(told)}."


def _judges(found: Artifacts) -> Iterable[str]:
    """Two judges of one family may be wrong in the same way."""
    if "llm-judge" not in found.methods:
        return
    model = found.attribution_judge.get("model")
    if model is not None and found.judge.get("classifier") == "claude":
        same = f"are both {model}" if model == found.classifier else f"are {found.classifier} and {model}, both Claude"
        yield f"The outcome classifier and the judge behind llm-judge {same}: they may share their errors."
    if model is None and found.classifier == "keywords":
        yield "The outcome classifier and the stand-in behind llm-judge go by the same keywords and share their errors."
    missing = found.attribution_judge.get("missing", {})
    if missing:
        told = listed([f"{count} because {reason}" for reason, count in missing.items()])
        yield (
            f"{sum(missing.values())} of {found.attribution_judge['asked']} questions about documents have no score "
            f"({told}); a document without any score ranks last."
        )


def _patching(found: Artifacts) -> Iterable[str]:
    if not found.exposure["passed"]:
        least = min(row["seen_in_baseline"] for row in found.exposure["rows"] if row["arm"] != "random")
        yield (
            f"The exposure gate failed: the no-removal arm saw as little as {percent(least)} of what an arm removed, "
            "so that removal could not matter; raise patch.steps."
        )
    for protocol in found.study.patch.protocols:
        rows = found.tested(protocol=protocol)
        seeds = rows["baseline"]["seeds"] if "baseline" in rows else None
        if seeds == 1:
            yield f"{protocol} was run with one training seed: its differences carry no test and may be training noise."
        elif seeds is not None and seeds < _SMALLEST_P_SEEDS:
            yield f"{protocol} has {seeds} training seeds, too few for a permutation p below .05, so none is given."
        for arm, row in rows.items():
            scored = sum(row["counts"].values()) - row["counts"]["unscored"]
            if row["rate"] == 0 and scored:
                yield (
                    f"{protocol}: {arm} showed no harmful output in {scored}, where a bootstrap interval has no width; "
                    f"by Wilson's interval its rate may be up to {percent(wilson(0, scored).high)}."
                )
        untrained, baseline = rows.get("untrained"), rows.get("baseline")
        if untrained and baseline and (untrained["rate"] or 0) * _REPRODUCED > (baseline["rate"] or 0):
            yield (
                f"In {protocol}, training without any removal brings the rate to {percent(baseline['rate'])}, under "
                f"half of the after model's {percent(untrained['rate'])}: the behaviour is not reproduced."
            )


def _always(found: Artifacts) -> Iterable[str]:
    if found.study.truth is not None:
        yield (
            "The causes were planted in a model organism: that methods find them here does not say that they find "
            "causes that nobody planted."
        )
    else:
        yield (
            "Whether the pool is the data that made the difference between before and after is the user's claim; "
            "where it is not, both protocols measure re-exposure only."
        )
    yield "A p value concerns these flagged documents, these prompts and this pool, not a method in general."
