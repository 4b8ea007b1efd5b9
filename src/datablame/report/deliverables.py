"""final_results.json, phase2_results.json and patching_comparison.csv: what programs read, made from rows."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from datablame.report.preregistered import Preregistration
from datablame.report.results import Results
from datablame.report.statement import Statement
from datablame.report.verdict import Verdict
from datablame.tables import EVERY, MethodInfo, Quality, Rate

SCHEMA_VERSION = 1

_SAMPLE_FIELDS = (
    *("prompt_id", "behaviour", "split", "alpha", "index", "text", "finish_reason"),
    *("label", "classifier", "label_reason", "log_p_after", "log_p_before", "log_q"),
)
_QUALITY_FIELDS = ("precision_at_k", "recall_at_k", "auprc", "base_rate", "n", "planted")
_CSV_COLUMNS = (
    *("arm", "protocol", "k", "seed", "behaviour", "prompt_id", "split", "alpha", "n"),
    *("harmful", "refused", "harmless", "incoherent", "unscored", "rate", "low", "high"),
)


def phase2_results(results: Results) -> dict[str, Any]:
    """Every sample with its label and classifier, and the rates."""
    return {
        "schema_version": SCHEMA_VERSION,
        "study": results.study.name,
        "classifier": results.classifier,
        "alphas": list(results.study.surface.alphas),
        "alpha_star": _alpha_star(results),
        "focus_prompts": [prompt.prompt_id for prompt in results.scanned if prompt.selected],
        "rates": [asdict(rate) for rate in results.rates],
        "unamplified": asdict(results.unamplified),
        "samples": [_fields(sample, _SAMPLE_FIELDS) for sample in results.samples],
    }


def final_results(
    results: Results,
    verdict: Verdict,
    registration: Preregistration,
    findings: Sequence[Statement],
    limitations: Sequence[Statement],
) -> dict[str, Any]:
    """The results under the names that programs rely on; equal runs have the same bytes."""
    judge, patch = results.attribution.judge, results.study.patch
    return {
        "schema_version": SCHEMA_VERSION,
        "study": {
            "name": results.study.name,
            "title": results.study.title,
            "seed": results.study.seed,
            "classifier": results.classifier,
            "behaviours": results.behaviours,
            "headline": {"protocol": patch.headline, "k": results.k, "alpha": results.alpha},
            "ks": list(results.ks),
            "intervention": patch.intervention,
        },
        "verdict": verdict.as_json(),
        "preregistration": registration.as_json(),
        "findings": [finding.sentence for finding in findings],
        "limitations": [limit.sentence for limit in limitations],
        "alpha_star": _alpha_star(results),
        "rates": [_with_correction(results, rate) for rate in results.rates],
        "unamplified": asdict(results.unamplified),
        "calibration": asdict(results.calibration) if results.calibration else None,
        "attribution": {name: _method(results, info) for name, info in results.methods.items()},
        "judge": {
            "classifier": results.classifier,
            "attribution": judge.model if judge else results.judge.attribution,
            "unscored": {
                "surface": results.unscored,
                "patch": dict(results.patching.unscored) if results.patching else {},
            },
            "attribution_asked": judge.asked if judge else 0,
            "attribution_missing": dict(judge.missing) if judge else {},
        },
        "prefilter_recall": [asdict(row) for row in results.prefilter_recall],
        "agreement": [asdict(row) for row in results.agreement],
        "patching": [asdict(test) for test in results.tests],
        "aa": asdict(results.patching.again) if results.patching and results.patching.again else None,
        "exposure": _exposure(results),
        "checks": _checks(results),
        "pool": _pool(results),
        "themes": _themes(results),
        "flagged": {name: results.flagged(name, results.attribution.k) for name in results.methods},
    }


def comparison_csv(results: Results) -> str:
    """Every cell of every arm."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for rate in results.comparison:
        writer.writerow({name: _cell(value) for name, value in _fields(rate, _CSV_COLUMNS).items()})
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _fields(row: object, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}


def _alpha_star(results: Results) -> dict[str, Any]:
    return _fields(results.alpha_star, ("alpha_star", "rule", "coherence"))


def _with_correction(results: Results, rate: Rate) -> dict[str, Any]:
    """A row of `rates`; with a calibration it has its corrected rate and interval beside the raw ones."""
    if results.calibration is None:
        return asdict(rate)
    values = results.corrected(rate.harmful, rate.n - rate.unscored) or (None, None, None)
    return {**asdict(rate), **dict(zip(("corrected", "corrected_low", "corrected_high"), values, strict=True))}


def _method(results: Results, info: MethodInfo) -> dict[str, Any]:
    rows = [row for row in results.quality if row.method == info.name]
    pools: dict[str, Quality] = {row.pool: row for row in rows if row.behaviour == EVERY}
    main = pools.get(info.pool)
    ceilings = {row.method: row.ceiling for row in results.ceilings if row.behaviour == EVERY}
    return {
        **_fields(info, ("label", "description", "standin", "control", "pool")),
        **({"unranked": {row.behaviour: row.documents for row in info.unranked}} if info.unranked else {}),
        **(_fields(main, _QUALITY_FIELDS) if main else dict.fromkeys(_QUALITY_FIELDS)),
        "by_pool": {pool: _fields(row, _QUALITY_FIELDS) for pool, row in pools.items()},
        "by_behaviour": [asdict(row) for row in rows if row.behaviour != EVERY],
        "prefilter_recall": ceilings.get(info.name),
    }


def _exposure(results: Results) -> dict[str, Any]:
    rows = [asdict(row) for row in results.exposure]
    patching = results.patching
    return {
        "rows": [{name: value for name, value in row.items() if value is not None} for row in rows],
        "least_seen_in_baseline": patching.least_seen_in_baseline if patching else None,
        "passed": patching.exposed if patching else True,
    }


def _checks(results: Results) -> dict[str, Any] | None:
    if results.patching is None:
        return None
    design = results.patching.checks
    return {
        "clean_documents": len(design.clean_ids),
        "clean_documents_wanted": design.clean_wanted,
        "clean_ids": list(design.clean_ids),
        "harmless_prompts": design.harmless_prompts,
        "refusals_by": design.refusals_by,
        "absent": dict(design.absent),
        "thresholds": _fields(design, ("perplexity", "refusal", "coherence")),
        "rows": [asdict(check) for check in results.checks],
        "arms": [asdict(check) for check in results.arm_checks],
    }


def _pool(results: Results) -> dict[str, Any]:
    pool, attribution = results.pool, results.attribution
    return {
        **_fields(pool, ("documents", "clusters", "excluded")),
        **({"commit": pool.commit} if pool.commit is not None else {}),
        **({"exactness": attribution.exactness} if attribution.exactness is not None else {}),
        "skipped_rows": {row.reason: {"count": row.count, "example": row.example} for row in pool.skipped},
        "candidates": dict(attribution.candidates),
        "prompt_matches": [{"doc_id": match.doc_id, "prompt_id": match.of} for match in attribution.prompt_matches],
        "query_matches": [{"doc_id": match.doc_id, "query_id": match.of} for match in attribution.query_matches],
        "behaviours": {
            "traced": list(attribution.traced),
            "dropped": list(attribution.dropped),
            "no_rise": attribution.no_rise,
        },
        "prefilter": attribution.prefilter,
    }


def _themes(results: Results) -> dict[str, Any]:
    return {
        "documents": results.attribution.themed,
        "silhouette": results.attribution.silhouette,
        "themes": [
            {**asdict(theme), "flagged": {row.method: row.share for row in theme.flagged}} for theme in results.themes
        ],
    }
