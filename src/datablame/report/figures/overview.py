"""final_results.png: the study on one page, four panels."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure, SubFigure

from datablame.report.figures import style
from datablame.report.figures.patching import HEADINGS, arms_caption, arms_of, arms_panel, runs_of
from datablame.report.figures.rates import counted, rates_panel, shown_split
from datablame.report.results import Results
from datablame.report.wording import sentence
from datablame.tables import EVERY, Agreement

_LEADING, _BETWEEN = 1.4, 0.55
"""Of the type's size: from line to line, and between two sentences besides."""
_TALLEST = 7.0
"""Inches that the verdict's sentences take at most."""


def overview_figure(results: Results, verdict: str, summary: Sequence[str]) -> Figure:
    """Rates against alpha, agreement of methods, what patching did, and the verdict with the summary's sentences."""
    headline = results.study.patch.headline
    rows = arms_of(results, headline)
    pooled = [pair for pair in results.agreement if pair.behaviour == EVERY]
    caption = sentence(
        "figures",
        "overview",
        results=results,
        outputs=counted(results.rates, shown_split(results.rates)),
        chances=sorted(pair.jaccard_chance for pair in pooled if pair.jaccard_chance is not None),
        arms=arms_caption(results, {headline: rows}),
    )
    below = max(4.2, 2 + 0.36 * len(rows))
    blocks = _sentences(summary, max(below, _TALLEST) - 0.6)
    below = max(below, _inches(blocks) + 0.6)
    with style.page([4.6, below], results.title, caption) as (figure, panels):
        first, second, third, fourth = (panel for row in panels for panel in row.subfigures(1, 2, squeeze=False)[0])
        rates_panel(
            first, results, shown_split(results.rates), "1 ", results.patching.alpha if rows else None, estimated=False
        )
        _agreement_panel(second, results, pooled)
        what = HEADINGS[results.study.patch.intervention]
        style.heading(third, f"3 {what} ({headline}, {runs_of(results, rows)})")
        arms_panel(third.subplots(), results, rows, [row.arm for row in rows], full=True)
        _summary_panel(fourth, verdict, blocks)
    return figure


def _agreement_panel(panel: SubFigure, results: Results, pairs: Sequence[Agreement]) -> None:
    """The lower triangle of method pairs; a method's name ends its row and stands on its column."""
    style.heading(panel, "2 Agreement of methods: Jaccard of their first K documents")
    axes = panel.subplots()
    names = list(dict.fromkeys(name for pair in pairs for name in (pair.a, pair.b)))
    if len(names) < 2:
        style.nothing(axes, "no two methods ranked the same documents")
        return
    count = len(names)
    grid = np.where(np.tri(count, k=-1, dtype=bool), -1.0, math.nan)
    for pair in pairs:
        x, y = sorted((names.index(pair.a), names.index(pair.b)))
        grid[y, x] = -1 if pair.jaccard is None else pair.jaccard
    for y, name in enumerate(names):
        label = style.shortened(results.methods[name].label, 2.1)
        axes.text(y + 0.1, y + 0.5, label, va="center", size=style.LABEL)
    style.cells(axes, grid, 1, style.AGREEMENT, ".2f")
    axes.set(xlim=(0, max(count, 6)), ylim=(max(count, 7), 0), xticks=[], yticks=[])


def _sentences(summary: Sequence[str], inches: float) -> list[list[str]]:
    """The lines of each sentence; those for which there is no room are counted."""
    blocks = [style.wrapped(text, style.WIDTH / 2 - 0.6, style.LABEL) for text in summary]
    count = len(blocks)
    while len(blocks) > 1 and _inches(blocks) > inches:
        blocks = blocks[:-2]
        blocks.append([f"and {count - len(blocks)} more in writeup/report.md"])
    return blocks


def _inches(blocks: Sequence[Sequence[str]]) -> float:
    return sum(len(block) + _BETWEEN for block in blocks) * style.LABEL * _LEADING / style.POINTS


def _summary_panel(panel: SubFigure, verdict: str, blocks: Sequence[Sequence[str]]) -> None:
    style.heading(panel, f"4 Verdict: {verdict}")
    axes = panel.subplots()
    if not blocks:
        style.nothing(axes, "the study has no finding")
        return
    axes.set_axis_off()
    where: dict[str, Any] = {"textcoords": "offset points", "xycoords": "axes fraction"}
    where |= {"va": "top", "size": style.LABEL}
    y = 0.0
    for block in blocks:
        axes.annotate("\N{BULLET}", (0, 1), (0, -y), color=style.GREY, **where)
        axes.annotate("\n".join(block), (0, 1), (12, -y), linespacing=_LEADING / 1.2, **where)
        y += (len(block) + _BETWEEN) * style.LABEL * _LEADING
