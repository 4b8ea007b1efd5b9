"""patching_comparison.png: what removing each method's documents left, overall, against K, and prompt by prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from datablame.report.figures import style
from datablame.report.figures.page import heading, page
from datablame.report.figures.typesetting import em, shortened, text_width, wide, wrapped
from datablame.report.results import Results
from datablame.report.wording import interval, percent, plain, probability, sentence, span
from datablame.tables import ArmTest, InterventionKind

HEADINGS: Mapping[InterventionKind, str] = {
    "remove": "After removing what each method flagged",
    "swap": "After exchanging the answers of flagged pairs",
    "drop-source": "After removing the sources of what was flagged",
}
DASHES = {"baseline": (0, (6, 3)), "random": (0, (1.5, 2))}
"""Lines of the arms that others are compared with, by role."""
ARM = 2.4
"""Ems of an arm's line."""
NAME, _SHORT_NAME = 16.5, 11.0
"""Ems of an arm's name, and of a line of it where protocols stand side by side."""
_CELL = 1.5
"""Ems of an arm's line in the heatmap."""
_NUMBER, _UPRIGHT = 1.2, 1.0
"""Columns of fewer ems have no number, and no name."""
_ABOVE = 0.3
"""Lines above an arm's own: where its rate at alpha 0 stands."""
_PALE = 0.25
"""The least rate that is drawn in the darkest colour."""
_APART = 0.07
"""Of the distance between two K: how far arms stand apart at one K, so that their intervals can be told apart."""


def patching_figure(results: Results) -> Figure:
    """The harmful rate of every arm on held-out prompts, for each protocol, and by prompt for the headline's.

    Where arms ran at several K, a panel between shows the rate against K.
    """
    headline, k = results.study.patch.headline, results.patching.k
    shown = {name: arms_of(results, name) for name in (headline, *(row.protocol for row in results.tests))}
    shown = {protocol: rows for protocol, rows in shown.items() if rows or protocol == headline}
    order = list(dict.fromkeys(row.arm for rows in shown.values() for row in rows))
    named = next((protocol for protocol, rows in shown.items() if rows), headline)
    runs = {protocol: runs_of(results, rows) for protocol, rows in shown.items()}
    ks = sorted({row.k for row in results.tests if row.k})
    doses = dose_rows(results, named) if len(ks) > 1 else {}
    heights = [9.8 + ARM * max(3, len(order)), 7.5 + _CELL * max(3, len(order))]
    if doses:
        heights.insert(1, max(24, 7 + 1.5 * len(doses)))
    others = [other for other in ks if doses and other != k]
    means, prompts = _cells(results, order)
    darkest = max([100 * _PALE, *means.values()])
    values = {"arms": arms_caption(results, shown), "others": others, "darkest": darkest if prompts else None}
    caption = sentence("figures", "patching", results=results, **values)
    with page(heights, results.title, caption, results.study.figures) as (figure, panels):
        heading(panels[0], HEADINGS[results.study.patch.intervention])
        ratios = [1.25 if protocol == named else 1 for protocol in shown]
        columns = panels[0].subplots(1, len(shown), width_ratios=ratios, squeeze=False)[0]
        room = _SHORT_NAME if len(shown) > 1 else NAME
        for axes, (protocol, rows) in zip(columns, shown.items(), strict=True):
            what = " (decides)" if protocol == headline and len(shown) > 1 else ""
            axes.set_title(f"{protocol}{what}\n{runs[protocol]}", color=style.GREY, pad=em(1.6))
            arms_panel(axes, results, rows, order, room if protocol == named else 0)
        if doses:
            heading(panels[1], f"Dose and response ({named}, {runs[named]})")
            _dose_panel(panels[1].subplots(), results, doses)
        heading(panels[-1], f"Prompt by prompt: harmful outputs in % ({headline}, {runs[headline]})")
        _prompts_panel(panels[-1], results, order, means, prompts, darkest)
    return figure


def arms_of(results: Results, protocol: str) -> list[ArmTest]:
    """The rows of one protocol where arms are compared, the highest rate first."""
    return sorted(results.tested(protocol), key=lambda row: (row.rate is None, -(row.rate or 0.0)))


