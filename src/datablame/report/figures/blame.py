"""blame_by_source.png: how high the documents of each source rank, by method and behaviour."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from datablame.report.figures import style
from datablame.report.results import MOST_SOURCES, Results
from datablame.report.wording import sentence
from datablame.tables import Blame

_METHODS, _BEHAVIOURS = 6, 4
"""Drawn at most; the caption names the others."""
_ROW, _LANE, _LABEL = 0.2, 0.13, 0.24
"""Inches of a source, of each method's line in it besides, and of a method's name."""


def sources_figure(results: Results) -> Figure | None:
    """A panel for each behaviour, a line for each source with the interval of every method; None of a single source."""
    rows = [row for row in results.blame if row.kind == "source" and row.method in results.blaming]
    if not rows:
        return None
    groups, methods = results.blamed("source"), results.blaming[:_METHODS]
    behaviours = list(dict.fromkeys(row.behaviour for row in rows))
    shown = groups[:MOST_SOURCES]
    caption = sentence(
        "figures",
        "sources",
        results=results,
        others=max(len(groups), results.attribution.sources) - len(shown),
        methods=[results.label(name) for name in results.blaming[_METHODS:]],
        behaviours=[results.titles.get(name, name) for name in behaviours[_BEHAVIOURS:]],
    )
    height = 1.3 + max(len(shown) * (_ROW + _LANE * len(methods)), _LABEL * len(methods))
    with style.page([height], results.title, caption) as (figure, [panel]):
        style.heading(panel, "Blame by source: how high its documents rank")
        columns = panel.subplots(1, len(behaviours[:_BEHAVIOURS]), squeeze=False)[0]
        for axes, behaviour in zip(columns, behaviours, strict=False):
            _panel(axes, results, [row for row in rows if row.behaviour == behaviour], shown, methods)
            if axes is not columns[0]:
                axes.set_yticks([])
            title = style.shortened(results.titles.get(behaviour, behaviour), 8 / len(columns), 10)
            axes.set_title(title, loc="left", size=10, color=style.GREY)
    return figure


def _panel(axes: Axes, results: Results, rows: list[Blame], shown: list[str], methods: list[str]) -> None:
    """Markers at each AUC with its interval, methods below one another in their order, named in the last panel."""
    last = axes.get_subplotspec().is_last_col()  # type: ignore[union-attr]
    counts = {row.group: max(other.n for other in rows if other.group == row.group) for row in rows}
    step = _LANE / (_ROW + _LANE * len(methods))
    for lane, method in enumerate(methods):
        look, offset = results.methods[method].look, (lane - (len(methods) - 1) / 2) * step
        own = [row for row in rows if row.method == method and row.group in shown]
        where = [shown.index(row.group) + offset for row in own]
        ends: Any = [[row.auc - row.low for row in own], [row.high - row.auc for row in own]]
        drawn: dict[str, Any] = {"fmt": look.marker, "color": look.ink, "markerfacecolor": look.fill, "markersize": 6}
        drawn |= {"elinewidth": 1.3, "capsize": 2}
        axes.errorbar([row.auc for row in own], where, xerr=ends, **drawn)
        if last and own:
            highest = where.index(min(where))
            label = style.shortened(results.label(method), 1.9)
            style.beside(axes, label, (own[highest].auc, where[highest]), look.ink)
    axes.axvline(0.5, color=style.GREY, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(shown) - 0.5, -0.5), xlabel="AUC")
    for edge in range(1, len(shown)):
        axes.axhline(edge - 0.5, color=style.FAINT, linewidth=0.8, zorder=0)
    names = [f"{style.shortened(name, 2.3) or '(no name)'}\nn = {counts.get(name, 0)}" for name in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
