"""behavior_rates.png: harmful rates and label shares against alpha."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from datablame.report.colours import LABEL_FILLS, behaviour_looks
from datablame.report.figures import style
from datablame.report.figures.page import page
from datablame.report.figures.typesetting import shortened, text_width, wide, wrapped
from datablame.report.results import Results
from datablame.report.wording import percent, sentence
from datablame.tables import EVERY, Look, Rate, Split, UnamplifiedRate

_SPLITS: tuple[Split, ...] = ("held-out", "attribution")
_SHARES = 18.0
"""Ems of the bars' axes."""
_NAME, _NAME_HEIGHT = 10.0, 2.7
"""Ems of a line's name, which has a row for its words and one for its rate."""
_FEW = 6
"""Lines whose names have room for another row."""
_BAR, _LEAST_PRINTED = 1.25, 7
"""Narrower bars, in ems, and lower ones, in percent of outputs, have no room for numbers."""
_WIDTH = 0.76
"""Of a bar, as a share of the distance to the next."""
_ROOM = 0.3
"""Room left of the smallest alpha for estimates of the rate at alpha 0, as a share of the span of alphas."""


def rates_figure(results: Results) -> Figure:
    """How often each behaviour shows at each alpha, on both splits, and what the outputs were otherwise.

    Estimates of the rate at alpha 0 from amplified outputs stand beside it.
    """
    rates, titles = results.rates, {EVERY: "all behaviours", **results.titles}
    withheld: dict[str, list[str]] = {}
    for row in results.unamplified.rows:
        if row.importance.withheld is not None:
            withheld.setdefault(row.split, []).append(titles.get(row.behaviour, row.behaviour))
    held_out, attribution = counted(rates, "held-out"), counted(rates, "attribution")
    unscored = sum(row.unscored for row in [*_pooled(rates, "held-out"), *_pooled(rates, "attribution")])
    values = {"held_out": held_out, "attribution": attribution, "unscored": unscored, "withheld": withheld}
    caption = sentence("figures", "rates", results=results, **values)
    height = rates_height(results)
    with page([height + _SHARES], results.title, caption, results.study.figures) as (figure, [panel]):
        axes = panel.subplots(2, 2, height_ratios=[height, _SHARES], squeeze=False)
        for (above, below), split in zip(axes.T, _SPLITS, strict=True):
            rates_panel(above, results, split)
            _shares_panel(below, rates, split)
            for each, what in ((above, "Harmful outputs"), (below, "Labels of outputs")):
                lines = wrapped(f"{what}, {split} prompts", 0.4 * wide(), weight="bold")
                each.set_title("\n".join(lines), weight="bold")
    return figure


def rates_height(results: Results) -> float:
    """Ems that axes of rates take, so that every behaviour's name has room."""
    return max(22.0, 7.5 + _NAME_HEIGHT * (len(results.titles) + 1))


