"""The pictures of a leaderboard: mean ranks, effect against cost, kinds against methods."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from datablame.config.report import Figures
from datablame.leaderboard.standings import DETECTION, EFFECT, Leaderboard, Standing
from datablame.report.figures import style
from datablame.report.figures.page import heading, page
from datablame.report.figures.typesetting import shortened, wide
from datablame.stats.standings import Estimate
from datablame.tables import Look

_NAME, _LINE = 16.5, 2.0
"""Ems of a method's name, and of its line."""


def figures_of(board: Leaderboard) -> dict[str, Figure]:
    """Every figure by the name of its file."""
    return {"ranks": ranks_figure(board), "effect_and_cost": pareto_figure(board), "kinds": kinds_figure(board)}


def ranks_figure(board: Leaderboard) -> Figure:
    """The mean rank of every method over organisms, by effect and by detection, the best in effect on top."""
    rows = [each for each in board.standings if each.mean_ranks]
    rows.sort(key=lambda each: each.mean_ranks[EFFECT].value if EFFECT in each.mean_ranks else math.inf)
    caption = (
        "Left: by the effect of removing the method's first documents; right: by how high it ranks what was planted. "
        "Lines: 95 % intervals, Student's t over seeds. Grey bands: controls."
    )
    with page([7 + _LINE * max(3, len(rows))], "Mean rank over organisms", caption, Figures()) as (figure, [panel]):
        heading(panel, "1 is the best of every organism")
        if not rows:
            style.nothing(panel.subplots(), "no method has a value on any organism")
            return figure
        for axes, measure, title in zip(
            panel.subplots(1, 2), (EFFECT, DETECTION), ("effect of removal", "average precision"), strict=True
        ):
            axes.set_title(title, color=style.GREY)
            for y, row in enumerate(rows):
                if row.entry.control:
                    axes.axhspan(y - 0.5, y + 0.5, color=style.FAINT, alpha=0.45, linewidth=0)
                if (estimate := row.mean_ranks.get(measure)) is not None:
                    _estimate(axes, row.entry.look, estimate, y)
                else:
                    axes.text(0.02, y, "no value", transform=axes.get_yaxis_transform(), va="center", color=style.GREY)
            _names(axes, rows, first=measure == EFFECT)
            axes.set_xlim(0.5, max(2, len(rows)) + 0.5)
            axes.set_xlabel("mean rank")
    return figure


def pareto_figure(board: Leaderboard) -> Figure:
    """Effect against seconds, each method named at its point; a line joins those that no other method betters."""
    rows = [each for each in board.standings if EFFECT in each.estimates and "seconds" in each.estimates]
    caption = (
        "Seconds of one core for one organism, medians. Lines: 95 % intervals, Student's t over seeds. "
        "Joined, bold: no method that has a value wherever it has one has more effect in less time. Italics: controls."
    )
    height = max(30, 7 + 1.6 * len(rows))
    with page([height], "Effect against cost", caption, Figures()) as (figure, [panel]):
        heading(panel, "Share of what removing everything planted achieves")
        axes = panel.subplots()
        if not rows:
            style.nothing(axes, "no method has an effect and a cost")
            return figure
        least = min((s for row in rows if (s := row.estimates["seconds"].value) > 0), default=1.0)
        where = {row.entry.name: max(row.estimates["seconds"].value, least) for row in rows}
        for row in rows:
            _estimate(axes, row.entry.look, row.estimates[EFFECT], where[row.entry.name], upright=True)
            name = shortened(row.entry.label, _NAME)
            point = (where[row.entry.name], 100 * row.estimates[EFFECT].value)
            style.beside(axes, name, point, row.entry.look.ink, bold=row.is_pareto)
            if row.entry.control:
                axes.texts[-1].set_fontstyle("italic")
        best = sorted((where[r.entry.name], 100 * r.estimates[EFFECT].value) for r in rows if r.is_pareto)
        axes.plot(*zip(*best, strict=True), color=style.INK, linewidth=1, linestyle=(0, (5, 3)), zorder=2)
        # Whole decades, each with its tick.
        low, high = min(where.values()), max(where.values())
        axes.set_xscale("log")
        axes.set_xlim(10 ** math.floor(math.log10(low)), 10 ** (math.floor(math.log10(high)) + 1))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        axes.set_ylabel("effect")
        axes.set_xlabel("attribution of one organism")
    return figure


def kinds_figure(board: Leaderboard) -> Figure:
    """The effect of every method on every kind of planting, as a heatmap with numbers."""
    rows, kinds = board.standings, list(board.kinds)
    caption = (
        f"At K = {board.k} for each behaviour, mean over seeds; 0 where the rate rose, 100 where it fell by "
        "more than without everything planted. A dash: no value, see the README. Names in italics: controls."
    )
    with page([5 + _LINE * max(3, len(rows))], "Effect by kind of planting", caption, Figures()) as (figure, [panel]):
        heading(panel, "Share of what removing everything planted achieves, in %")
        axes = panel.subplots()
        grid = np.array([[_cell(row.by_kind.get(kind)) for kind in kinds] for row in rows])
        style.cells(axes, grid, 100, style.AGREEMENT, ".0f")
        room = (wide() - _NAME - 2) / len(kinds) - 0.5
        axes.set_xticks(np.arange(len(kinds)) + 0.5, [shortened(kind, room) for kind in kinds])
        axes.xaxis.tick_top()
        axes.set_yticks(np.arange(len(rows)) + 0.5, [shortened(row.entry.label, _NAME) for row in rows])
        _slant(axes, rows)
    return figure


def _cell(estimate: Estimate | None) -> float:
    """Percent; below 0 is missing."""
    return -1.0 if estimate is None else 100 * min(1.0, max(0.0, estimate.value))


def _estimate(axes: Axes, look: Look, estimate: Estimate, where: float, *, upright: bool = False) -> None:
    """A marker with its interval at a place along the other axis; upright ones are shares, in percent."""
    scale = 100 if upright else 1
    mean = scale * estimate.value
    ends = None
    if estimate.low is not None and estimate.high is not None:
        ends = [[mean - scale * estimate.low], [scale * estimate.high - mean]]
    options: dict[str, Any] = {**style.marker(look, 0.75), "elinewidth": 1.1, "zorder": 4}
    if upright:
        axes.errorbar([where], [mean], yerr=ends, **options)
    else:
        axes.errorbar([mean], [where], xerr=ends, **options)


def _names(axes: Axes, rows: Sequence[Standing], *, first: bool) -> None:
    names = [shortened(row.entry.label, _NAME) for row in rows]
    axes.set_yticks(range(len(rows)), names if first else [""] * len(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _slant(axes: Axes, rows: Sequence[Standing]) -> None:
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontstyle("italic" if row.entry.control else "normal")
