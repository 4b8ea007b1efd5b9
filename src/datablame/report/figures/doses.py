"""Dose and response: what is left of the behaviour when more documents of a method are removed."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from datablame.report.figures.arms import DASHES
from datablame.report.figures.style import beside, heading, nothing, percent_axis, points, seeds, shortened
from datablame.report.wording import percent
from datablame.tables import EVERY, ArmInfo, ArmTest, Look

_APART = 0.07
"""Of the distance between two K: how far arms stand apart at one K, so that their intervals can be told apart."""


def dose_rows(
    tests: Sequence[ArmTest], arms: Mapping[str, ArmInfo], protocol: str, alpha: float | None
) -> dict[str, list[ArmTest]]:
    """The rows over all behaviours on held-out prompts of every arm that depends on K, by K; and the baseline's."""
    doses: dict[str, list[ArmTest]] = {}
    for row in sorted(tests, key=lambda row: row.k):
        pooled = row.split == "held-out" and row.behaviour == EVERY and row.alpha == alpha and row.protocol == protocol
        if pooled and (row.k or arms[row.arm].role == "baseline"):
            doses.setdefault(row.arm, []).append(row)
    return doses


def dose_panel(
    panel: SubFigure, doses: Mapping[str, Sequence[ArmTest]], arms: Mapping[str, ArmInfo], k: int | None, title: str
) -> None:
    """A line for each arm over K with intervals and one small dot a seed; K = 0 is the baseline, `k` decides."""
    heading(panel, title)
    axes = panel.subplots()
    scored = {arm: [row for row in rows if row.rate is not None] for arm, rows in doses.items()}
    lines = {arm: rows for arm, rows in scored.items() if rows and rows[-1].k}
    if not lines:
        nothing(axes, "no arm was scored at any K")
        return
    ks = [0, *sorted({row.k for rows in lines.values() for row in rows})]
    origin = next((row for arm, rows in scored.items() for row in rows if row.k == 0), None)
    if origin:
        look = arms[origin.arm].look
        axes.hlines(
            100 * (origin.rate or 0), 0, len(ks) - 0.55, color=look.ink, linewidth=1.1, linestyle=DASHES["baseline"]
        )
        _line(axes, [origin], [0.0], look)
    for index, (arm, rows) in enumerate(lines.items()):
        look, role = arms[arm].look, arms[arm].role
        shift = (index - (len(lines) - 1) / 2) * min(_APART, 0.6 / len(lines))
        x, last = [ks.index(row.k) + shift for row in rows], 100 * (rows[-1].rate or 0)
        if origin:
            start = [100 * (row.rate or 0) for row in (origin, rows[0])]
            axes.plot([0.0, x[0]], start, color=look.ink, linewidth=0.8, alpha=0.35)
        _line(axes, rows, x, look, linestyle=DASHES.get(role, "-"))
        beside(axes, f"{shortened(arms[arm].label, 2.4)}  {percent(rows[-1].rate)}", (x[-1], last), look.ink)
    highs = [value for rows in scored.values() for row in rows for value in (row.high, *row.per_seed) if value]
    percent_axis(axes, "y", min(100.0, 106 * max([0.05, *highs])), margin=0.02)
    axes.grid(visible=False, axis="x")
    axes.set_xlim(-0.35, len(ks) - 0.55)
    decides = {0: "K = 0 (baseline)", k: f"K = {k} (decides)"}
    axes.set_xticks(range(len(ks)), [decides.get(each, f"K = {each}") for each in ks])
    axes.set_ylabel("harmful outputs")
    axes.set_xlabel("documents (duplicate clusters) for each behaviour")


def _line(axes: Axes, rows: Sequence[ArmTest], x: Sequence[float], look: Look, linestyle: object = "-") -> None:
    rates, ends = [100 * (row.rate or 0) for row in rows], ([row.low for row in rows], [row.high for row in rows])
    style = {"linewidth": 2.0, "elinewidth": 1.4, "markeredgewidth": 1.0, "linestyle": linestyle, "zorder": 5}
    points(axes, look, x, rates, ends, size=8, **style)
    for row, start in zip(rows, x, strict=True):
        if len(row.per_seed) > 1:
            seeds(axes, look, [start + 0.022] * len(row.per_seed), [100 * value for value in row.per_seed], 3)


def dose_caption(ks: Sequence[int], k: int | None) -> str:
    """What the panel is worth, in words."""
    others = ", ".join(str(each) for each in ks if each != k)
    return (
        f"Dose and response: the same arms at each K; K = {k} decides, K = {others} is exploratory. "
        "Markers, bars and dots as above."
    )
