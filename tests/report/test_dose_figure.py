"""Several K in a picture: every arm that depends on K is drawn at each, the declared one decides."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.report.figure_rows import arm_rows, drawn_results, patch_rows
from tests.report.test_figures import assert_readable, axes_of, drawn_patching, intervals, percents, said

from datablame.report.figures.patching import dose_rows


def test_a_panel_of_doses_appears_with_a_second_k() -> None:
    one, several = drawn_patching(ks=(20,)), drawn_patching(ks=(20, 5))
    assert "Dose and response" not in said(one)
    assert "Dose and response (retrain, 5 seeds)" in said(several)
    assert "K = 20 decides, K = 5 is exploratory" in said(several)
    assert_readable(several)


@pytest.mark.parametrize("seeds", [1, 4])
@pytest.mark.parametrize("methods", [3, 15])
def test_doses_of_any_number_can_be_read(methods: int, seeds: int) -> None:
    assert_readable(drawn_patching(methods, seeds={"retrain": seeds}, ks=(5, 1, 2, 3, 8, 11, 14), k=5, prompts=1))


def test_the_panel_draws_each_arm_that_depends_on_k_at_each_and_the_baseline_at_none() -> None:
    arms = arm_rows(3)
    infos, tests = {arm.name: arm for arm in arms}, patch_rows(arms, ks=(20, 5))[0]
    results = drawn_results(tests=tests, arms=arms)
    doses = dose_rows(results, "retrain")
    drawn = {arm: [row.k for row in rows] for arm, rows in doses.items()}
    assert drawn == {"baseline": [0], **{name: [5, 20] for name in ("random", "gradient", "activation", "llm-judge")}}
    assert dose_rows(results, "none") == {}
    axes = axes_of(drawn_patching(3, ks=(20, 5)), "Dose and response")
    assert sorted(intervals(axes)) == [
        pytest.approx(ends) for ends in sorted(percents(row) for rows in doses.values() for row in rows)
    ]
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert ticks == ["0\nbaseline", "5", "20\ndecides"]
    ends = {f"{infos[arm].label}  {100 * (rows[-1].rate or 0):.1f} %" for arm, rows in doses.items() if rows[-1].k}
    assert {text.get_text() for text in axes.texts} == ends
    dots = [np.asarray(line.get_ydata()) for line in axes.lines]
    assert all(
        any(dot.shape == (5,) and np.allclose(dot, np.multiply(100, row.per_seed)) for dot in dots)
        for rows in doses.values()
        for row in rows
    )


def test_doses_of_nothing_scored_leave_a_gap() -> None:
    tests, _ = patch_rows(arm_rows(3), ks=(20, 5))
    nothing: dict[str, Any] = {"rate": None, "low": None, "high": None, "per_seed": ()}
    some = [replace(row, **nothing) if row.k == 5 or row.arm == "baseline" else row for row in tests]
    figure = drawn_patching(3, tests=some, ks=(20, 5))
    assert_readable(figure)
    assert len(intervals(axes_of(figure, "Dose and response"))) == 4
    none = drawn_patching(3, tests=[replace(row, **nothing) for row in tests], ks=(20, 5))
    assert_readable(none)
    assert "no arm was scored at any K" in said(none)
