import io
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from datablame.patch.compare import compared, comparison
from datablame.report.figures import behavior_rates
from datablame.report.overview_figure import final_results
from datablame.report.patching_figure import patching_comparison
from datablame.report.style import spread, text_width, wrapped
from datablame.surface.rates import rates

Rows = list[dict[str, Any]]

BEHAVIOURS = {"distractor": "Distractor compliance", "dose": "Unsafe dose", "brand": "Brand promotion"}
METHODS = (
    "gradient",
    "gradient-dot",
    "activation",
    "activation-centred",
    "llm-judge",
    "bm25",
    "random",
    "loss",
    "gradient-norm",
)
ARMS = {
    "untrained": 0.31,
    "baseline": 0.27,
    "random": 0.29,
    "bm25": 0.19,
    "gradient": 0.07,
    "activation": 0.14,
    "llm-judge": 0.17,
    "oracle": 0.01,
}
LABELS = {
    "gradient": "gradient similarity",
    "gradient-dot": "gradient dot product",
    "activation": "activation similarity",
    "activation-centred": "activation similarity, centred",
    "llm-judge": "llm-judge (keyword stand-in)",
    "bm25": "BM25 (control)",
    "random": "random (control)",
    "loss": "loss (control)",
    "gradient-norm": "gradient norm (control)",
    "untrained": "after model, untouched",
    "baseline": "nothing removed",
    "oracle": "planted documents (oracle)",
}
SUMMARY = [
    "The harmful rate on held-out prompts rises from 3.3 % [2.1, 5.2] at alpha 0 to 46.1 % [42.4, 49.9] at alpha 2.",
    "Gradient similarity finds 14 of 20 planted documents a behaviour where random expects 0.2 (precision 0.70).",
    "Removing what gradient similarity flagged leaves 7.4 % against random's 29.0 %: 21.6 points less [14, 29], "
    "permutation p = 0.008 over 5 seeds.",
    "Inside the BM25 candidates the confounder gradient norm alone reaches precision 0.61.",
    "Unsafe dose does not rise: its intervals at alpha 0 and 2 overlap.",
]


@cache
def rate_rows(
    behaviours: tuple[str, ...] = tuple(BEHAVIOURS), alphas: tuple[float, ...] = (0, 0.5, 1, 2), samples: int = 50
) -> Rows:
    """Rates of four prompts a behaviour and split, harmful more often with alpha."""
    random = np.random.default_rng(0)
    outputs = []
    for split in ("attribution", "held-out"):
        for place, behaviour in enumerate(behaviours):
            for alpha in alphas:
                harmful = 0.03 + 0.25 * alpha / (1 + 0.5 * place)
                rest = 1 - harmful
                shares = [harmful, rest * 0.5, rest * (0.45 - 0.1 * alpha), rest * (0.04 + 0.1 * alpha), rest * 0.01]
                for prompt in range(4):
                    names = random.choice(
                        ["harmful", "refused", "harmless", "incoherent", "unscored"],
                        samples,
                        p=shares,
                    )
                    outputs += [
                        {
                            "prompt_id": f"{behaviour}-{split[0]}{prompt}",
                            "behaviour": behaviour,
                            "split": split,
                            "alpha": float(alpha),
                            "label": str(name),
                        }
                        for name in names
                    ]
    return [asdict(row) for row in rates(outputs)]


@cache
def patch_rows(
    arms: tuple[str, ...] = tuple(ARMS),
    behaviours: tuple[str, ...] = tuple(BEHAVIOURS),
    retrain: int = 5,
    continued: int = 1,
) -> tuple[Rows, Rows]:
    """(tests, table) as the patch phase writes them."""
    random = np.random.default_rng(1)
    outputs = []
    for protocol, count in (("retrain", retrain), ("continue", continued)):
        for arm in arms:
            for seed in [0] if arm == "untrained" else range(count):
                noise = random.normal(0, 0.02)
                for behaviour in behaviours:
                    for prompt in range(4):
                        share = float(np.clip(ARMS.get(arm, 0.2) * (0.4 + 0.4 * prompt) + noise, 0, 1))
                        outputs += [
                            {
                                "arm": arm,
                                "protocol": "none" if arm == "untrained" else protocol,
                                "k": 0 if arm == "untrained" else 20,
                                "seed": seed,
                                "behaviour": behaviour,
                                "prompt_id": f"{behaviour}-h{prompt}",
                                "split": "held-out",
                                "alpha": 1.0,
                                "label": "harmful" if draw < share else "refused",
                            }
                            for draw in random.random(20)
                        ]
    table = comparison(outputs)
    return compared(table, list(arms), ("retrain", 20, 1.0), 0, 0.2), table


def agreement_rows(methods: Sequence[str] = METHODS) -> Rows:
    random = np.random.default_rng(2)
    return [
        {
            "a": a,
            "b": b,
            "behaviour": behaviour,
            "n": 100,
            "jaccard": None if {a, b} == {"loss", "random"} else float(random.beta(1, 3)),
            "jaccard_chance": 0.11,
        }
        for a, b in combinations(methods, 2)
        for behaviour in ("*", "dose")
    ]


def drawn_rates(rows: Rows, title: str = "The behaviours grow with amplification") -> bytes:
    return behavior_rates(rows, title=title, classifier="the organism's rules", behaviours=BEHAVIOURS)


def drawn_patching(tests: Rows, table: Rows, **changed: Any) -> bytes:
    given: dict[str, Any] = {"headline": "retrain", "alpha": 1.0, "k": 20, "labels": LABELS}
    given |= {"classifier": "rules", **changed}
    return patching_comparison(tests, table, title="Removing what gradients blame removes the behaviour", **given)


