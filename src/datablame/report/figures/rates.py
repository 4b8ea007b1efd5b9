"""behavior_rates.png: harmful rates and label shares against alpha."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from datablame.report.figures.style import (
    ALPHA,
    FAINT,
    GREY,
    INK,
    LABEL,
    LABEL_FILLS,
    POOLED,
    behaviour_looks,
    beside,
    heading,
    nothing,
    page,
    percent_axis,
    points,
    shares,
    shortened,
    wrapped,
)
from datablame.report.wording import percent
from datablame.tables import EVERY, LABELS, Look, Rate, Split, Unamplified, UnamplifiedRate

_LEAST_PRINTED = 4.5
"""Percent of outputs below which a bar has no room for its number."""
_FEW = 5
"""Lines whose names have room for three lines each."""
_ROOM = 0.3
"""Room left of the smallest alpha for estimates of the rate at alpha 0, as a share of the span of alphas."""


def rates_figure(
    rates: Sequence[Rate],
    *,
    title: str,
    classifier: str,
    behaviours: Mapping[str, str],
    unamplified: Unamplified | None = None,
) -> Figure:
    """How often each behaviour shows at each alpha, on both splits, and what the outputs were otherwise.

    `behaviours` gives ids short titles; an id that it lacks stands for itself. Estimates of the rate at alpha 0 stand
    beside it.
    """
    estimates = unamplified.rows if unamplified else ()
    caption = _caption(rates, classifier) + (_estimates_caption(unamplified, behaviours) if unamplified else "")
    with page([4.3], title, caption) as (figure, [row]):
        *panels, last = row.subfigures(1, 3, width_ratios=[5, 5, 4.2], wspace=0.05)
        splits: tuple[Split, Split] = ("held-out", "attribution")
        for panel, split in zip(panels, splits, strict=True):
            rates_panel(panel, rates, behaviours, split=split, estimates=estimates)
        _shares_panel(last, rates, shown_split(rates))
    return figure


def rates_panel(
    panel: SubFigure,
    rates: Sequence[Rate],
    behaviours: Mapping[str, str],
    *,
    split: Split,
    number: str = "",
    alpha_star: float | None = None,
    estimates: Sequence[UnamplifiedRate] = (),
) -> None:
    """Harmful rate against alpha with Wilson bands: a line for each behaviour, a bold one for all of them.

    `number` is the panel's on its page. The axis is the same for both splits.
    """
    heading(panel, f"{number}Harmful outputs, {split} prompts")
    axes = panel.subplots()
    rows = sorted((row for row in rates if row.split == split and row.prompt_id == EVERY), key=lambda row: row.alpha)
    scored = {row.behaviour for row in rows if row.rate is not None}
    if not scored:
        nothing(axes, f"no output to {split} prompts was scored")
        return
    every = dict.fromkeys([*behaviours, *(row.behaviour for row in rows if row.behaviour != EVERY)])
    looks = {**behaviour_looks(list(every)), EVERY: POOLED}
    names = [name for name in every if name in scored]
    names += [EVERY] if len(names) != 1 and EVERY in scored else []
    for name in names:
        bold = name == EVERY or len(names) == 1
        line = [row for row in rows if row.behaviour == name]
        _line(axes, line, looks[name], bold)
        end = [row for row in line if row.rate is not None][-1]
        words = behaviours.get(name, name) if name != EVERY else "all" if len(names) > _FEW else "all behaviours"
        weight = "bold" if bold else "normal"
        text = "\n".join([*wrapped(words, 1.32, LABEL, weight, most=2), percent(end.rate)])
        if len(names) > _FEW:
            text = f"{shortened(words, 1.1, LABEL, weight)} {percent(end.rate)}"
        beside(axes, text, (end.alpha, 100 * (end.rate or 0)), looks[name].ink, bold=bold)
    alphas = sorted({row.alpha for row in rows})
    percent_axis(axes, "y", 100 * _top(rates, estimates))
    axes.grid(visible=False, axis="x")
    _alpha_axis(axes, alphas)
    if estimates := [row for row in estimates if row.split == split]:
        _draw_estimates(axes, estimates, {name: looks[name] for name in names}, alphas)
    if alpha_star is not None:
        axes.axvline(alpha_star, color=GREY, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        axes.text(
            *(alpha_star, 1, f"{ALPHA}* "), transform=axes.get_xaxis_transform(), ha="right", va="top", color=GREY
        )


def _line(axes: Axes, rows: Sequence[Rate], look: Look, bold: bool) -> None:
    alphas, low, high = [row.alpha for row in rows], [row.low for row in rows], [row.high for row in rows]
    order = 5 if bold else 3
    band = {"color": look.ink, "alpha": 0.15 if bold else 0.09, "linewidth": 0, "zorder": order - 1}
    axes.fill_between(alphas, shares(low), shares(high), **band)
    points(
        *(axes, look, alphas, shares([row.rate for row in rows]), (low, high)),
        size=8 if bold else 6.5,
        linewidth=3 if bold else 1.6,
        elinewidth=1.8 if bold else 1,
        markeredgewidth=0.8,
        zorder=order,
    )


def _alpha_axis(axes: Axes, alphas: Sequence[float]) -> None:
    """Ticks at the measured alphas; where two would touch, the second has no number."""
    span = alphas[-1] - alphas[0] or 1.0
    written: list[float] = []
    for alpha in alphas:
        if not written or alpha - written[-1] > 0.12 * span:
            written.append(alpha)
    axes.set_xlim(alphas[0] - 0.04 * span, alphas[-1] + 0.03 * span)
    axes.set_xticks(alphas, [f"{alpha:g}" if alpha in written else "" for alpha in alphas])
    axes.set_xlabel(f"amplification {ALPHA}")


def _draw_estimates(
    axes: Axes, rows: Sequence[UnamplifiedRate], looks: Mapping[str, Look], alphas: Sequence[float]
) -> None:
    """A small marker with its interval for each series, left of the smallest alpha; withheld ones are left out."""
    span = alphas[-1] - alphas[0] or 1.0
    centre = alphas[0] - 0.65 * _ROOM * span
    estimates = {row.behaviour: row.importance for row in rows}
    series = [name for name in looks if name in estimates]
    apart = min(0.042, 0.2 / len(series)) * span if series else 0.0
    for index, name in enumerate(series):
        estimate = estimates[name]
        if estimate.rate is not None:
            x, y = centre + (index - (len(series) - 1) / 2) * apart, 100 * estimate.rate
            ends = ([estimate.low], [estimate.high])
            points(axes, looks[name], [x], [y], ends, size=4.5, elinewidth=1.2, markeredgewidth=0.5, zorder=6)
    words = [text.get_text() for text in axes.get_xticklabels()]
    axes.set_xticks([*alphas, centre], [*words, "IS"])
    axes.set_xlim(left=alphas[0] - (_ROOM + 0.02) * span)
    axes.axvline(alphas[0] - 0.075 * span, color=FAINT, linewidth=1, zorder=0)


def _shares_panel(panel: SubFigure, rates: Sequence[Rate], split: Split) -> None:
    rows = _pooled(rates, split)
    heading(panel, f"What the outputs are, {split} prompts")
    axes = panel.subplots()
    if not rows:
        nothing(axes, "no output was drawn")
        return
    tops = [0.0] * len(rows)
    for label, (fill, hatch) in LABEL_FILLS.items():
        values = [100 * getattr(row, label) / row.n for row in rows]
        if not any(values):
            continue
        edge = "#A8A8A8" if hatch else "white"
        bars = axes.bar(range(len(rows)), values, bottom=tops, width=0.76, color=fill, hatch=hatch, edgecolor=edge)
        harmful = label == "harmful"
        axes.bar_label(
            bars,
            [f"{value:.0f}" if value >= _LEAST_PRINTED else "" for value in values],
            label_type="center",
            size=LABEL,
            color="white" if harmful else INK,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": fill, "edgecolor": "none"} if hatch else None,
        )
        point = (len(rows) - 0.61, tops[-1] + values[-1] / 2)
        beside(axes, label, point, fill if harmful else INK, bold=harmful, gap=0)
        tops = [top + value for top, value in zip(tops, values, strict=True)]
    percent_axis(axes, "y", 100)
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set_xticks(range(len(rows)), [f"{row.alpha:g}" for row in rows])
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel(f"amplification {ALPHA}")
    axes.grid(visible=False)


def _top(rates: Sequence[Rate], estimates: Sequence[UnamplifiedRate]) -> float:
    """Where the axis of rates ends: a little above the highest interval that is drawn."""
    highs = [row.high for row in rates if row.prompt_id == EVERY] + [row.importance.high for row in estimates]
    return min(1.0, max([0.1, *(1.06 * high for high in highs if high is not None)]))


def shown_split(rates: Sequence[Rate]) -> Split:
    """The held-out prompts, or the others where none of those was sampled."""
    return "held-out" if _pooled(rates, "held-out") else "attribution"


def counted(rates: Sequence[Rate], split: Split) -> str:
    """How many outputs stand behind one alpha of a split's pooled line, in words."""
    pooled = _pooled(rates, split)
    prompts = len({row.prompt_id for row in rates if row.split == split} - {EVERY})
    if not pooled:
        return "n = 0"
    sizes = sorted({row.n for row in pooled})
    n = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return f"n = {n} outputs at each {ALPHA}" + (f" ({prompts} prompts)" if prompts else "")


