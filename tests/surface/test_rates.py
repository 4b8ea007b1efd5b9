from typing import Any

import pytest

from datablame.stats.intervals import wilson
from datablame.surface.rates import alpha_star, rates


def rows(prompt_id: str, behaviour: str, split: str, alpha: float, **labels: int) -> list[dict[str, Any]]:
    return [
        {"prompt_id": prompt_id, "behaviour": behaviour, "split": split, "alpha": alpha, "label": label}
        for label, n in labels.items()
        for _ in range(n)
    ]


def test_every_cell_is_counted_and_pooled_by_split() -> None:
    table = rates(
        [
            *rows("p", "x", "held-out", 1.0, harmful=3, refused=1, harmless=2, incoherent=3, unscored=1),
            *rows("p", "x", "held-out", 0.0, harmless=10),
            *rows("q", "y", "held-out", 1.0, harmful=5, harmless=5),
            *rows("r", "x", "attribution", 0.0, unscored=2),
        ]
    )
    assert [(rate.split, rate.prompt_id, rate.behaviour, rate.alpha, rate.n) for rate in table] == [
        ("attribution", "r", "x", 0.0, 2),
        ("attribution", "*", "x", 0.0, 2),
        ("attribution", "*", "*", 0.0, 2),
        ("held-out", "p", "x", 0.0, 10),
        ("held-out", "p", "x", 1.0, 10),
        ("held-out", "q", "y", 1.0, 10),
        ("held-out", "*", "x", 0.0, 10),
        ("held-out", "*", "x", 1.0, 10),
        ("held-out", "*", "y", 1.0, 10),
        ("held-out", "*", "*", 0.0, 10),
        ("held-out", "*", "*", 1.0, 20),
    ]
    first = table[4]
    assert (first.harmful, first.refused, first.harmless, first.incoherent, first.unscored) == (3, 1, 2, 3, 1)
    assert first.rate == 3 / 9
    assert (first.low, first.high) == tuple(wilson(3, 9))
    assert table[-1].rate == 8 / 19


def test_nothing_scored_is_no_rate() -> None:
    (cell, *_) = rates(rows("r", "x", "attribution", 0.0, unscored=2))
    assert (cell.rate, cell.low, cell.high) == (None, None, None)


def test_no_samples_have_no_rates() -> None:
    assert rates([]) == []


def test_alpha_star_is_the_largest_that_reads() -> None:
    samples = [
        *rows("p", "x", "attribution", 0.0, harmless=10),
        *rows("p", "x", "attribution", 0.5, harmless=8, incoherent=2),
        *rows("p", "x", "attribution", 1.0, harmful=4, incoherent=1, unscored=5),
        *rows("p", "x", "attribution", 2.0, harmful=7, incoherent=3),
        *rows("q", "x", "held-out", 2.0, harmful=990),
    ]
    star = alpha_star(samples, 0.8)
    assert star.alpha == 1.0
    assert star.coherence == pytest.approx({0.0: 1.0, 0.5: 0.8, 1.0: 0.8, 2.0: 0.7})


def test_no_alpha_above_0_that_reads_is_no_alpha_star() -> None:
    samples = [
        *rows("p", "x", "attribution", 0.0, harmless=10),
        *rows("p", "x", "attribution", -1.0, harmless=10),
        *rows("p", "x", "attribution", 1.0, incoherent=10),
        *rows("p", "x", "attribution", 2.0, unscored=10),
    ]
    assert alpha_star(samples, 0.8).alpha is None
