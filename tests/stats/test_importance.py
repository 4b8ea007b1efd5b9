import math

import numpy as np
import pytest

from datablame.stats.importance import balance_log_weights, score_interval, spread_of, weighed_rate
from datablame.stats.intervals import wilson


def distributions(key: int, outcomes: int = 40, others: int = 3) -> np.ndarray:
    """p and tilted ones, (1 + others, outcomes), as amplification tilts them."""
    random = np.random.default_rng(key)
    a, b = random.normal(0, 1.5, (2, outcomes))
    logits = np.stack([a + alpha * (a - b) for alpha in range(1 + others)])
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(weights / weights.sum(1, keepdims=True))


def raised(q: np.ndarray, most: float) -> list[int]:
    """The outcomes that tilting raises most, together of at most that probability under p."""
    chosen: list[int] = []
    for outcome in np.argsort(q[0] / q[2]):
        if q[0][[*chosen, outcome]].sum() <= most:
            chosen.append(int(outcome))
    return chosen


@pytest.mark.parametrize("key", range(12))
def test_weights_and_estimate_are_unbiased_by_enumeration(key: int) -> None:
    q = distributions(key)
    counts = np.random.default_rng(key).integers(1, 60, len(q))
    weights = np.exp(balance_log_weights(np.log(q[0]), np.log(q).T, counts))
    mixture = counts @ q / counts.sum()
    event = np.random.default_rng(key).random(q.shape[1]) < 0.2
    assert math.isclose(mixture @ weights, 1, rel_tol=0, abs_tol=1e-10)
    assert math.isclose((mixture * event) @ weights, q[0] @ event, rel_tol=0, abs_tol=1e-10)
    assert weights.max() <= counts.sum() / counts[0] + 1e-9


def test_a_distribution_that_gave_no_sample_has_no_say() -> None:
    q = distributions(3)
    with_it = balance_log_weights(np.log(q[0]), np.log(q).T, [5, 0, 7, 0])
    assert with_it == pytest.approx(balance_log_weights(np.log(q[0]), np.log(q[[0, 2]]).T, [5, 7]))


def test_with_p_alone_every_weight_is_one() -> None:
    log_p = np.log(distributions(1)[0])
    assert balance_log_weights(log_p, log_p[:, None], [9]) == pytest.approx(np.zeros(log_p.size))


def test_sums_of_thousands_of_nats_do_not_underflow() -> None:
    found = balance_log_weights([-5000.0], [[-5000.0, -4000.0]], [1, 1])
    assert found == pytest.approx([-1000 + math.log(2)])


@pytest.mark.parametrize("key", range(10))
def test_estimate_and_error_are_their_formulas(key: int) -> None:
    random = np.random.default_rng(key)
    n = 200
    prompts, strata = random.integers(0, 4, n), random.integers(0, 3, n)
    log_w, harmful = random.normal(-1, 1, n), random.random(n) < 0.3
    means, variances = [], []
    for prompt in range(4):
        here = prompts == prompt
        means.append((np.exp(log_w[here]) * harmful[here]).mean())
        variance = 0.0
        for stratum in range(3):
            values = (np.exp(log_w) * harmful)[here & (strata == stratum)]
            variance += len(values) * values.var(ddof=1) / here.sum() ** 2
        variances.append(variance)
    found = weighed_rate(log_w, harmful, prompts, strata)
    assert found.rate == pytest.approx(np.mean(means))
    assert found.standard_error == pytest.approx(math.sqrt(sum(variances)) / 4)


def test_with_p_alone_it_is_the_mean_over_prompts_of_the_rate() -> None:
    harmful = np.array([1, 0, 0, 0, 1, 1, 0, 1], dtype=bool)
    found = weighed_rate(np.zeros(8), harmful, ["a"] * 4 + ["b"] * 4, [0] * 8)
    assert found.rate == 0.5
    assert found.every.ess == pytest.approx(8)
    assert found.every.largest_share == pytest.approx(1 / 8)
    assert found.harmful is not None
    assert found.harmful.ess == pytest.approx(4)


def test_nothing_harmful_is_a_rate_of_zero_without_error() -> None:
    found = weighed_rate(np.zeros(6), [False] * 6, [0] * 6, [0] * 6)
    assert (found.rate, found.standard_error, found.harmful) == (0, 0, None)


def test_one_harmful_sample_alone_in_its_cell_still_has_an_error() -> None:
    assert weighed_rate([0.0, 0.0], [True, False], [0, 0], [0, 1]).standard_error > 0


def test_effective_size_and_largest_share_are_their_formulas() -> None:
    w = np.array([1.0, 2.0, 5.0])
    spread = spread_of(np.log(w) - 2000)
    assert spread.ess == pytest.approx(64 / 30)
    assert spread.largest_share == pytest.approx(5 / 8)
    assert spread.khat is None


def test_the_estimate_misses_the_truth_by_as_much_as_it_says() -> None:
    """Over 400 studies of 3 prompts x 4 distributions x 30 samples."""
    random = np.random.default_rng(0)
    estimates, variances, covered = [], [], 0
    tables = [distributions(key) for key in (1, 4, 7)]
    events = [raised(q, 0.06) for q in tables]
    truth = np.mean([q[0][event].sum() for q, event in zip(tables, events, strict=True)])
    assert 0.05 < truth < 0.06
    for _ in range(400):
        logs, harmful, prompts, strata = [], [], [], []
        for prompt, (q, event) in enumerate(zip(tables, events, strict=True)):
            drawn = np.concatenate([random.choice(q.shape[1], 30, p=row) for row in q])
            logs.append(balance_log_weights(np.log(q[0][drawn]), np.log(q[:, drawn]).T, [30] * 4))
            harmful.append(np.isin(drawn, event))
            prompts.append(np.full(120, prompt))
            strata.append(np.repeat(range(4), 30))
        found = weighed_rate(*(np.concatenate(each) for each in (logs, harmful, prompts, strata)))
        low, high = score_interval(found.rate, found.standard_error, 90)
        estimates.append(found.rate)
        variances.append(found.standard_error**2)
        covered += low <= truth <= high
    assert abs(np.mean(estimates) - truth) < 3 * np.std(estimates) / 20
    assert np.mean(variances) == pytest.approx(np.var(estimates), rel=0.25)
    assert 0.92 < covered / 400 < 0.98


@pytest.mark.parametrize(("k", "n"), [(0, 50), (1, 50), (5, 50), (25, 50), (49, 50), (50, 50), (3, 1000), (0, 3)])
def test_the_interval_of_plain_samples_is_wilsons(k: int, n: int) -> None:
    error = math.sqrt(k / n * (1 - k / n) / n)
    assert score_interval(k / n, error, n) == pytest.approx(wilson(k, n))


def test_a_rate_above_one_is_taken_for_one() -> None:
    assert score_interval(1.2, 0.1, 40) == pytest.approx(wilson(40, 40))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="need log_p"):
        balance_log_weights([0.0], [[0.0]], [1, 2])
    with pytest.raises(ValueError, match="no numbers of samples"):
        balance_log_weights([0.0], [[0.0]], [0])
    with pytest.raises(ValueError, match="as many of each"):
        weighed_rate([], [], [], [])
    with pytest.raises(ValueError, match="as many of each"):
        weighed_rate([0.0], [True], [0, 0], [0])
