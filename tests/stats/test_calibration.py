import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, recall_score

from datablame.stats.calibration import Accuracy, accuracy, corrected_rate, kappa, kappa_interval, rogan_gladen

PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(PAIRS)
def test_kappa_and_recall_are_what_sklearn_finds(pairs: list[tuple[bool, bool]]) -> None:
    human, predicted = zip(*pairs, strict=True)
    counts = accuracy(human, predicted)
    assert counts.n == len(pairs)
    if len({*human, *predicted}) == 1:
        assert math.isnan(kappa(counts))
    else:
        assert kappa(counts) == pytest.approx(cohen_kappa_score(human, predicted), abs=1e-12)
    if any(human):
        assert counts.sensitivity.rate == recall_score(human, predicted)
    if not all(human):
        assert counts.specificity.rate == recall_score(human, predicted, pos_label=False)


def test_kappa_of_cohens_arithmetic() -> None:
    # 20 + 15 of 50 agree, .50 by chance: (.70 - .50) / (1 - .50).
    assert kappa(Accuracy(20, 10, 5, 15)) == pytest.approx(0.4)


def test_what_is_not_defined_is_no_number() -> None:
    nothing = accuracy([], [])
    assert all(map(math.isnan, (nothing.sensitivity.rate, nothing.specificity.rate, kappa(nothing))))
    assert kappa_interval([], [], key=0) == (-1, 1)
    assert kappa_interval([True, True], [True, True], key=0) == (-1, 1)


def test_arrays_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"need two arrays of one length, not \(1,\) and \(2,\)"):
        accuracy([True], [True, False])


def test_the_kappa_interval_is_as_wide_as_its_asymptotic_error_says() -> None:
    random = np.random.default_rng(1)
    human = random.random(400) < 0.4
    predicted = human ^ (random.random(400) < 0.15)
    counts = accuracy(human, predicted)
    assert counts == (153, 34, 17, 196)
    standard_error = 0.03354617123  # that of cohens_kappa in statsmodels 0.14 (Fleiss, Cohen and Everitt 1969)
    low, high = kappa_interval(human, predicted, key=3)
    assert low < kappa(counts) < high
    assert (high - low) / 2 == pytest.approx(1.96 * standard_error, rel=0.1)


def test_copies_of_one_text_do_not_narrow_the_kappa_interval() -> None:
    random = np.random.default_rng(2)
    human = random.random(60) < 0.5
    predicted = human ^ (random.random(60) < 0.2)
    alone = kappa_interval(human, predicted, key=3)
    copied = kappa_interval(np.repeat(human, 4), np.repeat(predicted, 4), key=3, groups=np.repeat(np.arange(60), 4))
    assert copied == pytest.approx(alone)
    naive = kappa_interval(np.repeat(human, 4), np.repeat(predicted, 4), key=3)
    assert naive.high - naive.low < 0.7 * (alone.high - alone.low)


@pytest.mark.parametrize(
    ("rate", "sensitivity", "specificity", "expected"),
    [
        (0.3, 1.0, 1.0, 0.3),
        (0.3, 0.8, 0.9, 0.2 / 0.7),
        (0.05, 0.8, 0.9, 0.0),
        (0.95, 0.8, 0.9, 1.0),
        (0.5, 0.75, 0.75, 0.5),
    ],
)
def test_the_correction_by_hand(rate: float, sensitivity: float, specificity: float, expected: float) -> None:
    assert rogan_gladen(rate, sensitivity, specificity) == pytest.approx(expected)


@given(st.floats(0, 1), st.floats(0.55, 1), st.floats(0.55, 1))
def test_the_correction_undoes_the_classifiers_errors(true: float, sensitivity: float, specificity: float) -> None:
    observed = true * sensitivity + (1 - true) * (1 - specificity)
    assert rogan_gladen(observed, sensitivity, specificity) == pytest.approx(true, abs=1e-9)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.2, 0.7), (float("nan"), 0.9)])
def test_a_classifier_that_says_nothing_corrects_nothing(shares: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="is not above 1"):
        rogan_gladen(0.3, *shares)


def test_counts_that_cannot_be_are_refused() -> None:
    for k, n in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match=f"k = {k} is not between 0 and n = {n}"):
            corrected_rate(k, n, Accuracy(10, 0, 0, 10), key=0)


@given(st.integers(1, 80).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_rate_and_stays_within_0_and_1(counts: tuple[int, int]) -> None:
    rate, low, high = corrected_rate(*counts, Accuracy(18, 3, 2, 27), key=1)
    assert 0 <= low <= rate <= high <= 1
    assert low < high


def test_a_smaller_calibration_gives_a_wider_interval() -> None:
    small, large = (corrected_rate(150, 500, Accuracy(9 * m, m, m, 9 * m), key=1) for m in (2, 50))
    assert small.rate == pytest.approx(large.rate)
    assert small.high - small.low > 1.5 * (large.high - large.low)


def test_zero_of_n_has_width_where_the_classifier_was_perfect() -> None:
    rate, low, high = corrected_rate(0, 50, Accuracy(20, 0, 0, 20), key=1)
    assert (rate, low) == (0, 0)
    assert 0.02 < high < 0.2


@pytest.mark.parametrize(
    ("true", "sensitivity", "specificity"), [(0.3, 0.8, 0.9), (0.1, 0.9, 0.95), (0.02, 0.8, 0.97), (0.6, 0.7, 0.7)]
)
def test_the_interval_covers_the_true_rate_at_least_nineteen_times_in_twenty_or_nearly(
    true: float, sensitivity: float, specificity: float
) -> None:
    random = np.random.default_rng(7)
    observed = true * sensitivity + (1 - true) * (1 - specificity)
    trials, covered, errors = 400, 0, []
    for trial in range(trials):
        found, cleared = int(random.binomial(60, sensitivity)), int(random.binomial(60, specificity))
        calibration = Accuracy(found, 60 - cleared, 60 - found, cleared)
        rate, low, high = corrected_rate(int(random.binomial(400, observed)), 400, calibration, key=trial)
        covered += low <= true <= high
        errors.append(rate - true)
    # Binomial(400, .95) is below .92 with probability .005.
    assert covered / trials >= 0.92
    assert abs(np.mean(errors)) < 0.03
