"""The phase report: every deliverable of the study, from the world and the tables alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from datablame.engine.files import write_atomic, write_json
from datablame.report.deliverables import comparison_csv, final_results, phase2_results
from datablame.report.findings import findings
from datablame.report.limitations import limitations
from datablame.report.pages import pages
from datablame.report.preregistered import preregistration
from datablame.report.results import Results, read_results
from datablame.report.verdict import verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from datablame.engine.phase import Outputs, Tables, Work
    from datablame.world.world import World

_STUDY = "study.yaml"


def report(world: "World", tables: "Tables", work: "Work") -> "Outputs":
    """Write every deliverable to the root of the run folder; there are no tables."""
    from datablame.report.figures import png

    root = work.root
    work.progress.start("report: figures and texts", 4)
    results = read_results(world, tables)
    pictures = {"behavior_rates.png": _surface(results, root)}
    work.progress.advance()
    pictures["patching_comparison.png"] = _patch(results, root)
    work.progress.advance()
    decided, conclusions, limits = verdict(results), findings(results), limitations(results)
    registration = preregistration(world, root, results)
    write_json(root / "final_results.json", final_results(results, decided, registration, conclusions, limits))
    pictures["final_results.png"] = _written(root / "final_results.png", png(overview_drawn(results)))
    work.progress.advance()
    config = (root / _STUDY).read_text(encoding="utf-8")
    for name, text in pages(results, decided, registration, conclusions, limits, config, pictures).items():
        write_atomic(root / name, text)
    work.progress.advance()
    return {}


def deliver_surface(world: "World", tables: "Tables", root: Path) -> None:
    """Write what phase 2 promises: phase2_results.json and behavior_rates.png."""
    _surface(read_results(world, tables), root)


def deliver_patch(world: "World", tables: "Tables", root: Path) -> None:
    """Write what phase 4 promises: patching_comparison.csv and patching_comparison.png."""
    _patch(read_results(world, tables), root)


def _surface(results: Results, root: Path) -> bytes:
    from datablame.report.figures import png

    write_json(root / "phase2_results.json", phase2_results(results))
    return _written(root / "behavior_rates.png", png(rates_drawn(results)))


def _patch(results: Results, root: Path) -> bytes:
    from datablame.report.figures import png

    write_atomic(root / "patching_comparison.csv", comparison_csv(results))
    return _written(root / "patching_comparison.png", png(patching_drawn(results)))


def rates_drawn(results: Results) -> "Figure":
    """behavior_rates.png as a figure: the harmful rate against alpha."""
    from datablame.report.figures import rates_figure

    return rates_figure(
        results.rates,
        title=results.title,
        classifier=results.labelled_by,
        behaviours=_titles(results),
        unamplified=results.unamplified,
    )


def patching_drawn(results: Results) -> "Figure":
    """patching_comparison.png as a figure: what each arm left of the behaviour."""
    from datablame.report.figures import patching_figure

    arms = list(results.arms.values())
    return patching_figure(results.tests, results.comparison, arms, **_compared(results))


def overview_drawn(results: Results) -> "Figure":
    """final_results.png as a figure: the study in four panels.

    The last one is the verdict in a sentence, what decided it, what was found of the planted, and what else to know.
    """
    from datablame.report.figures import overview_figure

    decided = verdict(results)
    precision = [finding.sentence for finding in findings(results) if finding.name == "precision"][:1]
    return overview_figure(
        results.rates,
        results.agreement,
        results.tests,
        list(results.methods.values()),
        list(results.arms.values()),
        verdict=decided.label,
        summary=[decided.meaning, *decided.deciding, *precision, *decided.notes],
        **_compared(results),
    )


def _compared(results: Results) -> dict[str, Any]:
    """What figures of arms have to know besides their rows."""
    return {
        "title": results.title,
        "headline": results.study.patch.headline,
        "alpha": results.alpha,
        "k": results.k,
        "classifier": results.labelled_by,
        "behaviours": _titles(results),
        "intervention": results.study.patch.intervention,
    }


def _written(path: Path, png: bytes) -> bytes:
    write_atomic(path, png)
    return png


def _titles(results: Results) -> dict[str, str]:
    return {behaviour: behaviour.replace("-", " ") for behaviour in results.behaviours}
