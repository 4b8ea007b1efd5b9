"""Arms compared: what removing each method's documents left of the behaviour."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from datablame.report.style import ALPHA, GREY, POINTS, Box, look, nothing, panel, text_width, wrapped
from datablame.report.wording import interval, percent, probability
from datablame.tables import EVERY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Row = Mapping[str, Any]
_BETWEEN = 0.22
_NONE = probability(None)
HEADINGS = {
    "remove": "After removing what each method flagged",
    "swap": "After exchanging the answers of flagged pairs",
    "drop-source": "After removing the sources of what was flagged",
}
_DONE = {
    "remove": "removing K = {k} documents a behaviour",
    "swap": "exchanging the answers of K = {k} pairs a behaviour",
    "drop-source": "removing the sources of K = {k} documents a behaviour",
}


def arms_of(tests: Sequence[Row], protocol: str, alpha: float | None, k: int | None) -> list[Row]:
    """The rows at one K over all behaviours on held-out prompts of one protocol, the highest rate first."""
    rows = [
        row
        for row in tests
        if row["protocol"] == protocol and row["split"] == "held-out" and row["behaviour"] == EVERY
        if row["alpha"] == alpha and row["k"] in (0, k)
    ]
    return sorted(rows, key=lambda row: (row["rate"] is None, -(row["rate"] or 0.0)))


def arms_panel(
    figure: "Figure",
    box: Box,
    rows: Sequence[Row],
    order: Sequence[str],
    labels: Mapping[str, str],
    *,
    heading: str,
    full: bool,
) -> None:
    """Arms as dots with intervals and one small dot a seed; lines through baseline and random; p against random.

    `order` gives each arm its line; `full` writes the arms' names and rates beside it.
    """
    columns = _columns(rows, full)
    right = sum(column.width + _BETWEEN for column in columns) + 0.1
    names = ["\n".join(wrapped(labels.get(arm, arm), 1.75, 9.5, most=2)) for arm in order]
    left = max((text_width(line, 9.5) for name in names for line in name.split("\n")), default=0.0) + 0.18
    axes = panel(figure, box, heading, left=left if full else 0.15, right=right, above=0.22, below=0.5)
    if not any(row["rate"] is not None for row in rows):
        nothing(axes, "no arm was trained and measured under this protocol")
        return
    place = {arm: y for y, arm in enumerate(order)}
    for row in rows:
        _arm(axes, row, place[row["arm"]])
    _references(axes, rows)
    highs = [100 * value for row in rows for value in (row["high"], *row["per_seed"]) if value is not None]
    end = min(100, max([5, *highs]) * 1.06)
    axes.set_xlim(-0.02 * end, end)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_yticks(range(len(order)), names if full else [""] * len(order))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.set_xlabel("harmful outputs, held-out prompts")
    axes.grid(visible=False, axis="x")
    _write(axes, columns, place)


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


class _Column(NamedTuple):
    """Numbers beside a panel, by arm, and how many inches they take."""

    heading: str
    texts: Mapping[str, str]
    width: float


def _columns(rows: Sequence[Row], full: bool) -> list[_Column]:
    """The rate with its interval, and p against random where any arm has one."""
    found = {"rate [95 % interval]": {row["arm"]: _rate(row) for row in rows}} if full and rows else {}
    p_values = {row["arm"]: _p(row) for row in rows}
    if any(text != _NONE for text in p_values.values()):
        found["p vs random"] = p_values
    return [
        _Column(heading, texts, max(text_width(text, 9) for text in (heading, *texts.values())))
        for heading, texts in found.items()
    ]


def _write(axes: "Axes", columns: Sequence[_Column], place: Mapping[str, int]) -> None:
    end = 0.1
    for column in columns:
        end += column.width + _BETWEEN
        given: dict[str, Any] = {
            "xycoords": axes.get_yaxis_transform(),
            "textcoords": "offset points",
            "ha": "right",
            "size": 9,
            "annotation_clip": False,
        }
        axes.annotate(column.heading, (1, -0.6), xytext=((end - 0.1) * POINTS, 2), va="bottom", color=GREY, **given)
        for arm, text in column.texts.items():
            axes.annotate(text, (1, place[arm]), xytext=((end - 0.1) * POINTS, 0), va="center", **given)


def _rate(row: Row) -> str:
    return f"{percent(row['rate'])} {interval(row['low'], row['high'])}".strip()


def _p(row: Row) -> str:
    return probability(row["to_random"]["p"] if row["to_random"] else None)


def _trained_seeds(rows: Sequence[Row]) -> list[int]:
    """How many trainings the arms had, without the after model, which is trained once and for all."""
    return sorted({int(row["seeds"]) for row in rows if row["arm"] != "untrained"})


def runs_of(rows: Sequence[Row]) -> str:
    """How many trainings stand behind the arms, in words; a single one is called that."""
    seeds = _trained_seeds(rows)
    return "no run" if not seeds else "a single run" if seeds == [1] else f"{_range(seeds)} seeds"


def _range(values: Sequence[int]) -> str:
    return f"{values[0]}" if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def arms_caption(
    shown: Mapping[str, Sequence[Row]], alpha: float | None, k: int | None, intervention: str = "remove"
) -> str:
    """What was compared and on how much, in words."""
    rows = [row for own in shown.values() for row in own]
    if not rows or alpha is None:
        return "No arm was trained, so no rates can be compared."
    what = _DONE[intervention].format(k=k)
    said = [f"Harmful rate on held-out prompts at {ALPHA} = {alpha:g} after {what}."]
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
    if any(_p(row) != _NONE for row in rows):
        said.append("p: two-sided permutation of seeds against random removal, not adjusted.")
    for protocol in shown:
        reasons = [row["to_random"]["why_no_p"] for row in shown[protocol] if row["to_random"]]
        if reasons and all(reasons) and protocol not in single:
            said.append(f"{protocol} has no p: {reasons[0]}.")
    for protocol in single:
        said.append(
            f"{protocol} is a single run, so it has no p, and its interval knows prompts but no training noise."
        )
    return " ".join(said)
