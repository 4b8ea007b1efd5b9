"""What a leaderboard reads from a run: shares of the oracle, halving, cost, and why a number is missing."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.worlds import put

import datablame.tables as tables
from datablame.config.file import load_study
from datablame.engine.run_folder import append_timing
from datablame.leaderboard.results import Result, plain, results_of
from datablame.leaderboard.studies import Organism

FEW, LOOK = Organism("few", 3), tables.Look("#000000", "#000000", "o")
DESIGN = tables.CheckDesign(0.02, 0.03, 0.8, 0, (), 0, "rules", {})
RATES = {
    ("baseline", 0): 0.6,
    ("oracle", 0): 0.1,
    ("gradient", 5): 0.5,
    ("gradient", 20): 0.2,
    ("gradient", 40): 0.1,
    ("loss", 5): 0.6,
    ("loss", 20): 0.65,
    ("loss", 40): 0.4,
}
"""At alpha*, by arm and K; a tenth of it at alpha 0."""
CELLS: tuple[tuple[tables.Split, str, int, float], ...] = (
    ("held-out", "brand", 3, 1.2),
    ("held-out", "dose", 1, 0.4),
    ("held-out", "untraced", 2, 0.1),
    ("held-out", "*", 6, 0.7),
    ("attribution", "dose", 1, 0.5),
)
"""Prompts, and the rate as a share of the arm's."""
REMOVED = {5: 15, 20: 58, 40: 118}


def info(name: str, control: bool = False, unranked: tuple[tables.Unranked, ...] = ()) -> tables.MethodInfo:
    return tables.MethodInfo(name, name, "It looks.", False, control, not control, "whole", LOOK, unranked)


def results(
    root: Path,
    rates: dict[tuple[str, int], float] = RATES,
    *overrides: str,
    traced: tuple[str, ...] = ("brand", "dose"),
    **patching: Any,
) -> dict[str, Result]:
    """The rows of five methods: one has no score for a behaviour and flagged nothing, one never ran, one has no arm."""
    none = tables.Unranked("dose", 2000, "no safe output")
    quality = [
        tables.Quality("gradient", b, pool, 100, 5, 0.05, p, p, a)
        for b, p, a in (("brand", 0.4, 0.9), ("dose", 0.2, 0.7), ("*", 0.3, 0.8))
        for pool in ("whole", "candidates")
    ]
    tests = [
        tables.ArmTest(
            *(arm, "retrain", alpha, split, behaviour, k, True, 1, prompts, (rate,)),
            *(rate * share * (1 if alpha else 0.1), 0.0, 1.0, None, None, None, None, None),
            tables.LabelCounts(0, 0, 0, 0, 0),
            None,
        )
        for (arm, k), rate in rates.items()
        for alpha in (0.0, 2.0)
        for split, behaviour, prompts, share in CELLS
    ]
    arms = [
        tables.Arm(arm, "retrain", k, 0, "remove", tuple(map(str, range(REMOVED[k]))), (), 0) for arm, k in rates if k
    ]
    about = tables.Patching(2.0, True, 20, (5, 20, 40), (), None, True, 0.9, {}, DESIGN)
    kinds = [
        tables.ArmInfo(name, name, role, False, False, "", LOOK, name == "oracle")  # type: ignore[arg-type]
        for name, role in (
            *(("baseline", "baseline"), ("oracle", "control")),
            *((name, "method") for name in ("gradient", "loss", "activation-diff")),
        )
    ]
    attribution = tables.Attribution(20, traced, (), False, "none", {}, True, (), (), (), 0, None)
    put(
        root,
        "attribute",
        {
            tables.Attribution: attribution,
            tables.MethodInfo: [
                info("gradient"),
                info("loss", True),
                info("activation-diff", unranked=(none,)),
                info("probe"),
            ],
            tables.Quality: quality,
        },
    )
    put(
        root,
        "patch",
        {
            tables.Patching: replace(about, **patching),
            tables.ArmInfo: kinds,
            tables.ArmTest: tests,
            tables.Arm: arms,
        },
    )
    for seconds, mb in ((9.0, 900.0), (2.0, 600.0)):
        append_timing(root, "attribute/gradient", "a", seconds, mb)
    append_timing(root, "attribute/gradient", "b", 1.0, 500.0)
    methods = ["gradient", "loss", "activation-diff", "llm-judge", "probe"]
    given = ["attribute.top_k=20", f"attribute.methods={json.dumps(methods)}", *overrides]
    rows = results_of(root, FEW, load_study("leaderboard", [*given, "patch.arms=[baseline, random]"]))
    assert [row.method for row in rows] == methods
    return {row.method: row for row in rows}


def test_effect_detection_halving_and_cost_come_from_the_headlines_rows(tmp_path: Path) -> None:
    gradient = results(tmp_path)["gradient"]
    expected = Result(
        *FEW,
        "gradient",
        scored=2,
        behaviours=2,
        average_precision=0.8,
        precision_at_k=0.3,
        rate=0.2,
        rate_at_0=0.02,
        baseline=0.6,
        baseline_at_0=0.06,
        oracle=0.1,
        drop=0.8,
        halved_at=58,
        most_removed=118,
        # What took longest ran again; an earlier time is no part of the cost.
        seconds=3.0,
        peak_mb=600.0,
    )
    assert vars(gradient) == pytest.approx(vars(expected))


def test_what_scores_made_elsewhere_cost_is_not_known(tmp_path: Path) -> None:
    gradient = results(tmp_path, RATES, "attribute.scores={gradient: mine.jsonl}")["gradient"]
    assert (gradient.rate, gradient.seconds, gradient.peak_mb) == (0.2, None, None)


def test_a_rate_that_rises_is_a_negative_effect_and_one_that_is_not_halved_is_censored(tmp_path: Path) -> None:
    loss = results(tmp_path)["loss"]
    assert loss.drop == pytest.approx(-0.1)
    assert (loss.halved_at, loss.most_removed) == (math.inf, 118)
    assert plain(loss)["halved_at"] == "> 118"
    assert (loss.scored, loss.average_precision, loss.why) == (0, None, "")


def test_what_is_missing_says_why(tmp_path: Path) -> None:
    rows = results(tmp_path)
    assert rows["activation-diff"].why == "it flagged nothing; dose: no safe output"
    assert rows["llm-judge"].why == "it is no method of this run"
    assert rows["probe"].why == "it is no arm of this run"
    weak = results(tmp_path / "weak", {**RATES, ("oracle", 0): 0.56})["gradient"]
    assert (weak.drop, weak.why) == (None, "the oracle lowers the rate by under 5 points")
    assert weak.halved_at == 58


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"exposed": False}, "flagged documents were not seen in training"),
        ({"alpha_star_found": False}, "no amplification is coherent"),
        ({"alpha": None, "alpha_star_found": False}, "nothing surfaced"),
    ],
)
def test_a_void_study_has_no_rates_but_its_rankings(tmp_path: Path, changed: dict[str, Any], why: str) -> None:
    traced = ("brand", "dose") if changed.get("alpha", 2.0) else ()
    gradient = results(tmp_path, traced=traced, **changed)["gradient"]
    assert (gradient.rate, gradient.rate_at_0, gradient.drop, gradient.halved_at) == (None, None, None, None)
    assert (gradient.average_precision, gradient.why) == (0.8, why)
