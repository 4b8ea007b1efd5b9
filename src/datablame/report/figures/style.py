"""How every figure looks: its type and colours, pages that matplotlib lays out, text that fits, bytes that repeat."""

import functools
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Annotation, Text
from matplotlib.textpath import TextToPath
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from datablame.report.wording import plain
from datablame.tables import Look

ALPHA = "\N{GREEK SMALL LETTER ALPHA}"
INK, GREY, FAINT = "#1A1A1A", "#5C5C5C", "#E3E3E3"
WIDTH = 14.0
"""Inches of a page between its margins."""
POINTS = 72
_DPI = 160
_FAMILY = "DejaVu Sans"
_MARGIN, _HEADER = 0.28, 0.55
"""Inches around the page, and for its title."""
_GAP = 0.3
"""Inches between two rows."""
_TITLE, _HEADING, _CAPTION = 15.0, 11.5, 9.0
_LEADING = 1.45
LABEL = 9.5
"""Points of names and numbers."""
_PERCENT = re.compile(r"(\d) %")
_SETTINGS: Mapping[Any, Any] = {
    "font.family": _FAMILY,
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelsize": LABEL,
    "axes.labelcolor": GREY,
    "axes.edgecolor": "#9A9A9A",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": "#9A9A9A",
    "ytick.color": "#9A9A9A",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": LABEL,
    "ytick.labelsize": LABEL,
    "ytick.major.pad": 5,
    "hatch.linewidth": 0.5,
}
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
HARM = LinearSegmentedColormap.from_list("harm", ["#FFF8F2", "#FABE8C", "#D55E00", "#843200"]).with_extremes(
    under=FAINT
)
AGREEMENT = LinearSegmentedColormap.from_list("agreement", ["#F3F8FC", "#9ECAE6", "#0072B2", "#002E50"]).with_extremes(
    under=FAINT
)
"""Pale to dark; below 0 stands for what is missing."""


