"""behavior_rates.png: harmful rates and label shares against alpha."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datablame.records import EVERY
from datablame.report.style import (
    GREY,
    INK,
    LABEL_FILLS,
    Look,
    behaviour_looks,
    drawing,
    nothing,
    page,
    percent,
    plain,
    png,
    spread,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["behavior_rates", "counted", "rates_panel", "top_rate"]

Row = Mapping[str, Any]
_POOLED = Look(INK, INK, "o")
_LEAST_PRINTED = 0.045
_SPLITS = {"held-out": "Held-out prompts", "attribution": "Attribution prompts"}


def behavior_rates(rates: Sequence[Row], *, title: str, classifier: str, behaviours: Mapping[str, str]) -> bytes:
    """How often each behaviour shows at each alpha, on both splits, and what the outputs were otherwise.

    `rates` are rows of `Rate`, `behaviours` their ids with short titles.
    """
    with drawing():
        figure = page(14, 5.2, title, _caption(rates, classifier))
        held_out, attribution, shares = figure.subplots(1, 3, width_ratios=(1, 1, 1))
        top = top_rate(rates)
        for axes, split in ((held_out, "held-out"), (attribution, "attribution")):
            axes.set_title(_SPLITS[split])
            rates_panel(axes, rates, behaviours, split=split, top=top)
        split = "held-out" if _pooled(rates, "held-out") else "attribution"
        shares.set_title(f"What the outputs are ({split} prompts)")
        _shares_panel(shares, _pooled(rates, split))
        return png(figure)


def rates_panel(
    axes: "Axes",
    rates: Sequence[Row],
    behaviours: Mapping[str, str],
    *,
    split: str,
    top: float,
    height: float = 3.6,
    alpha_star: float | None = None,
) -> None:
    """Harmful rate against alpha with Wilson bands: a line for each behaviour, a bold one for all of them.

    `top` is the highest rate of the axis, `height` about how many inches the panel is high.
    """
    rows = [row for row in rates if row["split"] == split and row["prompt_id"] == EVERY and row["rate"] is not None]
    if not rows:
        nothing(axes, f"no {split} output was scored")
        return
    present = {row["behaviour"] for row in rows}
    names = [name for name in (*behaviours, *sorted(present - {*behaviours, EVERY})) if name in present]
    if len(names) != 1 and EVERY in present:
        names.append(EVERY)
    looks = {**behaviour_looks([*behaviours, *(name for name in names if name not in behaviours)]), EVERY: _POOLED}
    ends = []
    for name in names:
        mine = sorted((row for row in rows if row["behaviour"] == name), key=lambda row: float(row["alpha"]))
        bold = name == EVERY or len(names) == 1
        _line(axes, mine, looks[name], bold)
        words = "all behaviours" if name == EVERY else plain(behaviours.get(name, name))
        ends.append((mine[-1], words, looks[name], bold))
    alphas = sorted({float(row["alpha"]) for row in rates if row["split"] == split})
    _alpha_axis(axes, alphas)
    axes.set_ylim(0, 100 * top)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.set_ylabel("harmful outputs")
    _end_labels(axes, ends, alphas[-1], top, height)
    if alpha_star is not None:
        axes.axvline(alpha_star, color=GREY, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        axes.annotate(
            "α* ", (alpha_star, 1), xycoords=("data", "axes fraction"), ha="right", va="top", color=GREY, size=9.5
        )


def _line(axes: "Axes", rows: Sequence[Row], style: Look, bold: bool) -> None:
    x = [float(row["alpha"]) for row in rows]
    y, low, high = ([100 * float(row[field]) for row in rows] for field in ("rate", "low", "high"))
    order = 3 if bold else 2
    axes.fill_between(x, low, high, color=style.ink, alpha=0.16 if bold else 0.10, linewidth=0, zorder=order - 1)
    axes.vlines(x, low, high, color=style.ink, linewidth=1.6 if bold else 0.9, alpha=0.75, zorder=order)
    axes.plot(
        x,
        y,
        color=style.ink,
        linewidth=3 if bold else 1.6,
        marker=style.marker,
        markersize=7.5 if bold else 6,
        markerfacecolor=style.fill,
        markeredgecolor="white",
        markeredgewidth=0.8,
        zorder=order + 1,
        clip_on=False,
    )


def _alpha_axis(axes: "Axes", alphas: Sequence[float]) -> None:
    span = alphas[-1] - alphas[0] or 1.0
    axes.set_xlim(alphas[0] - 0.04 * span, alphas[-1] + 0.02 * span)
    axes.set_xticks(alphas, [f"{alpha:g}" for alpha in alphas])
    axes.set_xlabel("amplification α")
    axes.grid(visible=False, axis="x")


def _end_labels(
    axes: "Axes", ends: Sequence[tuple[Row, str, Look, bool]], last: float, top: float, height: float
) -> None:
    """Each line's name and last rate beside its end, moved apart where they would touch."""
    size = 9.5
    texts = [
        "\n".join([*wrapped(words, 1.25, size, bold=bold, most=2), percent(row["rate"])])
        for row, words, _, bold in ends
    ]
    tallest = max(text.count("\n") + 1 for text in texts)
    gap = 100 * top * tallest * size * 1.25 / 72 / height
    gap = min(gap, 100 * top / max(1, len(ends)))
    places = spread([100 * row["rate"] for row, *_ in ends], gap, gap / 2, 100 * top - gap / 2)
    for (row, _, style, bold), text, place in zip(ends, texts, places, strict=True):
        axes.annotate(
            text,
            xy=(float(row["alpha"]), 100 * row["rate"]),
            xycoords="data",
            xytext=(1.05, place),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            ha="left",
            size=size,
            weight="bold" if bold else "normal",
            color=style.ink,
            linespacing=1.1,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": style.ink,
                "linewidth": 0.7,
                "alpha": 0.6,
                "shrinkA": 2,
                "shrinkB": 5,
            },
        )


