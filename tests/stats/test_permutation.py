import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import permutation_test
from statsmodels.stats.multitest import multipletests

from datablame.stats.permutation import holm, permutation_p

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


def test_p_is_what_scipy_finds() -> None:
    a, b = [0.1, 0.32, 0.25, 0.17, 0.2], [0.28, 0.41, 0.3, 0.22, 0.39]
    found = permutation_test((a, b), lambda x, y: np.mean(x) - np.mean(y), vectorized=False, n_resamples=np.inf)
    assert permutation_p(a, b).p == pytest.approx(found.pvalue)


@pytest.mark.parametrize(("n", "m", "smallest"), [(5, 5, 2 / 252), (3, 3, 0.1), (4, 5, 1 / 126), (1, 1, 1.0)])
def test_disjoint_groups_reach_the_smallest_p(n: int, m: int, smallest: float) -> None:
    result = permutation_p(np.arange(n), 100 + np.arange(m))
    assert list(result) == pytest.approx([smallest, smallest])


def test_beyond_what_can_be_counted_random_splits_agree_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(0, 1, 7), random.normal(0.8, 1, 6)
    exact = permutation_p(a, b)
    monkeypatch.setattr("datablame.stats.permutation._MOST_SPLITS", 1000)
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


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03, 0.005], [0.02, 0.02, 0.5], [0.9]])
def test_holm_is_what_statsmodels_finds(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_no_p_values_need_no_adjustment() -> None:
    assert holm([]) == []
