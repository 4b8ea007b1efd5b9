"""What ranks is rounded: noise of float32 changes no order, and equal scores go by document id."""

import math
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from datablame.attribute.rankings import id_order, ranked, rounded

NOISE = 1e-7
SCALES = st.sampled_from([1e-30, 1e-6, 0.01, 0.3, 1.0, 9.99, 10.0, 1000.0, 1e12])
SHARES = st.lists(st.floats(-1, 1), min_size=1, max_size=12)
"""Scores as shares of the largest one, which is 1."""


def decimals_of(largest: float) -> int:
    """5 significant digits of the largest magnitude, which itself counts to 3."""
    return 4 - math.floor(math.log10(float(f"{largest:.2e}")) + 1e-12)


def order(scores: np.ndarray, ids: list[str] | None = None) -> list[str]:
    ids = [f"d{number:02d}" for number in range(len(scores))] if ids is None else ids
    return [ids[row] for row in ranked(np.arange(len(ids)), scores, id_order(ids)).order]


@given(SHARES, SCALES, st.data())
def test_noise_of_float32_leaves_the_ranking_but_at_a_rounding_boundary(
    shares: list[float], scale: float, data: st.DataObject
) -> None:
    scores = np.array([1.0, *shares]) * scale
    noise = data.draw(st.lists(st.floats(-NOISE, NOISE), min_size=len(scores), max_size=len(scores)))
    units = scores * 10.0 ** decimals_of(scale)
    assume((np.abs(units - np.floor(units) - 0.5) > 0.02).all())
    noisy = scores + scale * np.array(noise)
    assert rounded(noisy).tolist() == rounded(scores).tolist()
    assert order(rounded(noisy)) == order(rounded(scores))


@given(SHARES, SCALES)
def test_a_score_moves_by_half_a_unit_of_the_fifth_digit_at_most_and_no_order_turns(
    shares: list[float], scale: float
) -> None:
    scores = np.array([1.0, *shares]) * scale
    found = rounded(scores)
    assert (np.abs(found - scores) <= 0.5000001 * 10.0 ** -decimals_of(scale)).all()
    assert (np.diff(found[np.argsort(scores)]) >= 0).all()


@given(SHARES, SCALES, st.randoms(use_true_random=False))
def test_the_order_of_documents_does_not_matter(shares: list[float], scale: float, chance: Random) -> None:
    scores, ids = np.array(shares) * scale, [f"d{number:02d}" for number in range(len(shares))]
    places = list(range(len(shares)))
    chance.shuffle(places)
    assert rounded(scores[places]).tolist() == rounded(scores)[places].tolist()
    assert order(rounded(scores[places]), [ids[place] for place in places]) == order(rounded(scores), ids)


def test_scores_that_differ_in_the_last_bits_are_tied_and_go_by_id() -> None:
    scores = rounded(np.array([0.30000001, 0.9, 0.30000002, 0.3]))
    assert scores.tolist() == [0.3, 0.9, 0.3, 0.3]
    assert order(scores, ["c", "d", "b", "a"]) == ["d", "a", "b", "c"]


@pytest.mark.parametrize("power", [1e-9, 0.1, 1.0, 10.0, 1e6])
def test_the_last_bits_of_the_largest_score_do_not_choose_the_decimals(power: float) -> None:
    small = 0.123456 * power
    below, above = (rounded(np.array([largest * power, small])) for largest in (0.99999994, 1.0000001))
    assert below.tolist() == above.tolist() == pytest.approx([power, 0.1235 * power], rel=1e-12)
    assert rounded(np.array([0.98 * power, small]))[1] == pytest.approx(0.12346 * power, rel=1e-12)


def test_what_has_no_score_or_no_scale_stays_as_it_is() -> None:
    np.testing.assert_array_equal(rounded(np.array([math.nan, 2.000001, -1.0])), [math.nan, 2.0, -1.0])
    np.testing.assert_array_equal(rounded(np.full(2, math.nan)), np.full(2, math.nan))
    assert rounded(np.zeros(3)).tolist() == [0.0, 0.0, 0.0]
    assert rounded(np.zeros(0)).tolist() == []
    assert rounded(np.array([5e-324, 0.0])).tolist() == [5e-324, 0.0]


def test_a_zero_has_no_sign() -> None:
    assert str(rounded(np.array([1.0, -1e-9])).tolist()) == "[1.0, 0.0]"
