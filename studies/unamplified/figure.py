"""The figure of this study."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from studies.unamplified.errors import Truth, name_of

from datablame.config.report import Figures
from datablame.report.colours import behaviour_looks
from datablame.report.figures.page import heading, page, pictures
from datablame.report.figures.style import GREY, INK
from datablame.tables import EVERY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Quoted = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""What unamplified.json says of each budget: behaviour, then estimator, then one entry a budget."""


def drawn(quoted: Quoted, truths: Mapping[str, Truth]) -> bytes:
    """A panel for each behaviour: what datablame quotes from each budget, beside the truth."""
    budgets = len(quoted[EVERY]["naive"])
    shown = [name for name in truths if name != EVERY] + [EVERY]
    caption = (
        f"One dot a budget: the surface phase's 50 outputs at each of four alphas for each held-out prompt, {budgets} budgets "
        "that share no output, with 95 % intervals. Grey band: the truth with its 95 % interval, from plain outputs at "
        f"alpha 0 ({truths[EVERY].n:,} in all)."
    )
    looks = behaviour_looks([name for name in shown if name != EVERY])
    settings = Figures(width=13, size=9.5)
    with page([26], "The rate at alpha 0 from one budget of outputs", caption, settings) as (figure, [row]):
        for panel, name in zip(row.subfigures(1, len(shown), squeeze=False)[0], shown, strict=True):
            heading(panel, name_of(name))
            _dots(panel.subplots(), quoted[name], truths[name], INK if name == EVERY else looks[name].ink)
    return pictures(figure, ["png"])["png"]


def _dots(axes: "Axes", quoted: Mapping[str, Sequence[Mapping[str, Any]]], truth: Truth, ink: str) -> None:
    half = 1.96 * math.sqrt(truth.variance / truth.n)
    axes.axhspan(100 * (truth.rate - half), 100 * (truth.rate + half), color=GREY, alpha=0.25, linewidth=0)
    for column, rows in enumerate(quoted.values()):
        for number, row in enumerate(rows):
            x = column + (number - (len(rows) - 1) / 2) * 0.062
            if row["rate"] is not None:
                axes.vlines(x, 100 * row["low"], 100 * row["high"], color=ink, linewidth=1, alpha=0.7)
                axes.plot([x], [100 * row["rate"]], "o", color=ink, markersize=3.5)
        withheld = sum(row["rate"] is None for row in rows)
        if withheld:
            words = f"{withheld} of {len(rows)}\nwithheld"
            axes.annotate(
                words, (column, 0.99), xycoords=("data", "axes fraction"), ha="center", va="top", size=8, color=GREY
            )
    axes.set_xticks(range(len(quoted)), ["counted\nat 0", "weighed\n(IS)", "path"])
    axes.set_xlim(-0.5, len(quoted) - 0.5)
    axes.set_ylim(0, None)
    axes.margins(y=0.25)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.grid(visible=False, axis="x")
