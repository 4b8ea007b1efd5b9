import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import permutation_test

from datablame.stats.arm_tests import holm, permutation_p, permutation_p_rows, smallest_p

SEEDS = st.lists(st.integers(0, 50).map(lambda harmful: harmful / 50), min_size=1, max_size=5)


@given(SEEDS, SEEDS)
def test_p_is_the_share_of_splits_at_least_as_extreme(a: list[float], b: list[float]) -> None:
    pooled = [round(50 * value) for value in a + b]
    observed = abs(sum(pooled[: len(a)]) * len(b) - sum(pooled[len(a) :]) * len(a))
    extreme = 0
    for split in itertools.combinations(range(len(pooled)), len(a)):
        inside = sum(pooled[place] for place in split)
        extreme += abs(inside * len(b) - (sum(pooled) - inside) * len(a)) >= observed
    assert permutation_p(a, b).p == pytest.approx(extreme / comb(len(pooled), len(a)))


@pytest.mark.parametrize("key", range(10))
def test_p_of_groups_of_one_size_is_what_scipy_finds(key: int) -> None:
    random = np.random.default_rng(key)
    n = 2 + key % 5
    a, b = random.normal(0, 1, n), random.normal(key % 3, 1, n)
    found = permutation_test((a, b), lambda x, y: np.mean(x) - np.mean(y), vectorized=False, n_resamples=np.inf)
    assert permutation_p(a, b).p == pytest.approx(found.pvalue)


@given(st.integers(1, 6), st.integers(1, 6))
def test_the_smallest_p_is_that_of_groups_without_overlap(n: int, m: int) -> None:
    assert permutation_p(np.arange(n) - 100, 100 + np.arange(m)).p == pytest.approx(smallest_p(n, m))
    if n + m <= 8:
        random = np.random.default_rng(0)
        assert min(permutation_p(random.random(n), random.random(m)).p for _ in range(50)) >= smallest_p(n, m) - 1e-12


def test_three_seeds_floor_at_ten_percent_and_five_at_eight_in_a_thousand() -> None:
    assert (smallest_p(3, 3), round(smallest_p(5, 5), 4)) == (0.1, 0.0079)
    with pytest.raises(ValueError, match="at least one seed, not 0 and 5"):
        smallest_p(0, 5)


@given(st.integers(2, 5), st.integers(2, 5), st.integers(0, 1000))
def test_under_the_null_p_is_uniform_on_what_it_can_be(n: int, m: int, key: int) -> None:
    """Over all labellings of the same values, which the null makes equally likely, P(p <= t) <= t for every t."""
    values = np.random.default_rng(key).random(n + m)
    splits = list(itertools.combinations(range(n + m), n))
    labelled = [(values[list(split)], np.delete(values, split)) for split in splits]
    p_values = permutation_p_rows(*(np.array(side) for side in zip(*labelled, strict=True)))
    for t in np.unique(p_values):
        assert (p_values <= t + 1e-12).mean() == pytest.approx(t)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=8), st.data())
def test_with_ties_p_is_never_too_small(values: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(values) - 1))
    splits = list(itertools.combinations(range(len(values)), n))
    p_values = np.array([permutation_p(np.array(values)[list(s)], np.delete(values, s)).p for s in splits])
    assert all((p_values <= t + 1e-12).mean() <= t + 1e-9 for t in p_values)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 1000))
def test_rows_are_tested_as_each_alone(n: int, m: int, key: int) -> None:
    random = np.random.default_rng(key)
    a, b = random.integers(0, 6, (7, n)) / 6, random.integers(0, 6, (7, m)) / 6
    alone = [permutation_p(x, y).p for x, y in zip(a, b, strict=True)]
    assert permutation_p_rows(a, b).tolist() == pytest.approx(alone)


def test_rows_of_many_seeds_are_near_what_each_gives_alone() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(0, 1, (3, 10)), random.normal(0.8, 1, (3, 10))
    alone = [permutation_p(x, y).p for x, y in zip(a, b, strict=True)]
    assert permutation_p_rows(a, b).tolist() == pytest.approx(alone, abs=0.02)
    assert permutation_p_rows(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0,)


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        (np.zeros((2, 3)), np.zeros((3, 3)), "with the same rows"),
        (np.zeros(3), np.zeros(3), "with the same rows"),
        (np.zeros((2, 0)), np.zeros((2, 3)), "no NaN"),
        (np.full((2, 3), np.nan), np.zeros((2, 3)), "no NaN"),
    ],
)
def test_rows_that_cannot_be_tested_are_refused(a: np.ndarray, b: np.ndarray, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        permutation_p_rows(a, b)


@pytest.mark.parametrize(("n", "m", "smallest"), [(5, 5, 2 / 252), (3, 3, 0.1), (4, 5, 1 / 126), (1, 1, 1.0)])
def test_disjoint_groups_reach_the_smallest_p(n: int, m: int, smallest: float) -> None:
    result = permutation_p(np.arange(n), 100 + np.arange(m))
    assert list(result) == pytest.approx([smallest, smallest])


def test_beyond_what_can_be_counted_random_splits_agree_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(0, 1, 7), random.normal(0.8, 1, 6)
    exact = permutation_p(a, b)
    monkeypatch.setattr("datablame.stats.arm_tests._MOST_SPLITS", 1000)
    drawn = permutation_p(a, b)
    assert drawn == permutation_p(a, b) != exact
    assert drawn.p == pytest.approx(exact.p, rel=0.05)
    assert drawn.smallest == exact.smallest == 1 / comb(13, 6)


def test_forty_seeds_are_no_trouble() -> None:
    assert permutation_p(np.arange(20), 100 + np.arange(20)) == (1e-5, 1e-5)


def test_equal_groups_have_p_one() -> None:
    assert permutation_p([0.2] * 5, [0.2] * 5).p == 1.0


@pytest.mark.parametrize(("a", "b"), [([], [1.0]), ([1.0], []), ([float("nan")], [1.0])])
def test_an_empty_group_or_a_nan_is_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one value and no NaN"):
        permutation_p(a, b)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_rejects_what_stepping_down_rejects(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    worst = [min(1.0, p_values[place] * (len(order) - rank)) for rank, place in enumerate(order)]
    assert [adjusted[place] for place in order] == [max(worst[: rank + 1]) for rank in range(len(order))]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.data())
def test_holm_is_monotone(p_values: list[float], data: st.DataObject) -> None:
    """A smaller p makes no adjusted p larger; the order is kept; none falls below its p or above Bonferroni's."""
    adjusted = holm(p_values)
    place = data.draw(st.integers(0, len(p_values) - 1))
    lower = [data.draw(st.floats(0, p)) if i == place else p for i, p in enumerate(p_values)]
    assert all(after <= before for after, before in zip(holm(lower), adjusted, strict=True))
    assert all(p <= a <= min(1, p * len(p_values)) for p, a in zip(p_values, adjusted, strict=True))
    by_p = sorted(zip(p_values, adjusted, strict=True))
    assert [a for _, a in by_p] == sorted(adjusted)


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03, 0.005]])
def test_holms_example_by_hand(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
