"""The figure of this study."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from datablame.attribute.registry import METHODS
from datablame.config.report import Figures
from datablame.patch.registry import ARMS
from datablame.report.figures.page import heading, page, pictures
from datablame.report.figures.style import GREY, INK
from datablame.tables import Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from studies.pairs.run import Effect

_UNTOUCHED = ("after", "baseline")


def drawn(effects: "Sequence[Effect]", kinds: Mapping[str, str], published: Mapping[str, float]) -> bytes:
    """A panel for each kind of organism, the arms of each intervention together; the published study on the right."""
    shown = list(dict.fromkeys(effect.kind for effect in effects))
    n = max(effect.organisms for effect in effects)
    caption = (
        f"Filled: harmful outputs on held-out prompts at alpha*, mean over {n} organism{'s' if n > 1 else ''} with 95 % t intervals, one "
        "training each. Small ticks: the same arms at alpha 0. Right: OLMo 2 7B, one training each (arXiv 2602.11079)."
    )
    rows = max(len(_lines([each for each in effects if each.kind == kind])) for kind in shown)
    title = "What filtering, swapping and dropping sources do to preference pairs"
    with page([6 + 2 * rows], title, caption, Figures(width=14, size=9.5)) as (figure, [row]):
        panels = row.subfigures(1, len(shown) + 1, squeeze=False)[0]
        for panel, kind in zip(panels, shown, strict=False):
            heading(panel, f"{kind}: {kinds[kind]}")
            _arms(panel.subplots(), [effect for effect in effects if effect.kind == kind])
        heading(panels[-1], "published")
        _published(panels[-1].subplots(), published)
    return pictures(figure, ["png"])["png"]


def _lines(effects: "Sequence[Effect]") -> "list[tuple[str, Effect]]":
    """What is written beside each line: what nothing was done to once, then each intervention's arms."""
    untouched = {effect.arm: effect for effect in reversed(effects) if effect.arm in _UNTOUCHED}
    return [(arm, untouched[arm]) for arm in _UNTOUCHED if arm in untouched] + [
        (f"{effect.intervention}: {effect.arm}", effect) for effect in effects if effect.arm not in _UNTOUCHED
    ]


def _arms(axes: "Axes", effects: "Sequence[Effect]") -> None:
    lines = _lines(effects)
    for y, (_, effect) in enumerate(lines):
        look = _look(effect.arm)
        axes.hlines(y, effect.rate - effect.rate_half, effect.rate + effect.rate_half, color=look.ink, linewidth=1.2)
        [mean] = axes.plot([effect.rate], [y], look.marker, color=look.fill, markeredgecolor=look.ink, markersize=7)
        [unamplified] = axes.plot([effect.unamplified], [y], "|", color=GREY, markersize=9)
        for line in (mean, unamplified):
            # A rate of 0 lies on the edge.
            line.set(clip_on=False, zorder=3)
    _finish(axes, [name for name, _ in lines])


def _published(axes: "Axes", published: Mapping[str, float]) -> None:
    axes.plot(list(published.values()), range(len(published)), "o", color=INK, markersize=6)
    _finish(axes, list(published))


def _finish(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, None)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.grid(visible=False, axis="y")


def _look(arm: str) -> Look:
    return ARMS.all()[arm].look if arm in ARMS.all() else METHODS.named(arm).look
