"""blame_by_source.png: how high the documents of each source rank, by method and behaviour."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from datablame.report.figures import style
from datablame.report.figures.page import heading, page
from datablame.report.figures.typesetting import em, shortened, wide
from datablame.report.results import MOST_SOURCES, Results
from datablame.report.wording import sentence
from datablame.tables import Blame

_METHODS, _BEHAVIOURS = 6, 4
"""Drawn at most; the caption names the others."""
_ROW, _LANE, _LABEL = 1.4, 0.75, 1.5
"""Ems of a source, of each method's line in it besides, and from a method's name to the next."""
_SOURCE, _METHOD = 12.0, 13.0
"""Ems of a source's name and of a method's."""


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
    height = 7 + max(len(shown) * (_ROW + _LANE * len(methods)), _LABEL * len(methods))
    with page([height], results.title, caption, results.study.figures) as (figure, [panel]):
        heading(panel, "Blame by source: how high its documents rank")
        columns = panel.subplots(1, len(behaviours[:_BEHAVIOURS]), squeeze=False)[0]
        for axes, behaviour in zip(columns, behaviours, strict=False):
            _panel(axes, results, [row for row in rows if row.behaviour == behaviour], shown, methods)
            if axes is not columns[0]:
                axes.set_yticks([])
            room = (wide() - _SOURCE - _METHOD - 2) / len(columns)
            axes.set_title(shortened(results.titles.get(behaviour, behaviour), room), color=style.GREY)
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
        drawn: dict[str, Any] = {
            "fmt": look.marker,
            "color": look.ink,
            "markerfacecolor": look.fill,
            "markersize": em(0.6),
        }
        drawn |= {"elinewidth": 0.9, "capsize": em(0.15)}
        axes.errorbar([row.auc for row in own], where, xerr=ends, linestyle="", **drawn)
        if last and own:
            highest = where.index(min(where))
            label = shortened(results.label(method), _METHOD)
            style.beside(axes, label, (own[highest].auc, where[highest]), look.ink)
    axes.axvline(0.5, color=style.GREY, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(shown) - 0.5, -0.5), xlabel="AUC")
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    for edge in range(1, len(shown)):
        axes.axhline(edge - 0.5, color=style.FAINT, linewidth=0.8, zorder=0)
    names = [f"{shortened(name, _SOURCE) or '(no name)'}\nn = {counts.get(name, 0)}" for name in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
