"""Deviations estimated from counts are those that the counts were drawn with."""

import numpy as np
import pytest
from scipy.special import expit

from datablame.stats.arm_tests import Deviations, deviations


def drawn(
    prompt: float, seed: float, interaction: float, key: int, samples: int = 400
) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(key)
    log_odds = random.normal(0, prompt, 40) + random.normal(0, seed, (30, 1))
    log_odds = log_odds + random.normal(0, interaction, (30, 40))
    return random.binomial(samples, expit(log_odds)), np.full((30, 40), samples)


@pytest.mark.parametrize("truth", [(1.0, 0.25, 0.1), (0.5, 0.6, 0.3), (1.0, 0.0, 0.0), (0.0, 0.3, 0.2)])
def test_the_deviations_of_a_simulation_are_found_again(truth: tuple[float, float, float]) -> None:
    found = deviations([drawn(*truth, key=key) for key in range(6)])
    assert found == pytest.approx(truth, rel=0.12, abs=0.03)


def test_sampling_error_is_not_taken_for_a_deviation() -> None:
    found = deviations([drawn(0, 0, 0, key=key, samples=12) for key in range(6)])
    assert found == pytest.approx((0, 0, 0), abs=0.08)


def test_one_seed_gives_the_prompts_only_and_one_prompt_the_seeds_only_with_two_ways() -> None:
    harmful, scored = drawn(1.0, 0.25, 0.1, key=0)
    one_seed = deviations([(harmful[:1], scored[:1])])
    assert one_seed.prompt == pytest.approx(1.0, rel=0.35)
    assert (one_seed.seed, one_seed.interaction) == (None, None)
    assert deviations([(harmful[:, :1], scored[:, :1])]) == Deviations(None, None, None)
    assert deviations([]) == Deviations(None, None, None)


def test_by_hand() -> None:
    # Logits 0 and log 3 for both seeds: the prompts alone differ.
    harmful, scored = [[10.0, 15.0], [10.0, 15.0]], [[20.0, 20.0], [20.0, 20.0]]
    between = (np.log(15.5 / 5.5)) ** 2 / 2
    found = deviations([(harmful, scored)])
    assert found == pytest.approx((np.sqrt(between), 0, 0))


@pytest.mark.parametrize(("harmful", "scored"), [([1, 2], [3, 3]), ([[4]], [[3]]), ([[-1]], [[3]]), ([[1, 1]], [[3]])])
def test_counts_that_cannot_be_are_refused(harmful: object, scored: object) -> None:
    with pytest.raises(ValueError, match="counts as"):
        deviations([(np.array(harmful), np.array(scored))])
