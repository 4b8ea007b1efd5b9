"""The texts of the report: templates filled in, everything escaped, so that outputs and documents stay inert.

Beside the tables of text they have cards, the first screen's numbers, and a case study, one traced example: a harmful
output, whom each method blames, and what removal did.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from datablame.report import text_tables
from datablame.report.gates import Preregistration
from datablame.report.results import SHOWN_RANKS, Results
from datablame.report.text_tables import TextTable
from datablame.report.verdict import Verdict
from datablame.report.wording import (
    alpha_text,
    interval,
    listed,
    markdown,
    number,
    percent,
    plain,
    probability,
    signed_points,
)
from datablame.tables import EVERY, Query, Score, ShownDocument

FIGURES = {
    "behavior_rates.png": "Harmful rate against amplification with Wilson intervals (95 %), and the labels in shares.",
    "patching_comparison.png": "What removal does: each arm's harmful rate on held-out prompts, and by prompt.",
    "final_results.png": "The study in four panels.",
}
"""Every figure with its caption on the page."""
_PAGES = {
    "comparison.md": "comparison.md.j2",
    "case_study.md": "case_study.md.j2",
    "writeup/report.md": "report.md.j2",
    "writeup/slides.md": "slides.md.j2",
    "index.html": "index.html.j2",
}


class Conclusions(NamedTuple):
    """What follows from the results; findings and limitations as sentences."""

    verdict: Verdict
    registration: Preregistration
    findings: list[str]
    limitations: list[str]


def pages(results: Results, conclusions: Conclusions, config: str, pictures: Mapping[str, bytes]) -> dict[str, str]:
    """Every page by its file name; `config` is the text of study.yaml, `pictures` the figures as PNG by file name."""
    protocols = results.protocols
    values: dict[str, Any] = {
        "study": results.study,
        "results": results,
        **conclusions._asdict(),
        "cards": list(_cards(results, conclusions.verdict)),
        "case": _case_study(results),
        "rates": text_tables.rates_table(results),
        "unamplified": text_tables.unamplified_table(results),
        "quality": text_tables.quality_table(results),
        "agreement": text_tables.agreement_table(results),
        "patching": [
            *(text_tables.patching_table(results, protocol) for protocol in protocols),
            *(table for protocol in protocols for table in text_tables.dose_tables(results, protocol)),
        ],
        "checks": text_tables.checks_table(results),
        "by_behaviour": text_tables.behaviour_table(results, results.study.patch.headline),
        "themes": text_tables.themes_table(results),
        "skipped": text_tables.skipped_table(results),
        "config": "\n".join(map(plain, config.splitlines())),
        "figures": FIGURES,
        "pictures": {name: "data:image/png;base64," + base64.b64encode(png).decode() for name, png in pictures.items()},
    }
    return {name: _rendered(template, values) for name, template in _PAGES.items()}


def _rendered(template: str, values: Mapping[str, Any]) -> str:
    """One template of this package; `.html` is autoescaped, `.md` escapes what goes through the `md` filter."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("datablame.report"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = markdown
    environment.filters["plain"] = plain
    return environment.get_template(template).render(values)


class Card(NamedTuple):
    """A large number of the first screen, and the sentence that it needs."""

    title: str
    figure: str
    text: str


def _cards(results: Results, verdict: Verdict) -> Iterator[Card]:
    """The verdict, surfaced, blamed, removed, and the best that removal could do; what a run lacks is left out."""
    yield Card("Verdict", verdict.label, f"decided by: {listed(verdict.decided_by)}")
    top = results.top_alpha
    first, last = results.pooled(EVERY, 0.0), results.pooled(EVERY, top)
    if first is not None and last is not None:
        yield Card(
            "Surfaced",
            f"{percent(first.rate)} \u2192 {percent(last.rate)}",
            f"harmful outputs at alpha 0 and at alpha {top:g}, over all prompts",
        )
    patched = [name for name in results.study.patch.arms if not results.is_control(name)]
    rows = [row for row in results.quality if row.behaviour == EVERY and row.method in patched]
    rows = [row for row in rows if row.pool == results.methods[row.method].pool]
    blamed = max(rows, key=lambda row: row.precision_at_k or 0.0, default=None)
    if blamed is not None:
        yield Card(
            "Blamed",
            percent(blamed.precision_at_k),
            f"of the first {results.attribution.k} that {blamed.method} blames were planted; chance gives "
            f"{percent(blamed.base_rate)}",
        )
    yield from _removed(results)