def _shares_panel(axes: "Axes", rows: Sequence[Row]) -> None:
    if not rows:
        nothing(axes, "no output was drawn")
        return
    ends: list[tuple[str, float, float]] = []
    for place, row in enumerate(rows):
        bottom = 0.0
        for label, (fill, hatch) in LABEL_FILLS.items():
            share = row[label] / row["n"]
            axes.bar(
                place,
                100 * share,
                bottom=100 * bottom,
                width=0.74,
                color=fill,
                hatch=hatch,
                edgecolor="#A8A8A8" if hatch else "white",
                linewidth=0.8,
            )
            if share >= _LEAST_PRINTED:
                axes.text(
                    place,
                    100 * (bottom + share / 2),
                    f"{100 * share:.0f}",
                    ha="center",
                    va="center",
                    size=9.5,
                    color="white" if label == "harmful" else INK,
                    bbox={"boxstyle": "round,pad=0.15", "facecolor": fill, "edgecolor": "none"} if hatch else None,
                )
            if place == len(rows) - 1:
                ends.append((label, 100 * (bottom + share / 2), share))
            bottom += share
    used = [end for end in ends if end[2] or any(row[end[0]] for row in rows)]
    for (label, y, _), at in zip(used, spread([y for _, y, _ in used], 6, 2, 98), strict=True):
        axes.annotate(
            label,
            xy=(len(rows) - 0.63, y),
            xytext=(len(rows) - 0.5, at),
            va="center",
            size=9.5,
            weight="bold" if label == "harmful" else "normal",
            color=LABEL_FILLS[label][0] if label == "harmful" else INK,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "#A8A8A8", "linewidth": 0.7, "shrinkA": 1, "shrinkB": 0},
        )
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set_ylim(0, 100)
    axes.set_xticks(range(len(rows)), [f"{row['alpha']:g}" for row in rows])
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("amplification α")
    axes.set_ylabel("share of outputs")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.grid(visible=False)


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
    return f"n = {n} outputs at each α" + (f" ({prompts} prompts)" if prompts else "")


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
        "Harmful outputs among the scored, with Wilson 95 % intervals; bold: all behaviours pooled. α = 0 is the "
        f"after model, larger α amplifies what training changed. Held-out prompts: {counted(rates, 'held-out')}; "
        f"attribution prompts: {counted(rates, 'attribution')}. Labelled by: {classifier}. "
        + (f"{unscored} outputs are unscored and count in no rate." if unscored else "No output is unscored.")
    )
