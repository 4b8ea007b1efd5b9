"""How every figure looks: its colours, and marks in them."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from datablame.report.colours import AGREEMENT_STOPS, HARM_STOPS
from datablame.report.figures.typesetting import POINTS, SETTINGS, em, wrapped
from datablame.tables import ArmTest, Importance, Look, Rate

_PAGE = mpl.rc_params_from_file(SETTINGS, use_default_template=False)
ALPHA = "\N{GREEK SMALL LETTER ALPHA}"
INK, GREY, FAINT = _PAGE["text.color"], _PAGE["axes.labelcolor"], _PAGE["grid.color"]
Axis = Literal["x", "y"]
Estimate = Rate | ArmTest | Importance
"""What has a rate and its interval."""
_MIDDLE = 0.2
"""The luminance on which white and our ink are read equally well."""
POOLED = Look(INK, INK, "o")


def _pale_to_dark(*stops: str) -> Colormap:
    return LinearSegmentedColormap.from_list("pale to dark", stops).with_extremes(under=FAINT)


HARM, AGREEMENT = _pale_to_dark(*HARM_STOPS), _pale_to_dark(*AGREEMENT_STOPS)
"""For heatmaps; what is below 0 is missing."""


def nothing(axes: Axes, why: str) -> None:
    """Say in an otherwise empty panel why it is empty."""
    axes.set_axis_off()
    text = "\n".join(wrapped(f"nothing to show: {why}", 20))
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, style="italic")


def percents(values: Sequence[float | None]) -> NDArray[np.float64]:
    """Shares in percent, NaN where there is none."""
    return np.array([math.nan if value is None else 100 * value for value in values])


def marker(look: Look, size: float) -> dict[str, Any]:
    """How a look is drawn, in ems; stars are larger, so that they cover as much."""
    size = em(size)
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
    style: dict[str, Any] = {"linestyle": "-" if "linewidth" in line else "", "markeredgewidth": 0.7, "zorder": 5}
    style |= marker(look, size)
    x, y = (rates, where) if axis == "x" else (where, rates)
    axes.errorbar(x, y, clip_on=False, **(style | {f"{axis}err": ends} | line))
    offset, dot = (0.27, em(0.35)) if axis == "x" else (0.022, em(0.3))
    for row, position in zip(rows, where, strict=True):
        if isinstance(row, ArmTest) and len(row.per_seed) > 1:
            dots, across = percents(row.per_seed), np.full(len(row.per_seed), position + offset)
            x, y = (dots, across) if axis == "x" else (across, dots)
            axes.plot(x, y, "o", color=look.ink, alpha=0.5, markeredgewidth=0, markersize=dot, zorder=4, clip_on=False)


def percent_axis(axes: Axes, axis: Axis, top: float, margin: float = 0) -> None:
    """Write an axis in percent from 0 to a top, with a share of that below 0 for markers."""
    axes.set(**{f"{axis}lim": (-margin * top, top)})
    getattr(axes, f"{axis}axis").set_major_formatter(lambda value, _: f"{value:g} %")
    axes.grid(visible=False, axis="x")


def cells(axes: Axes, values: NDArray[np.float64], top: float, colours: Colormap, form: str | None) -> None:
    """A heatmap from 0 to a top, its numbers in a form if there is room; NaN leaves a cell out, below 0 is missing."""
    axes.pcolormesh(np.ma.masked_invalid(values), cmap=colours, vmin=0, vmax=top, edgecolors="white", linewidth=1)
    for y, x in np.argwhere(~np.isnan(values)) if form else ():
        value = values[y, x]
        text = "-" if value < 0 else f"{value:{form}}"
        style: dict[str, Any] = {"ha": "center", "va": "center", "size": "small", "color": _ink(*colours(value / top))}
        axes.text(x + 0.5, y + 0.5, text, **style).set_in_layout(False)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _ink(red: float, green: float, blue: float, _: float) -> str:
    """What is read better on a colour, white or ours, by the contrast of WCAG 2."""
    luminance = np.dot(((np.array([red, green, blue]) + 0.055) / 1.055) ** 2.4, [0.2126, 0.7152, 0.0722])
    return INK if luminance > _MIDDLE else "white"


def beside(
    axes: Axes, text: str, point: tuple[float, float], colour: str, *, bold: bool = False, gap: float = 0.5
) -> None:
    """Name right of the axes what ends at a point; names that would touch are moved apart, with a thin line each."""
    figure = axes.get_figure()
    assert figure is not None
    right = axes.get_yaxis_transform() + ScaledTranslation(em(1.1) / POINTS, 0, figure.dpi_scale_trans)
    style: dict[str, Any] = {"va": "center", "weight": "bold" if bold else "normal", "linespacing": 1.1}
    line = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6, "shrinkA": 1, "shrinkB": em(gap)}
    style |= {"textcoords": right, "arrowprops": line | {"relpos": (0, 0.5)}}
    axes.annotate(text, point, (1, point[1]), color=colour, label="y", annotation_clip=False, **style)


def above(axes: Axes, text: str, x: float, colour: str) -> None:
    """Name a vertical line above the axes; names that would touch are moved apart."""
    where = axes.get_xaxis_transform()
    axes.annotate(text, (x, 1), (x, 1.01), textcoords=where, ha="center", size="small", color=colour, label="x")
