"""Borda's count and reciprocal ranks: exact against comparisons made one by one, whatever is tied or left open."""

import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.attribute.test_methods import evidence
from tests.oracles.borda import naive_borda, naive_reciprocal_ranks

from datablame.attribute.methods.ensemble import ensemble, ensemble_rrf, reciprocal_ranks
from datablame.attribute.rankings import borda
from datablame.attribute.registry import Votes, chosen
from datablame.config.attribute import Attribute

OPEN = math.nan
SCORES = st.integers(1, 4).flatmap(
    lambda voters: st.lists(
        st.lists(st.sampled_from([OPEN, -1.0, 0.0, 0.5, 2.0, 7.0]), min_size=voters, max_size=voters),
        min_size=1,
        max_size=9,
    )
)


@settings(max_examples=200)
@given(SCORES)
def test_points_are_those_of_every_comparison_made_one_by_one(scores: list[list[float]]) -> None:
    assert borda(np.array(scores)).tolist() == pytest.approx(naive_borda(scores), abs=1e-12)


@settings(max_examples=200)
@given(SCORES)
def test_reciprocal_ranks_are_those_of_every_comparison_made_one_by_one(scores: list[list[float]]) -> None:
    expected = naive_reciprocal_ranks(scores)
    assert reciprocal_ranks(np.array(scores)).tolist() == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_the_first_of_two_rankings_beats_the_second_of_both_by_reciprocal_rank() -> None:
    scores = np.array([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]])
    first, second, third = reciprocal_ranks(scores)
    assert first == third == (1 / 61 + 1 / 63) / 2
    assert second == 1 / 62 < first


@settings(max_examples=50)
@given(SCORES, st.randoms(use_true_random=False))
def test_neither_the_order_of_documents_nor_that_of_voters_counts(scores: list[list[float]], chance: Random) -> None:
    rows, columns = list(range(len(scores))), list(range(len(scores[0])))
    chance.shuffle(rows)
    chance.shuffle(columns)
    matrix = np.array(scores)
    for join in (borda, reciprocal_ranks):
        np.testing.assert_array_equal(join(matrix[rows][:, columns]), join(matrix)[rows])


def test_only_the_order_of_a_voters_scores_counts() -> None:
    scores = np.array([[3.0, 1.0], [1.0, 5.0], [2.0, 5.0]])
    np.testing.assert_array_equal(borda(scores), borda(np.stack([np.exp(scores[:, 0]), 100 * scores[:, 1] - 7], 1)))


def test_a_document_that_nobody_scored_stands_in_the_middle_and_a_silent_voter_changes_no_order() -> None:
    scores = np.array([[4.0, 1.0], [3.0, 2.0], [OPEN, OPEN], [1.0, 0.5]])
    points = borda(scores)
    assert points[2] == 0.5
    joined = borda(np.concatenate([scores, np.full((4, 1), OPEN)], 1))
    np.testing.assert_allclose(joined - 0.5, (points - 0.5) * 2 / 3)


def test_a_voter_that_ranks_candidates_only_makes_the_ensemble_ask_about_candidates() -> None:
    votes = {"a": np.array([[3.0, 1.0], [2.0, 2.0], [9.0, 3.0]]), "b": np.array([[1.0, 1.0], [2.0, 5.0], [9.0, OPEN]])}
    given = evidence()
    asked = np.array([[True, False], [True, False], [False, True]])
    candidates = replace(given, by_type={Votes: Votes(votes, asked)})
    np.testing.assert_array_equal(ensemble(candidates), [[0.5, OPEN], [0.5, OPEN], [OPEN, 0.5]])
    everywhere = replace(given, by_type={Votes: Votes(votes, np.full((3, 2), True))})
    np.testing.assert_allclose(ensemble(everywhere), [[0.25, 0.125], [0.25, 0.625], [1.0, 0.75]])
    last, middle = (1 / 63 + 1 / 62) / 2, (1 / 62 + 1 / 61) / 2
    np.testing.assert_allclose(ensemble_rrf(everywhere), [[last, last], [last, middle], [1 / 61, 1 / 61]])
    np.testing.assert_array_equal(np.isnan(ensemble_rrf(candidates)), ~asked)


def test_controls_have_no_vote_and_the_ensemble_says_who_has() -> None:
    methods = ("gradient", "bm25", "ensemble", "activation", "loss", "llm-judge")
    joint = next(method for method in chosen(Attribute(methods=methods)) if method.name == "ensemble")
    assert joint.description.endswith("ranked below: gradient, activation, llm-judge.")
    assert not joint.whole_pool
    assert not joint.control
    whole = chosen(Attribute(methods=("gradient", "activation", "ensemble")))[2]
    assert whole.whole_pool
