"""final_results.json and phase2_results.json: everything a reader or a program needs."""

from collections.abc import Sequence
from typing import Any

from datablame.report.artifacts import Artifacts, Row
from datablame.report.corrections import with_corrections
from datablame.report.preregistered import Preregistration
from datablame.report.verdict import Verdict
from datablame.tables import EVERY

SCHEMA_VERSION = 1

_SAMPLE_FIELDS = (
    *("prompt_id", "behaviour", "split", "alpha", "index", "text", "finish_reason"),
    *("label", "classifier", "label_reason", "log_p_after", "log_p_before", "log_q"),
)
_QUALITY_FIELDS = ("precision_at_k", "recall_at_k", "auprc", "base_rate", "n", "planted")


def phase2_results(found: Artifacts) -> dict[str, Any]:
    """Every sample with its label and classifier, and the rates."""
    return {
        "schema_version": SCHEMA_VERSION,
        "study": found.study.name,
        "classifier": found.classifier,
        "alphas": list(found.study.surface.alphas),
        "alpha_star": found.alpha_star,
        "focus_prompts": found.scan["focus"],
        "rates": list(found.rates),
        "unamplified": found.unamplified,
        "samples": [{field: sample[field] for field in _SAMPLE_FIELDS} for sample in found.samples],
    }


def final_results(
    found: Artifacts,
    decided: Verdict,
    registration: Preregistration,
    findings: Sequence[str],
    limitations: Sequence[str],
) -> dict[str, Any]:
    """The results under the names that programs rely on; equal runs have the same bytes."""
    return {
        "schema_version": SCHEMA_VERSION,
        "study": {
            "name": found.study.name,
            "title": found.study.title,
            "seed": found.study.seed,
            "classifier": found.classifier,
            "behaviours": found.behaviours,
            "headline": {"protocol": found.study.patch.headline, "k": found.k, "alpha": found.patch_alpha},
            "ks": list(found.ks),
            "intervention": found.study.patch.intervention,
        },
        "verdict": decided.as_json(),
        "preregistration": registration.as_json(),
        "findings": list(findings),
        "limitations": list(limitations),
        "alpha_star": found.alpha_star,
        "rates": with_corrections(found),
        "unamplified": found.unamplified,
        "calibration": found.calibration,
        "attribution": {name: _method(found, name) for name in found.methods},
        "judge": {
            "classifier": found.classifier,
            "attribution": found.attribution_judge.get("model") or found.judge.get("attribution"),
            "unscored": {"surface": found.unscored, "patch": dict(found.unscored_arms)},
            "attribution_asked": found.attribution_judge.get("asked", 0),
            "attribution_missing": dict(found.attribution_judge.get("missing", {})),
        },
        "prefilter_recall": found.quality["prefilter_recall"],
        "agreement": found.agreement["rows"],
        "patching": list(found.tests),
        "aa": found.aa,
        "exposure": found.exposure,
        "checks": found.checks or None,
        "pool": found.pool,
        "themes": found.themes,
        "flagged": found.flagged,
    }


def _method(found: Artifacts, name: str) -> dict[str, Any]:
    mine: dict[str, Row] = {
        row["pool"]: row for row in found.quality["rows"] if row["method"] == name and row["behaviour"] == EVERY
    }
    main = mine.get(found.methods[name]["pool"], {})
    ceilings = {row["method"]: row["ceiling"] for row in found.quality["ceilings"] if row["behaviour"] == EVERY}
    return {
        **found.methods[name],
        **{field: main.get(field) for field in _QUALITY_FIELDS},
        "by_pool": {pool: {field: row[field] for field in _QUALITY_FIELDS} for pool, row in mine.items()},
        "by_behaviour": [row for row in found.quality["rows"] if row["method"] == name and row["behaviour"] != EVERY],
        "prefilter_recall": ceilings.get(name),
    }
