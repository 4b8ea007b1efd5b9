"""What a design can show: exact floors, the published sample size, a test's own family."""

from math import comb

import numpy as np
import pytest

from datablame.patch.compare import compared, comparison
from datablame.plan.detect import detectable, outputs_needed, smallest_drop
from datablame.plan.subject import subject_of
from datablame.stats.permutation import permutation_p, smallest_p
from datablame.study_file import load_study


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (4, 5), (3, 7)])
def test_the_smallest_p_is_reached_by_separated_seeds(n: int, m: int) -> None:
    test = permutation_p(np.arange(n), 100 + np.arange(m))
    assert smallest_p(n, m) == pytest.approx(test.smallest)
    assert smallest_p(n, m) == pytest.approx(test.p)
    assert smallest_p(n, m) * comb(n + m, n) in (1, 2)


def test_ten_to_five_percent_needs_435_outputs_an_arm() -> None:
    assert 434 < outputs_needed(0.1, 0.05) <= 435


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("outputs", [60, 435, 1000])
def test_the_smallest_drop_is_the_rate_that_so_many_outputs_tell_apart(rate: float, outputs: int) -> None:
    low = smallest_drop(rate, outputs)
    if low is None:
        assert outputs_needed(rate, 0.0) > outputs
    else:
        assert outputs_needed(rate, low) == pytest.approx(outputs, rel=1e-6)
        assert 0 <= low < rate


def test_few_outputs_tell_no_rate_from_nothing() -> None:
    assert smallest_drop(0.1, 20) is None


def test_the_family_is_the_one_that_holm_adjusts_for() -> None:
    arms = ["untrained", "baseline", "random", "bm25", "gradient", "loss", "gradient-norm", "oracle", "activation"]
    overrides = [
        f"patch.arms={arms}",
        "attribute.methods=[gradient, activation, bm25, loss, gradient-norm]",
    ]
    study = load_study("organism", overrides)
    rows = [
        {
            "arm": arm,
            "protocol": "none" if arm == "untrained" else "retrain",
            "k": 0 if arm == "untrained" else 20,
            "seed": seed,
            "behaviour": "b",
            "prompt_id": "p",
            "split": "held-out",
            "alpha": 1.0,
            "label": "harmful" if (seed + place) % 3 else "harmless",
        }
        for place, arm in enumerate(arms)
        for seed in ([0] if arm == "untrained" else range(5))
    ]
    tested = compared(comparison(rows), arms, ("retrain", 20, 1.0), seed=0)
    adjusted = {row["arm"] for row in tested if row["family"] is not None}
    limits = detectable(study, subject_of(study, on_gpu=False))
    assert set(limits.family) == adjusted
    assert limits.smallest_p == pytest.approx(2 / 252)
    assert limits.smallest_adjusted_p == pytest.approx(len(adjusted) * 2 / 252)


def test_with_three_seeds_there_is_no_p() -> None:
    study = load_study("organism", ["patch.seeds=[0, 1, 2]"])
    limits = detectable(study, subject_of(study, on_gpu=False))
    assert (limits.seeds, limits.smallest_p, limits.smallest_adjusted_p) == (3, None, None)
