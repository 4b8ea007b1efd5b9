"""The texts of the report: templates filled in, everything escaped, so that outputs and documents stay inert.

Tables of text are built once and shown as Markdown, HTML and slides. Beside them stand cards, the first screen's
numbers, and a case study, one traced example: a harmful output, whom each method blames, and what removal did.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from datablame.report.gates import Preregistration
from datablame.report.results import SHOWN_RANKS, Results
from datablame.report.verdict import Verdict
from datablame.report.wording import (
    behaviour_text,
    environment,
    filled,
    interval,
    number,
    percent,
    plain,
    said,
    sentences,
    signed_points,
)
from datablame.tables import EVERY, ArmTest, Score, ShownDocument

_PAGES = ("comparison.md", "case_study.md", "writeup/report.md", "writeup/slides.md", "index.html")


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
        "cards": _cards(results),
        "case": _case_study(results),
        "rates": _rates_table(results),
        "unamplified": unamplified_table(results),
        "quality": _quality_table(results),
        "agreement": _rows_table(
            "agreement", [pair for pair in results.agreement if pair.behaviour == EVERY], results=results
        ),
        "patching": [
            *(patching_table(results, protocol) for protocol in protocols),
            *(table for protocol in protocols for table in dose_tables(results, protocol)),
        ],
        "checks": checks_table(results),
        "by_behaviour": _behaviour_table(results, results.study.patch.headline),
        "themes": _themes_table(results),
        "skipped": _skipped_table(results),
        "config": "\n".join(map(plain, config.splitlines())),
        "pictures": {name: "data:image/png;base64," + base64.b64encode(png).decode() for name, png in pictures.items()},
    }
    return {page: environment().get_template(f"{page.split('/')[-1]}.j2").render(values) for page in _PAGES}


class TextTable(NamedTuple):
    """Cells as text; the first column is left-aligned, the others are numbers."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def _table(name: str, header: Sequence[str], rows: Sequence[Sequence[str]], **values: Any) -> TextTable:
    """A table with its caption from sentences.yaml."""
    return TextTable(said("tables", name, **values), header, rows)


def _rows_table(name: str, rows: Sequence[object], **values: Any) -> TextTable:
    """A table with its caption and its columns from sentences.yaml."""
    columns = [pair for column in sentences()["columns"][name] for pair in column.items()]
    cells = [[filled(cell, row=row, **values) for _, cell in columns] for row in rows]
    return _table(name, [header for header, _ in columns], cells, **values)


def _rates_table(results: Results) -> TextTable:
    calibration, rows = results.calibration, []
    for behaviour, alpha in product((EVERY, *results.behaviours), results.study.surface.alphas):
        rate = results.pooled(behaviour, alpha)
        if rate is None:
            continue
        cells = [r for r in results.rates if (r.prompt_id, r.behaviour, r.alpha) == (EVERY, behaviour, alpha)]
        others = [[cell.refused, cell.harmless, cell.incoherent] for cell in cells]
        shares = [percent(sum(counts) / rate.n) for counts in zip(*others, strict=True)]
        fixed = results.corrected(sum(cell.harmful for cell in cells), rate.n)
        corrected = [] if fixed is None else [percent(fixed.rate), interval(fixed.low, fixed.high)]
        raw = [str(rate.n), percent(rate.rate), interval(*rate.interval)]
        rows.append([behaviour_text(behaviour), f"{alpha:g}", *raw, *corrected, *shares])
    extra = [] if calibration is None else ["corrected", "interval"]
    header = ["behaviour", "alpha", "n", "harmful", "interval", *extra, "refused", "harmless", "incoherent"]
    return _table("rates", header, rows, results=results, calibration=calibration)


def unamplified_table(results: Results) -> TextTable:
    """The rate at alpha 0 by split and behaviour; a withheld estimate gives its reason instead of a figure."""
    rows = sorted(results.unamplified.rows, key=lambda row: (row.split != "held-out", row.behaviour != EVERY))
    return _rows_table("unamplified", rows, why_not=results.unamplified.why_not)


def _quality_table(results: Results) -> TextTable:
    rows = []
    for method in results.methods:
        pools = {row.pool: row for row in results.quality if row.method == method and row.behaviour == EVERY}
        if pools:
            both = [pools.get("whole"), pools.get("candidates")]
            cells = [getattr(row, name, None) for row in both for name in ("precision_at_k", "recall_at_k", "auprc")]
            rows.append([results.label(method), *map(number, (*cells, results.mean_ceilings.get(method)))])
    header = ["method", "P", "R", "AP", "P in BM25", "R in BM25", "AP in BM25", "ceiling"]
    return _table("quality", header, rows, k=results.attribution.k)


def patching_table(results: Results, protocol: str) -> TextTable:
    """Arms of one protocol on held-out prompts at alpha*."""
    rows = sorted(results.tested(protocol), key=lambda test: test.rate or 0.0)
    return _rows_table("patching", rows, results=results, protocol=protocol)


def dose_tables(results: Results, protocol: str) -> Iterator[TextTable]:
    """One protocol's arms at each K; no table where there is one K."""
    at = [{test.arm: test for test in results.tested(protocol, k=k)} for k in results.ks]
    arms = [results.arms[arm] for arm in dict.fromkeys(arm for tests in at for arm in tests)]
    shown = [arm for arm in arms if arm.depends_on_k or arm.role == "baseline"]
    if len(at) > 1 and shown:
        rows = [[arm.label, *(_dose(tests.get(arm.name)) for tests in at)] for arm in shown]
        header = ["arm", *(f"K = {k}" for k in results.ks)]
        yield _table("doses", header, rows, results=results, protocol=protocol)


