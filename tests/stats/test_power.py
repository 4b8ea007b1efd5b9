from dataclasses import replace
from math import comb

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binom, nct, norm, ttest_rel
from scipy.stats import t as students_t

from datablame.stats.arm_tests import paired_p_rows, pooled_z_p, smallest_p
from datablame.stats.intervals import wilson
from datablame.stats.power import (
    TARGET,
    Design,
    approximate_power,
    candidates,
    cheapest,
    cost,
    drawn_studies,
    powers,
    simulate,
    smallest_adjusted_p,
)

USUAL = Design(from_rate=0.10, to_rate=0.05)
SAMPLING_ALONE = Design(
    0.1, 0.05, prompts=1, seeds=1, methods=1, prompt_deviation=0, seed_deviation=0, interaction_deviation=0
)


def power_of_z(first: float, second: float, n: int) -> float:
    """The textbook's normal approximation of the pooled z test, as in statsmodels' power_proportions_2indep."""
    mean, apart = (first + second) / 2, abs(first - second)
    under_null, error = (2 * mean * (1 - mean) / n) ** 0.5, ((first * (1 - first) + second * (1 - second)) / n) ** 0.5
    critical = norm.isf(0.025) * under_null
    return float(norm.sf((critical - apart) / error) + norm.cdf((-critical - apart) / error))


def power_of_t(effect: float, n: int, level: float) -> float:
    """That of the t test of two groups of n, by the noncentral t."""
    df, shift = 2 * n - 2, effect * (n / 2) ** 0.5
    critical = students_t.isf(level / 2, df)
    return float(nct.sf(critical, df, shift) + nct.cdf(-critical, df, shift))


@pytest.mark.parametrize(
    ("first", "second", "n"),
    [
        (0.10, 0.05, 435),
        (0.10, 0.05, 200),
        (0.5, 0.4, 388),
        (0.5, 0.4, 150),
        (0.3, 0.2, 300),
        (0.3, 0.15, 120),
        (0.8, 0.7, 300),
        (0.2, 0.35, 140),
        (0.6, 0.5, 500),
        (0.05, 0.01, 250),
    ],
)
def test_where_nothing_but_sampling_varies_the_z_test_has_the_power_of_all_outcomes_enumerated(
    first: float, second: float, n: int
) -> None:
    design = replace(SAMPLING_ALONE, from_rate=first, to_rate=second, samples=n)
    found = simulate(design, 4000, key=1).with_effect.samples
    k = np.arange(n + 1)
    rejected = pooled_z_p(k[:, None], n, k, n) < 0.05
    exact = float(binom.pmf(k, n, second) @ rejected @ binom.pmf(k, n, first))
    assert found.rate == pytest.approx(exact, abs=0.025)
    # The approximation holds where counts are not small.
    if n * min(first, second) >= 10:
        assert found.rate == pytest.approx(power_of_z(first, second, n), abs=0.03)


@pytest.mark.parametrize("seeds", [5, 6, 8])
@pytest.mark.parametrize("effect", [1.0, 1.5, 2.0, 2.5])
def test_where_only_seeds_vary_the_permutation_has_nearly_the_power_of_the_t_test(seeds: int, effect: float) -> None:
    deviation = 0.1
    # At a rate of one half a small deviation is normal on the scale of rates too, with the slope 1/4.
    rate = float(expit(effect * deviation))
    design = Design(
        0.5, rate, 2, 1_000_000, seeds, methods=1, prompt_deviation=0, seed_deviation=deviation, interaction_deviation=0
    )
    level = int(np.ceil(0.05 * comb(2 * seeds, seeds) / 2) - 1) * smallest_p(seeds, seeds)
    found = simulate(design, 1500, key=2).with_effect.seeds
    assert found.rate == pytest.approx(power_of_t(effect, seeds, level), abs=0.05)


def test_without_effect_the_permutation_rejects_as_often_as_its_attainable_level_says() -> None:
    found = simulate(Design(0.3, 0.1, samples=200, methods=1), 4000, key=3).without_effect.seeds
    # Six of 126 pairs of mirrored splits have p < .05 with 5 against 5.
    assert found.low < 12 / 252 < found.high


def test_tests_that_ignore_the_seed_raise_false_alarms_and_ours_do_not() -> None:
    found = simulate(USUAL, 1000, key=4).without_effect
    assert found.prompts is not None
    assert found.crossed is not None
    assert min(found.samples.rate, found.prompts.rate) > 0.35
    assert max(found.seeds.rate, found.crossed.rate) < 0.07
    still = simulate(replace(USUAL, seed_deviation=0.0, interaction_deviation=0.0), 1000, key=4).without_effect
    assert still.samples.rate < 0.07


def test_the_mean_rate_is_the_one_that_was_asked_for() -> None:
    for rate in (0.02, 0.1, 0.5, 0.9):
        wide = Design(rate, 0.0, prompts=4000, samples=1, seeds=1, methods=1, prompt_deviation=2.0, seed_deviation=0.0)
        drawn = next(iter(drawn_studies(wide, 50, key=5)))
        assert drawn.random.mean() == pytest.approx(rate, abs=0.005)
        assert drawn.working[0].sum() == 0


def test_prompts_are_shared_by_the_arms() -> None:
    design = Design(0.3, 0.1, prompts=50, samples=100, seeds=2, methods=1, prompt_deviation=2.0, seed_deviation=0.0)
    drawn = next(iter(drawn_studies(design, 1, key=6)))
    rates = [arm.mean((0, 1)) for arm in (drawn.random, drawn.baseline, drawn.idle[0], drawn.working[0])]
    assert np.corrcoef(rates).min() > 0.9


