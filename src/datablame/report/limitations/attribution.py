"""Limits of the rankings and of the pool."""

from collections.abc import Iterable

from datablame.report.artifacts import Artifacts
from datablame.report.wording import listed, number
from datablame.tables import EVERY

_LOW_CEILING = 0.5


def one_family(found: Artifacts) -> Iterable[str]:
    """Two judges of one family may be wrong in the same way."""
    if "llm-judge" not in found.methods:
        return
    model, n = found.attribution_judge.get("model"), len(found.samples)
    if model is not None and found.judge.get("classifier") == "claude":
        same = f"are both {model}" if model == found.classifier else f"are {found.classifier} and {model}, both Claude"
        asked = f"{n} outputs and {found.attribution_judge['asked']} questions about documents"
        yield f"The outcome classifier and the judge behind llm-judge {same} ({asked}): they may share their errors."
    if model is None and found.classifier == "keywords":
        yield (
            "The outcome classifier and the stand-in behind llm-judge go by the same keywords and share their errors "
            f"({n} outputs were labelled so)."
        )


def stand_in(found: Artifacts) -> Iterable[str]:
    """A method that is not what its name says."""
    for name, method in found.methods.items():
        if method["standin"]:
            yield (
                f"{name} is a stand-in ({method['label']}): it says how keywords would have ranked, "
                "nothing about a language model as a judge, which was asked 0 questions."
            )


def missing_scores(found: Artifacts) -> Iterable[str]:
    """Questions that the attribution judge left without a score."""
    missing = found.attribution_judge.get("missing", {})
    if missing:
        told = listed([f"{count} because {reason}" for reason, count in missing.items()])
        yield (
            f"{sum(missing.values())} of {found.attribution_judge['asked']} questions about documents have no score "
            f"({told}); a document without any score ranks last."
        )


def unranked(found: Artifacts) -> Iterable[str]:
    """Documents for which a method brought no score."""
    for name, method in found.methods.items():
        for behaviour, count in method.get("unranked", {}).items():
            yield f"{name} gave {count} documents no score for {behaviour}: they are not ranked and cannot be flagged."


def dropped_behaviours(found: Artifacts) -> Iterable[str]:
    """Behaviours without an output to trace."""
    dropped = found.pool.get("behaviours", {}).get("dropped", [])
    if found.no_rise:
        yield "Without a rise of the harmful rate, no output was traced and no document was blamed."
    elif dropped:
        yield (
            f"Without a harmful output to trace, attribution left out {len(dropped)} of {len(found.behaviours)} "
            f"behaviours: {listed(dropped)}."
        )


def recall_ceiling(found: Artifacts) -> Iterable[str]:
    """The prefilter hides most of what a method ranks first in the whole pool."""
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


def unknown_ceiling(found: Artifacts) -> Iterable[str]:
    """Nobody looked at the documents that the prefilter left out."""
    candidates = found.pool.get("candidates", {})
    known = any(row["ceiling"] is not None for row in found.quality["ceilings"])
    prefilter = found.pool.get("prefilter", found.study.prefilter.method)
    if prefilter == "bm25" and candidates and not known:
        yield (
            f"Methods ranked at most {max(candidates.values())} BM25 candidates of {found.pool['documents']} documents "
            "for a behaviour; how much of what they would rank first the prefilter hides is unknown "
            "(prefilter.method = none tells)."
        )


def prompts_in_the_pool(found: Artifacts) -> Iterable[str]:
    """Documents that repeat a prompt."""
    matches = found.pool.get("prompt_matches", [])
    if matches:
        yield f"{len(matches)} documents of the pool ask exactly what a prompt of the study asks."


def outputs_in_the_pool(found: Artifacts) -> Iterable[str]:
    """Documents that repeat a traced output: no finding."""
    matches = found.pool.get("query_matches", [])
    if matches:
        yield f"{len(matches)} documents of the pool repeat a traced output word for word: to rank them first is easy."


def excluded_documents(found: Artifacts) -> Iterable[str]:
    """Documents that no method could rank."""
    excluded = {reason: count for reason, count in found.pool.get("excluded", {}).items() if count}
    if excluded:
        told = listed([f"{count} because of: {reason}" for reason, count in excluded.items()])
        yield f"{sum(excluded.values())} documents of the pool were ranked by no method: {told}."


def skipped_rows(found: Artifacts) -> Iterable[str]:
    """Rows of the data that are no document."""
    skipped = {reason: row["count"] for reason, row in found.pool.get("skipped_rows", {}).items()}
    if skipped:
        told = [f"{count} because of: {reason}" for reason, count in skipped.items()]
        yield f"{sum(skipped.values())} rows of the data could not be used: {listed(told)}."