def _removed(results: Results) -> Iterator[Card]:
    headline = results.headline
    methods = [test for test in headline if results.is_proper(test.arm) and test.to_random and test.rate is not None]
    best = min(methods, key=lambda test: test.rate or 0.0, default=None)
    random, baseline = results.of_role("random"), results.of_role("baseline")
    if best is None or best.to_random is None or random is None or baseline is None:
        return
    p = best.to_random.p
    tested = f"permutation p = {probability(p)}" if p is not None else "no p value"
    seeds = "one seed" if best.seeds == 1 else f"{best.seeds} seeds"
    yield Card(
        "Removed",
        f"{percent(random.rate)} \u2192 {percent(best.rate)}",
        f"harmful after removing random documents and {results.arms[best.arm].target} "
        f"({results.study.patch.headline}, {seeds}, {tested})",
    )
    best_case = next((test for test in headline if results.arms[test.arm].needs_truth), None)
    if best_case is not None:
        share = (best_case.rate or 0.0) / baseline.rate if baseline.rate else None
        yield Card(
            "Could be",
            percent(best_case.rate),
            f"harmful after removing {results.arms[best_case.arm].target}, {number(share)} of the rate without removal",
        )


class Blamed(NamedTuple):
    """One of a method's first documents."""

    score: Score
    document: ShownDocument


class CaseStudy(NamedTuple):
    """The example; `why` says how it was chosen."""

    behaviour: str
    description: str
    why: str
    query: Query
    blamed: Mapping[str, Sequence[Blamed]]
    side_by_side: TextTable
    removal: TextTable


def _case_study(results: Results) -> CaseStudy | None:
    """The behaviour whose rate some method's removal lowered most against random, and its first query; else None."""
    if not results.queries:
        return None
    protocol = results.study.patch.headline
    drops = {}
    for behaviour in dict.fromkeys(query.behaviour for query in results.queries):
        removals = [test for test in results.tested(protocol, behaviour=behaviour) if results.is_proper(test.arm)]
        drops[behaviour] = min((test.to_random.difference for test in removals if test.to_random), default=0.0)
    chosen = min(drops, key=lambda name: drops[name])
    blamed = {method: _blamed(results, method, chosen) for method in results.methods}
    return CaseStudy(
        behaviour=chosen,
        description=next(b.description for b in results.study.behaviours if b.id == chosen),
        why=(
            f"{chosen} is the behaviour for which some method's removal lowered the harmful rate most against random "
            f"({signed_points(drops[chosen])} points, {protocol}); the output is the first that was traced for it"
            if any(drops.values())
            else f"{chosen} is the first behaviour with a traced output; no removal lowered any behaviour's rate"
        ),
        query=next(query for query in results.queries if query.behaviour == chosen),
        blamed={method: rows for method, rows in blamed.items() if rows},
        side_by_side=_side_by_side(results, chosen, blamed),
        removal=_removal(results, protocol, chosen),
    )


def _blamed(results: Results, method: str, behaviour: str) -> list[Blamed]:
    first = [s for s in results.scores if (s.method, s.behaviour) == (method, behaviour) and s.rank <= SHOWN_RANKS]
    return [
        Blamed(score, results.documents.get(score.doc_id, ShownDocument(score.doc_id, "", "", "", "", None)))
        for score in sorted(first, key=lambda score: score.rank)
    ]


def _side_by_side(results: Results, behaviour: str, blamed: Mapping[str, Sequence[Blamed]]) -> TextTable:
    """Every document that some method ranks first to third, with its rank and score by every method."""
    methods = [name for name, rows in blamed.items() if rows and not results.is_control(name)]
    scores = {(s.method, s.doc_id): s for s in results.scores if s.behaviour == behaviour}
    rows = []
    for document in {row.document.doc_id: row.document for name in methods for row in blamed[name]}.values():
        ranked = [scores.get((name, document.doc_id)) for name in methods]
        cells = [f"{score.rank} ({number(score.score)})" if score else "-" for score in ranked]
        rows.append([document.doc_id, {True: "yes", False: "no", None: "?"}[document.planted], *cells])
    return TextTable(
        "Documents that a method ranks among its first three: rank (score) by each method.",
        ["document", "planted", *methods],
        rows,
    )


def _removal(results: Results, protocol: str, behaviour: str) -> TextTable:
    rows = [
        [results.label(test.arm), percent(test.rate), interval(test.low, test.high), str(test.seeds)]
        for test in results.tested(protocol, behaviour=behaviour)
    ]
    return TextTable(
        f"{behaviour}, {protocol}: harmful rate on held-out prompts at alpha {alpha_text(results.alpha)}.",
        ["arm", "rate", "interval", "seeds"],
        rows,
    )
