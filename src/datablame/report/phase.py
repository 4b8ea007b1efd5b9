"""The phase report: every deliverable of the study, from the world and the tables alone."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datablame.engine.files import write_atomic, write_json
from datablame.report.findings import findings
from datablame.report.gates import preregistration
from datablame.report.limitations import limitations
from datablame.report.page import explorer
from datablame.report.pages import PAGES, Conclusions, pages
from datablame.report.pdf import PRINTED
from datablame.report.redaction import redacted
from datablame.report.results import Results, read_results
from datablame.report.verdict import Verdict, verdict
from datablame.report.wording import Statement, spreadsheet
from datablame.tables import EVERY, ArmRate, MethodInfo, Quality, Rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from datablame.engine.phase import Outputs, Tables, Work
    from datablame.world.world import World

SCHEMA_VERSION = 1
FORMATS = ("png", "svg", "pdf")
"""In which every figure is delivered."""
DELIVERABLES = (
    *("phase2_results.json", "patching_comparison.csv", "final_results.json"),
    *(f"{name}.{form}" for name in ("behavior_rates", "patching_comparison", "final_results") for form in FORMATS),
    *PAGES,
)
"""Every file that a finished study has at the root of its run folder, beside its study, times and versions."""
BLAME_PICTURE = "blame_by_source"
"""Only where the pool has several sources and something is traced."""
_QUALITIES = [each.name for each in fields(Quality) if each.name not in ("method", "behaviour", "pool")]


def report(world: "World", tables: "Tables", work: "Work") -> "Outputs":
    """Write every deliverable to the root of the run folder; there are no tables."""
    from datablame.report.figures import sources_figure

    root = work.root
    work.progress.start("report: figures and texts", 4)
    results = shown_results(world, tables)
    _surface(results, root)
    work.progress.advance()
    _patch(results, root)
    work.progress.advance()
    decided, statements = verdict(results), findings(results)
    conclusions = Conclusions(
        verdict=decided,
        registration=preregistration(world, root, results),
        findings=[finding.sentence for finding in statements],
        limitations=[limit.sentence for limit in limitations(results)],
    )
    write_json(root / "final_results.json", _final_results(results, conclusions))
    if (blamed := sources_figure(results)) is not None:
        _draw(blamed, root, BLAME_PICTURE)
    else:
        for form in FORMATS:
            (root / f"{BLAME_PICTURE}.{form}").unlink(missing_ok=True)
    _draw(overview_drawn(results, decided, statements), root, "final_results")
    work.progress.advance()
    # They would show what the pages no longer do.
    for name in PRINTED:
        (root / name).unlink(missing_ok=True)
    config = (root / "study.yaml").read_text(encoding="utf-8")
    found, pictures = explorer(results, world, tables), [f"{BLAME_PICTURE}.png"] * (blamed is not None)
    for name, text in pages(results, conclusions, config, pictures, found).items():
        write_atomic(root / name, text)
    work.progress.advance()
    return {}


def deliver_surface(world: "World", tables: "Tables", root: Path) -> None:
    """Write what phase 2 promises: phase2_results.json and behavior_rates in every format."""
    _surface(shown_results(world, tables), root)


def deliver_patch(world: "World", tables: "Tables", root: Path) -> None:
    """Write what phase 4 promises: patching_comparison.csv and the figure of that name."""
    _patch(shown_results(world, tables), root)


def shown_results(world: "World", tables: "Tables") -> Results:
    """What was found, as the study has it shown."""
    results = read_results(world, tables)
    return redacted(results) if world.study.report.redact else results


def overview_drawn(results: Results, decided: Verdict, statements: Sequence[Statement]) -> "Figure":
    """The figure final_results: the study in four panels.

    The last one is the verdict in a sentence, what decided it, what was found of the planted, and what else to know.
    """
    from datablame.report.figures import overview_figure

    precision = [finding.sentence for finding in statements if finding.name == "precision"][:1]
    return overview_figure(results, decided.label, [decided.headline, *decided.deciding, *precision, *decided.notes])


def _draw(figure: "Figure", root: Path, name: str) -> None:
    """Write a figure in every format."""
    from datablame.report.figures import pictures

    for form, picture in pictures(figure, FORMATS).items():
        write_atomic(root / f"{name}.{form}", picture)


def _surface(results: Results, root: Path) -> None:
    """What phase 2 delivers: every sample with its label and classifier, and the rates, drawn too."""
    from datablame.report.figures import rates_figure

    values = {
        "schema_version": SCHEMA_VERSION,
        "study": results.study.name,
        "classifier": results.classifier,
        "alphas": list(results.study.surface.alphas),
        "alpha_star": _without(results.alpha_star, "rise"),
        "focus_prompts": [prompt.prompt_id for prompt in results.scanned if prompt.selected],
        "rates": [asdict(rate) for rate in results.rates],
        "unamplified": asdict(results.unamplified),
        "samples": [_without(sample, "token_ids") for sample in results.samples],
    }
    write_json(root / "phase2_results.json", values)
    _draw(rates_figure(results), root, "behavior_rates")


def _patch(results: Results, root: Path) -> None:
    """What phase 4 delivers: every cell of every arm, drawn too."""
    from datablame.report.figures import patching_figure

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.name for column in fields(ArmRate))
    for rate in results.comparison:
        writer.writerow(map(spreadsheet, astuple(rate)))
    write_atomic(root / "patching_comparison.csv", text.getvalue())
    _draw(patching_figure(results), root, "patching_comparison")


def _final_results(results: Results, conclusions: Conclusions) -> dict[str, Any]:
    """The results under the names that programs rely on; equal runs have the same bytes."""
    study, attribution, pool, patching = results.study, results.attribution, results.pool, results.patching
    judge, registration, decided = attribution.judge, conclusions.registration, conclusions.verdict
    return {
        "schema_version": SCHEMA_VERSION,
        "study": {
            "name": study.name,
            "title": study.title,
            "seed": study.seed,
            "classifier": results.classifier,
            "behaviours": results.behaviours,
            "headline": {"protocol": study.patch.headline, "k": patching.k, "alpha": patching.alpha},
            "ks": patching.ks,
            "intervention": study.patch.intervention,
        },
        "verdict": {
            "label": decided.label,
            "headline": decided.headline,
            "reasons": decided.reasons,
            "numbers": decided.numbers,
        },
        "preregistration": {
            **registration._asdict(),
            "deviations": [deviation._asdict() for deviation in registration.deviations],
        },
        "findings": conclusions.findings,
        "limitations": conclusions.limitations,
        "alpha_star": _without(results.alpha_star, "rise"),
        "rates": [_with_correction(results, rate) for rate in results.rates],
        "unamplified": asdict(results.unamplified),
        "calibration": results.calibration and _known(asdict(results.calibration)),
        **_people(results),
        "attribution": {name: _method(results, info) for name, info in results.methods.items()},
        "judge": {
            "classifier": results.classifier,
            "attribution": judge.model if judge else results.judge.attribution,
            "unscored": {"surface": results.unscored, "patch": patching.unscored},
            "attribution_requests": judge.requests if judge else 0,
            "attribution_missing": judge.missing if judge else {},
        },
        "prefilter_recall": [asdict(row) for row in results.prefilter_recall],
        "agreement": [asdict(row) for row in results.agreement],
        "patching": [asdict(test) for test in results.tests],
        "aa": patching.again and asdict(patching.again),
        "exposure": {
            "rows": [_known(asdict(row)) for row in results.exposure],
            "least_seen_in_baseline": patching.least_seen_in_baseline,
            "passed": patching.exposed,
        },
        "checks": _checks(results),
        "pool": {
            **_known({"commit": pool.data.commit, "exactness": attribution.exactness}),
            **_without(pool, "pairs", "data", "largest"),
            **_without(pool.data, "commit", "files"),
            "files": [
                {**_without(file, "skipped"), "skipped": {row.reason: row.count for row in file.skipped}}
                for file in pool.data.files
            ],
            "largest_cluster": pool.largest and asdict(pool.largest),
            "candidates": attribution.candidates,
            "prefilter": attribution.prefilter,
            "skipped_rows": {row.reason: {"count": row.count, "example": row.example} for row in pool.data.skipped},
            "prompt_matches": [{"doc_id": match.doc_id, "prompt_id": match.of} for match in attribution.prompt_matches],
            "query_matches": [{"doc_id": match.doc_id, "query_id": match.of} for match in attribution.query_matches],
            "unmatched_queries": attribution.unmatched,
            "behaviours": {name: getattr(attribution, name) for name in ("traced", "dropped", "no_rise")},
        },
        "themes": {
            "documents": attribution.themed,
            "silhouette": attribution.silhouette,
            "themes": [
                {**asdict(theme), "flagged": {row.method: row.share for row in theme.flagged}}
                for theme in results.themes
            ],
        },
        "blame": [asdict(row) for row in results.blame],
        "groups": {
            **(_without(attribution.discovery) if attribution.discovery else {"reason": "not looked for"}),
            "groups": [asdict(group) for group in results.groups],
        },
        "flagged": {name: results.flagged(name, attribution.k) for name in results.methods},
    }


def _without(row: object, *names: str) -> dict[str, Any]:
    return {name: value for name, value in vars(row).items() if name not in names}


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _with_correction(results: Results, rate: Rate) -> dict[str, Any]:
    """A row of `rates`; with a calibration it has its corrected rate and interval beside the raw ones."""
    if results.calibration is None:
        return asdict(rate)
    values = results.corrected(rate.harmful, rate.n - rate.unscored) or (None, None, None)
    return {**asdict(rate), **dict(zip(("corrected", "corrected_low", "corrected_high"), values, strict=True))}


def _people(results: Results) -> dict[str, Any]:
    """Who labelled outputs of this run; what follows is the calibration."""
    if results.people is None:
        return {}
    return {"people": {name: value for name, value in asdict(results.people).items() if name != "calibration"}}


def _method(results: Results, info: MethodInfo) -> dict[str, Any]:
    rows = [row for row in results.quality if row.method == info.name]
    pools = {row.pool: _without(row, "method", "behaviour", "pool") for row in rows if row.behaviour == EVERY}
    unranked = {row.behaviour: row.documents for row in info.unranked}
    return {
        **_without(info, "name", "voter", "look", "confounds", "unranked", "findings"),
        **({"unranked": unranked} if unranked else {}),
        **({"findings": [asdict(row) for row in info.findings]} if info.findings else {}),
        **pools.get(info.pool, dict.fromkeys(_QUALITIES)),
        "by_pool": pools,
        "by_behaviour": [asdict(row) for row in rows if row.behaviour != EVERY],
        "prefilter_recall": results.mean_ceilings.get(info.name),
    }


def _checks(results: Results) -> dict[str, Any]:
    design, thresholds = vars(results.patching.checks), ("perplexity", "refusal", "coherence")
    return {
        **{name: design[name] for name in ("clean_ids", "harmless_prompts", "refusals_by", "absent")},
        "clean_documents": len(design["clean_ids"]),
        "clean_documents_wanted": design["clean_wanted"],
        "thresholds": {name: design[name] for name in thresholds},
        "rows": [asdict(check) for check in results.checks],
        "arms": [asdict(check) for check in results.arm_checks],
    }
