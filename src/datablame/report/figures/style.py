"""How every figure looks: its type and colours, pages laid out by what their words take, bytes that repeat."""

import functools
import io
import math
import re
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.gridspec import GridSpec
from matplotlib.text import Annotation, Text
from matplotlib.textpath import TextToPath
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from datablame.report.wording import plain
from datablame.tables import ArmTest, Importance, Look, Rate

_SETTINGS = Path(__file__).with_name("page.mplstyle")
_PAGE = mpl.rc_params_from_file(_SETTINGS, use_default_template=False)
ALPHA = "\N{GREEK SMALL LETTER ALPHA}"
INK, GREY, FAINT = _PAGE["text.color"], _PAGE["axes.labelcolor"], _PAGE["grid.color"]
Axis = Literal["x", "y"]
WIDTH = 14.0
"""Inches of a page between its margins."""
POINTS = 72
_DPI = 160
_FAMILY: str = _PAGE["font.family"][0]
LABEL: float = _PAGE["axes.labelsize"]
"""Points of type for names and numbers."""
_MARGIN, _HEADER, _GAP = 0.28, 0.55, 0.3
"""Inches around the page, for its title, and between two rows."""
_PAD, _ROUNDS = 0.05, 4
"""Inches around axes with their words; rounds of laying out."""
_TITLE, _HEADING, _CAPTION, _LEADING = 15.0, 11.5, 9.0, 1.45
"""Points of type; a caption's lines, as a share of its type."""
_MISSING = "Glyph .* missing from font"
_PERCENT = re.compile(r"(\d) %")
Estimate = Rate | ArmTest | Importance
"""What has a rate and its interval."""
POOLED = Look(INK, INK, "o")
_BEHAVIOURS = (
    Look("#332288", "#332288", "o"),
    Look("#44AA99", "#2C8577", "s"),
    Look("#AA4499", "#AA4499", "^"),
    Look("#999933", "#77771F", "D"),
    Look("#661100", "#661100", "v"),
    Look("#88CCEE", "#3D8FB8", "P"),
)
"""Tol's muted colours: behaviours are not methods, so they share no colour with them."""
LABEL_FILLS: Mapping[str, tuple[str, str]] = {
    "harmful": ("#C44E00", ""),
    "harmless": ("#CDE6F5", ""),
    "refused": ("#6AAED6", ""),
    "incoherent": ("#D6D6D6", "////"),
    "unscored": ("#FFFFFF", "...."),
}
"""Fill and hatch by label, in the order in which they are stacked; neighbours differ in lightness."""


def _pale_to_dark(*stops: str) -> Colormap:
    return LinearSegmentedColormap.from_list("pale to dark", stops).with_extremes(under=FAINT)


HARM = _pale_to_dark("#FFF8F2", "#FABE8C", "#D55E00", "#843200")
AGREEMENT = _pale_to_dark("#F3F8FC", "#9ECAE6", "#0072B2", "#002E50")
"""For heatmaps; what is below 0 is missing."""


