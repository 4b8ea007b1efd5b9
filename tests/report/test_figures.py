"""Figures say what the rows say, in words that don't touch, at any size of study."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text
from tests.report.figure_rows import (
    ALPHAS,
    BEHAVIOURS,
    SPLITS,
    agreement_rows,
    arm_rows,
    drawn_results,
    method_rows,
    patch_rows,
    rate_rows,
    unamplified,
    unamplified_row,
)

from datablame.config.report import Figures
from datablame.report.colours import LABEL_FILLS
from datablame.report.figures import overview_figure, patching_figure, rates_figure
from datablame.report.figures.page import spread
from datablame.report.figures.typesetting import shortened, text_width, typeset, wrapped
from datablame.tables import EVERY, ArmTest, Rate

SUMMARY = [
    "The harmful rate on held-out prompts rises from 3.3 % [2.1, 5.2] at alpha 0 to 46.1 % [42.4, 49.9] at alpha 2.",
    "Removing what gradient similarity flagged leaves 7.4 % against random's 29.0 %: 21.6 points less [14, 29], "
    "permutation p = 0.008 over 5 seeds.",
    "Unsafe dose does not rise: its intervals at alpha 0 and 2 overlap.",
]
LONG = "A title that says much more than any figure of this width can hold on a single line of type, " * 3


def drawn_rates(rates: Sequence[Rate], **changed: Any) -> Figure:
    given: dict[str, Any] = {"title": "The behaviours grow with amplification", "classifier": "the organism's rules"}
    return rates_figure(drawn_results(rates=rates, **{**given, **changed}))


def drawn_patching(methods: int = 4, tests: Sequence[ArmTest] | None = None, **changed: Any) -> Figure:
    sizes = {name: changed.pop(name) for name in ("seeds", "ks", "prompts") if name in changed}
    arms = arm_rows(methods)
    made, cells = patch_rows(arms, **sizes)
    given = {"title": "Removing removes", "tests": made if tests is None else tests, "comparison": cells, "arms": arms}
    return patching_figure(drawn_results(**{**given, **changed}))


def drawn_overview(
    methods: int = 4, *, verdict: str = "INCONCLUSIVE", summary: Sequence[str] = SUMMARY, **changed: Any
) -> Figure:
    arms = arm_rows(methods)
    given: dict[str, Any] = {"rates": rate_rows(), "tests": patch_rows(arms)[0], "arms": arms}
    given |= {"methods": method_rows(methods), "agreement": agreement_rows([row.name for row in method_rows(methods)])}
    return overview_figure(drawn_results(**{**given, **changed}), verdict, summary)


def words(figure: Figure) -> list[Text]:
    """Every text that is drawn."""
    hidden: set[Text] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            shown = [tick for tick in axis.get_major_ticks() if axes.axison and low <= tick.get_loc() <= high]
            labels = {label for tick in axis.get_major_ticks() for label in (tick.label1, tick.label2)}
            hidden |= labels - {tick.label1 for tick in shown}
            hidden |= set() if axes.axison else {axis.label}
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and text not in hidden]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


def said(figure: Figure) -> str:
    return "\n".join(" ".join(text.get_text().split()) for text in words(figure))


def assert_readable(figure: Figure) -> None:
    """Nothing leaves the page and no two texts touch, as they are saved."""
    with typeset(Figures()):
        texts = words(figure)
        boxes = np.array([Text.get_window_extent(text).extents for text in texts])
    low, high = boxes[:, :2], boxes[:, 2:]
    outside = (low < 0).any(1) | (high > (figure.bbox.width, figure.bbox.height)).any(1)
    assert not [text.get_text() for text, out in zip(texts, np.atleast_1d(outside), strict=True) if out]
    touching = ((np.minimum(high[:, None], high) - np.maximum(low[:, None], low)) > 1).all(-1)
    pairs = [(texts[a].get_text(), texts[b].get_text()) for a, b in np.argwhere(np.triu(touching, 1))]
    assert not pairs


def axes_of(figure: Figure, heading: str) -> Axes:
    """The first axes with that heading, of their own or of their panel."""
    return next(
        axes
        for axes in figure.axes
        for parent in (axes.get_figure(root=False),)
        if heading in axes.get_title(loc="left") or (parent is not None and heading in parent.get_suptitle())
    )


def intervals(axes: Axes, axis: int = 1) -> list[tuple[float, float, float]]:
    """(value, low, high) of every marker with an interval, in percent."""
    found = []
    for container in axes.containers:
        if isinstance(container, ErrorbarContainer):
            line, _, bars = container.lines
            assert line is not None
            values = np.asarray(line.get_xydata())[:, axis]
            found += [
                (float(value), float(ends[:, axis].min()), float(ends[:, axis].max()))
                for value, ends in zip(values, bars[0].get_segments(), strict=True)
                if not np.isnan(value)
            ]
    return found


def percents(row: Rate | ArmTest) -> tuple[float, ...]:
    return tuple(100 * (value or 0) for value in (row.rate, row.low, row.high))


EMPTY: dict[str, Any] = {"alpha": None, "k": None}
NOTHING: dict[str, Any] = {"rates": [], "agreement": [], "tests": [], "summary": [], **EMPTY}
FIGURES: dict[str, Callable[[], Figure]] = {
    "rates": lambda: drawn_rates(rate_rows()),
    "rates of one behaviour": lambda: drawn_rates(rate_rows(("dose",))),
    "rates at close alphas": lambda: drawn_rates(rate_rows(alphas=(0, 0.1, 0.2, 0.3, 1, 2)), title=LONG),
    "rates at one alpha": lambda: drawn_rates(rate_rows(alphas=(0,))),
    "rates of nothing": lambda: drawn_rates([]),
    "patching": lambda: drawn_patching(),
    "patching of 3 methods on a prompt": lambda: drawn_patching(3, prompts=1, seeds={"retrain": 1, "continue": 1}),
    "patching of 8 methods at three K": lambda: drawn_patching(8, prompts=12, ks=(20, 5, 50), seeds={"retrain": 10}),
    "patching of 15 methods on 90 prompts": lambda: drawn_patching(15, prompts=30, seeds={"retrain": 2, "continue": 1}),
    "patching of nothing": lambda: drawn_patching(tests=[], **EMPTY),
    "overview": lambda: drawn_overview(),
    "overview of 3 methods": lambda: drawn_overview(3),
    "overview of 15 methods": lambda: drawn_overview(15, summary=SUMMARY * 12, title=LONG),
    "overview of nothing": lambda: drawn_overview(**NOTHING),
}


@pytest.mark.parametrize("name", FIGURES)
def test_no_words_touch_and_none_leave_the_page(name: str) -> None:
    assert_readable(FIGURES[name]())


def test_nine_behaviours_with_long_names_are_told_apart() -> None:
    names = {f"b{number}": f"a behaviour with a rather long name, number {number}" for number in range(9)}
    figure = drawn_rates(rate_rows(tuple(names), samples=10), behaviours=names)
    assert_readable(figure)
    axes = axes_of(figure, "Harmful outputs, held-out")
    drawn = [container.lines[0] for container in axes.containers if isinstance(container, ErrorbarContainer)]
    assert len({(line.get_color(), line.get_marker()) for line in drawn if line is not None}) == 10


def test_lines_are_the_pooled_rates_with_their_intervals_and_end_in_their_names() -> None:
    rates = rate_rows()
    figure = drawn_rates(rates)
    for split in SPLITS:
        axes = axes_of(figure, f"Harmful outputs, {split}")
        pooled = [row for row in rates if row.split == split and row.prompt_id == EVERY]
        assert sorted(intervals(axes)) == [pytest.approx(ends) for ends in sorted(map(percents, pooled))]
        ends = {row.behaviour: row.rate for row in pooled if row.alpha == ALPHAS[-1]}
        titles = {EVERY: "all behaviours", **BEHAVIOURS}
        labels = {" ".join(text.get_text().split()) for text in axes.texts}
        assert labels == {f"{titles[name]} {100 * (rate or 0):.1f} %" for name, rate in ends.items()}
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "0.5", "1", "2"]
    assert "n = 600 outputs at each α (12 prompts)" in said(figure)


def test_bars_are_the_shares_of_the_labels() -> None:
    rates = [row for row in rate_rows() if row.split == "held-out" and row.prompt_id == row.behaviour == EVERY]
    axes = axes_of(drawn_rates(rate_rows()), "Labels of outputs, held-out")
    bars = [container for container in axes.containers if isinstance(container, BarContainer)]
    for label, bar in zip(LABEL_FILLS, bars, strict=True):
        expected = [100 * getattr(row, label) / row.n for row in rates]
        assert [patch.get_height() for patch in bar.patches] == pytest.approx(expected)
        written = [text for text in expected if text >= 4.5]
        assert {f"{value:.0f}" for value in written} <= {text.get_text() for text in axes.texts}
    assert [bar.patches[0].get_facecolor() for bar in bars[:2]] != [bars[0].patches[0].get_facecolor()] * 2


def test_estimates_stand_beside_alpha_0_and_withheld_ones_are_named() -> None:
    rows = [unamplified_row("dose", rate=0.02), unamplified_row("brand", rate=None)]
    figure = drawn_rates(rate_rows(), unamplified=unamplified(*rows))
    assert_readable(figure)
    axes, bare = (axes_of(it, "Harmful outputs, held-out") for it in (figure, drawn_rates(rate_rows())))
    extra = sorted(set(intervals(axes)) - set(intervals(bare)))
    assert extra == [pytest.approx((2.0, 1.0, 3.0))]
    assert [tick.get_text() for tick in axes.get_xticklabels()][-1] == "IS"
    assert axes.get_xlim()[0] < -0.5
    assert "Withheld as not to be trusted: brand promotion (held-out prompts)." in said(figure)
    trusted = drawn_rates(rate_rows(), unamplified=unamplified(unamplified_row("dose")))
    assert "None is withheld." in said(trusted)
    assert [tick.get_text() for tick in axes_of(trusted, "Harmful outputs, attribution").get_xticklabels()] == [
        "0",
        "0.5",
        "1",
        "2",
    ]


def test_estimates_above_all_that_was_measured_stay_inside_and_impossible_ones_are_not_spoken_of() -> None:
    high = unamplified(unamplified_row("dose", rate=0.5, high=0.9))
    assert axes_of(drawn_rates(rate_rows(), unamplified=high), "Harmful outputs, held-out").get_ylim()[
        1
    ] == pytest.approx(95.4)
    none = drawn_rates(rate_rows(), unamplified=replace(unamplified(), possible=False, why_not="top_p"))
    assert "importance sampling" not in said(none)


def amplified(tests: Sequence[ArmTest]) -> list[ArmTest]:
    """Those that are compared, the highest rate first."""
    return sorted((row for row in tests if row.alpha), key=lambda row: -(row.rate or 0))


def test_arms_stand_at_their_rates_in_the_colours_of_their_rows() -> None:
    arms = arm_rows(4)
    tests, _ = patch_rows(arms)
    looks = {arm.name: arm.look for arm in arms}
    for figure, heading, drawn in (
        (drawn_patching(4), "After removing", ("retrain", "continue")),
        (drawn_overview(4), "3 After removing", ("retrain",)),
    ):
        panel = axes_of(figure, heading).get_figure(root=False)
        assert panel is not None
        for protocol, axes in zip(drawn, panel.axes, strict=True):
            own = [row for row in tests if row.protocol == protocol]
            rows, plain = amplified(own), {row.arm: row for row in own if not row.alpha}
            assert intervals(axes, 0) == [pytest.approx(percents(it)) for row in rows for it in (row, plain[row.arm])]
            every = [container.lines[0] for container in axes.containers if isinstance(container, ErrorbarContainer)]
            lines, plain_lines = every[::2], every[1::2]
            assert {line.get_markerfacecolor() for line in plain_lines if line is not None} == {"#FFFFFF"}
            for row, line in zip(rows, lines, strict=True):
                look = looks[row.arm]
                assert line is not None
                assert (line.get_color(), line.get_markerfacecolor(), line.get_marker()) == (
                    *(look.ink, look.fill),
                    look.marker,
                )
                dots = [np.asarray(dot.get_xdata()) for dot in axes.lines if len(np.asarray(dot.get_xdata())) == 5]
                if row.seeds == 5:
                    assert any(np.allclose(dot, np.multiply(100, row.per_seed)) for dot in dots)
            named = {text.get_text() for text in axes.texts} & {"random", "baseline"}
            assert named == ({"random", "baseline"} if protocol == "retrain" else set())


def test_names_rates_and_p_stand_beside_the_arms() -> None:
    arms, figure = arm_rows(4), drawn_patching(4)
    axes = axes_of(figure, "After removing")
    rows = amplified([row for row in patch_rows(arms)[0] if row.protocol == "retrain"])
    labels = {arm.name: arm.label for arm in arms}
    names = [" ".join(tick.get_text().split()) for tick in axes.get_yticklabels()]
    assert names == [labels[row.arm] for row in rows]
    low, rate, high = (100 * (rows[0].low or 0), 100 * (rows[0].rate or 0), 100 * (rows[0].high or 0))
    texts = [text.get_text() for text in axes.texts]
    assert f"{rate:.1f} % [{low:.1f}, {high:.1f}]" in texts
    assert texts.count("0.008") == len(rows) - 2
    assert "retrain: 5 training seeds, 12 prompts, n = 1200 outputs an arm." in said(figure)
    assert "continue is a single run, so it has no p" in said(figure)


def test_cells_are_means_over_seeds() -> None:
    arms = arm_rows(4)
    tests, cells = patch_rows(arms)
    figure = drawn_patching(4)
    axes = axes_of(figure, "Prompt by prompt")
    order = amplified([row for row in tests if row.protocol == "retrain"])
    means = np.array(
        [
            [
                np.mean(
                    [
                        100 * (c.rate or 0)
                        for c in cells
                        if (c.arm, c.prompt_id) == (row.arm, f"distractor-h0{prompt}")
                        and c.protocol in ("retrain", "none")
                    ]
                )
                for prompt in range(4)
            ]
            for row in order
        ]
    )
    values = axes.collections[0].get_array()
    assert np.asarray(values).reshape(means.shape) == pytest.approx(means)
    assert [text.get_text() for text in axes.texts] == [f"{value:.0f}" for value in means.flat]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["h00", "h01", "h02", "h03"]
    assert axes.get_title(loc="left") == "distractor compliance"


def test_agreement_is_written_between_the_names_of_a_pair() -> None:
    methods = [row.name for row in method_rows(4)]
    pairs = {frozenset((row.a, row.b)): row.jaccard for row in agreement_rows(methods) if row.behaviour == EVERY}
    axes = axes_of(drawn_overview(4), "Agreement of methods")
    names = [row.label for row in method_rows(4)]
    assert [text.get_text() for text in axes.texts if text.get_text() in names] == names
    written = {text.get_position(): text.get_text() for text in axes.texts}
    for y, row in enumerate(methods):
        for x, column in enumerate(methods[:y]):
            value = pairs[frozenset((row, column))]
            assert written[x + 0.5, y + 0.5] == ("-" if value is None else f"{100 * value:.0f}")
    assert "two random sets of K would have 11 % (6 pairs of methods" in said(drawn_overview(4))


def test_the_verdict_stands_with_all_its_sentences() -> None:
    figure = drawn_overview(verdict="SUCCESS")
    assert "4 Verdict: SUCCESS" in said(figure)
    assert all(sentence in said(figure).replace("\N{NO-BREAK SPACE}", " ") for sentence in SUMMARY)
    crowded = drawn_overview(summary=SUMMARY * 20)
    assert said(crowded).count("Unsafe dose does not rise") == 20
    assert_readable(crowded)


def test_empty_panels_say_why() -> None:
    assert "no output to held-out prompts was scored" in said(drawn_rates([]))
    assert "no output was drawn" in said(drawn_rates([]))
    nothing = said(drawn_patching(tests=[], **EMPTY))
    assert "no arm was trained and measured under this protocol" in nothing
    assert "no held-out prompt was measured under this protocol" in nothing
    assert "No arm was trained, so no rates can be compared." in nothing
    overview = said(drawn_overview(**NOTHING))
    assert "no two methods ranked the same documents" in overview
    assert "the study has no finding" in overview


def test_a_headline_that_was_not_trained_leaves_the_other_protocol() -> None:
    figure = drawn_patching(seeds={"continue": 4})
    assert_readable(figure)
    assert "retrain (decides) no run" in said(figure)
    assert "rate [95 % interval]" in said(figure)


def test_what_was_not_scored_leaves_a_gap() -> None:
    none: dict[str, Any] = {"rate": None, "low": None, "high": None}
    rates = [replace(row, **none) if row.alpha == 2 or row.behaviour == "dose" else row for row in rate_rows()]
    figure = drawn_rates(rates)
    assert_readable(figure)
    assert "unsafe dose" not in said(figure)
    tests, _ = patch_rows(arm_rows(4))
    missing = [replace(row, **none, per_seed=(), to_random=None) if row.arm == "bm25" else row for row in tests]
    patched = drawn_patching(tests=missing)
    assert_readable(patched)
    assert "nothing scored" in said(patched)
    # Eight arms, each at alpha 0 too.
    assert len(intervals(axes_of(patched, "After removing"), 0)) == 16
    assert_readable(drawn_overview(rates=[replace(row, **none) for row in rate_rows()], tests=missing))


def test_wrapped_lines_fit_and_lose_no_word() -> None:
    text = "one two three " * 10 + "x" * 200
    lines = wrapped(text, 15)
    assert max(map(text_width, lines)) <= 15
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    first, second = wrapped(text, 15, most=2)
    assert (first, second[:3], second[-4:]) == (lines[0], lines[1][:3], "xxxx")
    assert "…" in second
    assert wrapped("", 15) == [""]


def test_a_shortened_name_keeps_both_ends() -> None:
    name = shortened("a method whose name is so long that no line could ever hold it", 8)
    assert text_width(name) <= 8
    assert name.startswith("a me")
    assert name.endswith("ld it")
    assert shortened("short", 8) == "short"


def test_labels_are_moved_apart_as_little_as_needed() -> None:
    def moved(centres: list[float], size: float) -> list[float]:
        result: list[float] = spread(np.array(centres), np.full(len(centres), size), 0, 100).tolist()
        return result

    assert moved([50, 10], 5) == [50, 10]
    assert moved([50, 50], 10) == pytest.approx([45, 55])
    assert moved([99, 100, 0], 10) == pytest.approx([85, 95, 5])