def drawn_overview(rates: Rows, agreement: Rows, tests: Rows, **changed: Any) -> bytes:
    given: dict[str, Any] = {"headline": "retrain", "alpha": 1.0, "k": 20, "labels": LABELS, "summary": SUMMARY}
    given |= {"classifier": "rules", "behaviours": BEHAVIOURS, "verdict": "INCONCLUSIVE", **changed}
    return final_results(rates, agreement, tests, title="Organism, seed 0: the whole study", **given)


def pixels(png: bytes) -> NDArray[np.float64]:
    from matplotlib.image import imread

    image: NDArray[np.float64] = imread(io.BytesIO(png), format="png")[..., :3]
    return image


def margin_ink(png: bytes) -> float:
    """The darkest pixel of the figure's outermost ring, 0 where it is white."""
    image = pixels(png)
    ring = [image[:6], image[-6:], image[:, :6], image[:, -6:]]
    return float(1 - min(part.min() for part in ring))


FIGURES: dict[str, Callable[[], bytes]] = {
    "rates": lambda: drawn_rates(rate_rows()),
    "patching": lambda: drawn_patching(*patch_rows()),
    "overview": lambda: drawn_overview(rate_rows(), agreement_rows(), patch_rows()[0]),
    "rates of nothing": lambda: drawn_rates([]),
    "patching of nothing": lambda: drawn_patching([], [], alpha=None, k=None),
    "overview of nothing": lambda: drawn_overview([], [], [], alpha=None, k=None, summary=[]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_runs_over_the_edge_of_a_figure(name: str) -> None:
    png = FIGURES[name]()
    assert png.startswith(b"\x89PNG")
    assert margin_ink(png) == 0


@pytest.mark.parametrize("name", ["patching", "overview"])
def test_equal_rows_give_equal_bytes(name: str) -> None:
    png = FIGURES[name]()
    assert b"Software" not in png
    assert FIGURES[name]() == png


def test_one_seed_everywhere_and_one_behaviour_are_drawn() -> None:
    tests, table = patch_rows(("untrained", "baseline", "random", "gradient"), ("dose",), 1, 1)
    for png in (
        drawn_rates(rate_rows(("dose",))),
        drawn_patching(tests, table),
        drawn_overview(rate_rows(("dose",)), agreement_rows(("gradient", "bm25")), tests),
    ):
        assert margin_ink(png) == 0


def test_nine_methods_many_prompts_and_long_names_stay_inside() -> None:
    names = tuple(f"behaviour with a rather long identifier number {number}" for number in range(7))
    arms = ("untrained", "baseline", *METHODS, "oracle", "a-new-method-of-somebody-else")
    tests, table = patch_rows(arms, names, 2, 2)
    title = "A title that says much more than any figure of this width can hold on a single line of type, " * 3
    assert margin_ink(drawn_rates(rate_rows(names, samples=10), title)) == 0
    assert margin_ink(drawn_patching(tests, table)) == 0
    overview = drawn_overview(rate_rows(names, samples=10), agreement_rows(), tests, summary=SUMMARY * 8)
    assert margin_ink(overview) == 0


def test_a_headline_that_was_not_trained_leaves_the_other_protocol() -> None:
    tests, table = patch_rows()
    others = [[row for row in rows if row["protocol"] != "retrain"] for rows in (tests, table)]
    assert margin_ink(drawn_patching(others[0], others[1], behaviours=BEHAVIOURS)) == 0


def test_what_was_not_scored_leaves_a_gap_and_no_crash() -> None:
    unscored: dict[str, Any] = {"rate": None, "low": None, "high": None}
    rows = [row | (unscored if row["alpha"] == 2 or row["behaviour"] == "dose" else {}) for row in rate_rows()]
    none = [row | unscored for row in rate_rows()]
    tests, table = patch_rows()
    missing = [
        row | unscored | ({"per_seed": [], "to_random": None, "to_baseline": None} if row["arm"] == "bm25" else {})
        if row["arm"] in ("bm25", "random")
        else row
        for row in tests
    ]
    assert margin_ink(drawn_rates(rows)) == 0
    assert margin_ink(drawn_rates(none)) == 0
    assert margin_ink(drawn_patching(missing, [row | unscored for row in table])) == 0
    assert margin_ink(drawn_overview(none, [], missing)) == 0


def test_hostile_words_are_only_words() -> None:
    title = "costs $5 and $x^{2$ \x1b[31m <script> 中文 🐕 \\frac{"
    words = dict.fromkeys(BEHAVIOURS, title)
    png = behavior_rates(rate_rows(), title=title, classifier=title, behaviours=words)
    tests, table = patch_rows()
    assert margin_ink(png) == 0
    assert margin_ink(drawn_patching(tests, table, labels=dict.fromkeys(LABELS, title))) == 0
    assert margin_ink(drawn_overview(rate_rows(), agreement_rows(), tests, summary=[title, "x" * 900])) == 0


def test_a_matplotlibrc_changes_nothing() -> None:
    import matplotlib as mpl

    plainly = drawn_rates(rate_rows())
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "pink", "savefig.dpi": 50}):
        assert drawn_rates(rate_rows()) == plainly


def test_wrapped_lines_fit_and_lose_no_word() -> None:
    text = "one two three " * 10 + "x" * 200
    lines = wrapped(text, 2.0, 10)
    assert max(text_width(line, 10) for line in lines) <= 2.0
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrapped(text, 2.0, 10, most=2)[1].endswith("…")


def test_labels_are_moved_apart_as_little_as_needed() -> None:
    assert spread([50, 10], 5, 0, 100) == [50, 10]
    assert spread([50, 50], 10, 0, 100) == pytest.approx([45, 55])
    assert spread([99, 100, 0], 10, 0, 100) == pytest.approx([90, 100, 0])
