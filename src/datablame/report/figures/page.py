"""A page: panels laid out by the room that their words leave, and its bytes, which repeat."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.gridspec import GridSpec
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FixedLocator
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from datablame.config.report import Figures
from datablame.report.figures.typesetting import LEADING, MARGIN, POINTS, em, lines_height, typeset, wide, wrapped

_DPI = 300
_GAP, _PAD = 1.8, 0.45
"""Ems between two rows of a page, and around axes with their words."""
_ROUNDS = 4
"""Of laying out."""
_METADATA = {
    "png": ("Description", ("Software",)),
    "svg": ("Description", ("Creator", "Date")),
    "pdf": ("Subject", ("Creator", "Producer", "CreationDate")),
}
"""By format, what holds a caption, and what would tell one day or version of matplotlib from another."""


@contextmanager
def page(
    heights: Sequence[float], title: str, caption: str, settings: Figures
) -> Iterator[tuple[Figure, list[SubFigure]]]:
    """A figure with a row of each height, between its title and its caption if the study wants them.

    In the end every panel is laid out, labels of `beside` and `above` are moved apart, and everything stays in place.
    """
    with typeset(settings):
        head, foot = wrapped(title, wide(), "x-large", "bold", most=2), wrapped(caption, wide(), "small")
        above, below = (
            (lines_height(head, "x-large") + 0.5, lines_height(foot, "small") + 1) if settings.caption else (0, 0)
        )
        rows = [MARGIN + above, *(ems for height in heights for ems in (height, _GAP))]
        rows[-1] = MARGIN + below
        figure = Figure(figsize=(settings.width, em(sum(rows)) / POINTS), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(figure)
        x, y = em(MARGIN) / POINTS / np.array(figure.get_size_inches())
        colour = mpl.rcParams["axes.labelcolor"]
        named = figure.text(x, 1 - y, "\n".join(head), size="x-large", weight="bold", va="top")
        noted = figure.text(x, y, "\n".join(foot), size="small", color=colour, va="bottom")
        for text in (named, noted):
            text.set(linespacing=LEADING / 1.2, visible=settings.caption)
        grid = GridSpec(len(rows), 3, figure, width_ratios=[MARGIN, wide(), MARGIN], height_ratios=rows)
        grid.update(left=0, right=1, bottom=0, top=1, wspace=0, hspace=0)
        yield figure, [figure.add_subfigure(grid[row, 1]) for row in range(1, len(rows), 2)]
        for panel in {axes.figure: None for axes in figure.axes}:
            assert isinstance(panel, SubFigure)
            _lay_out(panel)
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(FixedLocator(axis.get_majorticklocs().tolist()))
            _move_apart(axes, 0)
            _move_apart(axes, 1)


def heading(panel: SubFigure, text: str) -> None:
    """Write what a panel shows above it."""
    lines = wrapped(text, panel.bbox.width / _DPI * POINTS / em() - 1, "large", "bold", most=2)
    panel.suptitle("\n".join(lines), x=0, y=1, ha="left", size="large", weight="bold", linespacing=LEADING / 1.2)


def _lay_out(panel: SubFigure) -> None:
    """Give a panel's axes, rows and columns of them under its heading, the room that ticks, titles and names leave.

    Plain arithmetic, a few rounds of it because ticks and names change with the room: matplotlib's constrained layout
    asks a solver whose results depend on where memory lies (nucleic/kiwi#57), and which may not return (#71).
    """
    grid = panel.axes[0].get_gridspec()
    assert grid is not None
    axes = np.array(panel.axes).reshape(grid.nrows, grid.ncols)
    across, down = np.array(grid.get_width_ratios()), np.array(grid.get_height_ratios())
    pixels = _DPI / POINTS
    wide, high = panel.bbox.width, panel.bbox.height
    room = high - em(lines_height(panel.get_suptitle().splitlines(), "large")) * pixels
    for _ in range(_ROUNDS):
        inner = np.array([[each.bbox.extents for each in row] for row in axes])
        outer = np.array(
            [[(each.get_tightbbox(for_layout_only=True) or each.bbox).extents for each in row] for row in axes]
        )
        before, after = (np.clip(gap, 0, None) + em(_PAD) * pixels for gap in (inner - outer, outer - inner))
        left, right = before[..., 0].max(0), after[..., 2].max(0)
        below, above = before[..., 1].max(1), after[..., 3].max(1)
        widths = across / across.sum() * (wide - (left + right).sum())
        heights = down / down.sum() * (room - (below + above).sum())
        lefts = np.cumsum(left + np.append(0, (widths + right)[:-1]))
        tops = room - np.cumsum(above + np.append(0, (heights + below)[:-1]))
        for row, top, height in zip(axes, tops, heights, strict=True):
            for each, start, width in zip(row, lefts, widths, strict=True):
                each.set_position((start / wide, (top - height) / high, width / wide, height / high))


def pictures(figure: Figure, formats: Sequence[str]) -> dict[str, bytes]:
    """The figure in each of png, svg and pdf; equal figures give equal bytes. Their metadata hold title and caption.

    Words are outlines in SVG, so that no reader needs the font or takes them for markup, and embedded type in PDF.
    """
    title, caption = (" ".join(text.get_text().split()) for text in figure.texts)
    made = {}
    with typeset(Figures()):
        for form in formats:
            (key, none), buffer = _METADATA[form], io.BytesIO()
            metadata = {"Title": title, key: caption, **dict.fromkeys(none)}
            figure.savefig(buffer, format=form, dpi="figure", metadata=metadata)
            made[form] = buffer.getvalue()
    return made


def _move_apart(axes: Axes, index: int) -> None:
    """Move the labels of one axis apart, as little as needed and within the axes."""
    labels = [text for text in axes.texts if isinstance(text, Annotation) and text.get_label() == "xy"[index]]
    if labels:
        gap = em((0.6, 0.15)[index]) / POINTS * _DPI
        boxes = np.array([np.asarray(Text.get_window_extent(label))[:, index] for label in labels])
        centres = spread(boxes.mean(1), np.ptp(boxes, 1) + gap, *np.asarray(axes.bbox)[:, index])
        for label, centre in zip(labels, centres, strict=True):
            position = list(label.xyann)
            position[index] = axes.transData.inverted().transform((centre, centre))[index]
            label.xyann = (position[0], position[1])


def spread(centres: NDArray[np.float64], sizes: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Centres of labels that don't touch within [low, high], nearest in squares to where they were."""
    order = np.argsort(centres, kind="stable")
    ordered = sizes[order]
    offsets = np.cumsum(np.append(0, (ordered[1:] + ordered[:-1]) / 2))
    first = low + ordered[0] / 2
    last = max(first, high - ordered[-1] / 2 - offsets[-1])
    result = np.empty(len(order))
    result[order] = np.clip(isotonic_regression(centres[order] - offsets).x, first, last) + offsets
    return result