def behaviour_looks(names: Sequence[str]) -> dict[str, Look]:
    """The colours and markers of a study's behaviours, by their order; past six, colours meet other markers."""
    count = len(_BEHAVIOURS)
    markers = [_BEHAVIOURS[(index + index // count) % count].marker for index in range(len(names))]
    return {name: replace(_BEHAVIOURS[index % count], marker=markers[index]) for index, name in enumerate(names)}


@contextmanager
def page(
    heights: Sequence[float], title: str, caption: str, width: float = WIDTH
) -> Iterator[tuple[Figure, list[SubFigure]]]:
    """A figure with a row of so many inches for each height, between its title and its caption.

    What is drawn meanwhile has our type and lines whatever matplotlibrc says, and a dollar sign is a dollar sign. In
    the end every panel is laid out, labels of `beside` and `above` are moved apart, and everything stays in place.
    """
    lines = wrapped(caption, width, _CAPTION)
    footer = len(lines) * _CAPTION * _LEADING / POINTS + 0.2
    rows = [_MARGIN + _HEADER, *(inches for height in heights for inches in (height, _GAP))]
    rows[-1] = footer + _MARGIN
    wide, high = width + 2 * _MARGIN, sum(rows)
    with _settings():
        figure = Figure(figsize=(wide, high), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(figure)
        heading = wrapped(title, width, _TITLE, "bold", most=1)[0]
        x, y = _MARGIN / wide, _MARGIN / high
        figure.text(x, 1 - y, heading, size=_TITLE, weight="bold", va="top")
        text = figure.text(x, y, "\n".join(lines), size=_CAPTION, color=GREY, va="bottom")
        text.set_linespacing(_LEADING / 1.2)
        grid = GridSpec(len(rows), 3, figure, width_ratios=[_MARGIN, width, _MARGIN], height_ratios=rows)
        yield figure, [figure.add_subfigure(grid[row, 1]) for row in range(1, len(rows), 2)]
        for panel in {axes.figure: None for axes in figure.axes}:
            assert isinstance(panel, SubFigure)
            _lay_out(panel)
        for axes in figure.axes:
            _move_apart(axes, 0)
            _move_apart(axes, 1)


def _lay_out(panel: SubFigure) -> None:
    """Give a panel's axes, side by side under its heading, the room that their ticks, titles and names leave.

    Plain arithmetic, a few rounds of it because ticks and names change with the room: matplotlib's constrained layout
    asks a solver whose results depend on where memory lies (nucleic/kiwi#57), and which may not return (#71).
    """
    axes, pad = panel.axes, _PAD * panel.dpi
    ratios = np.array(axes[0].get_gridspec().get_width_ratios())  # type: ignore[union-attr]
    wide, high = panel.bbox.width, panel.bbox.height - _HEADING * _LEADING / POINTS * panel.dpi
    for _ in range(_ROUNDS):
        inner = np.array([each.bbox.extents for each in axes])
        outer = np.array([(each.get_tightbbox(for_layout_only=True) or each.bbox).extents for each in axes])
        before, after = np.clip(inner - outer, 0, None)[:, :2] + pad, np.clip(outer - inner, 0, None)[:, 2:] + pad
        widths = ratios / ratios.sum() * (wide - before[:, 0].sum() - after[:, 0].sum())
        lefts = np.cumsum(before[:, 0] + np.append(0, (widths + after[:, 0])[:-1]))
        below, above = before[:, 1].max(), after[:, 1].max()
        for each, left, width in zip(axes, lefts, widths, strict=True):
            bounds = left / wide, below / panel.bbox.height, width / wide, (high - below - above) / panel.bbox.height
            each.set_position(bounds)


@contextmanager
def _settings() -> Iterator[None]:
    with mpl.rc_context(fname=_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_MISSING)
        yield


def heading(panel: SubFigure, text: str) -> None:
    """Write what a panel shows above it, on one line."""
    line = wrapped(text, panel.bbox.width / panel.dpi - 2 * _MARGIN, _HEADING, "bold", most=1)[0]
    panel.suptitle(line, x=0, y=1, ha="left", size=_HEADING, weight="bold")


def png(figure: Figure) -> bytes:
    """The figure as PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with _settings():
        figure.savefig(buffer, format="png", dpi="figure", metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """The figure as SVG, its words as outlines; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with _settings(), mpl.rc_context({"svg.hashsalt": "datablame"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def nothing(axes: Axes, why: str) -> None:
    """Say in an otherwise empty panel why it is empty."""
    axes.set_axis_off()
    text = "\n".join(wrapped(f"nothing to show: {why}", 2.6, 10))
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, style="italic")


def percents(values: Sequence[float | None]) -> NDArray[np.float64]:
    """Shares in percent, NaN where there is none."""
    return np.array([math.nan if value is None else 100 * value for value in values])


def marker(look: Look, size: float) -> dict[str, Any]:
    """How a look is drawn; stars are larger, so that they cover as much."""
    return {
        **{"color": look.ink, "marker": look.marker, "markersize": 1.4 * size if look.marker == "*" else size},
        **{"markerfacecolor": look.fill, "markeredgecolor": look.ink if look.fill != look.ink else "white"},
    }


def points(
    axes: Axes, look: Look, where: Sequence[float], rows: Sequence[Estimate], size: float, axis: Axis = "y", **line: Any
) -> None:
    """Markers of a look at rates along an axis, with their intervals; a line joins them if its width is given.

    Beside the marker of an arm stands a small dot for each of its training seeds, where there are several.
    """
    rates, low, high = (percents([getattr(row, name) for row in rows]) for name in ("rate", "low", "high"))
    ends = np.clip([rates - low, high - rates], 0, None)
    style: dict[str, Any] = {"linestyle": "-" if "linewidth" in line else "", "markeredgewidth": 1, "zorder": 5}
    style |= marker(look, size)
    x, y = (rates, where) if axis == "x" else (where, rates)
    axes.errorbar(x, y, clip_on=False, **(style | {f"{axis}err": ends} | line))
    offset, size = (0.27, 4) if axis == "x" else (0.022, 3)
    for row, position in zip(rows, where, strict=True):
        if isinstance(row, ArmTest) and len(row.per_seed) > 1:
            dots, across = percents(row.per_seed), np.full(len(row.per_seed), position + offset)
            x, y = (dots, across) if axis == "x" else (across, dots)
            axes.plot(x, y, "o", color=look.ink, alpha=0.5, markeredgewidth=0, markersize=size, zorder=4, clip_on=False)


def percent_axis(axes: Axes, axis: Axis, top: float, margin: float = 0) -> None:
    """Write an axis in percent from 0 to a top, with a share of that below 0 for markers."""
    axes.set(**{f"{axis}lim": (-margin * top, top)})
    getattr(axes, f"{axis}axis").set_major_formatter(lambda value, _: f"{value:g} %")
    axes.grid(visible=False, axis="x")


def cells(axes: Axes, values: NDArray[np.float64], top: float, colours: Colormap, form: str | None) -> None:
    """A heatmap from 0 to a top, its numbers in a form if there is room; NaN leaves a cell out, below 0 is missing."""
    axes.pcolormesh(np.ma.masked_invalid(values), cmap=colours, vmin=0, vmax=top, edgecolors="white", linewidth=1.5)
    for y, x in np.argwhere(~np.isnan(values)) if form else ():
        value = values[y, x]
        red, green, blue, _ = colours(value / top)
        ink = GREY if value < 0 else INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "white"
        text = "-" if value < 0 else f"{value:{form}}"
        axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", size=9, color=ink).set_in_layout(False)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def beside(
    axes: Axes, text: str, point: tuple[float, float], colour: str, *, bold: bool = False, gap: float = 5
) -> None:
    """Name right of the axes what ends at a point; names that would touch are moved apart, with a thin line each."""
    style: dict[str, Any] = {"va": "center", "size": LABEL, "weight": "bold" if bold else "normal", "linespacing": 1.1}
    line = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.6, "shrinkA": 1, "shrinkB": gap}
    style |= {"textcoords": axes.get_yaxis_transform(), "arrowprops": line | {"relpos": (0, 0.5)}}
    axes.annotate(text, point, (1.06, point[1]), color=colour, gid="y", annotation_clip=False, **style)


def above(axes: Axes, text: str, x: float, colour: str) -> None:
    """Name a vertical line above the axes; names that would touch are moved apart."""
    where = axes.get_xaxis_transform()
    axes.annotate(text, (x, 1), (x, 1.01), textcoords=where, ha="center", size=8.5, color=colour, gid="x")


def _move_apart(axes: Axes, index: int) -> None:
    """Move the labels of one axis apart, as little as needed and within the axes."""
    labels = [text for text in axes.texts if isinstance(text, Annotation) and text.get_gid() == "xy"[index]]
    if labels:
        boxes = np.array([np.asarray(Text.get_window_extent(label))[:, index] for label in labels])
        centres = spread(boxes.mean(1), np.ptp(boxes, 1) + 4, *np.asarray(axes.bbox)[:, index])
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


@functools.lru_cache(maxsize=8192)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Inches that one line of text takes."""
    font = FontProperties(family=_FAMILY, size=size, weight=weight)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_MISSING)
        return float(TextToPath().get_text_width_height_descent(text, font, ismath=False)[0]) / POINTS


def wrapped(text: str, inches: float, size: float, weight: str = "normal", most: int | None = None) -> list[str]:
    """Lines of at most that width, broken at spaces, inside a word only where it alone is longer.

    A number keeps its percent sign. Past `most` lines the last one ends in an ellipsis.
    """
    lines = [""]
    for word in _PERCENT.sub("\\1\N{NO-BREAK SPACE}%", " ".join(plain(text).split())).split(" "):
        longer = f"{lines[-1]} {word}".strip(" ")
        if text_width(longer, size, weight) <= inches:
            lines[-1] = longer
            continue
        lines += [""] if lines[-1] else []
        for part in [word] if text_width(word, size, weight) <= inches else word:
            if lines[-1] and text_width(lines[-1] + part, size, weight) > inches:
                lines.append("")
            lines[-1] += part
    if most is not None and len(lines) > most:
        full = lines[most - 1]
        last = _longest(lambda letters: full[:letters].rstrip() + "…", len(full), inches, size, weight)
        lines = [*lines[: most - 1], last]
    return lines


def shortened(name: str, inches: float, size: float = LABEL, weight: str = "normal") -> str:
    """A name on one line, its middle left out where it is longer: names often differ at their end."""
    name = " ".join(plain(name).split())
    if text_width(name, size, weight) <= inches:
        return name
    length = len(name)
    return _longest(lambda n: f"{name[: (n + 1) // 2]}…{name[length - n // 2 :]}", length, inches, size, weight)


def _longest(cut: Callable[[int], str], letters: int, inches: float, size: float, weight: str) -> str:
    fitting = bisect_right(range(letters + 1), inches, key=lambda count: text_width(cut(count), size, weight))
    return cut(max(0, fitting - 1))
