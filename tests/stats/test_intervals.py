from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from datablame.stats.intervals import clopper_pearson, newcombe, wilson


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_what_statsmodels_finds(counts: tuple[int, int]) -> None:
    assert wilson(*counts) == pytest.approx(proportion_confint(*counts, method="wilson"), abs=1e-9)


def test_wilson_contains_the_rate_and_stays_within_0_and_1() -> None:
    for n in range(1, 60):
        for k in range(n + 1):
            low, high = wilson(k, n)
            assert 0 <= low <= k / n <= high <= 1


def test_zero_of_fifty_has_an_upper_end_of_seven_percent() -> None:
    assert list(wilson(0, 50)) == pytest.approx([0.0, 0.0713], abs=1e-4)


def test_nothing_tried_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    assert newcombe(1, 2, 0, 0) == newcombe(0, 0, 1, 2) == newcombe(0, 0, 0, 0) == (-1.0, 1.0)


def test_a_higher_confidence_is_a_wider_interval() -> None:
    narrow, wide = wilson(10, 40, 0.9), wilson(10, 40, 0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_newcombe_is_what_statsmodels_finds() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        n1, n2 = random.integers(1, 100, 2).tolist()
        k1, k2 = int(random.integers(0, n1 + 1)), int(random.integers(0, n2 + 1))
        expected = confint_proportions_2indep(k1, n1, k2, n2, compare="diff", method="newcomb")
        assert newcombe(k1, n1, k2, n2) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5)])
def test_counts_that_cannot_be_are_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"k = {k} is not between 0 and n = {n}"):
        wilson(k, n)
    with pytest.raises(ValueError, match=f"k = {k} is not between 0 and n = {n}"):
        clopper_pearson(k, n)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.9, 0.95]))
def test_clopper_pearson_is_what_statsmodels_finds(counts: tuple[int, int], confidence: float) -> None:
    expected = proportion_confint(*counts, alpha=1 - confidence, method="beta")
    assert clopper_pearson(*counts, confidence) == pytest.approx(expected, abs=1e-9)


def test_zero_of_n_and_n_of_n_by_hand() -> None:
    for n in (1, 5, 50):
        assert clopper_pearson(0, n) == pytest.approx((0, 1 - 0.025 ** (1 / n)))
        assert clopper_pearson(n, n) == pytest.approx((0.025 ** (1 / n), 1))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # Newcombe (1998), table II, method 10.
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((6, 7, 2, 7), (0.0582, 0.8062)),
        ((5, 56, 0, 29), (-0.0381, 0.1926)),
        ((0, 10, 0, 20), (-0.1611, 0.2775)),
        ((0, 10, 0, 10), (-0.2775, 0.2775)),
        ((10, 10, 0, 20), (0.6791, 1.0)),
        ((10, 10, 0, 10), (0.6075, 1.0)),
    ],
)
def test_newcombes_published_examples(counts: tuple[int, int, int, int], expected: tuple[float, float]) -> None:
    assert newcombe(*counts) == pytest.approx(expected, abs=1e-4)


def coverage(n: int, interval: Callable[[int, int], tuple[float, float]]) -> np.ndarray:
    """For many true rates the exact probability that the interval holds the rate."""
    rates = (np.arange(2000) + 0.5) / 2000
    ends = np.array([interval(k, n) for k in range(n + 1)])
    held = (ends[:, :1] <= rates) & (rates <= ends[:, 1:])
    return np.asarray((binom.pmf(np.arange(n + 1)[:, None], n, rates) * held).sum(0))


@settings(max_examples=10, deadline=None)
@given(st.integers(5, 150))
def test_wilson_covers_nearly_95_percent_on_average_and_clopper_pearson_everywhere(n: int) -> None:
    assert 0.945 < coverage(n, wilson).mean() < 0.965
    assert coverage(n, clopper_pearson).min() >= 0.95 - 1e-9