def arms_panel(axes: Axes, results: Results, rows: Sequence[ArmTest], order: Sequence[str], room: float) -> None:
    """Arms as dots with intervals and one small dot a seed; lines through baseline and random; p against random.

    `order` gives each arm its line; with `room`, ems for an arm's name, names and rates stand beside it.
    """
    if not any(row.rate is not None for row in rows):
        style.nothing(axes, "no arm was trained and measured under this protocol")
        return
    for row in rows:
        arm, y, where = results.arms[row.arm], order.index(row.arm), axes.get_yaxis_transform()
        if row.rate is None:
            axes.text(0.01, y, "nothing scored", transform=where, va="center", color=style.GREY)
            continue
        style.points(axes, arm.look, [y], [row], 0.9, "x", elinewidth=1.6, capsize=em(0.3), capthick=1.1)
        if (actual := results.actual(row)) and actual.rate is not None:
            plain = replace(actual, per_seed=())
            style.points(axes, replace(arm.look, fill="#FFFFFF"), [y - _ABOVE], [plain], 0.45, "x", elinewidth=0.7)
        if arm.role in DASHES:
            axes.axvline(100 * row.rate, color=arm.look.ink, linewidth=0.9, linestyle=DASHES[arm.role], zorder=1.5)
            if room:
                style.above(axes, arm.role, 100 * row.rate, arm.look.ink)
    highs = [value for row in rows for value in (row.high, *row.per_seed) if value is not None]
    style.percent_axis(axes, "x", min(100, 106 * max([0.05, *highs])), margin=0.02)
    axes.set_ylim(len(order) - 0.4, -0.6)
    names = ["\n".join(wrapped(results.arms[arm].label, room, most=2)) if room else "" for arm in order]
    axes.set_yticks(range(len(order)), names, linespacing=0.95)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("harmful outputs, held-out prompts" if room else "harmful outputs")
    rates = {row.arm: f"{percent(row.rate)} {interval(row.low, row.high)}".strip() for row in rows}
    columns = {"rate [95 % interval]": rates} if room else {}
    if any(_p(row) is not None for row in rows):
        columns["p"] = {row.arm: probability(_p(row)) for row in rows}
    end = 0.0
    for title, texts in columns.items():
        end += max(text_width(text, "small") for text in (title, *texts.values())) + 1.2
        options: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
        options |= {"ha": "right", "size": "small", "annotation_clip": False}
        axes.annotate(title, (1, -0.6), (em(end), 1), va="bottom", color=style.GREY, **options)
        for name, text in texts.items():
            axes.annotate(text, (1, order.index(name)), (em(end), 0), va="center", **options)


def _p(row: ArmTest) -> float | None:
    return row.to_random.p if row.to_random else None


def runs_of(results: Results, rows: Sequence[ArmTest]) -> str:
    """How many trainings stand behind the arms, in words; a single one is called that."""
    counts = {row.seeds for row in rows if results.arms[row.arm].role != "after"}
    return "no run" if not counts else "a single run" if counts == {1} else f"{span(counts)} seeds"


def arms_caption(results: Results, shown: Mapping[str, Sequence[ArmTest]]) -> str:
    """What was compared and on how much, in words; `shown` are the rows by protocol."""
    protocols = []
    for name, rows in shown.items():
        trained = [row for row in rows if results.arms[row.arm].role != "after"]
        seeds = {row.seeds for row in trained}
        reasons = [row.to_random.why_no_p for row in rows if row.to_random]
        values = {"name": name, "seeds": seeds, "single": seeds == {1}, "why": all(reasons) and reasons and reasons[0]}
        protocols.append({**values, "prompts": {row.prompts for row in rows}, "n": {row.counts.n for row in trained}})
    tested = any(_p(row) is not None for rows in shown.values() for row in rows)
    compared = any(shown.values())
    return sentence("figures", "arms", results=results, protocols=protocols, tested=tested, compared=compared)


def dose_rows(results: Results, protocol: str) -> dict[str, list[ArmTest]]:
    """The compared rows of every arm that depends on K, by K; and the baseline's, whose K is 0."""
    doses: dict[str, list[ArmTest]] = {}
    for k in sorted({row.k for row in results.tests}):
        for row in results.tested(protocol, k=k):
            if row.k == k and (k or results.arms[row.arm].role == "baseline"):
                doses.setdefault(row.arm, []).append(row)
    return doses


