"""Standings over organisms against plain loops, on tables made for it."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from datablame.stats.standings import (
    beats,
    datamodeling_score,
    halved_at,
    mean_ranks,
    median,
    median_interval,
    over_seeds,
    paired,
    pareto,
    ranks,
    share_of_oracle,
)

KINDS, SEEDS = ("few", "many", "source"), (1, 2, 3, 4, 5)
ORGANISMS = [*product(KINDS, SEEDS)]


def table(of: dict[str, float], noise: float = 0.02) -> dict[tuple[str, int], float]:
    """A method's mean by kind, and noise that adds up to nothing over seeds."""
    return {(kind, seed): of[kind] + noise * (seed - 3) for kind, seed in ORGANISMS if kind in of}


def test_an_interval_is_students_t_over_the_seeds_means() -> None:
    random = np.random.Generator(np.random.Philox(key=1))
    values = {organism: float(random.normal()) for organism in ORGANISMS}
    means = [sum(values[kind, seed] for kind in KINDS) / len(KINDS) for seed in SEEDS]
    made = over_seeds(values)
    assert made is not None
    low, high = stats.t.interval(0.95, 4, loc=np.mean(means), scale=stats.sem(means))
    assert made == pytest.approx((np.mean(means), low, high, 15))


def test_costs_are_medians_with_order_statistics() -> None:
    assert median({}) is None
    assert median({("few", 1): 4.0, ("few", 2): 900.0, ("few", 3): 2.0}) == (4.0, None, None, 3)
    seconds = {("few", seed): float(seed) for seed in range(1, 10)} | {("few", 10): math.inf}
    # Of ten values the second and the ninth: Conover 1999, table A3.
    assert median(seconds) == (5.0, 2.0, 9.0, 10)


def test_one_seed_has_a_mean_without_an_interval_and_nothing_has_none() -> None:
    assert over_seeds({("few", 1): 0.25, ("many", 1): 0.75}) == (0.5, None, None, 2)
    assert over_seeds({}) is None


def test_a_paired_difference_takes_the_organisms_that_both_have() -> None:
    a, b = table({"few": 0.9, "many": 0.5}), table({"many": 0.3, "source": 0.9})
    made = paired(a, b)
    assert made is not None
    assert made.value == pytest.approx(0.2)
    assert made.n == 5
    assert paired(table({"few": 1}), table({"many": 1})) is None


def test_methods_that_nobody_beats_share_the_first_rank_and_the_next_count_who_beats_them() -> None:
    methods = {
        "best": table(dict.fromkeys(KINDS, 0.80)),
        # As good on average, with seeds that go the other way.
        "tied": table(dict.fromkeys(KINDS, 0.79), noise=-0.02),
        "third": table(dict.fromkeys(KINDS, 0.5)),
        "last": table(dict.fromkeys(KINDS, 0.1)),
        "absent": {},
    }
    assert ranks(methods) == {"best": 1, "tied": 1, "third": 3, "last": 4}
    assert beats(methods["best"], methods["third"])
    assert not beats(methods["third"], methods["best"])
    assert not beats(methods["best"], methods["absent"])
    assert ranks({name: {("few", 1): value} for name, value in (("a", 0.9), ("b", 0.1))}) == {"a": 1, "b": 1}


def test_mean_ranks_are_over_the_methods_that_an_organism_has_with_ties_in_the_middle() -> None:
    methods = {"a": table({"few": 1.0, "many": 0.5}), "b": table({"few": 0.5, "many": 0.5}), "c": table({"few": 0.1})}
    made = mean_ranks(methods)
    assert {name: each.value for name, each in made.items()} == {"a": 1.25, "b": 1.75, "c": 3.0}
    assert [each.n for each in made.values()] == [10, 10, 5]


@pytest.mark.parametrize(
    ("baseline", "rate", "oracle", "share"),
    [
        (0.6, 0.2, 0.2, 1.0),
        (0.6, 0.5, 0.1, 0.2),
        (0.6, 0.7, 0.1, -0.2),
        (0.6, 0.0, 0.56, None),
        (0.5, 0.1, 0.45, 1 / 0.125),
    ],
)
def test_the_share_of_the_oracle_is_none_where_that_does_next_to_nothing(
    baseline: float, rate: float, oracle: float, share: float | None
) -> None:
    assert share_of_oracle(baseline, rate, oracle, 0.04999) == (None if share is None else pytest.approx(share))


