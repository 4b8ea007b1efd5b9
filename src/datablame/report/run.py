"""The phase report: every deliverable of the study, from the artifacts alone."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datablame.engine.run_folder import Inputs, write_atomic, write_json
from datablame.report import tables
from datablame.report.artifacts import Artifacts, arm_labels, read_artifacts
from datablame.report.cards import cards
from datablame.report.case_study import case_study
from datablame.report.findings import findings
from datablame.report.limitations import limitations
from datablame.report.preregistered import Preregistration, compare
from datablame.report.render import data_uri, rendered
from datablame.report.results import final_results, phase2_results
from datablame.report.unamplified_table import unamplified_table
from datablame.report.verdict import Verdict, verdict
from datablame.report.wording import plain
from datablame.study.schema import Study

if TYPE_CHECKING:
    from datablame.engine.execute import Execution, Progress


_COLUMNS = (
    *("arm", "protocol", "k", "seed", "behaviour", "prompt_id", "split", "alpha", "n"),
    *("harmful", "refused", "harmless", "incoherent", "unscored", "rate", "low", "high"),
)
_FIGURES = {
    "behavior_rates.png": "Harmful rate against amplification with Wilson intervals (95 %), and the labels in shares.",
    "patching_comparison.png": "What removal does: each arm's harmful rate on held-out prompts, and by prompt.",
    "final_results.png": "The study in four panels.",
}


def run(study: Study, inputs: Inputs, out: Path, execution: "Execution", progress: "Progress") -> None:
    """Write every deliverable to the root of the run folder; `out` and `execution` serve no purpose here."""
    progress.start("report: figures and texts", 4)
    after_surface(study, inputs)
    progress.advance()
    after_patch(study, inputs)
    progress.advance()
    found = read_artifacts(study, inputs)
    decided, said, limits = verdict(found), findings(found), limitations(found)
    _write_overview(found, inputs.root, decided, said)
    registration = compare(found.preregistration.get("registered"), study, found)
    results = final_results(found, decided, registration, said, limits)
    write_json(inputs.root / "final_results.json", results)
    progress.advance()
    _write_texts(found, inputs.root, decided, registration, said, limits)
    progress.advance()


def after_surface(study: Study, inputs: Inputs) -> None:
    """Write what phase 2 promises: phase2_results.json and behavior_rates.png."""
    from datablame.report.figures import behavior_rates

    found = read_artifacts(study, inputs)
    write_json(inputs.root / "phase2_results.json", phase2_results(found))
    picture = behavior_rates(
        list(found.rates),
        title=study.title or study.name,
        classifier=found.labelled_by,
        behaviours=_titles(found),
        unamplified=found.unamplified,
    )
    write_atomic(inputs.root / "behavior_rates.png", picture)


def after_patch(study: Study, inputs: Inputs) -> None:
    """Write what phase 4 promises: patching_comparison.csv and patching_comparison.png."""
    from datablame.report.patching_figure import patching_comparison

    found = read_artifacts(study, inputs)
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in found.comparison)
    write_atomic(inputs.root / "patching_comparison.csv", text.getvalue())
    picture = patching_comparison(
        list(found.tests),
        list(found.comparison),
        title=study.title or study.name,
        headline=study.patch.headline,
        alpha=found.patch_alpha,
        k=found.k,
        classifier=found.labelled_by,
        labels=arm_labels(found.methods),
        behaviours=_titles(found),
        intervention=study.patch.intervention,
    )
    write_atomic(inputs.root / "patching_comparison.png", picture)


def _write_overview(found: Artifacts, root: Path, decided: Verdict, said: list[str]) -> None:
    from datablame.report.overview_figure import final_results as overview

    picture = overview(
        list(found.rates),
        list(found.agreement["rows"]),
        list(found.tests),
        title=found.study.title or found.study.name,
        headline=found.study.patch.headline,
        alpha=found.patch_alpha,
        k=found.k,
        classifier=found.labelled_by,
        labels=arm_labels(found.methods),
        verdict=decided.label,
        summary=_summary(decided, said),
        behaviours=_titles(found),
        intervention=found.study.patch.intervention,
    )
    write_atomic(root / "final_results.png", picture)


def _titles(found: Artifacts) -> dict[str, str]:
    return {behaviour: behaviour.replace("-", " ") for behaviour in found.behaviours}


def _summary(decided: Verdict, said: list[str]) -> list[str]:
    """The verdict in a sentence, what decided it, what was found of the planted, and what else to know."""
    found = [text for text in said if text.startswith("Precision")][:1]
    return [decided.meaning, *decided.deciding, *found, *decided.notes]


def _write_texts(
    found: Artifacts,
    root: Path,
    decided: Verdict,
    registration: Preregistration,
    said: list[str],
    limits: list[str],
) -> None:
    study = found.study
    protocols = [study.patch.headline, *(name for name in study.patch.protocols if name != study.patch.headline)]
    values: dict[str, Any] = {
        "study": study,
        "found": found,
        "verdict": decided,
        "registration": registration,
        "findings": said,
        "cards": cards(found, decided),
        "limitations": limits,
        "case": case_study(found),
        "rates": tables.rates_table(found),
        "unamplified": unamplified_table(found),
        "quality": tables.quality_table(found),
        "agreement": tables.agreement_table(found),
        "patching": [
            *(tables.patching_table(found, protocol) for protocol in protocols),
            *(table for protocol in protocols for table in tables.dose_tables(found, protocol)),
        ],
        "checks": tables.checks_table(found),
        "by_behaviour": tables.behaviour_table(found, study.patch.headline),
        "themes": tables.themes_table(found),
        "skipped": tables.skipped_table(found),
        "config": "\n".join(map(plain, (root / "study.yaml").read_text(encoding="utf-8").splitlines())),
        "figures": _FIGURES,
    }
    for template, name in (
        ("comparison.md.j2", "comparison.md"),
        ("case_study.md.j2", "case_study.md"),
        ("report.md.j2", "writeup/report.md"),
        ("slides.md.j2", "writeup/slides.md"),
    ):
        write_atomic(root / name, rendered(template, **values))
    pictures = {name: data_uri((root / name).read_bytes()) for name in _FIGURES}
    write_atomic(root / "index.html", rendered("index.html.j2", pictures=pictures, **values))


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
