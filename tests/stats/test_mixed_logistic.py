import numpy as np
import pytest
from scipy.special import expit, logit

from datablame.stats.mixed_logistic import mixed_logistic


def arms(
    key: int, effect: float, seed_deviation: float, seeds: int = 5, prompts: int = 12, n: int = 25
) -> list[np.ndarray]:
    random = np.random.default_rng(key)
    hard = random.normal(0, 1, prompts)
    return [
        random.binomial(n, expit(-1.5 + shift + hard + random.normal(0, seed_deviation, (seeds, 1))))
        for shift in (effect, 0.0)
    ]


def test_effect_and_deviations_are_found() -> None:
    a, b = arms(0, -1.5, 0.4, seeds=8, prompts=20)
    n = np.full(a.shape, 25)
    effect, why_not = mixed_logistic(a, n, b, n)
    assert why_not is None
    assert effect is not None
    assert effect.low < -1.5 < effect.high < 0
    assert effect.prompt_deviation == pytest.approx(1, abs=0.35)
    assert effect.seed_deviation == pytest.approx(0.4, abs=0.2)


def test_the_error_carries_the_seeds_and_repeats() -> None:
    errors = []
    for deviation in (0.05, 0.8):
        a, b = arms(1, 0.0, deviation)
        n = np.full(a.shape, 25)
        result = mixed_logistic(a, n, b, n)
        assert result == mixed_logistic(a, n, b, n)
        assert result.effect is not None
        errors.append(result.effect.standard_error)
        # Two arms of 5 seeds that deviate so.
        assert result.effect.standard_error > deviation * 0.4**0.5 * 0.5
    assert errors[1] > 2 * errors[0]


def test_where_neither_prompts_nor_seeds_vary_it_is_the_odds_ratio_of_the_two_by_two_table() -> None:
    n = np.full((4, 6), 200)
    a, b = np.full((4, 6), 30), np.full((4, 6), 60)
    effect, _ = mixed_logistic(a, n, b, n)
    assert effect is not None
    assert effect.log_odds == pytest.approx(logit(0.15) - logit(0.3), abs=0.02)
    assert effect.standard_error > (1 / 720 + 1 / 4080 + 1 / 1440 + 1 / 3360) ** 0.5


@pytest.mark.parametrize(
    ("a", "b", "n", "why"),
    [
        (np.ones((1, 3)), np.ones((2, 3)), 5, "fewer than two training seeds"),
        (np.ones((2, 1)), np.ones((2, 1)), 5, "fewer than two prompts"),
        (np.zeros((2, 3)), np.ones((2, 3)), 5, "all samples of an arm have one label"),
        (np.ones((2, 3)), np.full((2, 3), 5), 5, "all samples of an arm have one label"),
        (np.zeros((2, 3)), np.zeros((2, 3)), 0, "an arm has no scored sample"),
    ],
)
def test_where_it_cannot_be_fitted_it_says_why(a: np.ndarray, b: np.ndarray, n: int, why: str) -> None:
    effect, why_not = mixed_logistic(a, np.full(a.shape, n), b, np.full(b.shape, n))
    assert effect is None
    assert why_not is not None
    assert why in why_not


def test_arrays_that_do_not_fit_and_counts_that_cannot_be_are_refused() -> None:
    n = np.full((2, 3), 5)
    with pytest.raises(ValueError, match="with the same prompts"):
        mixed_logistic(n, n, np.full((2, 4), 5), np.full((2, 4), 5))
    with pytest.raises(ValueError, match="not between 0 and its n"):
        mixed_logistic(n + 1, n, n, n)
