"""One traced example: a harmful output, whom each method blames, and what removal did."""

from typing import Any, NamedTuple

from datablame.report.artifacts import Artifacts, Row
from datablame.report.tables import Table
from datablame.report.wording import interval, number, percent

_TOP = 3


class Blamed(NamedTuple):
    """One of a method's first documents."""

    rank: int
    doc_id: str
    score: float
    prompt: str
    response: str
    rejected: str
    """The other answer of a preference pair; empty where there is none."""
    planted: bool | None


class CaseStudy(NamedTuple):
    """The example; `why` says how it was chosen."""

    behaviour: str
    description: str
    why: str
    query: Row
    blamed: dict[str, list[Blamed]]
    side_by_side: Table
    removal: Table


def case_study(found: Artifacts) -> CaseStudy | None:
    """The behaviour whose rate gradient removal lowered most against random, and its first query; None without any."""
    if not found.queries:
        return None
    protocol = found.study.patch.headline
    drops: dict[str, float] = {}
    for behaviour in dict.fromkeys(query["behaviour"] for query in found.queries):
        rows = found.tested(protocol=protocol, behaviour=behaviour)
        methods = [
            row["to_random"]["difference"]
            for arm, row in rows.items()
            if arm in found.methods and not found.methods[arm]["control"] and row["to_random"]
        ]
        drops[behaviour] = min(methods, default=0.0)
    chosen = min(drops, key=lambda name: drops[name])
    query = next(query for query in found.queries if query["behaviour"] == chosen)
    description = next(b.description for b in found.study.behaviours if b.id == chosen)
    blamed = {method: _blamed(found, method, chosen) for method in found.methods}
    return CaseStudy(
        behaviour=chosen,
        description=description,
        why=(
            f"{chosen} is the behaviour for which some method's removal lowered the harmful rate most against random "
            f"({100 * drops[chosen]:+.1f} points, {protocol}); the output is the first that was traced for it"
            if any(drops.values())
            else f"{chosen} is the first behaviour with a traced output; no removal lowered any behaviour's rate"
        ),
        query=query,
        blamed={method: rows for method, rows in blamed.items() if rows},
        side_by_side=_side_by_side(found, chosen, blamed),
        removal=_removal(found, protocol, chosen),
    )


def _blamed(found: Artifacts, method: str, behaviour: str) -> list[Blamed]:
    rows = [row for row in found.scores.get(method, []) if row["behaviour"] == behaviour and row["rank"] <= _TOP]
    blamed = []
    for row in sorted(rows, key=lambda row: row["rank"]):
        document: Any = found.documents.get(row["doc_id"], {})
        blamed.append(
            Blamed(
                row["rank"],
                row["doc_id"],
                row["score"],
                document.get("prompt", ""),
                document.get("response", ""),
                document.get("rejected", ""),
                document.get("planted"),
            )
        )
    return blamed


def _side_by_side(found: Artifacts, behaviour: str, blamed: dict[str, list[Blamed]]) -> Table:
    """Every document that some method ranks first to third, with its rank and score by every method."""
    methods = [name for name in found.methods if blamed[name] and not found.methods[name]["control"]]
    ids = list(dict.fromkeys(row.doc_id for name in methods for row in blamed[name]))
    places = {
        name: {row["doc_id"]: row for row in found.scores[name] if row["behaviour"] == behaviour} for name in methods
    }
    rows = []
    for doc_id in ids:
        planted = found.documents.get(doc_id, {}).get("planted")
        cells = [
            f"{row['rank']} ({number(row['score'])})" if (row := places[name].get(doc_id)) else "-" for name in methods
        ]
        rows.append([doc_id, {True: "yes", False: "no", None: "?"}[planted], *cells])
    return Table(
        "Documents that a method ranks among its first three: rank (score) by each method.",
        ["document", "planted", *methods],
        rows,
    )


def _removal(found: Artifacts, protocol: str, behaviour: str) -> Table:
    rows = [
        [found.label(arm), percent(row["rate"]), interval(row["low"], row["high"]), str(row["seeds"])]
        for arm, row in found.tested(protocol=protocol, behaviour=behaviour).items()
    ]
    alpha = found.patch_alpha
    return Table(
        f"{behaviour}, {protocol}: harmful rate on held-out prompts at alpha {'-' if alpha is None else f'{alpha:g}'}.",
        ["arm", "rate", "interval", "seeds"],
        rows,
    )
