import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

from datablame.stats.agreement import krippendorff_alpha

RATINGS = st.tuples(st.integers(1, 4), st.integers(0, 8)).flatmap(
    lambda size: st.lists(
        st.lists(st.sampled_from(["harmful", "refused", "harmless", None]), min_size=size[1], max_size=size[1]),
        min_size=size[0],
        max_size=size[0],
    )
)


def row(text: str) -> list[str | None]:
    return [None if label == "." else label for label in text.split()]


def by_pairs(ratings: list[list[str | None]]) -> float:
    """The definition: disagreement of all pairs within items over that of all pairs whatsoever."""
    observed = 0.0
    pairable: list[str] = []
    for item in zip(*ratings, strict=True):
        labels = [label for label in item if label is not None]
        if len(labels) >= 2:
            observed += sum(a != b for a, b in permutations(labels, 2)) / (len(labels) - 1)
            pairable += labels
    if len(set(pairable)) < 2:
        return math.nan
    n = len(pairable)
    expected: float = sum(a != b for a, b in permutations(pairable, 2)) / (n - 1)
    return 1 - observed / expected


@pytest.mark.parametrize(
    ("ratings", "alpha"),
    [
        # Krippendorff (2011), sections A, B and C.
        (["0 1 0 0 0 0 0 0 1 0", "1 1 1 0 0 1 0 0 0 0"], 0.095),
        (["a a b b d c c c e d d a", "b a b b b c c c e d d d"], 0.692),
        (
            [
                "1 2 3 3 2 1 4 1 2 . . .",
                "1 2 3 3 2 2 4 1 2 5 . 3",
                ". 3 3 3 2 3 4 2 2 5 1 .",
                "1 2 3 3 2 4 4 1 2 5 1 .",
            ],
            0.743,
        ),
    ],
)
def test_the_published_examples(ratings: list[str], alpha: float) -> None:
    assert krippendorff_alpha([row(text) for text in ratings]) == pytest.approx(alpha, abs=5e-4)


@given(RATINGS)
def test_it_is_its_definition_over_pairs(ratings: list[list[str | None]]) -> None:
    assert krippendorff_alpha(ratings) == pytest.approx(by_pairs(ratings), nan_ok=True)


@pytest.mark.parametrize("key", range(10))
def test_complete_ratings_give_fleiss_kappa_but_for_its_small_sample_term(key: int) -> None:
    ratings = np.random.default_rng(key).integers(0, 3, (2 + key % 3, 20))
    kappa = fleiss_kappa(aggregate_raters(ratings.T)[0])
    assert krippendorff_alpha(ratings.tolist()) == pytest.approx(1 - (1 - kappa) * (1 - 1 / ratings.size))


@given(RATINGS)
def test_neither_the_order_of_raters_nor_of_items_matters(ratings: list[list[str | None]]) -> None:
    turned = [list(reversed(rater)) for rater in reversed(ratings)]
    assert krippendorff_alpha(turned) == pytest.approx(krippendorff_alpha(ratings), nan_ok=True)


def test_perfect_agreement_is_one_and_what_says_nothing_is_no_number() -> None:
    assert krippendorff_alpha([["a", "b", "a"], ["a", "b", None]]) == 1
    nothing: list[list[list[str | None]]] = [
        [],
        [[]],
        [["a", "b"]],
        [["a", "a"], ["a", "a"]],
        [[None, None], [None, None]],
        [["a", None], [None, "b"]],
    ]
    assert all(math.isnan(krippendorff_alpha(ratings)) for ratings in nothing)


def test_chance_gives_about_zero() -> None:
    ratings: list[list[int]] = np.random.default_rng(0).integers(0, 4, (3, 4000)).tolist()
    assert abs(krippendorff_alpha(ratings)) < 0.02


def test_raters_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one entry an item, not \[2, 1\] entries"):
        krippendorff_alpha([["a", "b"], ["a"]])
