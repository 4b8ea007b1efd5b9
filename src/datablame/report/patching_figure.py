"""patching_comparison.png: what removing each method's documents did, overall and prompt by prompt."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from datablame.records import EVERY
from datablame.report.style import (
    FAINT,
    GREY,
    INK,
    drawing,
    fill_of,
    look,
    nothing,
    page,
    percent,
    plain,
    png,
    text_width,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["arms_caption", "arms_of", "arms_panel", "patching_comparison"]

Row = Mapping[str, Any]
_PROTOCOLS = {"retrain": "trained again from before", "continue": "trained on from after"}
_MOST_NUMBERED = 28


def patching_comparison(
    tests: Sequence[Row],
    table: Sequence[Row],
    *,
    title: str,
    headline: str,
    alpha: float | None,
    k: int | None,
    labels: Mapping[str, str],
) -> bytes:
    """The harmful rate of every arm on held-out prompts, for each protocol, and by prompt for the headline's.

    `tests` are the rows of tests.json, `table` those of comparison.parquet, `labels` the arms' names for people.
    """
    shown = {
        protocol: rows
        for protocol in dict.fromkeys((headline, *(row["protocol"] for row in tests)))
        if (rows := arms_of(tests, protocol, alpha, k)) or protocol == headline
    }
    order = [row["arm"] for row in shown[headline]]
    order += [row["arm"] for rows in shown.values() for row in rows if row["arm"] not in order]
    order = list(dict.fromkeys(order))
    upper, lower = 1.2 + 0.42 * max(6, len(order)), 1.3 + 0.3 * max(5, len(order))
    with drawing():
        figure = page(14, 0.6 + upper + lower, title, arms_caption(shown, alpha, k))
        above, below = figure.subfigures(2, 1, height_ratios=(upper, lower), hspace=0.02)
        ratios = [1.5, *[1.0] * (len(shown) - 1)]
        panels = above.subplots(1, len(shown), width_ratios=ratios, squeeze=False)[0]
        for place, ((protocol, rows), axes) in enumerate(zip(shown.items(), panels, strict=True)):
            axes.set_title(_heading(protocol, rows, headline))
            arms_panel(axes, rows, order, labels, named=place == 0, rates=place == 0)
        _prompts_panel(below.subplots(), table, order, labels, protocol=headline, alpha=alpha, k=k)
        return png(figure)


def arms_of(tests: Sequence[Row], protocol: str, alpha: float | None, k: int | None) -> list[Row]:
    """The rows over all behaviours on held-out prompts of one protocol, the highest rate first."""
    rows = [
        row
        for row in tests
        if row["protocol"] == protocol and row["split"] == "held-out" and row["behaviour"] == EVERY
        if row["alpha"] == alpha and row["k"] == k
    ]
    return sorted(rows, key=lambda row: (row["rate"] is None, -(row["rate"] or 0.0)))


def arms_panel(
    axes: "Axes", rows: Sequence[Row], order: Sequence[str], labels: Mapping[str, str], *, named: bool, rates: bool
) -> None:
    """Arms as dots with intervals and one small dot a seed; lines through baseline and random; p against random.

    `named` writes the arms' names at the axis, `rates` the numbers beside it.
    """
    if not any(row["rate"] is not None for row in rows):
        nothing(axes, "no arm was trained and measured under this protocol")
        return
    place = {arm: y for y, arm in enumerate(order)}
    for row in rows:
        _arm(axes, row, place[row["arm"]])
    _references(axes, rows)
    highs = [100 * value for row in rows for value in (row["high"], *row["per_seed"]) if value is not None]
    axes.set_xlim(0, min(100, max([5, *highs]) * 1.06))
    axes.set_ylim(len(order) - 0.4, -0.6)
    names = ["\n".join(wrapped(labels.get(arm, arm), 1.75, 9.5, most=2)) for arm in order]
    axes.set_yticks(range(len(order)), names if named else [""] * len(order))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.set_xlabel("harmful outputs, held-out prompts")
    axes.grid(visible=False, axis="x")
    _numbers(axes, rows, place, rates=rates)


def _arm(axes: "Axes", row: Row, y: float) -> None:
    style = look(row["arm"])
    if row["rate"] is None:
        axes.text(0.01, y, "nothing scored", transform=axes.get_yaxis_transform(), va="center", color=GREY, size=9)
        return
    if row["low"] is not None and row["high"] is not None:
        axes.hlines(y, 100 * row["low"], 100 * row["high"], color=style.ink, linewidth=2.4, zorder=3)
        ends = [100 * row["low"], 100 * row["high"]]
        axes.plot(ends, [y, y], "|", color=style.ink, markersize=8, markeredgewidth=1.6, zorder=3, clip_on=False)
    if len(row["per_seed"]) > 1:
        seeds = [100 * value for value in row["per_seed"]]
        axes.plot(
            seeds,
            [y + 0.27] * len(seeds),
            "o",
            markersize=4,
            color=style.ink,
            alpha=0.5,
            markeredgewidth=0,
            zorder=4,
            clip_on=False,
        )
    axes.plot(
        100 * row["rate"],
        y,
        marker=style.marker,
        markersize=14 if style.marker == "*" else 10,
        markerfacecolor=style.fill,
        markeredgecolor=style.ink if style.fill != style.ink else "white",
        markeredgewidth=1.2,
        zorder=5,
        clip_on=False,
    )


def _references(axes: "Axes", rows: Sequence[Row]) -> None:
    """Vertical lines where nothing was removed and where as much was removed at random."""
    found = sorted(
        (100 * row["rate"], row["arm"])
        for row in rows
        if row["arm"] in ("baseline", "random") and row["rate"] is not None
    )
    for place, (rate, arm) in enumerate(found):
        style = look(arm)
        dashes = (0, (6, 3)) if arm == "baseline" else (0, (1.5, 2))
        axes.axvline(rate, color=style.ink, linewidth=1.1, linestyle=dashes, zorder=1.5)
        left = place == 0 and len(found) == 2
        axes.annotate(
            arm,
            (rate, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-3 if left else 3, 1),
            textcoords="offset points",
            ha="right" if left else "left",
            va="bottom",
            size=8.5,
            color=style.ink,
        )


def _numbers(axes: "Axes", rows: Sequence[Row], place: Mapping[str, int], *, rates: bool) -> None:
    """Columns beside the panel: the rate with its interval, and p against random."""
    columns: list[tuple[str, list[str]]] = []
    if rates:
        columns.append(("rate [95 %]", [_rate(row) for row in rows]))
    columns.append(("p vs random", [_p(row) for row in rows]))
    start = 12.0
    for heading, cells in columns:
        end = start + 72 * max(text_width(text, 9) for text in (heading, *cells))
        for y, text, colour in (
            (-0.6, heading, GREY),
            *((place[row["arm"]], cell, INK) for row, cell in zip(rows, cells, strict=True)),
        ):
            axes.annotate(
                text,
                (1, y),
                xycoords=axes.get_yaxis_transform(),
                xytext=(end, 1 if text == heading else 0),
                textcoords="offset points",
                ha="right",
                va="bottom" if text == heading else "center",
                size=9,
                color=colour,
                annotation_clip=False,
            )
        start = end + 14


def _rate(row: Row) -> str:
    if row["rate"] is None:
        return "–"
    if row["low"] is None or row["high"] is None:
        return percent(row["rate"])
    return f"{percent(row['rate'])} [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"


def _p(row: Row) -> str:
    to_random = row.get("to_random")
    if not to_random or to_random["p"] is None:
        return "–"
    return "< 0.001" if to_random["p"] < 0.001 else f"{to_random['p']:.3f}"


def _trained_seeds(rows: Sequence[Row]) -> list[int]:
    """How many trainings the arms had, without the after model, which is trained once and for all."""
    return sorted({int(row["seeds"]) for row in rows if row["arm"] != "untrained"})


def _heading(protocol: str, rows: Sequence[Row], headline: str) -> str:
    seeds = _trained_seeds(rows)
    runs = "" if not seeds else ", a single run" if seeds == [1] else f", {_range(seeds)} seeds"
    what = _PROTOCOLS.get(protocol)
    return f"{protocol}" + (f": {what}" if what and protocol == headline else "") + runs


def _range(values: Sequence[int]) -> str:
    return f"{values[0]}" if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def arms_caption(shown: Mapping[str, Sequence[Row]], alpha: float | None, k: int | None) -> str:
    """What was compared and on how much, in words."""
    rows = [row for own in shown.values() for row in own]
    if not rows or alpha is None:
        return "No arm was trained, so no rates can be compared."
    said = [f"Harmful rate on held-out prompts at α = {alpha:g} after removing K = {k} documents a behaviour."]
    single = [protocol for protocol, own in shown.items() if _trained_seeds(own) == [1]]
    for protocol, own in shown.items():
        outputs = sorted(sum(row["counts"].values()) for row in own if row["arm"] != "untrained")
        if outputs:
            prompts = _range(sorted(row["prompts"] for row in own))
            said.append(
                f"{protocol}: {_range(_trained_seeds(own))} training seed{'' if protocol in single else 's'}, "
                f"{prompts} prompts, n = {_range(outputs)} outputs an arm."
            )
    said.append("Large marker: mean over seeds and prompts; bar: 95 % two-way bootstrap interval; small dot: one seed.")
    said.append("p: two-sided permutation of seeds against random removal, not adjusted; a dash where there is none.")
    for protocol in single:
        said.append(f"{protocol} is a single run: its interval knows prompts only, not training noise.")
    return " ".join(said)


def _prompts_panel(
    axes: "Axes",
    table: Sequence[Row],
    order: Sequence[str],
    labels: Mapping[str, str],
    *,
    protocol: str,
    alpha: float | None,
    k: int | None,
) -> None:
    """A cell for each arm and held-out prompt with the mean rate over seeds, prompts grouped by behaviour."""
    rows = [
        row
        for row in table
        if row["split"] == "held-out" and row["alpha"] == alpha and row["arm"] in order
        if (row["protocol"] == protocol and row["k"] == k) or row["protocol"] == "none"
    ]
    axes.set_title(f"{protocol}, prompt by prompt: harmful outputs in %, mean over seeds")
    columns = sorted({(row["behaviour"], row["prompt_id"]) for row in rows})
    if not columns or not any(row["protocol"] == protocol for row in rows):
        nothing(axes, "no held-out prompt was measured under this protocol")
        return
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["rate"] is not None:
            values.setdefault((row["arm"], row["prompt_id"]), []).append(row["rate"])
    left, ticks, names = 0.0, [], []
    for behaviour, group in groupby(columns, key=lambda column: column[0]):
        start = left
        for _, prompt_id in group:
            for y, arm in enumerate(order):
                _cell(axes, left, y, values.get((arm, prompt_id)), numbered=len(columns) <= _MOST_NUMBERED)
            ticks.append(left + 0.5)
            names.append(plain(prompt_id))
            left += 1
        _group(axes, start, left, behaviour)
        left += 0.25
    axes.set_xlim(0, left - 0.25)
    axes.set_ylim(len(order), -0.1)
    axes.set_xticks(
        ticks,
        names,
        size=8.5,
        rotation=0 if len(columns) <= 8 else 35,
        ha="center" if len(columns) <= 8 else "right",
        rotation_mode="anchor",
    )
    axes.set_yticks([y + 0.5 for y in range(len(order))], [plain(labels.get(arm, arm)) for arm in order])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _cell(axes: "Axes", x: float, y: float, values: Sequence[float] | None, *, numbered: bool) -> None:
    from matplotlib.patches import Rectangle

    mean = sum(values) / len(values) if values else None
    fill, ink = fill_of(mean) if mean is not None else (FAINT, GREY)
    axes.add_patch(Rectangle((x + 0.02, y + 0.04), 0.96, 0.92, facecolor=fill, edgecolor="none"))
    if numbered:
        text = "–" if mean is None else f"{100 * mean:.0f}"
        axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", size=9, color=ink)


def _group(axes: "Axes", start: float, end: float, behaviour: str) -> None:
    text = wrapped(behaviour, max(0.6, 11.0 * (end - start) / 12), 9.5, most=1)[0]
    axes.plot([start + 0.04, end - 0.04], [-0.1, -0.1], color=GREY, linewidth=1, clip_on=False)
    axes.text((start + end) / 2, -0.2, text, ha="center", va="bottom", size=9.5, color=GREY)
