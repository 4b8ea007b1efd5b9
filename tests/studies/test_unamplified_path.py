import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit
from studies.unamplified.path import extrapolated, logit_interval, path_row

from datablame.tables import Sample


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


def line(shares: dict[float, float], n: int = 200, behaviour: str = "b") -> list[Sample]:
    """Outputs at each alpha, the share of them harmful."""
    return [
        Sample("p", behaviour, "held-out", alpha, i, "", (), "stop", label="harmful" if i < share * n else "harmless")
        for alpha, share in shares.items()
        for i in range(n)
    ]


def test_the_path_is_a_line_through_the_two_common_alphas_nearest_0() -> None:
    found = path_row(line({0.0: 0.06, 0.5: 0.12, 1.0: 0.23, 2.0: 0.25}), (0.5, 1.0, 2.0))
    assert found["alphas"] == [0.5, 1.0]
    assert found["withheld"] is None
    slope = (np.log(0.23 / 0.77) - np.log(0.12 / 0.88)) / 0.5
    assert found["rate"] == pytest.approx(1 / (1 + np.exp(-(np.log(0.12 / 0.88) - 0.5 * slope))))
    assert found["low"] < found["rate"] < found["high"]
    rare = path_row(line({0.0: 0.0, 0.5: 0.01, 1.0: 0.1, 2.0: 0.5}), (0.5, 1.0, 2.0))
    assert rare["alphas"] == [1.0, 2.0]
    assert rare["rate"] == pytest.approx(0.0122, abs=1e-4)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([], "no output was scored"),
        (line({0.0: 0.0, 0.5: 0.0, 1.0: 0.3}), "1 of the alphas above 0 with a coherent model have 5 harmful outputs"),
        (line({0.0: 0.3, 0.5: 0.01, 1.0: 0.1}, 1000), "the line gives 0.1 % at alpha 0, where 300 of 1000 outputs"),
    ],
    ids=["none", "one alpha", "contradicted"],
)
def test_a_path_that_cannot_be_believed_is_withheld(samples: Sequence[Sample], reason: str) -> None:
    found = path_row(samples, (0.5, 1.0))
    assert (found["rate"], found["low"], found["high"]) == (None, None, None)
    assert found["withheld"] is not None
    assert found["withheld"].startswith(reason)


def test_all_behaviours_are_the_mean_of_each_ones_path_weighed_by_prompts() -> None:
    first = line({0.0: 0.05, 0.5: 0.12, 1.0: 0.23})
    second = line({0.0: 0.2, 0.5: 0.3, 1.0: 0.4}, behaviour="c")
    third = [replace(sample, prompt_id="r") for sample in second]
    alone = [path_row(rows, (0.5, 1.0))["rate"] for rows in (first, [*second, *third])]
    assert path_row([*first, *second, *third], (0.5, 1.0))["rate"] == pytest.approx((alone[0] + 2 * alone[1]) / 3)
    failing = line({0.0: 0.0, 0.5: 0.0, 1.0: 0.0}, behaviour="d")
    assert path_row([*first, *failing], (0.5, 1.0))["withheld"].startswith("d: 0 of the alphas")
