import math

import pytest
from scipy.stats import ttest_1samp
from studies.pairs.run import effects_of, mean_with_half


def result(alpha: float, rates: dict[str, float]) -> dict[str, object]:
    rows = [
        {
            "arm": arm,
            "alpha": at,
            "rate": rate / (1 if at else 10),
            "headline": at > 0,
        }
        for arm, rate in rates.items()
        for at in (0.0, alpha)
    ]
    own = int(10 * alpha)
    return {"alpha": alpha, "patching": rows, "changed": {"random": (20, 2), "oracle": (own, own)}}


def test_the_half_width_is_that_of_a_t_interval() -> None:
    values = [3.0, 5.5, 4.0, 9.0, 1.5]
    low, high = ttest_1samp(values, 0).confidence_interval()
    mean, half = mean_with_half(values)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert math.isnan(mean_with_half([3.0])[1])


def test_each_organism_is_read_at_its_own_alpha_and_set_against_its_own_control() -> None:
    first = result(1.0, {"baseline": 0.2, "random": 0.18, "oracle": 0.02})
    second = result(2.0, {"baseline": 0.3, "random": 0.24, "oracle": 0.04})
    effects = {effect.arm: effect for effect in effects_of("pairs", "swap", [first, second])}
    assert effects["oracle"][:4] == ("pairs", "swap", "oracle", 2)
    assert effects["oracle"].rate == pytest.approx(3)
    assert effects["oracle"].unamplified == pytest.approx(0.3)
    assert (effects["oracle"].to_random, effects["oracle"].to_random_half) == pytest.approx(mean_with_half([16, 20]))
    assert effects["oracle"][-2:] == (15, 15)
    assert effects["random"][-2:] == (20, 2)
    assert effects["baseline"][-2:] == (0, 0)
    assert effects["baseline"].to_random is effects["random"].to_random is None