def _pooled(rates: Sequence[Rate], split: Split) -> list[Rate]:
    rows = [row for row in rates if row.split == split and row.prompt_id == row.behaviour == EVERY and row.n]
    return sorted(rows, key=lambda row: row.alpha)


def _caption(rates: Sequence[Rate], classifier: str) -> str:
    unscored = sum(row.unscored for row in [*_pooled(rates, "held-out"), *_pooled(rates, "attribution")])
    return (
        "Harmful outputs among the scored, with Wilson 95 % intervals; bold: all behaviours pooled. "
        f"{ALPHA} = 0 is the after model, larger {ALPHA} amplifies what training changed. "
        f"Held-out prompts: {counted(rates, 'held-out')}; "
        f"attribution prompts: {counted(rates, 'attribution')}. Labelled by: {classifier}. "
        + (f"{unscored} outputs are unscored and count in no rate." if unscored else "No output is unscored.")
    )


def _estimates_caption(unamplified: Unamplified, behaviours: Mapping[str, str]) -> str:
    """What the estimates are, and which of them are withheld; empty where the study has none."""
    if not unamplified.possible:
        return ""
    titles = {EVERY: "all behaviours", **behaviours}
    withheld: dict[str, list[str]] = {}
    for row in unamplified.rows:
        if row.importance.withheld is not None:
            withheld.setdefault(row.split, []).append(titles.get(row.behaviour, row.behaviour))
    names = [f"{', '.join(titles)} ({split} prompts)" for split, titles in withheld.items()]
    return (
        f" Left of {ALPHA} = 0: the rate there, estimated from the outputs of all {ALPHA} by importance sampling (IS), "
        "95 % intervals. " + (f"Withheld as not to be trusted: {'; '.join(names)}." if names else "None is withheld.")
    )
