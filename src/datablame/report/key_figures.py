"""The four numbers that a reader needs first: how far it rose, what removal left, how sure that is, what was blamed."""

from collections.abc import Iterator
from typing import NamedTuple

from datablame.report.results import Results
from datablame.report.verdict import Verdict
from datablame.report.wording import Values, filled, sentences
from datablame.tables import EVERY, Quality


class KeyFigure(NamedTuple):
    """A number, what it is called and what it is of."""

    name: str
    value: str
    note: str


def key_figures(results: Results, decided: Verdict) -> list[KeyFigure]:
    """At most four; a number that the study does not have is left out."""
    texts = sentences()["key figures"]
    return [
        KeyFigure(name, *(filled(texts[name][part], results=results, **values) for part in ("value", "note")))
        for name, values in _figures(results, decided)
    ]


def _figures(results: Results, decided: Verdict) -> Iterator[tuple[str, Values]]:
    rise, (first, last) = results.alpha_star.rise, results.ends()
    surfaced: Values = {}
    if rise is not None:
        surfaced = {"first": rise.plain, "last": rise.amplified, "alpha": rise.alpha, "prompts": rise.prompts}
    elif first and last:
        alpha = max(results.study.surface.alphas)
        surfaced = {"first": first.rate, "last": last.rate, "alpha": alpha, "prompts": None}
    if surfaced:
        yield "Surfaced", surfaced
    best, random = decided.best, results.of_role("random")
    if best is not None and random is not None:
        yield "After removal", {"best": best, "random": random}
    gates = {holds: [gate for gate in decided.gates if gate.holds is holds] for holds in (True, False)}
    sure: Values = {"gates": decided.gates, "passed": gates[True], "failed": gates[False]}
    yield "How sure", {**sure, "rise": rise, "best": best, "methods": decided.methods}
    if row := _precision(results, best.arm if best else ""):
        yield "Right documents", {"row": row}
    elif results.mean_jaccard is not None:
        yield "Agreement", {}


def _precision(results: Results, method: str) -> Quality | None:
    """Of the method that the headline is about where it is known, else the highest among those patched."""
    rows = [row for row in results.quality if row.behaviour == EVERY and row.pool == results.methods[row.method].pool]
    patched = [row for row in rows if row.method in results.study.patch.arms and not results.is_control(row.method)]
    own = [row for row in rows if row.method == method]
    return max(own or patched, key=lambda row: row.precision_at_k or 0.0, default=None)
