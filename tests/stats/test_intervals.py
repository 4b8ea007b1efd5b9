from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from datablame.stats.intervals import wilson


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_what_scipy_finds(counts: tuple[int, int]) -> None:
    assert wilson(*counts) == pytest.approx(tuple(binomtest(*counts).proportion_ci(method="wilson")), abs=1e-9)


def test_wilson_contains_the_rate_and_stays_within_0_and_1() -> None:
    for n in range(1, 60):
        for k in range(n + 1):
            low, high = wilson(k, n)
            assert 0 <= low <= k / n <= high <= 1


def test_zero_of_fifty_has_an_upper_end_of_seven_percent() -> None:
    assert list(wilson(0, 50)) == pytest.approx([0.0, 0.0713], abs=1e-4)


def test_nothing_tried_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5)])
def test_counts_that_cannot_be_are_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"k = {k} is not between 0 and n = {n}"):
        wilson(k, n)


def coverage(n: int, interval: Callable[[int, int], tuple[float, float]]) -> np.ndarray:
    """For many true rates the exact probability that the interval holds the rate."""
    rates = (np.arange(2000) + 0.5) / 2000
    ends = np.array([interval(k, n) for k in range(n + 1)])
    held = (ends[:, :1] <= rates) & (rates <= ends[:, 1:])
    return np.asarray((binom.pmf(np.arange(n + 1)[:, None], n, rates) * held).sum(0))


@settings(max_examples=10)
@given(st.integers(5, 150))
def test_wilson_covers_nearly_95_percent_on_average(n: int) -> None:
    assert 0.945 < coverage(n, wilson).mean() < 0.965