def test_several_effects_are_looked_at_in_the_same_studies() -> None:
    alone = simulate(USUAL, 200, key=8).power
    margin, halved, cured = powers(USUAL, [0.08, 0.05, 0.0], 200, key=8)
    assert powers(USUAL, [0.05], 200, key=8) == [alone]
    assert margin.rate < halved.rate == pytest.approx(alone.rate, abs=0.1)
    assert cured == (1.0, *wilson(200, 200))


def test_too_few_seeds_for_the_family_have_no_power() -> None:
    design = replace(USUAL, from_rate=0.5, to_rate=0.01, seeds=4)
    assert smallest_adjusted_p(design) == pytest.approx(3 * 2 / 70)
    assert simulate(design, 100, key=7).power == (0.0, *wilson(0, 100))
    assert approximate_power(design) == 0
    assert simulate(replace(design, methods=1), 100, key=7).power.rate == 1
    assert smallest_adjusted_p(replace(design, seeds=1)) == 1.0


def test_one_seed_and_one_prompt_leave_out_the_tests_that_need_two() -> None:
    found = simulate(replace(USUAL, seeds=1, prompts=1), 50, key=8)
    for tests in (found.with_effect, found.without_effect):
        assert (tests.prompts, tests.crossed) == (None, None)
    assert found.without_effect.seeds.rate == 0


def test_the_same_request_gives_the_same_numbers_and_another_key_others() -> None:
    assert simulate(USUAL, 200, key=9) == simulate(USUAL, 200, key=9) != simulate(USUAL, 200, key=10)


def test_every_study_is_announced_once() -> None:
    done: list[int] = []
    big = replace(USUAL, prompts=400, seeds=6)
    found = simulate(big, 300, 11, done.append)
    assert (sum(done), found.simulations) == (300, 300)
    assert len(done) > 1


def test_more_methods_cost_power_and_alarms_stay_rare() -> None:
    results = [simulate(replace(USUAL, methods=m, to_rate=0.06), 400, key=12) for m in (1, 3, 6)]
    powers = [found.power.rate for found in results]
    assert powers == sorted(powers, reverse=True)
    assert powers[0] > powers[2] + 0.2
    assert all(found.any_false_alarm.rate <= 0.05 for found in results)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"methods": 1},
        {"seeds": 6, "to_rate": 0.07},
        {"seeds": 8, "to_rate": 0.07},
        {"seeds": 12, "to_rate": 0.07, "samples": 10},
        {"prompts": 10, "samples": 10, "seeds": 6},
        {"seed_deviation": 0.5, "to_rate": 0.03, "seeds": 7},
        {"from_rate": 0.5, "to_rate": 0.4, "seeds": 7},
        {"prompt_deviation": 0.0, "to_rate": 0.06, "seeds": 6},
        {"interaction_deviation": 0.8, "to_rate": 0.06, "seeds": 6},
    ],
)
def test_the_formula_is_near_the_simulation(changed: dict[str, float]) -> None:
    design = replace(USUAL, **changed)  # type: ignore[arg-type]
    assert approximate_power(design) == pytest.approx(simulate(design, 600, key=13).power.rate, abs=0.1)


@pytest.mark.parametrize("key", range(10))
def test_the_paired_t_is_what_scipy_finds(key: int) -> None:
    a, b = np.random.default_rng(key).random((2, 4, 6))
    assert paired_p_rows(a, b).tolist() == pytest.approx(ttest_rel(a, b, axis=1).pvalue.tolist())
    assert paired_p_rows(a, a).tolist() == [1.0] * 4


def test_the_cheapest_design_reaches_the_target_and_no_cheaper_candidate_does() -> None:
    designs = candidates(USUAL, 500)
    costs = [cost(design, 500) for design in designs]
    assert costs == sorted(costs)
    assert all(approximate_power(design) > 0.7 for design in designs[:20])
    tried: list[int] = []
    found = cheapest(designs, 400, 14, tried.append)
    assert found is not None
    assert found.power.power.rate >= TARGET
    place = designs.index(found.design)
    assert len(tried) == place + 1
    assert all(simulate(design, 400, 14).power.rate < TARGET for design in designs[:place])
    assert cost(found.design, 500) == found.design.trainings * 500 + found.design.outputs


def test_an_effect_that_nothing_can_show_has_no_cheapest_design() -> None:
    assert cheapest(candidates(replace(USUAL, to_rate=0.0999), 500), 100, 15) is None


def test_dear_trainings_are_traded_for_outputs() -> None:
    cheap_trainings, dear_trainings = (candidates(USUAL, price)[0] for price in (1, 100_000))
    assert dear_trainings.seeds < cheap_trainings.seeds
    assert dear_trainings.prompts * dear_trainings.samples > cheap_trainings.prompts * cheap_trainings.samples


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"from_rate": 0.0}, "must differ and be shares"),
        ({"to_rate": 0.1}, "must differ and be shares"),
        ({"to_rate": float("nan")}, "must differ and be shares"),
        ({"seeds": 0}, "at least 1"),
        ({"reference_seeds": 0}, "at least 1"),
        ({"methods": 0}, "at least 1"),
        ({"seed_deviation": -0.1}, "must not be below 0"),
    ],
)
def test_designs_that_cannot_be_simulated_are_refused(changed: dict[str, float], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replace(USUAL, **changed)  # type: ignore[arg-type]


def test_unequal_numbers_of_seeds() -> None:
    design = replace(USUAL, reference_seeds=10, methods=1)
    assert design.trainings == 25
    assert smallest_adjusted_p(design) == 1 / comb(15, 5)
    assert simulate(design, 300, key=16).with_effect.seeds.rate > 0.97
