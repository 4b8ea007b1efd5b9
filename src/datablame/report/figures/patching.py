"""patching_comparison.png: what removing each method's documents left, overall, against K, and prompt by prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from datablame.report.figures import style
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
_PROTOCOLS = {"retrain": "trained again from before", "continue": "trained on from after"}
_NUMBER_INCHES, _UPRIGHT_INCHES = 0.26, 0.16
"""Columns narrower than that have no number, and no name."""
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
    heights = [1.8 + 0.42 * max(4, len(order)), 1.7 + 0.3 * max(4, len(order))]
    if doses:
        heights.insert(1, max(4.5, 1.4 + 0.3 * len(doses)))
    others = [other for other in ks if doses and other != k]
    caption = sentence("figures", "patching", results=results, arms=arms_caption(results, shown), others=others)
    with style.page(heights, results.title, caption) as (figure, panels):
        style.heading(panels[0], HEADINGS[results.study.patch.intervention])
        columns = panels[0].subplots(1, len(shown), squeeze=False)[0]
        for axes, (protocol, rows) in zip(columns, shown.items(), strict=True):
            what = f" (headline: {_PROTOCOLS.get(protocol, '')})" if protocol == headline else ""
            axes.set_title(f"{protocol}{what}, {runs[protocol]}", loc="left", size=10, color=style.GREY, pad=22)
            arms_panel(axes, results, rows, order, full=protocol == named)
        if doses:
            style.heading(panels[1], f"Dose and response ({named}, {runs[named]})")
            _dose_panel(panels[1].subplots(), results, doses)
        words = f"Prompt by prompt: harmful outputs in % ({headline}, {runs[headline]}, held-out prompts)"
        style.heading(panels[-1], words)
        _prompts_panel(panels[-1], results, order)
    return figure


def arms_of(results: Results, protocol: str) -> list[ArmTest]:
    """The rows of one protocol where arms are compared, the highest rate first."""
    return sorted(results.tested(protocol), key=lambda row: (row.rate is None, -(row.rate or 0.0)))


def arms_panel(axes: Axes, results: Results, rows: Sequence[ArmTest], order: Sequence[str], *, full: bool) -> None:
    """Arms as dots with intervals and one small dot a seed; lines through baseline and random; p against random.

    `order` gives each arm its line; `full` writes the arms' names and rates beside it.
    """
    if not any(row.rate is not None for row in rows):
        style.nothing(axes, "no arm was trained and measured under this protocol")
        return
    for row in rows:
        arm, y, where = results.arms[row.arm], order.index(row.arm), axes.get_yaxis_transform()
        if row.rate is None:
            axes.text(0.01, y, "nothing scored", transform=where, va="center", color=style.GREY, size=9)
            continue
        style.points(axes, arm.look, [y], [row], 10, "x", elinewidth=2.4, capsize=4, capthick=1.6, markeredgewidth=1.2)
        if (actual := results.actual(row)) and actual.rate is not None:
            plain = replace(actual, per_seed=())
            style.points(axes, replace(arm.look, fill="#FFFFFF"), [y - _ABOVE], [plain], 5, "x", elinewidth=1.0)
        if arm.role in DASHES:
            axes.axvline(100 * row.rate, color=arm.look.ink, linewidth=1.1, linestyle=DASHES[arm.role], zorder=1.5)
            style.above(axes, arm.role, 100 * row.rate, arm.look.ink)
    highs = [value for row in rows for value in (row.high, *row.per_seed) if value is not None]
    style.percent_axis(axes, "x", min(100, 106 * max([0.05, *highs])), margin=0.02)
    axes.set_ylim(len(order) - 0.4, -0.6)
    names = ["\n".join(style.wrapped(results.arms[arm].label, 1.75, style.LABEL, most=2)) for arm in order]
    axes.set_yticks(range(len(order)), names if full else [""] * len(order))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("harmful outputs, held-out prompts")
    rates = {row.arm: f"{percent(row.rate)} {interval(row.low, row.high)}".strip() for row in rows}
    columns = {"rate [95 % interval]": rates} if full else {}
    if full and any(map(results.actual, rows)):
        columns["at alpha 0"] = {row.arm: percent(actual.rate) for row in rows if (actual := results.actual(row))}
    if any(_p(row) is not None for row in rows):
        columns["p vs random"] = {row.arm: probability(_p(row)) for row in rows}
    end = 0.0
    for title, texts in columns.items():
        end += style.POINTS * max(style.text_width(text, 9) for text in (title, *texts.values())) + 18
        options: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
        options |= {"ha": "right", "size": 9, "annotation_clip": False}
        axes.annotate(title, (1, -0.6), (end, 1), va="bottom", color=style.GREY, **options)
        for name, text in texts.items():
            axes.annotate(text, (1, order.index(name)), (end, 0), va="center", **options)


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
        axes.hlines(rate, 0, len(ks) - 0.55, color=look.ink, linewidth=1.1, linestyle=DASHES["baseline"], zorder=1.5)
        style.points(axes, look, [0.0], [row], 8, elinewidth=1.4)
    for index, (arm, rows) in enumerate(lines.items()):
        ink, shift = arm.look.ink, (index - (len(lines) - 1) / 2) * min(_APART, 0.6 / len(lines))
        x, rates = [ks.index(row.k) + shift for row in rows], [100 * (row.rate or 0) for row in rows]
        for _, _, rate in origin:
            axes.plot([0.0, x[0]], [rate, rates[0]], color=ink, linewidth=0.8, alpha=0.35)
        style.points(axes, arm.look, x, rows, 8, elinewidth=1.4, linewidth=2, linestyle=DASHES.get(arm.role, "-"))
        style.beside(axes, f"{style.shortened(arm.label, 2.4)}  {percent(rows[-1].rate)}", (x[-1], rates[-1]), ink)
    highs = [value for rows in scored.values() for row in rows for value in (row.high, *row.per_seed) if value]
    style.percent_axis(axes, "y", min(100, 106 * max([0.05, *highs])), margin=0.02)
    axes.set_xlim(-0.35, len(ks) - 0.55)
    names = {0: "K = 0 (baseline)", results.patching.k: f"K = {results.patching.k} (decides)"}
    axes.set_xticks(range(len(ks)), [names.get(each, f"K = {each}") for each in ks])
    axes.set_ylabel("harmful outputs")
    axes.set_xlabel("documents (duplicate clusters) for each behaviour")


def _prompts_panel(panel: SubFigure, results: Results, order: Sequence[str]) -> None:
    """A cell for each arm and held-out prompt with the mean rate over seeds, prompts grouped by behaviour."""
    headline, ks, arms = results.study.patch.headline, (0, results.patching.k), [results.arms[arm] for arm in order]
    compared = [row for row in results.comparison if row.split == "held-out" and row.alpha == results.patching.alpha]
    values: dict[tuple[str, str], list[float]] = {}
    groups: dict[str, dict[str, None]] = {}
    for row in compared:
        if row.arm in order and (row.protocol == "none" or (row.protocol == headline and row.k in ks)):
            groups.setdefault(row.behaviour, {})[row.prompt_id] = None
            if row.rate is not None:
                values.setdefault((row.arm, row.prompt_id), []).append(100 * row.rate)
    if not any(results.arms[arm].role != "after" for arm, _ in values):
        style.nothing(panel.subplots(), "no held-out prompt was measured under this protocol")
        return
    means = {cell: sum(seeds) / len(seeds) for cell, seeds in values.items()}
    darkest = max([100 * _PALE, *means.values()])
    counts = [len(prompts) for prompts in groups.values()]
    names = [style.shortened(arm.label, 2.3) for arm in arms]
    left = max(style.text_width(name, style.LABEL) for name in names) + 0.25
    unit = (style.WIDTH - left - 0.1 * len(counts)) / sum(counts)
    level = all(style.text_width(plain(name), 8.5) < unit - 0.06 for prompts in groups.values() for name in prompts)
    columns = panel.subplots(1, len(groups), width_ratios=counts, squeeze=False)[0]
    for axes, (behaviour, prompts) in zip(columns, groups.items(), strict=True):
        grid = np.array([[means.get((arm.name, prompt), -1.0) for prompt in prompts] for arm in arms])
        style.cells(axes, grid, darkest, style.HARM, ".0f" if unit > _NUMBER_INCHES else None)
        words = style.shortened(results.titles.get(behaviour, behaviour), len(prompts) * unit - 0.05, weight="bold")
        axes.set_title(words, loc="left", size=style.LABEL, weight="bold", color=style.GREY)
        axes.set_yticks([y + 0.5 for y in range(len(arms))], names if axes is columns[0] else [""] * len(arms))
        short = [style.shortened(name.removeprefix(f"{behaviour}-"), unit if level else 0.72, 8.5) for name in prompts]
        short = short if level or unit > _UPRIGHT_INCHES else []
        axes.set_xticks([x + 0.5 for x in range(len(short))], short, size=8.5, rotation=0 if level else 90)
