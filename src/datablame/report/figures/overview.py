"""final_results.png: the study on one page for slides, four panels, two pages of a paper wide."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from datablame.report.figures import style
from datablame.report.figures.page import heading, page
from datablame.report.figures.patching import ARM, HEADINGS, NAME, arms_caption, arms_of, arms_panel, runs_of
from datablame.report.figures.rates import counted, rates_height, rates_panel, shown_split
from datablame.report.figures.typesetting import LEADING, em, shortened, text_width, typeset, wide, wrapped
from datablame.report.results import Results
from datablame.report.wording import sentence
from datablame.tables import EVERY, Agreement

_METHOD, _NUMBER = 8.0, 1.3
"""Ems of a method's name at least; narrower cells have no number."""
_INDENT, _BETWEEN = 2.0, 0.5
"""Ems left of the verdict's sentences, and between two of them."""


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
    settings = results.study.figures.model_copy(update={"width": 2 * results.study.figures.width})
    with typeset(settings):
        blocks = [wrapped(text, wide() / 2 - _INDENT - 1) for text in summary]
    heights = [rates_height(results) + 2, max(7 + ARM * max(3, len(rows)), 2 + _height(blocks))]
    with page(heights, results.title, caption, settings) as (figure, halves):
        (left, right), (second, third) = (half.subfigures(1, 2, squeeze=False)[0] for half in halves)
        heading(left, f"1 Harmful outputs, {shown_split(results.rates)} prompts")
        star = results.patching.alpha if rows else None
        rates_panel(left.subplots(), results, shown_split(results.rates), star, estimated=False)
        heading(right, "2 Agreement of methods (Jaccard, %)")
        _agreement_panel(right.subplots(), results, pooled)
        heading(second, f"3 {HEADINGS[results.study.patch.intervention]} ({headline}, {runs_of(results, rows)})")
        arms_panel(second.subplots(), results, rows, [row.arm for row in rows], NAME)
        heading(third, f"4 Verdict: {verdict}")
        _summary_panel(third.subplots(), blocks)
    return figure


def _agreement_panel(axes: Axes, results: Results, pairs: Sequence[Agreement]) -> None:
    """The lower triangle of method pairs; a method's name ends its row and stands on its column."""
    names = list(dict.fromkeys(name for pair in pairs for name in (pair.a, pair.b)))
    if len(names) < 2:
        style.nothing(axes, "no two methods ranked the same documents")
        return
    count = len(names)
    grid = np.where(np.tri(count, k=-1, dtype=bool), -1.0, math.nan)
    for pair in pairs:
        x, y = sorted((names.index(pair.a), names.index(pair.b)))
        grid[y, x] = -1 if pair.jaccard is None else 100 * pair.jaccard
    # The last name begins where the triangle ends.
    half = wide() / 2 - 1.5
    labels = [shortened(results.methods[name].label, half) for name in names]
    room = min(max(map(text_width, labels)), max(_METHOD, half - _NUMBER * (count - 1)))
    unit = (half - room) / (count - 1)
    for y, label in enumerate(labels):
        axes.text(y + 0.3 / unit, y + 0.5, shortened(label, room + (count - 1 - y) * unit), va="center")
    style.cells(axes, grid, 100, style.AGREEMENT, ".0f" if unit >= _NUMBER else None)
    axes.set(xlim=(0, count - 1 + (room + 0.3) / unit), ylim=(count, 0), xticks=[], yticks=[])


def _height(blocks: Sequence[Sequence[str]]) -> float:
    """Ems that sentences take."""
    return max(3, sum(len(block) * LEADING + _BETWEEN for block in blocks))


def _summary_panel(axes: Axes, blocks: Sequence[Sequence[str]]) -> None:
    if not blocks:
        style.nothing(axes, "the study has no finding")
        return
    axes.set_axis_off()
    where: dict[str, Any] = {"textcoords": "offset points", "xycoords": "axes fraction", "va": "top"}
    y = 0.0
    for block in blocks:
        axes.annotate("\N{BULLET}", (0, 1), (0, -em(y)), color=style.GREY, **where)
        axes.annotate("\n".join(block), (0, 1), (em(_INDENT - 1), -em(y)), linespacing=LEADING / 1.2, **where)
        y += len(block) * LEADING + _BETWEEN
