"""Dose and response: what is left of the behaviour when more documents of a method are removed."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import SubFigure

from datablame.report.figures import style
from datablame.report.figures.arms import DASHES
from datablame.report.wording import percent
from datablame.tables import EVERY, ArmInfo, ArmTest

_APART = 0.07
"""Of the distance between two K: how far arms stand apart at one K, so that their intervals can be told apart."""


def dose_rows(
    tests: Sequence[ArmTest], arms: Mapping[str, ArmInfo], protocol: str, alpha: float | None
) -> dict[str, list[ArmTest]]:
    """The rows over all behaviours on held-out prompts of every arm that depends on K, by K; and the baseline's."""
    doses: dict[str, list[ArmTest]] = {}
    for row in sorted(tests, key=lambda row: row.k):
        pooled = (row.protocol, row.split, row.behaviour) == (protocol, "held-out", EVERY) and row.alpha == alpha
        if pooled and (row.k or arms[row.arm].role == "baseline"):
            doses.setdefault(row.arm, []).append(row)
    return doses


def dose_panel(
    panel: SubFigure, doses: Mapping[str, Sequence[ArmTest]], arms: Mapping[str, ArmInfo], k: int | None, title: str
) -> None:
    """A line for each arm over K with intervals and one small dot a seed; K = 0 is the baseline, `k` decides."""
    style.heading(panel, title)
    axes = panel.subplots()
    scored = {arm: [row for row in rows if row.rate is not None] for arm, rows in doses.items()}
    lines = {arm: rows for arm, rows in scored.items() if rows and rows[0].k}
    if not lines:
        style.nothing(axes, "no arm was scored at any K")
        return
    ks = [0, *sorted({row.k for rows in lines.values() for row in rows})]
    origin = [row for rows in scored.values() for row in rows if row.k == 0]
    for row in origin:
        look, rate = arms[row.arm].look, 100 * (row.rate or 0)
        axes.hlines(rate, 0, len(ks) - 0.55, color=look.ink, linewidth=1.1, linestyle=DASHES["baseline"], zorder=1.5)
        style.points(axes, look, [0.0], [row], 8, elinewidth=1.4)
        style.seeds(axes, look, 0.022, row.per_seed, 3)
    for index, (arm, rows) in enumerate(lines.items()):
        look, role = arms[arm].look, arms[arm].role
        shift = (index - (len(lines) - 1) / 2) * min(_APART, 0.6 / len(lines))
        x, rates = [ks.index(row.k) + shift for row in rows], [100 * (row.rate or 0) for row in rows]
        for row in origin:
            axes.plot([0.0, x[0]], [100 * (row.rate or 0), rates[0]], color=look.ink, linewidth=0.8, alpha=0.35)
        style.points(axes, look, x, rows, 8, elinewidth=1.4, linewidth=2, linestyle=DASHES.get(role, "-"))
        for row, start in zip(rows, x, strict=True):
            style.seeds(axes, look, start + 0.022, row.per_seed, 3)
        name = f"{style.shortened(arms[arm].label, 2.4)}  {percent(rows[-1].rate)}"
        style.beside(axes, name, (x[-1], rates[-1]), look.ink)
    highs = [value for rows in scored.values() for row in rows for value in (row.high, *row.per_seed) if value]
    style.percent_axis(axes, "y", min(100, 106 * max([0.05, *highs])), margin=0.02)
    axes.set_xlim(-0.35, len(ks) - 0.55)
    names = {0: "K = 0 (baseline)", k: f"K = {k} (decides)"}
    axes.set_xticks(range(len(ks)), [names.get(each, f"K = {each}") for each in ks])
    axes.set_ylabel("harmful outputs")
    axes.set_xlabel("documents (duplicate clusters) for each behaviour")


def dose_caption(ks: Sequence[int], k: int | None) -> str:
    """What the panel is worth, in words."""
    others = ", ".join(str(each) for each in ks if each != k)
    return (
        f"Dose and response: the same arms at each K; K = {k} decides, K = {others} is exploratory. "
        "Markers, bars and dots as above."
    )
