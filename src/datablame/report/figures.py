"""behavior_rates.png: harmful rates and label shares against alpha."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from datablame.report.style import (
    ALPHA,
    GREY,
    INK,
    LABEL_FILLS,
    POINTS,
    Box,
    Look,
    behaviour_looks,
    drawing,
    nothing,
    page,
    panel,
    png,
    shortened,
    spread,
    wrapped,
)
from datablame.report.unamplified_marks import ROOM, draw_estimates, estimates_caption, highest
from datablame.report.wording import percent
from datablame.tables import EVERY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Row = Mapping[str, Any]
_POOLED = Look(INK, INK, "o")
_LEAST_PRINTED = 4.5
"""Percent of outputs below which a bar has no room for its number."""
_LEAST_BETWEEN = 0.28
"""Inches between two numbers of the axis."""
_FEW = 5
"""Lines whose names have room for three lines each."""
_SPLITS = ("held-out", "attribution")


class _End(NamedTuple):
    """Where a line ends and how it is called."""

    words: str
    row: Row
    look: Look
    bold: bool


def behavior_rates(
    rates: Sequence[Row], *, title: str, classifier: str, behaviours: Mapping[str, str], unamplified: Row | None = None
) -> bytes:
    """How often each behaviour shows at each alpha, on both splits, and what the outputs were otherwise.

    `rates` are rows of `Rate`, `behaviours` their ids with short titles, `unamplified` is the artifact of that name.
    """
    estimates = unamplified["rows"] if unamplified else ()
    split = "held-out" if _pooled(rates, "held-out") else "attribution"
    top = max(top_rate(rates), min(1.0, highest(estimates) * 1.06))
    with drawing():
        caption = _caption(rates, classifier) + (estimates_caption(unamplified, behaviours) if unamplified else "")
        figure = page(14, 4.3, title, caption)
        for place, each in enumerate(("held-out", "attribution")):
            box = Box(5.05 * place, 0, 4.8, 4.3)
            rates_panel(figure, box, rates, behaviours, split=each, top=top, estimates=estimates)
        _shares_panel(figure, Box(10.1, 0, 3.9, 4.3), _pooled(rates, split), split)
        return png(figure)


def rates_panel(
    figure: "Figure",
    box: Box,
    rates: Sequence[Row],
    behaviours: Mapping[str, str],
    *,
    split: str,
    top: float,
    number: str = "",
    alpha_star: float | None = None,
    estimates: Sequence[Row] = (),
) -> None:
    """Harmful rate against alpha with Wilson bands: a line for each behaviour, a bold one for all of them.

    `top` is the highest rate of the axis, `number` the panel's; `estimates` of the rate at alpha 0 stand beside it.
    """
    heading = f"{number}Harmful outputs, {split} prompts"
    axes = panel(figure, box, heading, left=0.55, right=1.6, below=0.5)
    rows = [row for row in rates if row["split"] == split and row["prompt_id"] == EVERY]
    present = {row["behaviour"] for row in rows if row["rate"] is not None}
    if not present:
        nothing(axes, f"no output to {split} prompts was scored")
        return
    every = [*behaviours, *dict.fromkeys(row["behaviour"] for row in rows if row["behaviour"] not in behaviours)]
    looks = {**behaviour_looks(every), EVERY: _POOLED}
    names = [name for name in every if name in present and name != EVERY]
    if len(names) != 1 and EVERY in present:
        names.append(EVERY)
    ends = []
    for name in names:
        mine = sorted((row for row in rows if row["behaviour"] == name), key=lambda row: float(row["alpha"]))
        bold = name == EVERY or len(names) == 1
        _line(axes, mine, looks[name], bold)
        last = [row for row in mine if row["rate"] is not None][-1]
        words = behaviours.get(name, name) if name != EVERY else "all" if len(names) > _FEW else "all behaviours"
        ends.append(_End(words, last, looks[name], bold))
    alphas, mine = sorted({float(row["alpha"]) for row in rows}), [row for row in estimates if row["split"] == split]
    _alpha_axis(axes, alphas, (box.width - 2.15) / (1 + ROOM if mine else 1))
    if mine:
        draw_estimates(axes, mine, {name: looks[name] for name in names}, alphas)
    axes.set_ylim(0, 100 * top)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    _end_labels(axes, ends, top, box.height - 0.88)
    if alpha_star is not None:
        axes.axvline(alpha_star, color=GREY, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        axes.annotate(
            f"{ALPHA}* ", (alpha_star, 1), xycoords=("data", "axes fraction"), ha="right", va="top", color=GREY, size=10
        )


def _line(axes: "Axes", rows: Sequence[Row], style: Look, bold: bool) -> None:
    x = [float(row["alpha"]) for row in rows]
    y, low, high = (
        [math.nan if row[field] is None else 100 * float(row[field]) for row in rows]
        for field in ("rate", "low", "high")
    )
    order = 5 if bold else 3
    axes.fill_between(x, low, high, color=style.ink, alpha=0.15 if bold else 0.09, linewidth=0, zorder=order - 1)
    axes.vlines(x, low, high, color=style.ink, linewidth=1.8 if bold else 1, alpha=0.8, zorder=order)
    axes.plot(
        x,
        y,
        color=style.ink,
        linewidth=3 if bold else 1.6,
        marker=style.marker,
        markersize=8 if bold else 6.5,
        markerfacecolor=style.fill,
        markeredgecolor="white",
        markeredgewidth=0.8,
        zorder=order + 1,
        clip_on=False,
    )


def _alpha_axis(axes: "Axes", alphas: Sequence[float], width: float) -> None:
    """Ticks at the measured alphas; where two would touch, the second has no number."""
    span = alphas[-1] - alphas[0] or 1.0
    axes.set_xlim(alphas[0] - 0.04 * span, alphas[-1] + 0.03 * span)
    written: list[float] = []
    for alpha in alphas:
        if not written or (alpha - written[-1]) * width / span > _LEAST_BETWEEN:
            written.append(alpha)
    axes.set_xticks(alphas, [f"{alpha:g}" if alpha in written else "" for alpha in alphas])
    axes.set_xlabel(f"amplification {ALPHA}")
    axes.grid(visible=False, axis="x")


def _end_labels(axes: "Axes", ends: Sequence[_End], top: float, height: float) -> None:
    """Each line's name and last rate beside its end, moved apart where they would touch."""
    texts = ["\n".join([*wrapped(e.words, 1.32, 9.5, bold=e.bold, most=2), percent(e.row["rate"])]) for e in ends]
    line = 100 * top * 9.5 * 1.3 / POINTS / height
    gap = line * max(text.count("\n") + 1 for text in texts)
    if gap * len(ends) > 100 * top:
        texts = [f"{shortened(e.words, 0.85, 9.5, bold=e.bold)} {percent(e.row['rate'])}" for e in ends]
        gap = min(line, 100 * top / len(ends))
    places = spread([100 * end.row["rate"] for end in ends], gap, gap / 2, 100 * top - gap / 2)
    for end, text, place in zip(ends, texts, places, strict=True):
        axes.annotate(
            text,
            xy=(float(end.row["alpha"]), 100 * end.row["rate"]),
            xytext=(1.06, place),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            size=9.5,
            weight="bold" if end.bold else "normal",
            color=end.look.ink,
            linespacing=1.1,
            annotation_clip=False,
            arrowprops=_leader(end.look.ink, 5),
        )