def behaviour_looks(names: Sequence[str]) -> dict[str, Look]:
    """The colours and markers of a study's behaviours, by their order; past six, colours meet other markers."""
    count = len(_BEHAVIOURS)
    colours = [_BEHAVIOURS[index % count] for index in range(len(names))]
    markers = [_BEHAVIOURS[(index + index // count) % count].marker for index in range(len(names))]
    return {name: Look(look.fill, look.ink, marker) for name, look, marker in zip(names, colours, markers, strict=True)}


@contextmanager
def page(
    heights: Sequence[float], title: str, caption: str, width: float = WIDTH
) -> Iterator[tuple[Figure, list[SubFigure]]]:
    """A figure with a row of so many inches for each height, between its title and its caption.

    What is drawn meanwhile has our type and lines whatever matplotlibrc says, and a dollar sign is a dollar sign. In
    the end matplotlib lays it out once, labels of `beside` and `above` are moved apart, and everything stays in place.
    """
    lines = wrapped(caption, width, _CAPTION)
    footer = len(lines) * _CAPTION * _LEADING / POINTS + 0.2
    wide, high = width + 2 * _MARGIN, sum(heights) + _HEADER + footer + 2 * _MARGIN
    area = (_MARGIN / wide, (_MARGIN + footer) / high, width / wide, sum(heights) / high)
    with _settings():
        engine = ConstrainedLayoutEngine(rect=area, w_pad=0.05, h_pad=0.05, wspace=0, hspace=0)
        figure = Figure(figsize=(wide, high), dpi=_DPI, facecolor="white", layout=engine)
        FigureCanvasAgg(figure)
        heading = wrapped(title, width, _TITLE, "bold", most=1)[0]
        figure.text(area[0], 1 - _MARGIN / high, heading, size=_TITLE, weight="bold", va="top")
        text = figure.text(area[0], _MARGIN / high, "\n".join(lines), size=_CAPTION, color=GREY, va="bottom")
        text.set_linespacing(_LEADING / 1.2)
        rows = figure.subfigures(
            len(heights), 1, height_ratios=heights, squeeze=False, hspace=_GAP * len(heights) / sum(heights)
        )
        yield figure, list(rows[:, 0])
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axes in figure.axes:
            for axis in ("x", "y"):
                _move_apart(axes, axis)


@contextmanager
def _settings() -> Iterator[None]:
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


def heading(panel: SubFigure, text: str) -> None:
    """Write what a panel shows above it, on one line."""
    inches = panel.bbox.width / panel.dpi - 2 * _MARGIN
    panel.suptitle(wrapped(text, inches, _HEADING, "bold", most=1)[0], x=0, ha="left", size=_HEADING, weight="bold")


def png(figure: Figure) -> bytes:
    """The figure as PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with _settings():
        figure.savefig(buffer, format="png", dpi="figure", metadata={"Software": None})
    return buffer.getvalue()


def nothing(axes: Axes, why: str) -> None:
    """Say in an otherwise empty panel why it is empty."""
    axes.set_axis_off()
    text = "\n".join(wrapped(f"nothing to show: {why}", 2.6, 10))
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, style="italic")


def shares(values: Sequence[float | None]) -> NDArray[np.float64]:
    """Shares in percent, NaN where there is none."""
    return np.array([math.nan if value is None else 100 * value for value in values])


def points(
    axes: Axes,
    look: Look,
    x: Sequence[float] | NDArray[np.float64],
    y: Sequence[float] | NDArray[np.float64],
    ends: tuple[Sequence[float | None], Sequence[float | None]],
    *,
    size: float,
    horizontal: bool = False,
    **options: Any,
) -> None:
    """Markers of a look with their intervals, whose `ends` are shares; the values lie along y, or x if `horizontal`."""
    low, high = shares(ends[0]), shares(ends[1])
    values = np.asarray(x if horizontal else y, float)
    axes.errorbar(
        x,
        y,
        **{"xerr" if horizontal else "yerr": np.clip([values - low, high - values], 0, None)},
        color=look.ink,
        marker=look.marker,
        markersize=1.4 * size if look.marker == "*" else size,
        markerfacecolor=look.fill,
        markeredgecolor=look.ink if look.fill != look.ink else "white",
        clip_on=False,
        **options,
    )


def seeds(axes: Axes, look: Look, x: Sequence[float], y: Sequence[float], size: float) -> None:
    """A small dot for each training seed."""
    axes.plot(x, y, "o", markersize=size, color=look.ink, alpha=0.5, markeredgewidth=0, zorder=4, clip_on=False)


def percent_axis(axes: Axes, axis: str, top: float, margin: float = 0) -> None:
    """Write an axis in percent from 0 to a top, with a share of that below 0 for markers."""
    axes.set(**{f"{axis}lim": (-margin * top, top)})
    getattr(axes, f"{axis}axis").set_major_formatter(lambda value, _: f"{value:g} %")


def cells(
    axes: Axes, values: NDArray[np.float64], top: float, colours: Colormap, texts: Sequence[Sequence[str]]
) -> None:
    """A heatmap from 0 to a top with a text in each cell; NaN leaves a cell out, below 0 is missing."""
    axes.pcolormesh(np.ma.masked_invalid(values), cmap=colours, vmin=0, vmax=top, edgecolors="white", linewidth=1.5)
    for y, x in np.argwhere(~np.isnan(values)):
        red, green, blue, _ = colours(values[y, x] / top)
        ink = GREY if values[y, x] < 0 else INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "white"
        text = axes.text(x + 0.5, y + 0.5, texts[y][x], ha="center", va="center", size=9, color=ink)
        text.set_in_layout(False)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def beside(
    axes: Axes, text: str, point: tuple[float, float], colour: str, *, bold: bool = False, gap: float = 5
) -> None:
    """Name right of the axes what ends at a point; names that would touch are moved apart, with a thin line each."""
    axes.annotate(
        text,
        point,
        xytext=(1.06, point[1]),
        textcoords=axes.get_yaxis_transform(),
        va="center",
        size=LABEL,
        weight="bold" if bold else "normal",
        color=colour,
        linespacing=1.1,
        annotation_clip=False,
        gid="y",
        arrowprops={
            **{"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.6},
            **{"shrinkA": 1, "shrinkB": gap, "relpos": (0, 0.5)},
        },
    )


def above(axes: Axes, text: str, x: float, colour: str) -> None:
    """Name a vertical line above the axes; names that would touch are moved apart."""
    axes.text(x, 1.01, text, transform=axes.get_xaxis_transform(), ha="center", size=8.5, color=colour, gid="x")


def _move_apart(axes: Axes, axis: str) -> None:
    """Move the labels of one axis apart, as little as needed and within the axes."""
    labels = [text for text in axes.texts if text.get_gid() == axis]
    if not labels:
        return
    index = "xy".index(axis)
    boxes = [np.asarray(Text.get_window_extent(label))[:, index] for label in labels]
    pad = 4.0
    centres, sizes = np.mean(boxes, axis=1), np.ptp(boxes, axis=1) + pad
    low, high = np.asarray(axes.bbox)[:, index]
    to_data = axes.transData.inverted()
    for label, centre in zip(labels, spread(centres, sizes, low, high), strict=True):
        value = to_data.transform((centre, centre))[index]
        if isinstance(label, Annotation):
            label.xyann = (label.xyann[0], value)
        else:
            label.set_x(value)


def spread(
    centres: Sequence[float] | NDArray[np.float64],
    sizes: Sequence[float] | NDArray[np.float64],
    low: float,
    high: float,
) -> NDArray[np.float64]:
    """Centres of labels that don't touch within [low, high], nearest in squares to where they were."""
    order = np.argsort(centres, kind="stable")
    ordered = np.asarray(sizes, float)[order]
    offsets = np.cumsum(np.concatenate([[0.0], (ordered[1:] + ordered[:-1]) / 2]))
    levels = isotonic_regression(np.asarray(centres, float)[order] - offsets).x
    first = low + ordered[0] / 2
    levels = np.clip(levels, first, max(first, high - ordered[-1] / 2 - offsets[-1]))
    result = np.empty(len(order))
    result[order] = levels + offsets
    return result


@functools.lru_cache(maxsize=8192)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Inches that one line of text takes."""
    font = FontProperties(family=_FAMILY, size=size, weight=weight)
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
        last = lines[most - 1]
        while last and text_width(last + "…", size, weight) > inches:
            last = last[:-1]
        lines = [*lines[: most - 1], last.rstrip() + "…"]
    return lines


def shortened(name: str, inches: float, size: float = LABEL, weight: str = "normal") -> str:
    """A name on one line, its middle left out where it is longer: names often differ at their end."""
    name = " ".join(plain(name).split())
    letters, text = len(name), name
    while letters > 2 and text_width(text, size, weight) > inches:
        letters -= 1
        text = f"{name[: (letters + 1) // 2]}…{name[len(name) - letters // 2 :]}"
    return text
