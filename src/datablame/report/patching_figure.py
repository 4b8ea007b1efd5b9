"""patching_comparison.png: what removing each method's documents did, overall and prompt by prompt."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from datablame.report.arms_panel import arms_caption, arms_of, arms_panel, runs_of
from datablame.report.style import (
    FAINT,
    GREY,
    Box,
    drawing,
    fill_of,
    nothing,
    page,
    panel,
    png,
    text_width,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["patching_comparison"]

Row = Mapping[str, Any]
_PROTOCOLS = {"retrain": "trained again from before", "continue": "trained on from after"}
_WIDTH = 14.0
_GAP = 0.2
_NUMBER_INCHES, _TURNED_INCHES = 0.26, 0.16
_PALE = 0.25


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
    protocols = dict.fromkeys((headline, *(row["protocol"] for row in tests)))
    shown = {protocol: arms_of(tests, protocol, alpha, k) for protocol in protocols}
    shown = {protocol: rows for protocol, rows in shown.items() if rows or protocol == headline}
    order = list(dict.fromkeys(row["arm"] for rows in shown.values() for row in rows))
    upper = 1.35 + 0.42 * max(5, len(order))
    with drawing():
        cells = _Cells.of(table, order, protocol=headline, alpha=alpha, k=k)
        lower = 1.6 + 0.3 * max(4, len(order))
        figure = page(_WIDTH, upper + 0.2 + lower, title, arms_caption(shown, alpha, k))
        other = (0.36 if len(shown) == 2 else 0.62) * _WIDTH if len(shown) > 1 else 0.0
        left = _WIDTH - other
        for place, (protocol, rows) in enumerate(shown.items()):
            width = left - 0.3 * bool(other) if not place else other / (len(shown) - 1) - 0.2
            box = Box(0 if not place else left + (place - 1) * (width + 0.2), 0, width, upper)
            arms_panel(figure, box, rows, order, labels, heading=_heading(protocol, rows, headline), full=not place)
        _prompts_panel(figure, Box(0, upper + 0.2, _WIDTH, lower), cells, order, labels, headline)
        return png(figure)


def _heading(protocol: str, rows: Sequence[Row], headline: str) -> str:
    what = _PROTOCOLS.get(protocol)
    return f"{protocol}{f' ({what})' if what and protocol == headline else ''}, {runs_of(rows)}"


class _Cells(NamedTuple):
    """Mean rates over seeds by (arm, prompt), the prompts of each behaviour, and whether the protocol was measured."""

    means: Mapping[tuple[str, str], float]
    prompts: Mapping[str, Sequence[str]]
    measured: bool

    @classmethod
    def of(
        cls, table: Sequence[Row], arms: Sequence[str], *, protocol: str, alpha: float | None, k: int | None
    ) -> "_Cells":
        rows = [
            row
            for row in table
            if row["split"] == "held-out" and row["alpha"] == alpha and row["arm"] in arms
            if (row["protocol"] == protocol and row["k"] == k) or row["protocol"] == "none"
        ]
        values: dict[tuple[str, str], list[float]] = {}
        prompts: dict[str, dict[str, None]] = {}
        for row in rows:
            prompts.setdefault(row["behaviour"], {})[row["prompt_id"]] = None
            if row["rate"] is not None:
                values.setdefault((row["arm"], row["prompt_id"]), []).append(row["rate"])
        return cls(
            {cell: sum(own) / len(own) for cell, own in values.items()},
            {behaviour: list(own) for behaviour, own in prompts.items()},
            any(row["protocol"] == protocol for row in rows),
        )


def _prompts_panel(
    figure: "Figure", box: Box, cells: _Cells, order: Sequence[str], labels: Mapping[str, str], protocol: str
) -> None:
    """A cell for each arm and held-out prompt with the mean rate over seeds, prompts grouped by behaviour."""
    names = [wrapped(labels.get(arm, arm), 2.3, 9.5, most=1)[0] for arm in order]
    left = max((text_width(name, 9.5) for name in names), default=0.0) + 0.15
    heading = f"{protocol}, prompt by prompt: harmful outputs in % (held-out prompts, mean over seeds)"
    axes = panel(figure, box, heading, left=left, above=0.28, below=0.85)
    if not cells.measured:
        nothing(axes, "no held-out prompt was measured under this protocol")
        return
    columns = sum(len(prompts) for prompts in cells.prompts.values())
    unit = (box.width - left) / (columns + _GAP * (len(cells.prompts) - 1))
    darkest = max([_PALE, *cells.means.values()])
    x, ticks, words = 0.0, [], []
    for behaviour, prompts in cells.prompts.items():
        _group(axes, x, x + len(prompts), behaviour, unit)
        for prompt_id in prompts:
            for y, arm in enumerate(order):
                _cell(axes, x, y, cells.means.get((arm, prompt_id)), darkest, numbered=unit > _NUMBER_INCHES)
            ticks.append(x + 0.5)
            words.append(prompt_id)
            x += 1
        x += _GAP
    axes.set_xlim(0, x - _GAP)
    axes.set_ylim(len(order), 0)
    axes.set_yticks([y + 0.5 for y in range(len(order))], names)
    _prompt_names(axes, ticks, words, unit)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _prompt_names(axes: "Axes", ticks: Sequence[float], names: Sequence[str], unit: float) -> None:
    """Level where every name fits under its cell, otherwise turned, and left out where even that would overlap."""
    level = all(text_width(name, 8.5) < unit - 0.06 for name in names)
    if level:
        axes.set_xticks(ticks, names, size=8.5)
    elif unit > _TURNED_INCHES:
        short = [wrapped(name, 0.8 if unit > 0.3 else 0.7, 8.5, most=1)[0] for name in names]
        axes.set_xticks(
            ticks,
            short,
            size=8.5,
            rotation=90 if unit <= 0.3 else 40,
            ha="right",
            va="center" if unit <= 0.3 else "top",
            rotation_mode="anchor",
        )
    else:
        axes.set_xticks([])


def _cell(axes: "Axes", x: float, y: float, mean: float | None, darkest: float, *, numbered: bool) -> None:
    from matplotlib.patches import Rectangle

    fill, ink = (FAINT, GREY) if mean is None else fill_of(mean / darkest)
    axes.add_patch(Rectangle((x + 0.02, y + 0.04), 0.96, 0.92, facecolor=fill, edgecolor="none"))
    if numbered:
        text = "-" if mean is None else f"{100 * mean:.0f}"
        axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", size=9, color=ink)


def _group(axes: "Axes", start: float, end: float, behaviour: str, unit: float) -> None:
    text = wrapped(behaviour, (end - start) * unit, 9.5, most=1)[0]
    axes.annotate(
        text,
        (start + 0.02, 0),
        xytext=(0, 5),
        textcoords="offset points",
        va="bottom",
        size=9.5,
        weight="bold",
        color=GREY,
        annotation_clip=False,
    )