def rates_panel(
    axes: Axes, results: Results, split: Split, star: float | None = None, *, estimated: bool = True
) -> None:
    """Harmful rate against alpha with Wilson bands: a line for each behaviour, a bold one for all of them.

    The axis is the same for both splits. Where it is `estimated`, the rate at alpha 0 from amplified outputs stands
    beside it.
    """
    estimates = results.unamplified.rows if estimated else ()
    rates, behaviours = results.rates, results.titles
    rows = sorted((row for row in rates if row.split == split and row.prompt_id == EVERY), key=lambda row: row.alpha)
    scored = {row.behaviour for row in rows if row.rate is not None}
    if not scored:
        style.nothing(axes, f"no output to {split} prompts was scored")
        return
    every = dict.fromkeys([*behaviours, *(row.behaviour for row in rows if row.behaviour != EVERY)])
    names = [name for name in every if name in scored]
    names += [EVERY] if len(names) != 1 and EVERY in scored else []
    looks = {**behaviour_looks(list(every)), EVERY: style.POOLED}
    titles = {EVERY: "all behaviours", **behaviours}
    for name in names:
        line, look = [row for row in rows if row.behaviour == name], looks[name]
        bold = name == EVERY or len(names) == 1
        alphas, order = [row.alpha for row in line], 5 if bold else 3
        low, high = style.percents([row.low for row in line]), style.percents([row.high for row in line])
        shade, width = (0.15, 2) if bold else (0.09, 1.1)
        axes.fill_between(alphas, low, high, color=look.ink, alpha=shade, linewidth=0, zorder=order - 1)
        widths: dict[str, Any] = {"linewidth": width, "elinewidth": 1.3 if bold else 0.7, "markeredgewidth": 0.6}
        style.points(axes, look, alphas, line, 0.72 if bold else 0.6, zorder=order, **widths)
        end = [row for row in line if row.rate is not None][-1]
        words, weight = titles.get(name, name), "bold" if bold else "normal"
        few = len(names) <= _FEW
        told = wrapped(words, _NAME, weight=weight, most=2) if few else [shortened(words, _NAME, weight=weight)]
        text = "\n".join([*told, percent(end.rate)])
        style.beside(axes, text, (end.alpha, 100 * (end.rate or 0)), look.ink, bold=bold)
    shown = [row for row in estimates if row.split == split]
    _alpha_axis(axes, sorted({row.alpha for row in rows}), {name: looks[name] for name in names}, shown)
    highs = [row.high for row in rates if row.prompt_id == EVERY] + [row.importance.high for row in estimates]
    style.percent_axis(axes, "y", min(100, max([10, *(106 * high for high in highs if high is not None)])))
    if star is not None:
        axes.axvline(star, color=style.GREY, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        words, where = f"{style.ALPHA}* ", axes.get_xaxis_transform()
        axes.text(star, 1, words, transform=where, ha="right", va="top", color=style.GREY)


def _alpha_axis(
    axes: Axes, alphas: Sequence[float], looks: Mapping[str, Look], estimates: Sequence[UnamplifiedRate]
) -> None:
    """Ticks at the measured alphas, and left of them a small marker with its interval for each estimate.

    Where two ticks would touch, the second has no number. Withheld estimates are left out.
    """
    span = alphas[-1] - alphas[0] or 1.0
    names: dict[float, str] = {}
    for alpha in alphas:
        near = any(name and alpha - other <= 0.12 * span for other, name in names.items())
        names[alpha] = "" if near else f"{alpha:g}"
    if estimates:
        centre = alphas[0] - 0.65 * _ROOM * span
        importance = {row.behaviour: row.importance for row in estimates}
        series = [name for name in looks if name in importance]
        for index, name in enumerate(series):
            x = centre + (index - (len(series) - 1) / 2) * min(0.042, 0.2 / len(series)) * span
            style.points(axes, looks[name], [x], [importance[name]], 0.45, elinewidth=0.8, markeredgewidth=0.4)
        names[centre] = "IS"
        axes.axvline(alphas[0] - 0.075 * span, color=style.FAINT, linewidth=1, zorder=0)
    axes.set_xticks(list(names), list(names.values()))
    axes.set_xlim(alphas[0] - (_ROOM + 0.02 if estimates else 0.04) * span, alphas[-1] + 0.03 * span)
    axes.set_xlabel(f"amplification {style.ALPHA}")


def _shares_panel(axes: Axes, rates: Sequence[Rate], split: Split) -> None:
    rows = _pooled(rates, split)
    if not rows:
        style.nothing(axes, "no output was drawn")
        return
    tops, unit = [0.0] * len(rows), (wide() / 2 - _NAME - 5) / len(rows)
    for label, (fill, hatch) in LABEL_FILLS.items():
        values = [100 * getattr(row, label) / row.n for row in rows]
        if not any(values):
            continue
        harmful, edge = label == "harmful", "#A8A8A8" if hatch else "white"
        drawn: dict[str, Any] = {"color": fill, "hatch": hatch, "edgecolor": edge, "linewidth": 0.6}
        bars = axes.bar(range(len(rows)), values, bottom=tops, width=_WIDTH, **drawn)
        printed = _WIDTH * unit > _BAR
        numbers = [f"{value:.0f}" if printed and value >= _LEAST_PRINTED else "" for value in values]
        plate = {"boxstyle": "round,pad=0.15", "facecolor": fill, "edgecolor": "none"} if hatch else None
        ink = "white" if harmful else style.INK
        axes.bar_label(bars, numbers, label_type="center", size="small", color=ink, bbox=plate)
        point = (len(rows) - 0.61, tops[-1] + values[-1] / 2)
        style.beside(axes, label, point, fill if harmful else style.INK, bold=harmful, gap=0)
        tops = [top + value for top, value in zip(tops, values, strict=True)]
    style.percent_axis(axes, "y", 100)
    axes.set_xlim(-0.5, len(rows) - 0.5)
    names = [f"{row.alpha:g}" for row in rows]
    level = max(map(text_width, names)) + 0.5 < unit
    axes.set_xticks(range(len(rows)), names, rotation=0 if level else 90)
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel(f"amplification {style.ALPHA}")
    axes.grid(visible=False)


def shown_split(rates: Sequence[Rate]) -> Split:
    """The held-out prompts, or the others where none of those was sampled."""
    return "held-out" if _pooled(rates, "held-out") else "attribution"


def counted(rates: Sequence[Rate], split: Split) -> str:
    """How many outputs stand behind one alpha of a split's pooled line, in words."""
    n, prompts = {row.n for row in _pooled(rates, split)}, {row.prompt_id for row in rates if row.split == split}
    return sentence("figures", "outputs at each alpha", n=n, prompts=len(prompts - {EVERY}))


def _pooled(rates: Sequence[Rate], split: Split) -> list[Rate]:
    rows = [row for row in rates if row.split == split and row.prompt_id == row.behaviour == EVERY and row.n]
    return sorted(rows, key=lambda row: row.alpha)
