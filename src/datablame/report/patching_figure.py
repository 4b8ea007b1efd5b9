"""patching_comparison.png: what removing each method's documents did, overall and prompt by prompt."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from datablame.report.arms_panel import arms_caption, arms_of, arms_panel, runs_of
from datablame.report.dose_panel import dose_caption, dose_panel, dose_rows
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
    shortened,
    text_width,
)
from datablame.report.wording import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Row = Mapping[str, Any]
_PROTOCOLS = {"retrain": "trained again from before", "continue": "trained on from after"}
_WIDTH = 14.0
_GAP = 0.2
_DOSE = 4.4
"""Inches of the panel over K with the room above it."""
_NUMBER_INCHES, _UPRIGHT_INCHES = 0.26, 0.16
_PALE = 0.25


def patching_comparison(
    tests: Sequence[Row],
    table: Sequence[Row],
    *,
    title: str,
    headline: str,
    alpha: float | None,
    k: int | None,
    classifier: str,
    labels: Mapping[str, str],
    behaviours: Mapping[str, str] | None = None,
    intervention: str = "remove",
) -> bytes:
    """The harmful rate of every arm on held-out prompts, for each protocol, and by prompt for the headline's.

    Where arms ran at several K, a panel between shows the rate against K. `tests` are the rows of tests.json, `table`
    those of comparison.parquet, `labels` the arms' names for people, `behaviours` ids with short titles; an id that it
    lacks stands for itself.
    """
    protocols = dict.fromkeys((headline, *(row["protocol"] for row in tests)))
    shown = {protocol: arms_of(tests, protocol, alpha, k) for protocol in protocols}
    shown = {protocol: rows for protocol, rows in shown.items() if rows or protocol == headline}
    order = list(dict.fromkeys(row["arm"] for rows in shown.values() for row in rows))
    named = next((protocol for protocol, rows in shown.items() if rows), headline)
    with drawing():
        grid = _grid(table, order, labels, protocol=headline, alpha=alpha, k=k)
        ks = sorted({row["k"] for row in tests if row["k"]})
        upper = 1.35 + 0.42 * max(5, len(order))
        dose = _DOSE if len(ks) > 1 else 0.0
        lower = 0.75 + (0.35 if grid.level else 0.9) + 0.3 * max(4, len(order))
        said = [arms_caption(shown, alpha, k, intervention), *([dose_caption(ks, k)] if dose else [])]
        caption = f"{' '.join(said)} Labelled by: {classifier}."
        figure = page(_WIDTH, upper + dose + 0.2 + lower, title, caption)
        for place, (left, width) in enumerate(_columns(len(shown))):
            protocol, rows = list(shown.items())[place]
            box, heading = Box(left, 0, width, upper), _heading(protocol, rows, headline)
            arms_panel(figure, box, rows, order, labels, heading=heading, full=protocol == named)
        if dose:
            words, box = (
                f"Dose and response ({named}, {runs_of(shown[named])})",
                Box(0, upper + 0.2, _WIDTH, dose - 0.2),
            )
            dose_panel(figure, box, dose_rows(tests, named, alpha), labels, heading=words, headline=k)
        box, words = Box(0, upper + dose + 0.2, _WIDTH, lower), f"{headline}, {runs_of(shown[headline])}"
        _prompts_panel(figure, box, grid, order, behaviours or {}, words)
        return png(figure)


def _columns(panels: int) -> list[tuple[float, float]]:
    """Left edge and width of each panel: the first has the most room, for names and numbers stand beside it."""
    if panels == 1:
        return [(0.0, _WIDTH)]
    first = 0.62 * _WIDTH
    other = (_WIDTH - first) / (panels - 1)
    return [(0.0, first), *((first + place * other + 0.3, other - 0.3) for place in range(panels - 1))]


def _heading(protocol: str, rows: Sequence[Row], headline: str) -> str:
    what = _PROTOCOLS.get(protocol, "")
    return f"{protocol}{f' (headline: {what})' if protocol == headline else ''}, {runs_of(rows)}"


class _Grid(NamedTuple):
    """The heatmap's content and measures: mean rates over seeds by (arm, prompt) and each behaviour's prompts."""

    means: Mapping[tuple[str, str], float]
    prompts: Mapping[str, Sequence[str]]
    names: Sequence[str]
    left: float
    """Inches for the arms' names."""
    unit: float
    """Inches of one column."""
    level: bool
    """Whether every prompt's name fits under its column without turning."""


