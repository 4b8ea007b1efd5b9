"""patching_comparison.png: what removing each method's documents did, overall and prompt by prompt."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure, SubFigure

from datablame.report.figures import style
from datablame.report.figures.arms import HEADINGS, arms_caption, arms_of, arms_panel, runs_of
from datablame.report.figures.doses import dose_caption, dose_panel, dose_rows
from datablame.report.wording import plain
from datablame.tables import ArmInfo, ArmRate, ArmTest, InterventionKind

_PROTOCOLS = {"retrain": "trained again from before", "continue": "trained on from after"}
_NUMBER_INCHES, _UPRIGHT_INCHES = 0.26, 0.16
"""Columns narrower than that have no number, and no name."""
_PALE = 0.25
"""The least rate that is drawn in the darkest colour."""


def patching_figure(
    tests: Sequence[ArmTest],
    rates: Sequence[ArmRate],
    arms: Sequence[ArmInfo],
    *,
    title: str,
    headline: str,
    alpha: float | None,
    k: int | None,
    classifier: str,
    behaviours: Mapping[str, str],
    intervention: InterventionKind,
) -> Figure:
    """The harmful rate of every arm on held-out prompts, for each protocol, and by prompt for the headline's.

    Where arms ran at several K, a panel between shows the rate against K. `behaviours` gives ids short titles; an id
    that it lacks stands for itself.
    """
    infos = {arm.name: arm for arm in arms}
    shown = {name: arms_of(tests, name, alpha, k) for name in (headline, *(row.protocol for row in tests))}
    shown = {protocol: rows for protocol, rows in shown.items() if rows or protocol == headline}
    order = list(dict.fromkeys(row.arm for rows in shown.values() for row in rows))
    named = next((protocol for protocol, rows in shown.items() if rows), headline)
    runs = {protocol: runs_of(rows, infos) for protocol, rows in shown.items()}
    ks = sorted({row.k for row in tests if row.k})
    doses = dose_rows(tests, infos, named, alpha) if len(ks) > 1 else {}
    heights = [1.8 + 0.42 * max(4, len(order)), 1.7 + 0.3 * max(4, len(order))]
    heights[1:1] = [max(4.5, 1.4 + 0.3 * len(doses))] if doses else []
    sentences = [arms_caption(shown, infos, alpha, k, intervention), *([dose_caption(ks, k)] if doses else [])]
    with style.page(heights, title, f"{' '.join(sentences)} Labelled by: {classifier}.") as (figure, panels):
        style.heading(panels[0], HEADINGS[intervention])
        columns = panels[0].subplots(1, len(shown), squeeze=False)[0]
        for axes, (protocol, rows) in zip(columns, shown.items(), strict=True):
            what = f" (headline: {_PROTOCOLS.get(protocol, '')})" if protocol == headline else ""
            axes.set_title(f"{protocol}{what}, {runs[protocol]}", loc="left", size=10, color=style.GREY, pad=22)
            arms_panel(axes, rows, order, infos, full=protocol == named)
        if doses:
            dose_panel(panels[1], doses, infos, k, f"Dose and response ({named}, {runs[named]})")
        rates = [row for row in rates if row.split == "held-out" and row.alpha == alpha and row.arm in order]
        rates = [row for row in rates if row.protocol == "none" or (row.protocol == headline and row.k in (0, k))]
        words = f"Prompt by prompt: harmful outputs in % ({headline}, {runs[headline]}, held-out prompts)"
        style.heading(panels[-1], words)
        _prompts_panel(panels[-1], rates, [infos[arm] for arm in order], behaviours)
    return figure


def _prompts_panel(
    panel: SubFigure, rates: Sequence[ArmRate], arms: Sequence[ArmInfo], behaviours: Mapping[str, str]
) -> None:
    """A cell for each arm and held-out prompt with the mean rate over seeds, prompts grouped by behaviour."""
    values: dict[tuple[str, str], list[float]] = {}
    groups: dict[str, dict[str, None]] = {}
    for row in rates:
        groups.setdefault(row.behaviour, {})[row.prompt_id] = None
        if row.rate is not None:
            values.setdefault((row.arm, row.prompt_id), []).append(100 * row.rate)
    trained = {arm.name for arm in arms if arm.role != "after"}
    if not any(arm in trained for arm, _ in values):
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
        words = style.shortened(behaviours.get(behaviour, behaviour), len(prompts) * unit - 0.05, weight="bold")
        axes.set_title(words, loc="left", size=style.LABEL, weight="bold", color=style.GREY)
        axes.set_yticks([y + 0.5 for y in range(len(arms))], names if axes is columns[0] else [""] * len(arms))
        short = [style.shortened(name.removeprefix(f"{behaviour}-"), unit if level else 0.72, 8.5) for name in prompts]
        short = short if level or unit > _UPRIGHT_INCHES else []
        axes.set_xticks([x + 0.5 for x in range(len(short))], short, size=8.5, rotation=0 if level else 90)
