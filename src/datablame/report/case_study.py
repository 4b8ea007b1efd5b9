"""One traced example: a harmful output, whom each method blames, and what removal did."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from datablame.report.results import SHOWN_RANKS, Results
from datablame.report.text_tables import TextTable
from datablame.report.wording import alpha_text, interval, number, percent, signed_points
from datablame.tables import Query, Score, ShownDocument


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


def case_study(results: Results) -> CaseStudy | None:
    """The behaviour whose rate some method's removal lowered most against random, and its first query; else None."""
    if not results.queries:
        return None
    protocol = results.study.patch.headline
    drops = {
        behaviour: min(
            (
                test.to_random.difference
                for arm, test in results.tested(protocol, behaviour=behaviour).items()
                if results.is_proper(arm) and test.to_random
            ),
            default=0.0,
        )
        for behaviour in dict.fromkeys(query.behaviour for query in results.queries)
    }
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
        [results.label(arm), percent(test.rate), interval(test.low, test.high), str(test.seeds)]
        for arm, test in results.tested(protocol, behaviour=behaviour).items()
    ]
    return TextTable(
        f"{behaviour}, {protocol}: harmful rate on held-out prompts at alpha {alpha_text(results.alpha)}.",
        ["arm", "rate", "interval", "seeds"],
        rows,
    )