def _grid(
    table: Sequence[Row],
    order: Sequence[str],
    labels: Mapping[str, str],
    *,
    protocol: str,
    alpha: float | None,
    k: int | None,
) -> _Grid:
    values: dict[tuple[str, str], list[float]] = {}
    prompts: dict[str, dict[str, None]] = {}
    for row in table:
        of_protocol = (row["protocol"] == protocol and row["k"] in (0, k)) or row["protocol"] == "none"
        if row["split"] == "held-out" and row["alpha"] == alpha and row["arm"] in order and of_protocol:
            prompts.setdefault(row["behaviour"], {})[row["prompt_id"]] = None
            if row["rate"] is not None:
                values.setdefault((row["arm"], row["prompt_id"]), []).append(row["rate"])
    names = [shortened(labels.get(arm, arm), 2.3, 9.5) for arm in order]
    left = max((text_width(name, 9.5) for name in names), default=0.0) + 0.15
    columns = sum(len(own) for own in prompts.values())
    unit = (_WIDTH - left) / max(1.0, columns + _GAP * (len(prompts) - 1))
    return _Grid(
        {cell: sum(own) / len(own) for cell, own in values.items()},
        {behaviour: list(own) for behaviour, own in prompts.items()},
        names,
        left,
        unit,
        all(text_width(plain(name), 8.5) < unit - 0.06 for own in prompts.values() for name in own),
    )


def _prompts_panel(
    figure: "Figure", box: Box, grid: _Grid, order: Sequence[str], behaviours: Mapping[str, str], runs: str
) -> None:
    """A cell for each arm and held-out prompt with the mean rate over seeds, prompts grouped by behaviour."""
    heading = f"Prompt by prompt: harmful outputs in % ({runs}, held-out prompts)"
    axes = panel(figure, box, heading, left=grid.left, above=0.28, below=0.25 if grid.level else 0.8)
    if all(arm == "untrained" for arm, _ in grid.means):
        nothing(axes, "no held-out prompt was measured under this protocol")
        return
    darkest = max([_PALE, *grid.means.values()])
    x, ticks, words = 0.0, [], []
    for behaviour, prompts in grid.prompts.items():
        _group(axes, x, x + len(prompts), behaviours.get(behaviour, behaviour), grid.unit)
        for prompt_id in prompts:
            for y, arm in enumerate(order):
                _cell(axes, x, y, grid.means.get((arm, prompt_id)), darkest, numbered=grid.unit > _NUMBER_INCHES)
            ticks.append(x + 0.5)
            words.append(prompt_id.removeprefix(f"{behaviour}-"))
            x += 1
        x += _GAP
    axes.set_xlim(0, x - _GAP)
    axes.set_ylim(len(order), 0)
    axes.set_yticks([y + 0.5 for y in range(len(order))], grid.names)
    _prompt_names(axes, ticks, words, grid)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _prompt_names(axes: "Axes", ticks: Sequence[float], names: Sequence[str], grid: _Grid) -> None:
    """Level where every name fits under its column, otherwise upright, and left out where even that would overlap."""
    if grid.level:
        axes.set_xticks(ticks, [plain(name) for name in names], size=8.5)
    elif grid.unit > _UPRIGHT_INCHES:
        short = [shortened(name, 0.72, 8.5) for name in names]
        axes.set_xticks(ticks, short, size=8.5, rotation=90)
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
    text = shortened(behaviour, (end - start) * unit - 0.05, 9.5, bold=True)
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
