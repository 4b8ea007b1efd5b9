"""The texts of the report: templates filled in, everything escaped, so that outputs and documents stay inert.

Tables of text are built once and shown as Markdown, HTML and slides. Beside them stands a case study, one traced
example: a harmful output, whom each method blames, and what removal did.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple, get_args

from datablame.report.gates import Preregistration
from datablame.report.key_figures import key_figures
from datablame.report.page import Explorer, index_html
from datablame.report.results import MOST_SOURCES, SHOWN_RANKS, Results
from datablame.report.verdict import Verdict
from datablame.report.wording import environment, filled, plain, sentence, sentences
from datablame.report.writeup import slides_html, writeup_html
from datablame.tables import EVERY, LABELS, GroupKind, Score, ShownDocument, SkippedRows

_NUMBER = re.compile(r"[-+\d.\[]|$|no$|yes$")
_SHOWN_FILES = 40
_MARKDOWN = ("comparison.md", "case_study.md", "writeup/report.md", "writeup/slides.md")
PAGES = (*_MARKDOWN, "writeup/report.html", "writeup/slides.html", "index.html")


class Conclusions(NamedTuple):
    """What follows from the results; findings and limitations as sentences."""

    verdict: Verdict
    registration: Preregistration
    findings: list[str]
    limitations: list[str]


class TextTable(NamedTuple):
    """Cells as text."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def aligned(self) -> list[str]:
        """Each column as Markdown aligns it: numbers at their end, words at their beginning."""
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.header)
        return ["--:" if all(_NUMBER.match(cell) for cell in column) else ":--" for column in columns]


def pages(
    results: Results, conclusions: Conclusions, config: str, pictures: Collection[str], found: Explorer
) -> dict[str, str]:
    """Every page by its file name; `config` is the text of study.yaml, `pictures` names those that stand beside it."""
    values = {
        "study": results.study,
        "results": results,
        **conclusions._asdict(),
        **text_tables(results),
        **_proof(results, conclusions.verdict),
        "key_figures": key_figures(results, conclusions.verdict),
        "case": _case_study(results),
        "config": "\n".join(map(plain, config.splitlines())),
        "pictures": pictures,
    }
    texts = {page: environment().get_template(f"{page.split('/')[-1]}.j2").render(values) for page in _MARKDOWN}
    return {
        **texts,
        "writeup/report.html": writeup_html(texts["writeup/report.md"], results.title),
        "writeup/slides.html": slides_html(texts["writeup/slides.md"], results.title),
        "index.html": index_html(results, found, values),
    }


def _proof(results: Results, decided: Verdict) -> dict[str, TextTable]:
    """What the verdict rests on."""
    rows = [{"name": name, "value": value} for name, value in results.provenance.items()]
    design = [{"name": name, "value": sentence("design", name, results=results)} for name in sentences()["design"]]
    return {
        "proof": _table("proof", results, decided.methods, lacks=decided.lacks),
        "gates": _table("gates", results, decided.gates),
        "provenance": _table("provenance", results, rows),
        "design": _table("design", results, design),
    }


def text_tables(results: Results) -> dict[str, Any]:
    """The report's tables by the names that templates have for them; None where no arm has side checks."""
    headline, ks, pool = results.study.patch.headline, results.patching.ks, results.pool
    unamplified = sorted(results.unamplified.rows, key=lambda row: (row.split != "held-out", row.behaviour != EVERY))
    checks = [check for check in results.arm_checks if check.k in (0, results.patching.k)]
    patching, doses = [], []
    for protocol in results.protocols:
        tests = sorted(results.tested(protocol), key=lambda test: test.rate or 0.0)
        patching.append(_table("patching", results, tests, protocol=protocol))
        names = dict.fromkeys(test.arm for k in ks for test in results.tested(protocol, k=k))
        arms = [arm for arm in map(results.arms.__getitem__, names) if arm.depends_on_k or arm.role == "baseline"]
        if len(ks) > 1 and arms:
            doses.append(_table("doses", results, arms, each=ks, protocol=protocol))
    return {
        "rates": _table("rates", results, _rates(results), each=["corrected", "interval"] * results.corrects),
        "people": list(_people(results)),
        "unamplified": _table("unamplified", results, unamplified),
        "quality": _table("quality", results, _qualities(results)),
        "agreement": _table("agreement", results, [pair for pair in results.agreement if pair.behaviour == EVERY]),
        "patching": [*patching, *doses],
        "checks": _table("checks", results, checks) if results.arm_checks else None,
        "by_behaviour": _table(
            "behaviours", results, results.tested(headline), each=results.behaviours, protocol=headline
        ),
        "themes": _table("themes", results, results.themes),
        "blame": _table("blame", results, _blame(results), each=results.blaming, shown=MOST_SOURCES),
        "groups": _table("groups", results, results.groups),
        "skipped": _table(
            "skipped", results, [*pool.data.skipped, *(SkippedRows(*it, None) for it in pool.excluded.items())]
        ),
        "files": _table("files", results, pool.data.files[:_SHOWN_FILES], shown=_SHOWN_FILES),
    }


