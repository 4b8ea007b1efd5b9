"""Estimates of the rate at alpha 0 from amplified outputs, drawn left of the measured rates."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datablame.report.style import ALPHA, FAINT, Look
from datablame.tables import EVERY

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Row = Mapping[str, Any]
_COLUMNS = {"path": (0.1, "path"), "importance": (0.36, "IS")}
"""Where each estimator's column stands left of the smallest alpha, in spans of alphas from the left, and its name."""
ROOM = 0.56
"""The room that the columns take, as a share of the span of alphas."""
_APART = 0.042
"""Between two series in a column, as a share of the span of alphas."""


def draw_estimates(axes: "Axes", rows: Sequence[Row], looks: Mapping[str, Look], alphas: Sequence[float]) -> None:
    """One small marker with its interval for each series in each estimator's column; withheld ones are left out.

    `rows` are those of unamplified.json for one split, `looks` the series that are drawn, in their order.
    """
    span = alphas[-1] - alphas[0] or 1.0
    series = [(name, look) for name, look in looks.items() if any(row["behaviour"] == name for row in rows)]
    ticks, words = list(axes.get_xticks()), [text.get_text() for text in axes.get_xticklabels()]
    for estimator, (place, word) in _COLUMNS.items():
        centre = alphas[0] - (ROOM - place) * span
        for number, (name, look) in enumerate(series):
            row = next(row for row in rows if row["behaviour"] == name)[estimator]
            if row["rate"] is not None:
                x = centre + (number - (len(series) - 1) / 2) * _APART * span
                axes.vlines(x, 100 * row["low"], 100 * row["high"], color=look.ink, linewidth=1.2, zorder=6)
                axes.plot(
                    [x],
                    [100 * row["rate"]],
                    color=look.fill,
                    marker=look.marker,
                    markersize=4.5,
                    markeredgecolor="white",
                    markeredgewidth=0.5,
                    zorder=7,
                    clip_on=False,
                )
        ticks.append(centre)
        words.append(word)
    axes.set_xticks(ticks, words)
    axes.set_xlim(left=alphas[0] - (ROOM + 0.02) * span)
    axes.axvline(alphas[0] - 0.075 * span, color=FAINT, linewidth=1, zorder=0)


def highest(rows: Sequence[Row]) -> float:
    """The upper end of the highest interval that is drawn."""
    return max((row[name]["high"] for row in rows for name in _COLUMNS if row[name]["high"] is not None), default=0.0)


def estimates_caption(unamplified: Row, behaviours: Mapping[str, str]) -> str:
    """What the columns are, and which estimates are withheld; empty where the study has none."""
    if not unamplified["possible"]:
        return ""
    withheld = []
    for split in dict.fromkeys(row["split"] for row in unamplified["rows"]):
        for estimator, (_, word) in reversed(_COLUMNS.items()):
            names = [
                "all behaviours" if row["behaviour"] == EVERY else behaviours.get(row["behaviour"], row["behaviour"])
                for row in unamplified["rows"]
                if row["split"] == split and row[estimator]["withheld"] is not None
            ]
            if names:
                withheld.append(f"{word} of {', '.join(names)} ({split} prompts)")
    return (
        f" Left of {ALPHA} = 0: the rate there, estimated from the outputs of all {ALPHA} by importance sampling (IS) "
        "and along the logit path, 95 % intervals. "
        + (f"Withheld as not to be trusted: {'; '.join(withheld)}." if withheld else "None is withheld.")
    )
