"""What a design can show: exact floors, power by simulation, a test's own family."""

from math import comb

import numpy as np
import pytest

from datablame.patch.compare import compared, comparison
from datablame.plan.detect import Detectable, detectable
from datablame.plan.subject import subject_of
from datablame.stats.permutation import permutation_p, smallest_p
from datablame.stats.power import powers
from datablame.stats.simulated import Design
from datablame.study.file import load_study


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (4, 5), (3, 7)])
def test_the_smallest_p_is_reached_by_separated_seeds(n: int, m: int) -> None:
    test = permutation_p(np.arange(n), 100 + np.arange(m))
    assert smallest_p(n, m) == pytest.approx(test.smallest)
    assert smallest_p(n, m) == pytest.approx(test.p)
    assert smallest_p(n, m) * comb(n + m, n) in (1, 2)


def told(*overrides: str, name: str = "organism") -> Detectable:
    study = load_study(name, list(overrides))
    return detectable(study, subject_of(study, on_gpu=False))


def test_power_is_that_of_the_studys_own_design() -> None:
    overrides = ["patch.seeds={retrain: [0, 1, 2, 3, 4, 5], continue: [0]}", "patch.samples=7", "patch.margin=0.3"]
    limits = told(*overrides, "patch.arms=[untrained, baseline, random, gradient, activation, a-a]")
    assert [(each.what, each.from_rate, round(each.to_rate, 6)) for each in limits.effects] == [
        ("a drop of 30 %", 0.1, 0.07),
        ("a halving", 0.1, 0.05),
        ("a cure", 0.1, 0.0),
        ("a drop of 30 %", 0.5, 0.35),
        ("a halving", 0.5, 0.25),
        ("a cure", 0.5, 0.0),
    ]
    prompts = limits.outputs // 7
    for each in limits.effects:
        again = powers(Design(each.from_rate, each.to_rate, prompts, 7, 6, 2), [each.to_rate], 1000, key=1)[0]
        assert each.power.low - 0.05 < again.rate < each.power.high + 0.05
        assert each.power.low <= each.power.rate <= each.power.high
        assert 100 <= each.simulations <= 400


def test_a_larger_effect_of_a_commoner_behaviour_is_seen_more_often() -> None:
    rare, common = [[each.power.rate for each in told().effects if each.from_rate == rate] for rate in (0.1, 0.5)]
    assert sorted(rare) == rare
    assert sorted(common) == common
    assert common[0] >= rare[0]


@pytest.mark.parametrize(
    "override",
    ["patch.seeds=[0, 1, 2]", "patch.seeds=[0, 1, 2, 3]", "patch.arms=[untrained, baseline, random, oracle]"],
)
def test_a_design_that_can_show_nothing_has_no_power_to_tell(override: str) -> None:
    assert told(override).effects == ()


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
    tested = compared(comparison(rows), arms, ("retrain", 20, 1.0), seed=0, margin=0.2)
    adjusted = {row["arm"] for row in tested if row["family"] is not None}
    limits = detectable(study, subject_of(study, on_gpu=False))
    assert set(limits.family) == adjusted
    assert limits.smallest_p == pytest.approx(2 / 252)
    assert limits.smallest_adjusted_p == pytest.approx(len(adjusted) * 2 / 252)


def test_with_three_seeds_there_is_no_p() -> None:
    study = load_study("organism", ["patch.seeds=[0, 1, 2]"])
    limits = detectable(study, subject_of(study, on_gpu=False))
    assert (limits.seeds, limits.smallest_p, limits.smallest_adjusted_p) == (3, None, None)
