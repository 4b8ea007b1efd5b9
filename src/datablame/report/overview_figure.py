"""final_results.png: the study on one page, four panels."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datablame.records import EVERY
from datablame.report.figures import counted, rates_panel, top_rate
from datablame.report.patching_figure import arms_caption, arms_of, arms_panel
from datablame.report.style import FAINT, GREY, POINTS, blue_of, drawing, nothing, page, png, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["final_results"]

Row = Mapping[str, Any]
_SIZES = (11.5, 11.0, 10.5, 10.0, 9.5, 9.0, 8.5, 8.0, 7.5, 7.0)
_LEADING, _BETWEEN = 1.4, 0.55
_SUMMARY_INCHES = (6.3, 4.1)


def final_results(
    rates: Sequence[Row],
    agreement: Sequence[Row],
    tests: Sequence[Row],
    *,
    title: str,
    headline: str,
    alpha: float | None,
    k: int | None,
    labels: Mapping[str, str],
    summary: Sequence[str],
    behaviours: Mapping[str, str] | None = None,
) -> bytes:
    """Rates against alpha, agreement of methods, what patching did, and the summary's sentences.

    `behaviours` gives ids short titles; an id that it lacks stands for itself.
    """
    arms = arms_of(tests, headline, alpha, k)
    with drawing():
        figure = page(15, 10.6, title, _caption(rates, agreement, arms, headline, alpha, k))
        (amplified, agreeing), (patched, said) = figure.subplots(2, 2)
        split = "held-out" if any(row["split"] == "held-out" and row["n"] for row in rates) else "attribution"
        amplified.set_title(f"1  Harmful rate against amplification ({split} prompts)")
        rates_panel(amplified, rates, behaviours or {}, split=split, top=top_rate(rates), height=4.0, alpha_star=alpha)
        agreeing.set_title("2  Agreement of methods: Jaccard of their first K")
        _agreement_panel(agreeing, agreement, labels)
        patched.set_title(f"3  After removing what each method flagged ({headline})", pad=22)
        arms_panel(patched, arms, [row["arm"] for row in arms], labels, named=True, rates=True)
        said.set_title("4  Summary", pad=22)
        _summary_panel(said, summary)
        return png(figure)


def _agreement_panel(axes: "Axes", agreement: Sequence[Row], labels: Mapping[str, str]) -> None:
    """The lower triangle of method pairs, without the diagonal."""
    from matplotlib.patches import Rectangle

    pooled = _pooled(agreement)
    names = list(dict.fromkeys(name for row in pooled for name in (row["a"], row["b"])))
    if len(names) < 2:
        nothing(axes, "fewer than two methods ranked the same documents")
        return
    found = {frozenset((row["a"], row["b"])): row["jaccard"] for row in pooled}
    size = 10.0 if len(names) <= 6 else 9.0
    for y, below in enumerate(names[1:]):
        for x, above in enumerate(names[: y + 1]):
            value = found.get(frozenset((below, above)))
            fill, ink = (FAINT, GREY) if value is None else blue_of(value)
            axes.add_patch(Rectangle((x + 0.02, y + 0.02), 0.96, 0.96, facecolor=fill, edgecolor="none"))
            text = "–" if value is None else f"{value:.2f}"
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", size=size, color=ink)
    n = len(names) - 1
    axes.set_xlim(0, n)
    axes.set_ylim(n, 0)
    words = {name: "\n".join(wrapped(labels.get(name, name), 1.7, size, most=2)) for name in names}
    turned = {"rotation": 35, "ha": "right", "va": "top", "rotation_mode": "anchor"} if n > 3 else {}
    axes.set_xticks([x + 0.5 for x in range(n)], [words[name] for name in names[:-1]], size=size, **turned)
    axes.set_yticks([y + 0.5 for y in range(n)], [words[name] for name in names[1:]], size=size)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _pooled(agreement: Sequence[Row]) -> list[Row]:
    return [row for row in agreement if row["behaviour"] == EVERY]


def _summary_panel(axes: "Axes", sentences: Sequence[str]) -> None:
    """The sentences as large as they fit; those for which the smallest type leaves no room are counted."""
    axes.set_axis_off()
    if not sentences:
        nothing(axes, "the study has no finding")
        return
    width, height = _SUMMARY_INCHES
    for size in _SIZES:
        blocks = _blocks(sentences, width, size)
        if _height(blocks, size) <= height:
            break
    kept = list(blocks)
    while len(kept) > 1 and _height([*kept, [""]], size) > height:
        kept.pop()
    if len(kept) < len(blocks):
        kept.append([f"and {len(blocks) - len(kept)} more in writeup/report.md"])
    y = 1.0
    line = size * _LEADING / POINTS / height
    for place, block in enumerate(kept):
        if place < len(sentences):
            axes.text(0, y, "•", transform=axes.transAxes, va="top", size=size, color=GREY)
        axes.text(0.028, y, "\n".join(block), transform=axes.transAxes, va="top", size=size, linespacing=_LEADING / 1.2)
        y -= line * (len(block) + _BETWEEN)


def _blocks(sentences: Sequence[str], width: float, size: float) -> list[list[str]]:
    return [wrapped(sentence, width * 0.96, size) for sentence in sentences]


def _height(blocks: Sequence[Sequence[str]], size: float) -> float:
    """Inches that the blocks take one under another."""
    lines = sum(len(block) for block in blocks) + _BETWEEN * (len(blocks) - 1)
    return lines * size * _LEADING / POINTS


def _caption(
    rates: Sequence[Row],
    agreement: Sequence[Row],
    arms: Sequence[Row],
    headline: str,
    alpha: float | None,
    k: int | None,
) -> str:
    split = "held-out" if any(row["split"] == "held-out" and row["n"] for row in rates) else "attribution"
    said = [f"1: Wilson 95 % intervals, {counted(rates, split)}."]
    if alpha is not None:
        said.append("α*: where arms are compared.")
    chances = sorted(row["jaccard_chance"] for row in _pooled(agreement) if row["jaccard_chance"] is not None)
    if chances:
        between = f"{chances[0]:.2f}" + (f" to {chances[-1]:.2f}" if chances[-1] - chances[0] >= 0.005 else "")
        pairs = "pair" if len(chances) == 1 else "pairs"
        said.append(
            f"2: mean over behaviours; two random sets of K would have {between} ({len(chances)} {pairs} of methods, "
            "each over the documents that both scored)."
        )
    said.append(f"3: {arms_caption({headline: arms}, alpha, k)}")
    return " ".join(said)
