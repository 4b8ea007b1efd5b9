import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from datablame.stats.intervals import newcombe, wilson


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
    assert newcombe(1, 2, 0, 0) == (-1.0, 1.0)


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
