import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datablame.stats.ranking import (
    average_precision,
    expected_jaccard,
    jaccard,
    kendall,
    overlap,
    precision_at,
    rank_biased_overlap,
    recall_at,
    spearman,
)

permutations = st.integers(1, 12).flatmap(lambda n: st.permutations(range(n)))


def naive_rbo(a: list[int], b: list[int], p: float) -> float:
    shared = [len(set(a[:d]) & set(b[:d])) for d in range(1, len(a) + 1)]
    k = len(a)
    return shared[-1] / k * p**k + (1 - p) / p * sum(x / d * p**d for d, x in enumerate(shared, 1))


@given(permutations, st.sampled_from([0.5, 0.9, 0.95]))
def test_rank_biased_overlap_is_its_definition(b: list[int], p: float) -> None:
    a = list(range(len(b)))
    assert rank_biased_overlap(a, b, p) == pytest.approx(naive_rbo(a, b, p))
    assert rank_biased_overlap(b, a, p) == pytest.approx(rank_biased_overlap(a, b, p))


def test_rank_biased_overlap_of_equal_and_of_disjoint_rankings() -> None:
    assert rank_biased_overlap("abcdef", "abcdef") == pytest.approx(1)
    assert rank_biased_overlap("abc", "xyz") == 0


def test_rank_biased_overlap_of_a_worked_example() -> None:
    # Agreement 0/1, 2/2 at depths 1 and 2 with p = .5: 1 * .25 + 1 * (0 * .5 + 1 * .25) = .5
    assert rank_biased_overlap("ab", "ba", 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize(("a", "b"), [("ab", "abc"), ("", ""), ("aa", "ab")])
def test_rankings_that_cannot_be_compared_are_refused(a: str, b: str) -> None:
    with pytest.raises(ValueError, match="ranking"):
        rank_biased_overlap(a, b)


@pytest.mark.parametrize(("k", "n"), [(1, 1), (2, 5), (3, 4), (3, 7), (5, 5)])
def test_expected_jaccard_is_the_mean_over_all_pairs_of_sets(k: int, n: int) -> None:
    fixed = range(k)
    every = [jaccard(fixed, other) for other in combinations(range(n), k)]
    assert expected_jaccard(k, n) == pytest.approx(sum(every) / len(every))


def test_expected_jaccard_needs_a_set_that_fits() -> None:
    with pytest.raises(ValueError, match="k = 6 is not between 1 and n = 5"):
        expected_jaccard(6, 5)


def test_sets() -> None:
    assert overlap("abc", "bcd") == 2
    assert jaccard("abc", "bcd") == 0.5
    assert math.isnan(jaccard("", ""))


def test_rank_correlations_of_known_rankings() -> None:
    a, b = [1, 2, 3, 4, 5], [2, 1, 4, 3, 5]
    assert spearman(a, a) == pytest.approx(1)
    assert spearman(a, a[::-1]) == pytest.approx(-1)
    assert spearman(a, b) == pytest.approx(0.8)
    assert kendall(a, b) == pytest.approx(0.6)
    # tau-b = (C - D) / sqrt((n0 - ties a) (n0 - ties b)): (5 - 0) / sqrt(5 * 6)
    assert kendall([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(5 / math.sqrt(30))


def test_a_constant_ranking_correlates_with_nothing() -> None:
    for correlation in (spearman, kendall):
        assert math.isnan(correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))
        assert math.isnan(correlation([1.0], [1.0]))


def test_precision_and_recall_at_k() -> None:
    ranked, relevant = ["a", "b", "c", "d"], {"a", "c", "x"}
    assert precision_at(ranked, relevant, 2) == 0.5
    assert precision_at(ranked, relevant, 8) == 0.25
    assert recall_at(ranked, relevant, 3) == pytest.approx(2 / 3)
    assert math.isnan(recall_at(ranked, set(), 3))


def test_average_precision_takes_equal_scores_together() -> None:
    assert average_precision([1, 0, 1, 0], [4, 3, 2, 1]) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([1, 0, 0, 0], np.zeros(4)) == pytest.approx(0.25)
    assert math.isnan(average_precision([0, 0], [1, 2]))