def test_the_rate_is_halved_by_the_fewest_documents_or_censored() -> None:
    removed = [60, 15, 30]
    assert halved_at(removed, [0.1, 0.5, 0.4], 0.8) == 30
    assert halved_at(removed, [0.4, 0.4, 0.4], 0.8) == 15
    assert halved_at(removed, [0.41, 0.5, 0.6], 0.8) == math.inf
    assert halved_at(removed, [0.0, 0.0, 0.0], 0.0) is None
    assert halved_at([], [], 0.8) is None


@given(st.lists(st.sampled_from([15.0, 30.0, 60.0, 120.0, math.inf]), min_size=1, max_size=40))
def test_the_median_and_its_interval_are_values_of_the_sample_that_leave_few_outside(values: list[float]) -> None:
    median, interval = median_interval(values)
    ordered, n = sorted(values), len(values)
    assert median == ordered[(n - 1) // 2]
    # The most below an end with P(Bin(n, 1/2) <= below) < 2.5 %, by counting.
    tails = [sum(math.comb(n, i) for i in range(below + 1)) / 2**n for below in range(n)]
    below = [index for index, tail in enumerate(tails) if tail < 0.025]
    assert interval == ((ordered[below[-1]], ordered[n - 1 - below[-1]]) if below else None)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), max_size=12))
def test_a_pareto_point_is_one_that_no_other_betters(points: list[tuple[int, int]]) -> None:
    expected = []
    for cost, gain in points:
        better = False
        for other_cost, other_gain in points:
            if (other_cost <= cost and other_gain > gain) or (other_cost < cost and other_gain >= gain):
                better = True
        expected.append(not better)
    costs, gains = ({str(i): table({"few": each[of]}) for i, each in enumerate(points)} for of in (0, 1))
    assert pareto(costs, gains) == {str(i) for i, best in enumerate(expected) if best}


def test_a_pareto_point_is_compared_on_the_organisms_that_both_have() -> None:
    """Without the kind that is hard for all, a method looks the better of two and is the worse one."""
    costs = {"all": table({"few": 1, "many": 1}), "some": table({"few": 2})}
    gains = {"all": table({"few": 0.8, "many": 0.1}), "some": table({"few": 0.7}), "free": table({"few": 1})}
    assert pareto(costs, gains) == {"all"}


def test_a_method_that_cannot_be_had_everywhere_leaves_its_lesser_on_the_front() -> None:
    """Where it is missing, a practitioner needs the other one."""
    costs = {"all": table({"few": 2, "many": 2}), "some": table({"few": 1})}
    gains = {"all": table({"few": 0.8, "many": 0.1}), "some": table({"few": 0.9})}
    assert pareto(costs, gains) == {"all", "some"}


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_the_datamodeling_score_is_spearmans_averaged_over_outputs_and_resampled_over_subsets(seed: int) -> None:
    random = np.random.Generator(np.random.Philox(key=seed))
    true = random.integers(0, 6, size=(14, 3)).astype(float)
    predicted = true + random.normal(0, 3, size=true.shape).round()
    made = datamodeling_score(true, predicted, key=7, resamples=25)

    def mean(rows: list[int]) -> float:
        return float(np.mean([stats.spearmanr(true[rows, i], predicted[rows, i]).statistic for i in range(3)]))

    assert made is not None
    score, interval = made
    assert score == pytest.approx(mean([*range(14)]))
    again = np.random.Generator(np.random.Philox(key=7)).integers(14, size=(25, 14))
    assert list(interval) == pytest.approx(
        np.quantile([mean(rows.tolist()) for rows in again], [0.025, 0.975]).tolist()
    )


def test_scores_that_say_the_same_of_every_subset_have_no_datamodeling_score() -> None:
    assert datamodeling_score(np.arange(10.0)[:, None], np.ones((10, 1)), key=1) is None
