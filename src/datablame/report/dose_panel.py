"""Dose and response: what is left of the behaviour when more documents of a method are removed."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datablame.report.style import GREY, POINTS, Box, look, nothing, panel, shortened, spread, text_width
from datablame.report.wording import percent
from datablame.tables import EVERY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Row = Mapping[str, Any]
_LABEL, _NUMBER = 9.5, 8.5
_APART = 0.07
"""Of the distance between two K: how far arms stand apart at one K, so that their intervals can be told apart."""


def dose_rows(tests: Sequence[Row], protocol: str, alpha: float | None) -> dict[str, list[Row]]:
    """The rows over all behaviours on held-out prompts of every arm that depends on K, by K; and the baseline's."""
    found: dict[str, list[Row]] = {}
    for row in sorted(tests, key=lambda row: row["k"]):
        wanted = (row["protocol"], row["split"], row["behaviour"], row["alpha"]) == (protocol, "held-out", EVERY, alpha)
        if wanted and (row["k"] or row["arm"] == "baseline"):
            found.setdefault(row["arm"], []).append(row)
    return found


def dose_panel(
    figure: "Figure",
    box: Box,
    arms: Mapping[str, Sequence[Row]],
    labels: Mapping[str, str],
    *,
    heading: str,
    headline: int | None,
) -> None:
    """A line for each arm over K with intervals and one small dot a seed; K = 0 is the baseline, `headline` decides."""
    lines = {arm: [row for row in rows if row["rate"] is not None] for arm, rows in arms.items() if arm != "baseline"}
    lines = {arm: rows for arm, rows in lines.items() if rows}
    names = {arm: shortened(labels.get(arm, arm), 2.4, _LABEL) for arm in lines}
    right = max((text_width(f"{name}  100.0 %", _LABEL) for name in names.values()), default=0.0) + 0.3
    axes = panel(figure, box, heading, left=0.6, right=right, above=0.12, below=0.5)
    if not lines:
        nothing(axes, "no arm was scored at any K")
        return
    ks = sorted({row["k"] for rows in lines.values() for row in rows})
    x_of = {k: float(place) for place, k in enumerate((0, *ks))}
    origin = [row for row in arms.get("baseline", ()) if row["rate"] is not None]
    for row in origin:
        _origin(axes, row, len(ks))
    for place, (arm, rows) in enumerate(lines.items()):
        shift = (place - (len(lines) - 1) / 2) * min(_APART, 0.6 / len(lines))
        _line(axes, arm, rows, [x_of[row["k"]] + shift for row in rows], origin)
    highs = [100 * value for own in arms.values() for row in own for value in (row["high"], *row["per_seed"]) if value]
    top = min(100.0, max([5.0, *highs]) * 1.06)
    axes.set_ylim(-0.02 * top, top)
    axes.set_xlim(-0.35, len(ks) + 0.45)
    axes.set_xticks(list(x_of.values()), [_tick(k, headline) for k in x_of])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.set_ylabel("harmful outputs")
    axes.set_xlabel("documents (duplicate clusters) for each behaviour")
    axes.grid(visible=False, axis="x")
    _write(axes, lines, names, top, box.height)


def _tick(k: int, headline: int | None) -> str:
    return "K = 0 (baseline)" if k == 0 else f"K = {k}{' (decides)' if k == headline else ''}"


def _origin(axes: "Axes", row: Row, last: int) -> None:
    style = look("baseline")
    rate = 100 * row["rate"]
    axes.hlines(rate, 0, last + 0.45, color=style.ink, linewidth=1.1, linestyle=(0, (6, 3)), zorder=1.5)
    _point(axes, "baseline", row, 0.0)


def _line(axes: "Axes", arm: str, rows: Sequence[Row], places: Sequence[float], origin: Sequence[Row]) -> None:
    style = look(arm)
    rates = [100 * row["rate"] for row in rows]
    if origin:
        axes.plot([0.0, places[0]], [100 * origin[0]["rate"], rates[0]], color=style.ink, linewidth=0.8, alpha=0.35)
    dashes: Any = (0, (1.5, 2)) if arm == "random" else "-"
    axes.plot(places, rates, color=style.ink, linewidth=2.0, linestyle=dashes, zorder=3)
    for row, x in zip(rows, places, strict=True):
        _point(axes, arm, row, x)


def _point(axes: "Axes", arm: str, row: Row, x: float) -> None:
    style = look(arm)
    if row["low"] is not None and row["high"] is not None:
        axes.vlines(x, 100 * row["low"], 100 * row["high"], color=style.ink, linewidth=1.4, alpha=0.8, zorder=3)
    if len(row["per_seed"]) > 1:
        seeds = [100 * value for value in row["per_seed"]]
        axes.plot(
            [x + 0.022] * len(seeds), seeds, "o", markersize=3, color=style.ink, alpha=0.45, markeredgewidth=0, zorder=4
        )
    axes.plot(
        x,
        100 * row["rate"],
        marker=style.marker,
        markersize=8,
        markerfacecolor=style.fill,
        markeredgecolor=style.ink if style.fill != style.ink else "white",
        markeredgewidth=1.0,
        zorder=5,
        clip_on=False,
    )


def _write(
    axes: "Axes", lines: Mapping[str, Sequence[Row]], names: Mapping[str, str], top: float, inches: float
) -> None:
    """Each line's name and last rate at its end, moved apart where ends are near one another."""
    last = {arm: 100 * rows[-1]["rate"] for arm, rows in lines.items()}
    gap = 1.5 * _LABEL / POINTS / (inches - 1.0) * top
    wanted = dict(zip(last, spread(list(last.values()), gap, 0.0, top), strict=True))
    for arm, y in wanted.items():
        axes.annotate(
            f"{names[arm]}  {percent(last[arm] / 100)}",
            (1, y),
            xycoords=axes.get_yaxis_transform(),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            size=_LABEL,
            color=look(arm).ink if arm != "random" else GREY,
            annotation_clip=False,
        )


def dose_caption(ks: Sequence[int], k: int | None) -> str:
    """What the panel is worth, in words."""
    others = ", ".join(str(each) for each in ks if each != k)
    return (
        f"Dose and response: the same arms at each K; K = {k} decides, K = {others} is exploratory. "
        "Markers, bars and dots as above."
    )
