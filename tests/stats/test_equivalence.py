import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_ind, ttest_rel

from datablame.stats.arm_tests import crossed_t, tost


@pytest.mark.parametrize("key", range(12))
def test_two_groups_are_what_scipys_one_sided_tests_find(key: int) -> None:
    random = np.random.default_rng(key)
    a, b = random.normal(0, 0.1, 5 + key), random.normal(0.02 * (key % 4), 0.12, 6)
    df = len(a) + len(b) - 2
    pooled = ((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / df
    error = float(np.sqrt(pooled * (1 / len(a) + 1 / len(b))))
    tests = ttest_ind(a + 0.15, b, alternative="greater"), ttest_ind(a - 0.15, b, alternative="less")
    expected = max(test.pvalue for test in tests)
    assert tost(a.mean() - b.mean(), error, df, 0.15).p == pytest.approx(expected)


@pytest.mark.parametrize("key", range(10))
def test_pairs_are_what_scipys_one_sided_tests_find(key: int) -> None:
    random = np.random.default_rng(key)
    a = random.normal(0, 0.1, 4 + key)
    b = a + random.normal(0.01 * key, 0.05, len(a))
    d = a - b
    tests = ttest_rel(a + 0.08, b, alternative="greater"), ttest_rel(a - 0.08, b, alternative="less")
    expected = max(test.pvalue for test in tests)
    assert tost(d.mean(), d.std(ddof=1) / np.sqrt(len(d)), len(d) - 1, 0.08).p == pytest.approx(expected)


@given(st.floats(-1, 1), st.floats(0.001, 1), st.integers(1, 60), st.floats(0.01, 2))
def test_it_is_equivalent_exactly_where_the_ninety_percent_interval_is_within_the_margin(
    difference: float, error: float, df: int, margin: float
) -> None:
    found = tost(difference, error, df, margin)
    if abs(found.p - 0.05) > 1e-9:
        assert found.equivalent == (-margin < found.low and found.high < margin) == (found.p < 0.05)
    assert 0 <= found.p <= 1


def test_a_large_p_value_alone_is_no_equivalence() -> None:
    random = np.random.default_rng(0)
    a, b = (0.3 + random.normal(0, 0.1, (5, 1)) + random.normal(0, 0.01, (5, 20)) for _ in range(2))
    test = crossed_t(a, b)
    assert test is not None
    assert test.p > 0.05
    assert not tost(test.difference, test.standard_error, test.df, margin=0.06).equivalent
    assert tost(test.difference, test.standard_error, test.df, margin=0.6).equivalent


def test_without_error_the_difference_decides() -> None:
    assert tost(0.1, 0.0, 8, 0.2) == (0.0, 0.1, 0.1, True)
    assert tost(0.3, 0.0, 8, 0.2) == (1.0, 0.3, 0.3, False)


@pytest.mark.parametrize(
    ("error", "df", "margin"), [(0.1, 8, 0.0), (0.1, 0, 0.1), (-0.1, 8, 0.1), (0.1, 8, float("nan"))]
)
def test_what_cannot_be_is_refused(error: float, df: float, margin: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        tost(0.0, error, df, margin)
