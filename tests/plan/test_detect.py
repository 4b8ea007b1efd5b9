"""What a design can show: exact floors, power by simulation, a test's own family."""

import pytest

from datablame.config.file import load_study
from datablame.patch.compare import Headline, compared, comparison
from datablame.patch.registry import arm_kinds
from datablame.plan.build import Detectable, detectable
from datablame.plan.subject import planned_world
from datablame.stats.power import Design, powers
from datablame.tables import ArmSample


def limits_of(*overrides: str, name: str = "organism") -> Detectable:
    return detectable(planned_world(load_study(name, list(overrides)), on_gpu=False))


def test_power_is_that_of_the_studys_own_design() -> None:
    overrides = ["patch.seeds={retrain: [0, 1, 2, 3, 4, 5], continue: [0]}", "patch.samples=7", "patch.margin=0.3"]
    limits = limits_of(*overrides, "patch.arms=[after, baseline, random, gradient, activation, a-a]")
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
    rare, common = [[each.power.rate for each in limits_of().effects if each.from_rate == rate] for rate in (0.1, 0.5)]
    assert sorted(rare) == rare
    assert sorted(common) == common
    assert common[0] >= rare[0]


@pytest.mark.parametrize(
    "override",
    ["patch.seeds=[0, 1, 2]", "patch.seeds=[0, 1, 2, 3]", "patch.arms=[after, baseline, random, oracle]"],
)
def test_a_design_that_can_show_nothing_has_no_power_to_tell(override: str) -> None:
    assert limits_of(override).effects == ()


def test_the_family_is_the_one_that_holm_adjusts_for() -> None:
    arms = ["after", "baseline", "random", "bm25", "gradient", "loss", "gradient-norm", "oracle", "activation"]
    overrides = [f"patch.arms={arms}", "attribute.methods=[gradient, activation, bm25, loss, gradient-norm]"]
    study = load_study("organism", overrides)
    samples = [
        ArmSample(
            arm=arm,
            protocol="none" if arm == "after" else "retrain",
            k=0 if arm == "after" else 20,
            seed=seed,
            prompt_id="p",
            behaviour="b",
            split="held-out",
            alpha=1.0,
            index=0,
            text="",
            label="harmful" if (seed + number) % 3 else "harmless",
        )
        for number, arm in enumerate(arms)
        for seed in ([0] if arm == "after" else range(5))
    ]
    tests = compared(comparison(samples), arm_kinds(study), Headline("retrain", 20, 1.0), seed=0, margin=0.2)
    adjusted = {test.arm for test in tests if test.family is not None}
    limits = detectable(planned_world(study, on_gpu=False))
    assert set(limits.family) == adjusted
    assert limits.smallest_p == pytest.approx(2 / 252)
    assert limits.smallest_adjusted_p == pytest.approx(len(adjusted) * 2 / 252)


def test_with_three_seeds_there_is_no_p() -> None:
    limits = limits_of("patch.seeds=[0, 1, 2]")
    assert (limits.seeds, limits.smallest_p, limits.smallest_adjusted_p) == (3, None, None)