def _leader(colour: str, gap: float) -> dict[str, Any]:
    """A thin line from a label to what it names."""
    return {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.6, "shrinkA": 1, "shrinkB": gap}


def _shares_panel(figure: "Figure", box: Box, rows: Sequence[Row], split: str) -> None:
    axes = panel(figure, box, f"What the outputs are, {split} prompts", left=0.6, right=0.95, below=0.5)
    if not rows:
        nothing(axes, "no output was drawn")
        return
    tops = [0.0] * len(rows)
    ends: list[tuple[str, float]] = []
    for label, (fill, hatch) in LABEL_FILLS.items():
        shares = [100 * row[label] / row["n"] for row in rows]
        if not any(shares):
            continue
        edge = "#A8A8A8" if hatch else "white"
        axes.bar(range(len(rows)), shares, bottom=tops, width=0.76, color=fill, hatch=hatch, edgecolor=edge)
        for place, share in enumerate(shares):
            if share >= _LEAST_PRINTED:
                _share(axes, place, tops[place] + share / 2, share, label)
        ends.append((label, tops[-1] + shares[-1] / 2))
        tops = [top + share for top, share in zip(tops, shares, strict=True)]
    for (label, y), at in zip(ends, spread([y for _, y in ends], 5.5, 2, 98), strict=True):
        bold = label == "harmful"
        axes.annotate(
            label,
            xy=(len(rows) - 0.61, y),
            xytext=(len(rows) - 0.45, at),
            va="center",
            size=9.5,
            weight="bold" if bold else "normal",
            color=LABEL_FILLS[label][0] if bold else INK,
            annotation_clip=False,
            arrowprops=_leader(GREY, 0),
        )
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set_ylim(0, 100)
    axes.set_xticks(range(len(rows)), [f"{row['alpha']:g}" for row in rows])
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel(f"amplification {ALPHA}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.grid(visible=False)


def _share(axes: "Axes", x: float, y: float, share: float, label: str) -> None:
    fill, hatch = LABEL_FILLS[label]
    plate = {"boxstyle": "round,pad=0.15", "facecolor": fill, "edgecolor": "none"} if hatch else None
    ink = "white" if label == "harmful" else INK
    axes.text(x, y, f"{share:.0f}", ha="center", va="center", size=9.5, color=ink, bbox=plate)


def top_rate(rates: Sequence[Row]) -> float:
    """Where the axis of rates ends: a little above the highest interval that is drawn."""
    highs = [float(row["high"]) for row in rates if row["prompt_id"] == EVERY and row["high"] is not None]
    return min(1.0, max([0.1, *(high * 1.06 for high in highs)]))


def counted(rates: Sequence[Row], split: str) -> str:
    """How many outputs stand behind one alpha of a split's pooled line, in words."""
    pooled = _pooled(rates, split)
    prompts = len({row["prompt_id"] for row in rates if row["split"] == split} - {EVERY})
    if not pooled:
        return "n = 0"
    sizes = sorted({int(row["n"]) for row in pooled})
    n = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return f"n = {n} outputs at each {ALPHA}" + (f" ({prompts} prompts)" if prompts else "")


def _pooled(rates: Sequence[Row], split: str) -> list[Row]:
    rows = [
        row
        for row in rates
        if row["split"] == split and row["prompt_id"] == EVERY and row["behaviour"] == EVERY and row["n"]
    ]
    return sorted(rows, key=lambda row: float(row["alpha"]))


def _caption(rates: Sequence[Row], classifier: str) -> str:
    unscored = sum(row["unscored"] for split in _SPLITS for row in _pooled(rates, split))
    return (
        "Harmful outputs among the scored, with Wilson 95 % intervals; bold: all behaviours pooled. "
        f"{ALPHA} = 0 is the after model, larger {ALPHA} amplifies what training changed. "
        f"Held-out prompts: {counted(rates, 'held-out')}; "
        f"attribution prompts: {counted(rates, 'attribution')}. Labelled by: {classifier}. "
        + (f"{unscored} outputs are unscored and count in no rate." if unscored else "No output is unscored.")
    )
