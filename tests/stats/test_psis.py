import math

import numpy as np
import pytest
from scipy.stats import norm

from datablame.stats.importance import pareto_khat, tail_size

SIZES = (25, 30, 100, 225, 400, 900, 2500, 10000)
"""Numbers of weights at which the paper's tail has as many as arviz's, which rounds down."""


def even(kind: str, n: int) -> np.ndarray:
    """Log weights at even steps of a distribution, so that no random generator has a say."""
    u = (np.arange(n) + 0.5) / n
    logs = {
        "normal 1": norm.ppf(u),
        "normal 2": 2 * norm.ppf(u),
        "pareto .3": -0.3 * np.log(1 - u),
        "pareto .9": -0.9 * np.log(1 - u),
        "bounded": np.log(u),
        "skewed": np.log(1e-3 + u**8),
    }
    return np.asarray(logs[kind])


REFERENCE = {
    ("normal 1", 30): 0.383427308,
    ("normal 1", 400): 0.313998468,
    ("normal 1", 2500): 0.271885336,
    ("normal 2", 30): 0.530896313,
    ("normal 2", 400): 0.695614665,
    ("normal 2", 2500): 0.637738393,
    ("pareto .3", 30): 0.385465914,
    ("pareto .3", 400): 0.335608321,
    ("pareto .3", 2500): 0.315372685,
    ("pareto .9", 30): 0.549017116,
    ("pareto .9", 400): 0.818370417,
    ("pareto .9", 2500): 0.862953047,
    ("bounded", 30): 0.027554796,
    ("bounded", 400): -0.736254998,
    ("bounded", 2500): -0.874994907,
    ("skewed", 30): 0.226350547,
    ("skewed", 400): -0.459581797,
    ("skewed", 2500): -0.770504082,
}
"""What psislw of arviz-stats 0.8.0 gives for these weights."""


@pytest.mark.parametrize(("kind", "n"), REFERENCE, ids=str)
def test_khat_is_the_published_one(kind: str, n: int) -> None:
    assert pareto_khat(even(kind, n)) == pytest.approx(REFERENCE[kind, n], abs=1e-6)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("key", range(5))
def test_khat_is_that_of_arviz(n: int, key: int) -> None:
    arviz = pytest.importorskip("arviz_stats.base", reason="arviz-stats is no dependency; pip install it to compare")
    random = np.random.default_rng(key)
    for spread in (0.3, 1.0, 3.0):
        log_weights = spread * random.normal(size=n)
        assert pareto_khat(log_weights) == pytest.approx(float(arviz.array_stats.psislw(-log_weights)[1]), abs=1e-9)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8, 1.2])
def test_khat_finds_the_shape_of_a_pareto_tail(k: float) -> None:
    random = np.random.default_rng(1)
    found = [pareto_khat(k * random.exponential(size=20000)) for _ in range(20)]
    assert np.mean([each for each in found if each is not None]) == pytest.approx(k, abs=0.06)


@pytest.mark.parametrize("kind", ["normal 2", "pareto .9", "bounded", "skewed"])
@pytest.mark.parametrize("shift", [-700.0, -3.0, 0.0, 900.0])
def test_neither_scale_nor_order_of_the_weights_matters(kind: str, shift: float) -> None:
    logs = even(kind, 300)
    shuffled = np.random.default_rng(0).permutation(logs) + shift
    assert pareto_khat(shuffled) == pytest.approx(pareto_khat(logs), abs=1e-9)


@pytest.mark.parametrize("n", [0, 1, 10, 20])
def test_too_few_weights_have_no_tail_to_fit(n: int) -> None:
    assert pareto_khat(np.arange(n) / 10) is None


def test_weights_that_are_alike_have_no_tail() -> None:
    assert pareto_khat(np.zeros(100)) == -math.inf
    assert pareto_khat(np.concatenate([np.linspace(-9, -1, 400), np.full(200, 1.3)])) == -math.inf
    assert pareto_khat(1e-9 * norm.ppf((np.arange(100) + 0.5) / 100)) == -math.inf


def test_the_cutoff_tied_with_all_but_a_few_leaves_nothing_to_fit() -> None:
    assert pareto_khat([*[0.0] * 97, 1.0, 2.0, 3.0]) is None


def test_a_weight_of_zero_is_a_weight() -> None:
    logs = even("normal 1", 100)
    assert pareto_khat([*logs[10:], *[-math.inf] * 10]) == pareto_khat(logs)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        pareto_khat([*range(50), bad])


def test_the_tail_is_a_fifth_or_three_roots() -> None:
    assert [tail_size(n) for n in (0, 5, 25, 26, 225, 226, 1000)] == [0, 1, 5, 6, 45, 46, 95]