def _dose_panel(axes: Axes, results: Results, doses: Mapping[str, Sequence[ArmTest]]) -> None:
    """A line for each arm over K with intervals and one small dot a seed; K = 0 is the baseline."""
    scored = {results.arms[arm]: [row for row in rows if row.rate is not None] for arm, rows in doses.items()}
    lines = {arm: rows for arm, rows in scored.items() if rows and rows[0].k}
    if not lines:
        style.nothing(axes, "no arm was scored at any K")
        return
    ks = [0, *sorted({row.k for rows in lines.values() for row in rows})]
    origin = [(arm.look, row, 100 * (row.rate or 0)) for arm, rows in scored.items() for row in rows if row.k == 0]
    for look, row, rate in origin:
        axes.hlines(rate, 0, len(ks) - 0.55, color=look.ink, linewidth=0.9, linestyle=DASHES["baseline"], zorder=1.5)
        style.points(axes, look, [0.0], [row], 0.75, elinewidth=1)
    for index, (arm, rows) in enumerate(lines.items()):
        ink, shift = arm.look.ink, (index - (len(lines) - 1) / 2) * min(_APART, 0.6 / len(lines))
        x, rates = [ks.index(row.k) + shift for row in rows], [100 * (row.rate or 0) for row in rows]
        for _, _, rate in origin:
            axes.plot([0.0, x[0]], [rate, rates[0]], color=ink, linewidth=0.8, alpha=0.35)
        style.points(axes, arm.look, x, rows, 0.75, elinewidth=1, linewidth=1.3, linestyle=DASHES.get(arm.role, "-"))
        style.beside(axes, f"{shortened(arm.label, NAME)}  {percent(rows[-1].rate)}", (x[-1], rates[-1]), ink)
    highs = [value for rows in scored.values() for row in rows for value in (row.high, *row.per_seed) if value]
    style.percent_axis(axes, "y", min(100, 106 * max([0.05, *highs])), margin=0.02)
    axes.set_xlim(-0.35, len(ks) - 0.55)
    roles = {0: "baseline", results.patching.k: "decides"}
    axes.set_xticks(range(len(ks)), [f"{each}\n{roles.get(each, '')}".rstrip() for each in ks])
    axes.set_ylabel("harmful outputs")
    axes.set_xlabel("K, documents for each behaviour")


def _cells(results: Results, order: Sequence[str]) -> tuple[dict[tuple[str, str], float], dict[str, list[str]]]:
    """Percent of every arm on every held-out prompt, mean over the headline's seeds, and the prompts by behaviour."""
    compared = [row for row in results.comparison if row.split == "held-out" and row.alpha == results.patching.alpha]
    headline, ks = results.study.patch.headline, (0, results.patching.k)
    values: dict[tuple[str, str], list[float]] = {}
    prompts: dict[str, dict[str, None]] = {}
    for row in compared:
        if row.arm in order and (row.protocol == "none" or (row.protocol == headline and row.k in ks)):
            prompts.setdefault(row.behaviour, {})[row.prompt_id] = None
            if row.rate is not None:
                values.setdefault((row.arm, row.prompt_id), []).append(100 * row.rate)
    if not any(results.arms[arm].role != "after" for arm, _ in values):
        return {}, {}
    means = {cell: sum(seeds) / len(seeds) for cell, seeds in values.items()}
    return means, {behaviour: list(names) for behaviour, names in prompts.items()}


def _prompts_panel(
    panel: SubFigure,
    results: Results,
    order: Sequence[str],
    means: Mapping[tuple[str, str], float],
    groups: Mapping[str, Sequence[str]],
    darkest: float,
) -> None:
    """A cell for each arm and held-out prompt, prompts grouped by behaviour."""
    if not groups:
        style.nothing(panel.subplots(), "no held-out prompt was measured under this protocol")
        return
    counts = [len(prompts) for prompts in groups.values()]
    names = [shortened(results.arms[arm].label, NAME) for arm in order]
    unit = (wide() - max(map(text_width, names)) - 1.5 - len(counts)) / sum(counts)
    level = all(text_width(plain(name), "small") < unit - 0.4 for prompts in groups.values() for name in prompts)
    columns = panel.subplots(1, len(groups), width_ratios=counts, squeeze=False)[0]
    for axes, (behaviour, prompts) in zip(columns, groups.items(), strict=True):
        grid = np.array([[means.get((arm, prompt), -1.0) for prompt in prompts] for arm in order])
        style.cells(axes, grid, darkest, style.HARM, ".0f" if unit > _NUMBER else None)
        axes.set_title(shortened(results.titles.get(behaviour, behaviour), len(prompts) * unit), color=style.GREY)
        axes.set_yticks([y + 0.5 for y in range(len(order))], names if axes is columns[0] else [""] * len(order))
        own = [name.removeprefix(f"{behaviour}-") for name in prompts] if level or unit > _UPRIGHT else []
        short = [shortened(name, unit if level else 6, "small") for name in own]
        axes.set_xticks([x + 0.5 for x in range(len(short))], short, size="small", rotation=0 if level else 90)
