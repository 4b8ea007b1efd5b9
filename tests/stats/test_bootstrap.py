import numpy as np
import pytest

from datablame.stats.intervals import two_way

RANDOM = np.random.default_rng(0)
A, B = RANDOM.random((5, 12)), RANDOM.random((4, 12))


def test_the_interval_depends_on_its_key_alone() -> None:
    assert two_way(A, B, 1) == two_way(A, B, 1) != two_way(A, B, 2)


def test_constant_rates_have_an_interval_of_no_width() -> None:
    assert two_way(np.full((5, 3), 0.5), np.full((4, 3), 0.2), 1) == pytest.approx((0.3, 0.3))


def test_prompts_are_drawn_jointly_so_that_hard_prompts_cancel() -> None:
    prompts = np.linspace(0, 1, 12)
    low, high = two_way(np.tile(prompts + 0.1, (5, 1)), np.tile(prompts, (5, 1)), 1)
    assert (low, high) == pytest.approx((0.1, 0.1))
    low, high = two_way(np.tile(prompts, (5, 1)), None, 1)
    assert high - low > 0.3


def test_seeds_are_drawn_for_each_side() -> None:
    low, high = two_way(np.tile(np.linspace(0, 1, 6)[:, None], 3), np.zeros((6, 3)), 1)
    assert low < 0.3 < 0.7 < high


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        seeds, prompts = random.normal(0, 0.1, (2, 10, 1)), random.normal(0, 0.3, (1, 1, 30))
        a, b = seeds + prompts + random.normal(0, 0.1, (2, 10, 30))
        low, high = two_way(a, b, trial, resamples=400)
        covered += low <= 0 <= high
    assert covered / 200 > 0.87


@pytest.mark.parametrize(("a", "b"), [(np.zeros(3), np.zeros(3)), (np.zeros((2, 3)), np.zeros((2, 4)))])
def test_other_shapes_are_refused(a: np.ndarray, b: np.ndarray) -> None:
    with pytest.raises(ValueError, match="with the same prompts"):
        two_way(a, b, 1)
