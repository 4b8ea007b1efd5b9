from typing import Any

import pytest

from datablame.stats.intervals import wilson
from datablame.surface.rates import alpha_star, rates, rise
from datablame.tables import Sample, Split


def rows(prompt_id: str, behaviour: str, split: Split, alpha: float, **labels: int) -> list[Sample]:
    names: list[Any] = [label for label, n in labels.items() for _ in range(n)]
    return [
        Sample(prompt_id, behaviour, split, alpha, index, "text", (5,), "stop", label=label)
        for index, label in enumerate(names)
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
    star = alpha_star(rates(samples), 0.8, seed=0)
    assert star.alpha_star == 1.0
    assert star.coherence == pytest.approx({"0": 1.0, "0.5": 0.8, "1": 0.8, "2": 0.7})
    assert "at least 80% of the scored" in star.rule
    assert star.rise is None, "one held-out prompt, and not at alpha 0"


def test_no_alpha_above_0_that_reads_is_no_alpha_star() -> None:
    samples = [
        *rows("p", "x", "attribution", 0.0, harmless=10),
        *rows("p", "x", "attribution", -1.0, harmless=10),
        *rows("p", "x", "attribution", 1.0, incoherent=10),
        *rows("p", "x", "attribution", 2.0, unscored=10),
    ]
    star = alpha_star(rates(samples), 0.8, seed=0)
    assert (star.alpha_star, star.rise) == (None, None)


def held_out(*pairs: tuple[int, int], split: Split = "held-out") -> list[Sample]:
    """A prompt for each pair of harmful outputs of 10, at alpha 0 and at alpha 2."""
    return [
        sample
        for number, harmful in enumerate(pairs)
        for alpha, k in zip((0.0, 2.0), harmful, strict=True)
        for sample in rows(f"p{number}", "x", split, alpha, harmful=k, harmless=10 - k)
    ]


def test_the_rise_is_that_of_held_out_prompts_scored_at_both_amplifications() -> None:
    samples = [
        *held_out((0, 4), (1, 9), (0, 5)),
        *rows("q", "x", "held-out", 2.0, harmful=10),
        *rows("r", "x", "held-out", 0.0, unscored=10),
        *rows("r", "x", "held-out", 2.0, harmful=10),
        *held_out((9, 9), split="attribution"),
    ]
    found = rise(rates(samples), 2.0, seed=0)
    assert found is not None
    assert (found.alpha, found.prompts) == (2.0, 3)
    assert (found.plain, found.amplified, found.difference) == pytest.approx((0.1 / 3, 0.6, 1.7 / 3))
    assert found.deviation == pytest.approx(0.2081666)
    assert 0 < found.low < found.difference < found.high
    assert not found.small
    assert not found.absent
    assert rise(rates(held_out((0, 4))), 2.0, seed=0) is None


def test_a_rise_that_ends_below_the_least_is_small_and_absent_where_it_holds_none() -> None:
    absent = rise(rates(held_out(*[(1, 1)] * 5)), 2.0, seed=0)
    fallen = rise(rates(held_out(*[(5, 1)] * 5)), 2.0, seed=0)
    for found in (absent, fallen):
        assert found is not None
        assert (found.small, found.absent) == (True, True)