def _dose(test: ArmTest | None) -> str:
    if test is None or test.rate is None:
        return "-"
    against = test.to_random if test.k else None
    return percent(test.rate) + (f" ({signed_points(against.difference)})" if against else "")


def _behaviour_table(results: Results, protocol: str) -> TextTable:
    tested = [results.tested(protocol, behaviour=behaviour) for behaviour in results.behaviours]
    rates = [{test.arm: test.rate for test in tests} for tests in tested]
    rows = [
        [results.label(test.arm), *(percent(of_arm.get(test.arm)) for of_arm in rates)]
        for test in results.tested(protocol)
    ]
    return _table("behaviours", ["arm", *results.behaviours], rows, protocol=protocol)


def checks_table(results: Results) -> TextTable | None:
    """What each arm costs besides: clean text, harmless prompts, coherence, and how far it went from before."""
    if results.patching is None or not results.arm_checks:
        return None
    rows = [check for check in results.arm_checks if check.k in (0, results.k)]
    values = {"design": results.patching.checks, "headline": results.study.patch.headline}
    return _rows_table("checks", rows, results=results, **values)


def _themes_table(results: Results) -> TextTable:
    rows = []
    for index, theme in enumerate(results.themes, 1):
        prompts = [results.documents[doc_id].prompt for doc_id in theme.examples if doc_id in results.documents]
        shares = [row for row in theme.flagged if row.share is not None and not results.is_control(row.method)]
        flagged = [f"{row.method} {percent(row.share)}" for row in shares]
        example = prompts[0] if prompts else ", ".join(theme.examples)
        rows.append([str(index), ", ".join(theme.terms), percent(theme.share), "; ".join(flagged), example])
    return _table("themes", ["theme", "terms", "share", "flagged by", "example"], rows, results=results)


def _skipped_table(results: Results) -> TextTable:
    """Rows of the data and documents that could not be used, by reason, with the first of each kind."""
    rows = [[row.reason, str(row.count), row.example or ""] for row in results.pool.skipped]
    rows += [[reason, str(count), ""] for reason, count in results.pool.excluded.items()]
    return _table("skipped", ["reason", "rows", "first"], rows, results=results)


def _cards(results: Results) -> dict[str, Any]:
    """What the first screen says of surfacing, blame, removal, and the most that removal could do; None is left out."""
    headline, patched = results.headline, [name for name in results.study.patch.arms if not results.is_control(name)]
    rows = [row for row in results.quality if row.behaviour == EVERY and row.method in patched]
    rows = [row for row in rows if row.pool == results.methods[row.method].pool]
    methods = [test for test in headline if results.is_proper(test.arm) and test.to_random and test.rate is not None]
    return {
        "first": results.pooled(EVERY, 0.0),
        "last": results.pooled(EVERY, results.top_alpha),
        "blamed": max(rows, key=lambda row: row.precision_at_k or 0.0, default=None),
        "best": min(methods, key=lambda test: test.rate or 0.0, default=None),
        "random": results.of_role("random"),
        "baseline": results.of_role("baseline"),
        "oracle": next((test for test in headline if results.arms[test.arm].needs_truth), None),
    }


def _case_study(results: Results) -> dict[str, Any] | None:
    """The behaviour whose rate some method's removal lowered most against random, and its first query; else None."""
    if not results.queries:
        return None
    protocol, drops = results.study.patch.headline, {}
    for behaviour in dict.fromkeys(query.behaviour for query in results.queries):
        removals = [test for test in results.tested(protocol, behaviour=behaviour) if results.is_proper(test.arm)]
        drops[behaviour] = min((test.to_random.difference for test in removals if test.to_random), default=0.0)
    chosen = min(drops, key=lambda name: drops[name])
    values = {"behaviour": chosen, "protocol": protocol, "drop": drops[chosen], "lowered": any(drops.values())}
    blamed = {method: rows for method in results.methods if (rows := _blamed(results, method, chosen))}
    return {
        "behaviour": chosen,
        "description": next(b.description for b in results.study.behaviours if b.id == chosen),
        "why": said("case", "why", **values),
        "query": next(query for query in results.queries if query.behaviour == chosen),
        "blamed": blamed,
        "side_by_side": _side_by_side(results, chosen, blamed),
        "removal": _rows_table("case removal", results.tested(protocol, behaviour=chosen), results=results, **values),
    }


def _blamed(results: Results, method: str, behaviour: str) -> list[tuple[Score, ShownDocument]]:
    first = [s for s in results.scores if (s.method, s.behaviour) == (method, behaviour) and s.rank <= SHOWN_RANKS]
    return [
        (score, results.documents.get(score.doc_id, ShownDocument(score.doc_id, "", "", "", "", None)))
        for score in sorted(first, key=lambda score: score.rank)
    ]


def _side_by_side(
    results: Results, behaviour: str, blamed: Mapping[str, Sequence[tuple[Score, ShownDocument]]]
) -> TextTable:
    """Every document that some method ranks first to third, with its rank and score by every method."""
    methods = [name for name in blamed if not results.is_control(name)]
    scores = {(s.method, s.doc_id): s for s in results.scores if s.behaviour == behaviour}
    rows = []
    for document in {shown.doc_id: shown for name in methods for _, shown in blamed[name]}.values():
        ranked = [scores.get((name, document.doc_id)) for name in methods]
        cells = [f"{score.rank} ({number(score.score)})" if score else "-" for score in ranked]
        rows.append([document.doc_id, {True: "yes", False: "no", None: "?"}[document.planted], *cells])
    return _table("side by side", ["document", "planted", *methods], rows)
