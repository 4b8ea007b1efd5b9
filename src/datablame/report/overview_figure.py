"""final_results.png: the study on one page, four panels."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datablame.report.arms_panel import HEADINGS, arms_caption, arms_of, arms_panel, runs_of
from datablame.report.figures import counted, rates_panel, top_rate
from datablame.report.style import (
    ALPHA,
    FAINT,
    GREY,
    POINTS,
    Box,
    blue_of,
    drawing,
    nothing,
    page,
    panel,
    png,
    shortened,
    text_width,
    wrapped,
)
from datablame.report.wording import number
from datablame.tables import EVERY

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Row = Mapping[str, Any]
_SIZES = (12.5, 12.0, 11.5, 11.0, 10.5, 10.0, 9.5, 9.0, 8.5, 8.0, 7.5)
_CELL = (1.0, 0.6)
"""Inches of a pair's cell at most."""
_LEADING, _BETWEEN, _INDENT = 1.4, 0.55, 0.2


def final_results(
    rates: Sequence[Row],
    agreement: Sequence[Row],
    tests: Sequence[Row],
    *,
    title: str,
    headline: str,
    alpha: float | None,
    k: int | None,
    classifier: str,
    labels: Mapping[str, str],
    verdict: str,
    summary: Sequence[str],
    behaviours: Mapping[str, str] | None = None,
    intervention: str = "remove",
) -> bytes:
    """Rates against alpha, agreement of methods, what patching did, and the verdict with the summary's sentences.

    `behaviours` gives ids short titles; an id that it lacks stands for itself.
    """
    arms = arms_of(tests, headline, alpha, k)
    with drawing():
        caption = _caption(rates, agreement, alpha, f"3: {arms_caption({headline: arms}, alpha, k, intervention)}")
        figure = page(14.6, 9.6, title, f"{caption} Labelled by: {classifier}.")
        split = "held-out" if any(row["split"] == "held-out" and row["n"] for row in rates) else "attribution"
        top = top_rate(rates)
        box = Box(0, 0, 6.9, 4.4)
        rates_panel(
            figure, box, rates, behaviours or {}, split=split, top=top, number="1  ", alpha_star=alpha if arms else None
        )
        _agreement_panel(figure, Box(7.5, 0, 7.1, 4.4), agreement, labels)
        heading = f"3  {HEADINGS[intervention]} ({headline}, {runs_of(arms)})"
        order = [row["arm"] for row in arms]
        arms_panel(figure, Box(0, 4.75, 7.1, 4.85), arms, order, labels, heading=heading, full=True)
        _summary_panel(figure, Box(7.5, 4.75, 7.1, 4.85), verdict, summary)
        return png(figure)


def _agreement_panel(figure: "Figure", box: Box, agreement: Sequence[Row], labels: Mapping[str, str]) -> None:
    """The lower triangle of method pairs; a column's name stands on the step above its first cell."""
    from matplotlib.patches import Rectangle

    pooled = _pooled(agreement)
    names = list(dict.fromkeys(name for row in pooled for name in (row["a"], row["b"])))
    heading = "2  Agreement of methods: Jaccard of their first K documents"
    if len(names) < 2:
        nothing(panel(figure, box, heading), "no two methods ranked the same documents")
        return
    n = len(names) - 1
    size = 9.5 if n <= 6 else 9.0
    words = {name: shortened(labels.get(name, name), 2.1, size) for name in names}
    left = max(text_width(words[name], size) for name in names[1:]) + 0.15
    last = text_width(words[names[-2]], size)
    wide = min(_CELL[0], (box.width - left - last) / max(1, n - 1), (box.width - left - 0.1) / n)
    high = min(_CELL[1], (box.height - 0.76) / n)
    right, below = box.width - left - n * wide, box.height - 0.66 - n * high
    axes = panel(figure, box, heading, left=left, right=right, above=0.28, below=below)
    found = {frozenset((row["a"], row["b"])): row["jaccard"] for row in pooled}
    for y, row in enumerate(names[1:]):
        for x, column in enumerate(names[: y + 1]):
            value = found.get(frozenset((row, column)))
            fill, ink = (FAINT, GREY) if value is None else blue_of(value)
            axes.add_patch(Rectangle((x + 0.02, y + 0.03), 0.96, 0.94, facecolor=fill, edgecolor="none"))
            axes.text(x + 0.5, y + 0.5, number(value), ha="center", va="center", size=size, color=ink)
    for x, name in enumerate(names[:-1]):
        given: dict[str, Any] = {"textcoords": "offset points", "va": "bottom", "size": size, "annotation_clip": False}
        axes.annotate(words[name], (x + 0.04, x), xytext=(0, 4), **given)
    axes.set_xlim(0, n)
    axes.set_ylim(n, 0)
    axes.set_xticks([])
    axes.set_yticks([y + 0.5 for y in range(n)], [words[name] for name in names[1:]], size=size)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _pooled(agreement: Sequence[Row]) -> list[Row]:
    return [row for row in agreement if row["behaviour"] == EVERY]


def _summary_panel(figure: "Figure", box: Box, verdict: str, sentences: Sequence[str]) -> None:
    """The sentences as large as they fit; those for which the smallest type leaves no room are counted."""
    axes = panel(figure, box, f"4  Verdict: {verdict}")
    axes.set_axis_off()
    if not sentences:
        nothing(axes, "the study has no finding")
        return
    width, height = box.width - _INDENT, box.height - 0.4
    for size in _SIZES:
        blocks = [wrapped(sentence, width, size) for sentence in sentences]
        if _height(blocks, size) <= height:
            break
    kept = list(blocks)
    while len(kept) > 1 and _height([*kept, [""]] if len(kept) < len(blocks) else kept, size) > height:
        kept.pop()
    more = len(blocks) - len(kept)
    y = 1.0
    for block in [*kept, *([[f"and {more} more in writeup/report.md"]] if more else [])]:
        if block in kept:
            axes.text(0.003, y, "\N{BULLET}", transform=axes.transAxes, va="top", size=size, color=GREY)
        axes.text(
            _INDENT / box.width,
            y,
            "\n".join(block),
            transform=axes.transAxes,
            va="top",
            size=size,
            linespacing=_LEADING / 1.2,
        )
        y -= (len(block) + _BETWEEN) * size * _LEADING / POINTS / height


def _height(blocks: Sequence[Sequence[str]], size: float) -> float:
    """Inches that the blocks take one under another."""
    lines = sum(len(block) for block in blocks) + _BETWEEN * (len(blocks) - 1)
    return lines * size * _LEADING / POINTS


def _caption(rates: Sequence[Row], agreement: Sequence[Row], alpha: float | None, of_arms: str) -> str:
    split = "held-out" if any(row["split"] == "held-out" and row["n"] for row in rates) else "attribution"
    said = [f"1: Wilson 95 % intervals, {counted(rates, split)}."]
    if alpha is not None:
        said.append(f"{ALPHA}*: where arms are compared.")
    chances = sorted(row["jaccard_chance"] for row in _pooled(agreement) if row["jaccard_chance"] is not None)
    if chances:
        between = f"{chances[0]:.2f}" + (f" to {chances[-1]:.2f}" if chances[-1] - chances[0] >= 0.005 else "")
        pairs = "pair" if len(chances) == 1 else "pairs"
        said.append(
            f"2: mean over behaviours; two random sets of K would have {between} ({len(chances)} {pairs} of methods, "
            "each over the documents that both scored)."
        )
    return " ".join([*said, of_arms])
