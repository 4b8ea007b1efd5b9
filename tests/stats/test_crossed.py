import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as students_t
from scipy.stats import ttest_ind, ttest_rel

from datablame.stats.arm_tests import crossed_p_rows, crossed_t


def arms(key: int, seeds: tuple[int, int] = (5, 7), prompts: int = 12) -> list[np.ndarray]:
    random = np.random.default_rng(key)
    hard = random.normal(0, 0.2, prompts)
    return [0.3 + hard + random.normal(0, 0.1, (n, 1)) + random.normal(0, 0.05, (n, prompts)) for n in seeds]


@pytest.mark.parametrize("key", range(12))
def test_the_test_is_its_formula(key: int) -> None:
    a, b = arms(key, (2 + key % 5, 3 + key % 4), 2 + key)
    d = [sum(row[p] for row in a) / len(a) - sum(row[p] for row in b) / len(b) for p in range(2 + key)]
    centre = sum(d) / len(d)
    squared = sum((x - centre) ** 2 for x in d) / (len(d) - 1) / len(d)
    for arm in (a, b):
        means = [sum(row) / len(row) for row in arm]
        squared += sum((x - sum(means) / len(means)) ** 2 for x in means) / (len(means) - 1) / len(means)
    df = len(a) + len(b) - 2
    error, critical = squared**0.5, students_t.ppf(0.975, df)
    test = crossed_t(a, b)
    assert test is not None
    assert tuple(test) == pytest.approx(
        (
            centre,
            error,
            df,
            centre / error,
            2 * students_t.cdf(-abs(centre / error), df),
            centre - critical * error,
            centre + critical * error,
        )
    )


@pytest.mark.parametrize("key", range(10))
def test_where_only_seeds_vary_it_is_the_t_test_of_scipy(key: int) -> None:
    a, b = (np.repeat(arm[:, :1], 6, axis=1) for arm in arms(key, (5, 5)))
    test = crossed_t(a, b)
    assert test is not None
    expected = ttest_ind(a[:, 0], b[:, 0])
    assert (test.t, test.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert (test.low, test.high) == pytest.approx(tuple(expected.confidence_interval()))


@pytest.mark.parametrize("key", range(10))
def test_where_only_prompts_vary_its_t_is_the_paired_one(key: int) -> None:
    prompts = np.random.default_rng(key).random((2, 15))
    # Equal seeds; a and b have their own rates for each prompt, but the same mean for all seeds.
    a, b = (np.tile(rates, (4, 1)) for rates in prompts)
    test = crossed_t(a, b)
    assert test is not None
    assert test.t == pytest.approx(ttest_rel(*prompts).statistic)
    assert test.df == 6


@given(st.integers(0, 1000))
def test_swapping_the_arms_swaps_the_sign_and_nothing_else(key: int) -> None:
    a, b = arms(key)
    there, back = crossed_t(a, b), crossed_t(b, a)
    assert there is not None
    assert back is not None
    assert (there.t, there.p, there.low, there.high) == pytest.approx((-back.t, back.p, -back.high, -back.low))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.zeros((1, 5)), np.ones((4, 5))),
        (np.zeros((4, 5)), np.ones((1, 5))),
        (np.zeros((4, 1)), np.ones((4, 1))),
        (np.zeros((4, 0)), np.ones((4, 0))),
        (np.full((4, 5), 0.3), np.full((4, 5), 0.3)),
        (np.full((4, 5), 0.3), np.full((4, 5), 0.1 + 0.2)),
        (np.zeros((4, 5)), np.ones((4, 5))),
    ],
    ids=[
        "one seed",
        "one seed of the other",
        "one prompt",
        "all unscored",
        "equal",
        "equal but for rounding",
        "0 and 1",
    ],
)
def test_without_two_seeds_two_prompts_and_variation_there_is_no_t(a: np.ndarray, b: np.ndarray) -> None:
    assert crossed_t(a, b) is None


def test_other_shapes_and_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="with the same prompts"):
        crossed_t(np.zeros((3, 4)), np.zeros((3, 5)))
    with pytest.raises(ValueError, match="with the same prompts"):
        crossed_t(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="a rate is NaN"):
        crossed_t([[0.1, float("nan")], [0.2, 0.3]], np.zeros((2, 2)))


def test_rows_are_tested_as_each_alone() -> None:
    pairs = [arms(key) for key in range(12)]
    rows = crossed_p_rows(*(np.array(side) for side in zip(*pairs, strict=True)))
    assert rows.tolist() == pytest.approx([test.p for a, b in pairs if (test := crossed_t(a, b)) is not None])
    assert crossed_p_rows(np.zeros((1, 2, 2)), np.ones((1, 2, 2))).tolist() == [1.0]
