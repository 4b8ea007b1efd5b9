"""Arms compared: what removing each method's documents left of the behaviour."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from datablame.report.figures.style import (
    ALPHA,
    GREY,
    LABEL,
    POINTS,
    above,
    nothing,
    percent_axis,
    points,
    seeds,
    text_width,
    wrapped,
)
from datablame.report.wording import interval, percent, probability
from datablame.tables import EVERY, ArmInfo, ArmTest, Intervention

HEADINGS: Mapping[Intervention, str] = {
    "remove": "After removing what each method flagged",
    "swap": "After exchanging the answers of flagged pairs",
    "drop-source": "After removing the sources of what was flagged",
}
_DONE: Mapping[Intervention, str] = {
    "remove": "removing K = {k} documents a behaviour",
    "swap": "exchanging the answers of K = {k} pairs a behaviour",
    "drop-source": "removing the sources of K = {k} documents a behaviour",
}
DASHES = {"baseline": (0, (6, 3)), "random": (0, (1.5, 2))}
"""Lines of the arms that others are compared with, by role."""


def arms_of(tests: Sequence[ArmTest], protocol: str, alpha: float | None, k: int | None) -> list[ArmTest]:
    """The rows at one K over all behaviours on held-out prompts of one protocol, the highest rate first."""
    rows = [row for row in tests if row.split == "held-out" and row.behaviour == EVERY and row.protocol == protocol]
    rows = [row for row in rows if row.alpha == alpha and row.k in (0, k)]
    return sorted(rows, key=lambda row: (row.rate is None, -(row.rate or 0.0)))


def arms_panel(
    axes: Axes, rows: Sequence[ArmTest], order: Sequence[str], arms: Mapping[str, ArmInfo], *, full: bool
) -> None:
    """Arms as dots with intervals and one small dot a seed; lines through baseline and random; p against random.

    `order` gives each arm its line; `full` writes the arms' names and rates beside it.
    """
    if not any(row.rate is not None for row in rows):
        nothing(axes, "no arm was trained and measured under this protocol")
        return
    for row in rows:
        _arm(axes, row, order.index(row.arm), arms[row.arm])
    highs = [100 * value for row in rows for value in (row.high, *row.per_seed) if value is not None]
    percent_axis(axes, "x", min(100, max([5, *highs]) * 1.06), margin=0.02)
    axes.grid(axis="x", visible=False)
    axes.set_ylim(len(order) - 0.4, -0.6)
    names = ["\n".join(wrapped(arms[arm].label, 1.75, LABEL, most=2)) if full else "" for arm in order]
    axes.set_yticks(range(len(order)), names)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("harmful outputs, held-out prompts")
    rates = {row.arm: f"{percent(row.rate)} {interval(row.low, row.high)}".strip() for row in rows}
    p_values = {row.arm: probability(_p(row)) for row in rows}
    columns = {"rate [95 % interval]": rates} if full else {}
    columns |= {"p vs random": p_values} if any(_p(row) is not None for row in rows) else {}
    end = 0.0
    for title, texts in columns.items():
        end += POINTS * max(text_width(text, 9) for text in (title, *texts.values())) + 18
        _column(axes, end, {-0.6: title}, va="bottom", color=GREY)
        _column(axes, end, {order.index(arm): text for arm, text in texts.items()}, va="center")


def _arm(axes: Axes, row: ArmTest, y: float, arm: ArmInfo) -> None:
    if row.rate is None:
        axes.text(0.01, y, "nothing scored", transform=axes.get_yaxis_transform(), va="center", color=GREY, size=9)
        return
    rate = 100 * row.rate
    ends = ([row.low], [row.high])
    bar = {"elinewidth": 2.4, "capsize": 4, "capthick": 1.6, "markeredgewidth": 1.2, "zorder": 5}
    points(axes, arm.look, [rate], [y], ends, size=10, horizontal=True, **bar)
    if len(row.per_seed) > 1:
        seeds(axes, arm.look, [100 * value for value in row.per_seed], [y + 0.27] * len(row.per_seed), 4)
    if arm.role in DASHES:
        axes.axvline(rate, color=arm.look.ink, linewidth=1.1, linestyle=DASHES[arm.role], zorder=1.5)
        above(axes, arm.role, rate, arm.look.ink)


def _column(axes: Axes, end: float, texts: Mapping[float, str], **options: str) -> None:
    """Numbers right of the axes, one on each line."""
    for y, text in texts.items():
        place = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "annotation_clip": False}
        axes.annotate(text, (1, y), (end, 1 if y < 0 else 0), ha="right", size=9, **place, **options)


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
    intervention: Intervention,
) -> str:
    """What was compared and on how much, in words; `shown` are the rows by protocol."""
    if not any(shown.values()) or alpha is None:
        return "No arm was trained, so no rates can be compared."
    sentences = [f"Harmful rate on held-out prompts at {ALPHA} = {alpha:g} after {_DONE[intervention].format(k=k)}."]
    reasons = []
    for protocol, rows in shown.items():
        trained = _trained(rows, arms)
        if not trained:
            continue
        seeds, single = _range({row.seeds for row in trained}), {row.seeds for row in trained} == {1}
        sentences.append(
            f"{protocol}: {seeds} training seed{'' if single else 's'}, {_range({row.prompts for row in rows})} prompts, "
            f"n = {_range({row.counts.n for row in trained})} outputs an arm."
        )
        why = [row.to_random.why_no_p for row in rows if row.to_random]
        if single:
            reasons.append(
                f"{protocol} is a single run, so it has no p, and its interval knows prompts but no training noise."
            )
        elif why and all(why):
            reasons.append(f"{protocol} has no p: {why[0]}.")
    sentences.append(
        "Large marker: mean over seeds and prompts; bar: 95 % two-way bootstrap interval; small dot: one seed."
    )
    if any(_p(row) is not None for rows in shown.values() for row in rows):
        sentences.append("p: two-sided permutation of seeds against random removal, not adjusted.")
    return " ".join([*sentences, *reasons])