def _table(
    name: str, results: Results, rows: Iterable[object], each: Sequence[object] = (), **values: Any
) -> TextTable:
    """A table with its caption and columns from sentences.yaml; a column with `each` in its header is one for each."""
    values["results"] = results
    columns = [
        (filled(header, each=it), cell, it)
        for column in sentences()["columns"][name]
        for header, cell in column.items()
        for it in (each if "{{ each }}" in header else [None])
    ]
    cells = [[filled(cell, row=row, each=it, **values) for _, cell, it in columns] for row in rows]
    return TextTable(sentence("tables", name, **values), [header for header, _, _ in columns], cells)


def _rates(results: Results) -> Iterator[dict[str, Any]]:
    for behaviour, alpha in product((EVERY, *results.behaviours), results.study.surface.alphas):
        if rate := results.pooled(behaviour, alpha):
            cells = [r for r in results.rates if (r.prompt_id, r.behaviour, r.alpha) == (EVERY, behaviour, alpha)]
            counts = {label: sum(getattr(cell, label) for cell in cells) for label in LABELS}
            fixed = results.corrected(counts["harmful"], rate.n)
            yield {"behaviour": behaviour, "alpha": alpha, "rate": rate, "counts": counts, "corrected": fixed}


def _people(results: Results) -> Iterator[TextTable]:
    """Who labelled outputs of this run, people against one another, and people against the classifier."""
    if results.people is not None:
        yield _table("people", results, results.people.annotators)
        if results.people.pairs:
            yield _table("pairs of people", results, results.people.pairs)
    if results.calibration is not None:
        labels = [label for label in LABELS if label != "unscored"]
        yield _table("confusion", results, labels, each=labels)


def _qualities(results: Results) -> Iterator[dict[str, Any]]:
    for method in results.methods:
        pools = {row.pool: row for row in results.quality if row.method == method and row.behaviour == EVERY}
        if pools:
            yield {"method": method, "whole": pools.get("whole"), "candidates": pools.get("candidates")}


def _blame(results: Results) -> Iterator[dict[str, Any]]:
    """For each behaviour the first sources and themes, with the row of each method."""
    for behaviour, kind in product(results.behaviours, get_args(GroupKind)):
        of_behaviour = [row for row in results.blame if (row.behaviour, row.kind) == (behaviour, kind)]
        for group in results.blamed(kind, behaviour)[:MOST_SOURCES]:
            rows = {row.method: row for row in of_behaviour if row.group == group}
            largest = max(rows.values(), key=lambda row: row.n)
            yield {"behaviour": behaviour, "kind": kind, "group": group, "of": largest, "rows": rows}


def _case_study(results: Results) -> dict[str, Any] | None:
    """The behaviour whose rate some method's removal lowered most against random, and its first query; else None."""
    if not results.queries:
        return None
    protocol, drops = results.study.patch.headline, {}
    for behaviour in dict.fromkeys(query.behaviour for query in results.queries):
        removals = [test for test in results.tested(protocol, behaviour=behaviour) if results.is_proper(test.arm)]
        drops[behaviour] = min((test.to_random.difference for test in removals if test.to_random), default=0.0)
    chosen = min(drops, key=lambda name: drops[name])
    scores = {(score.method, score.doc_id): score for score in results.scores if score.behaviour == chosen}
    blamed: dict[str, list[tuple[Score, ShownDocument]]] = {name: [] for name in results.methods}
    for score in sorted(scores.values(), key=lambda score: score.rank):
        if score.rank <= SHOWN_RANKS:
            unknown = ShownDocument(score.doc_id, "", "", "", "", None)
            blamed[score.method].append((score, results.documents.get(score.doc_id, unknown)))
    methods = [name for name in results.methods if blamed[name] and not results.is_control(name)]
    documents = {document.doc_id: document for name in methods for _, document in blamed[name]}
    values = {"behaviour": chosen, "protocol": protocol, "drop": drops[chosen], "lowered": any(drops.values())}
    removal = results.tested(protocol, behaviour=chosen)
    return {
        "behaviour": next(behaviour for behaviour in results.study.behaviours if behaviour.id == chosen),
        "why": sentence("case", "why", **values),
        "query": next(query for query in results.queries if query.behaviour == chosen),
        "blamed": {name: pairs for name, pairs in blamed.items() if pairs},
        "side_by_side": _table("side by side", results, documents.values(), each=methods, scores=scores),
        "removal": _table("case removal", results, removal, behaviour=chosen, protocol=protocol),
    }
