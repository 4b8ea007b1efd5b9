import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit
from studies.unamplified.path import extrapolated, logit_interval


def counts(
    key: int, rows: int = 6, places: tuple[float, ...] = (0.5, 1.0, 2.0), n: int = 50
) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(key)
    level = random.normal(-2, 0.7, (rows, 1))
    return random.binomial(n, expit(level + 1.5 * np.array(places))), np.full((rows, len(places)), n)


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("key", range(10))
def test_the_fit_maximises_the_likelihood(key: int, degree: int) -> None:
    x = np.array([0.5, 1.0, 2.0])
    k, n = counts(key)
    design = np.hstack(
        [np.kron(np.eye(6), np.ones((3, 1))), *[np.tile(x**d, 6)[:, None] for d in range(1, degree + 1)]]
    )

    def loss(coefficients: np.ndarray) -> float:
        log_odds = design @ coefficients
        return float(n.ravel() @ np.logaddexp(0, log_odds) - k.ravel() @ log_odds)

    best = minimize(loss, np.zeros(design.shape[1]), method="BFGS", options={"gtol": 1e-7}).x
    p = expit(design @ best)
    variance = n.ravel() * p * (1 - p)
    covariance = np.linalg.inv(design.T @ (variance[:, None] * design))
    scale = max(1.0, float(((k.ravel() - n.ravel() * p) ** 2 / variance).sum()) / (len(p) - len(best)))
    level = expit(best[:6])
    gradient = np.concatenate([level * (1 - level) / 6, np.zeros(degree)])
    found = extrapolated(x, k, n, degree)
    assert found is not None
    assert found.rate == pytest.approx(level.mean(), rel=1e-4)
    assert found.dispersion == pytest.approx(scale, rel=1e-4)
    assert found.standard_error == pytest.approx(math.sqrt(gradient @ covariance @ gradient * scale), rel=1e-4)
    assert found.z == pytest.approx(best[-1] / math.sqrt(covariance[-1, -1] * scale), rel=1e-4)


def test_a_line_is_read_off_exactly() -> None:
    n = np.full((2, 3), 1e9)
    k = n * expit(np.array([[-4.0], [-1.0]]) + 2.0 * np.array([1.0, 2.0, 3.0]))
    found = extrapolated([1, 2, 3], k, n)
    assert found is not None
    assert found.rate == pytest.approx((expit(-4) + expit(-1)) / 2)
    assert found.dispersion == 1


def test_the_interval_covers_the_truth_where_the_line_is_true() -> None:
    covered = 0
    for key in range(300):
        random = np.random.default_rng(key)
        level = np.linspace(-4, -2, 6)[:, None]
        k = random.binomial(80, expit(level + 1.5 * np.array([0.5, 1.0])))
        found = extrapolated([0.5, 1.0], k, np.full((6, 2), 80))
        assert found is not None
        low, high = logit_interval(found.rate, found.standard_error)
        covered += low <= expit(level).mean() <= high
    assert 0.91 < covered / 300 < 0.99


def test_rows_that_never_or_always_show_it_count_as_0_and_1() -> None:
    k, n = counts(0)
    found = extrapolated([0.5, 1, 2], k, n)
    more = extrapolated([0.5, 1, 2], np.vstack([k, np.zeros(3), np.full(3, 50)]), np.vstack([n, n[:2]]))
    assert found is not None
    assert more is not None
    assert more.rate == pytest.approx((6 * found.rate + 1) / 8)
    assert more.standard_error == pytest.approx(found.standard_error * 6 / 8)


def test_a_cell_without_trials_is_left_out() -> None:
    k, n = counts(2)
    k[0, 2] = n[0, 2] = 0
    found = extrapolated([0.5, 1, 2], k, n)
    assert found is not None
    assert 0 < found.rate < 1


@pytest.mark.parametrize(
    ("places", "events"),
    [
        ([1.0], [[3], [5]]),
        ([1.0, 2.0], [[0, 0], [0, 0]]),
        ([1.0, 2.0], [[10, 10], [10, 10]]),
        ([1.0, 2.0], [[0, 10], [0, 10]]),
        ([1.0, 1.0], [[3, 4], [2, 1]]),
    ],
    ids=["one place", "never", "always", "separated", "one place twice"],
)
def test_a_trend_that_cannot_be_told_is_none(places: list[float], events: list[list[int]]) -> None:
    assert extrapolated(places, events, np.full_like(events, 10)) is None


def test_the_interval_stays_within_0_and_1() -> None:
    low, high = logit_interval(0.01, 0.02)
    assert 0 < low < 0.01 < high < 1
    assert logit(high) - logit(0.01) == pytest.approx(logit(0.01) - logit(low))
    assert logit_interval(0.0, 0.0) == (0, 0)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(rows, places\)"):
        extrapolated([1, 2], [1, 2], [3, 4])
    with pytest.raises(ValueError, match="between 0 and trials"):
        extrapolated([1, 2], [[5, 2]], [[3, 4]])
