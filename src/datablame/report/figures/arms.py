"""Arms compared: what removing each method's documents left of the behaviour."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from datablame.report.figures import style
from datablame.report.wording import interval, percent, probability
from datablame.tables import EVERY, ArmInfo, ArmTest, InterventionKind

HEADINGS: Mapping[InterventionKind, str] = {
    "remove": "After removing what each method flagged",
    "swap": "After exchanging the answers of flagged pairs",
    "drop-source": "After removing the sources of what was flagged",
}
_DONE: Mapping[InterventionKind, str] = {
    "remove": "removing K = {k} documents a behaviour",
    "swap": "exchanging the answers of K = {k} pairs a behaviour",
    "drop-source": "removing the sources of K = {k} documents a behaviour",
}
DASHES = {"baseline": (0, (6, 3)), "random": (0, (1.5, 2))}
"""Lines of the arms that others are compared with, by role."""


def arms_of(tests: Sequence[ArmTest], protocol: str, alpha: float | None, k: int | None) -> list[ArmTest]:
    """The rows at one K over all behaviours on held-out prompts of one protocol, the highest rate first."""
    rows = [row for row in tests if (row.protocol, row.split, row.behaviour) == (protocol, "held-out", EVERY)]
    rows = [row for row in rows if row.alpha == alpha and row.k in (0, k)]
    return sorted(rows, key=lambda row: (row.rate is None, -(row.rate or 0.0)))


def arms_panel(
    axes: Axes, rows: Sequence[ArmTest], order: Sequence[str], arms: Mapping[str, ArmInfo], *, full: bool
) -> None:
    """Arms as dots with intervals and one small dot a seed; lines through baseline and random; p against random.

    `order` gives each arm its line; `full` writes the arms' names and rates beside it.
    """
    if not any(row.rate is not None for row in rows):
        style.nothing(axes, "no arm was trained and measured under this protocol")
        return
    for row in rows:
        _arm(axes, row, order.index(row.arm), arms[row.arm])
    highs = [value for row in rows for value in (row.high, *row.per_seed) if value is not None]
    style.percent_axis(axes, "x", min(100, 106 * max([0.05, *highs])), margin=0.02)
    axes.set_ylim(len(order) - 0.4, -0.6)
    names = ["\n".join(style.wrapped(arms[arm].label, 1.75, style.LABEL, most=2)) if full else "" for arm in order]
    axes.set_yticks(range(len(order)), names)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("harmful outputs, held-out prompts")
    rates = {row.arm: f"{percent(row.rate)} {interval(row.low, row.high)}".strip() for row in rows}
    columns = {"rate [95 % interval]": rates} if full else {}
    if any(_p(row) is not None for row in rows):
        columns["p vs random"] = {row.arm: probability(_p(row)) for row in rows}
    end = 0.0
    for title, texts in columns.items():
        end += style.POINTS * max(style.text_width(text, 9) for text in (title, *texts.values())) + 18
        options: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
        options |= {"ha": "right", "size": 9, "annotation_clip": False}
        axes.annotate(title, (1, -0.6), (end, 1), va="bottom", color=style.GREY, **options)
        for arm, text in texts.items():
            axes.annotate(text, (1, order.index(arm)), (end, 0), va="center", **options)


def _arm(axes: Axes, row: ArmTest, y: float, arm: ArmInfo) -> None:
    if row.rate is None:
        where = axes.get_yaxis_transform()
        axes.text(0.01, y, "nothing scored", transform=where, va="center", color=style.GREY, size=9)
        return
    style.points(axes, arm.look, [y], [row], 10, "x", elinewidth=2.4, capsize=4, capthick=1.6, markeredgewidth=1.2)
    style.seeds(axes, arm.look, y + 0.27, row.per_seed, 4, "x")
    if arm.role in DASHES:
        axes.axvline(100 * row.rate, color=arm.look.ink, linewidth=1.1, linestyle=DASHES[arm.role], zorder=1.5)
        style.above(axes, arm.role, 100 * row.rate, arm.look.ink)


def _p(row: ArmTest) -> float | None:
    return row.to_random.p if row.to_random else None


def _trained(rows: Sequence[ArmTest], arms: Mapping[str, ArmInfo]) -> list[ArmTest]:
    """The rows without the after model, which is trained once and for all."""
    return [row for row in rows if arms[row.arm].role != "after"]


def runs_of(rows: Sequence[ArmTest], arms: Mapping[str, ArmInfo]) -> str:
    """How many trainings stand behind the arms, in words; a single one is called that."""
    counts = {row.seeds for row in _trained(rows, arms)}
    return "no run" if not counts else "a single run" if counts == {1} else f"{_range(counts)} seeds"


def _range(values: set[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def arms_caption(
    shown: Mapping[str, Sequence[ArmTest]],
    arms: Mapping[str, ArmInfo],
    alpha: float | None,
    k: int | None,
    intervention: InterventionKind,
) -> str:
    """What was compared and on how much, in words; `shown` are the rows by protocol."""
    if not any(shown.values()) or alpha is None:
        return "No arm was trained, so no rates can be compared."
    sentences = [
        f"Harmful rate on held-out prompts at {style.ALPHA} = {alpha:g} after {_DONE[intervention].format(k=k)}."
    ]
    limits = []
    for protocol, rows in shown.items():
        trained = _trained(rows, arms)
        seeds = {row.seeds for row in trained}
        reasons = [row.to_random.why_no_p for row in rows if row.to_random]
        if trained:
            sentences.append(
                f"{protocol}: {_range(seeds)} training seed{'' if seeds == {1} else 's'}, "
                f"{_range({row.prompts for row in rows})} prompts, "
                f"n = {_range({row.counts.n for row in trained})} outputs an arm."
            )
        if seeds == {1}:
            limits.append(
                f"{protocol} is a single run, so it has no p, and its interval knows prompts but no training noise."
            )
        elif reasons and all(reasons):
            limits.append(f"{protocol} has no p: {reasons[0]}.")
    sentences.append(
        "Large marker: mean over seeds and prompts; bar: 95 % two-way bootstrap interval; small dot: one seed."
    )
    if any(_p(row) is not None for rows in shown.values() for row in rows):
        sentences.append("p: two-sided permutation of seeds against random removal, not adjusted.")
    return " ".join([*sentences, *limits])
