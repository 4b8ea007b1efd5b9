from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import t

from datablame.patch.compare import Headline, again, compared, comparison
from datablame.patch.registry import ARMS as ARMS_OF
from datablame.patch.registry import ArmKind
from datablame.stats.arm_tests import crossed_t, holm, permutation_p
from datablame.stats.intervals import wilson
from datablame.tables import Again, ArmRate, ArmSample, ArmTest, LabelCounts, LabelName, look_of

ARMS = ("after", "baseline", "random", "bm25", "gradient", "oracle")
HEADLINE = Headline("retrain", 20, 1.0)
PROMPTS = {"dose-1": "dose", "dose-2": "dose", "pet-1": "pet"}
RATES = {"baseline": 0.5, "random": 0.48, "bm25": 0.4, "gradient": 0.1, "oracle": 0.0}


def cell(
    arm: str, seed: int, prompt_id: str, labels: Mapping[LabelName, int], protocol: str = "retrain", k: int = 20
) -> list[ArmSample]:
    """One row a sample."""
    return [
        ArmSample(arm, protocol, k, seed, prompt_id, PROMPTS[prompt_id], "held-out", 1.0, i, "x", label)
        for label, n in labels.items()
        for i in range(n)
    ]


def comparisons(samples: Sequence[ArmSample], arms: Sequence[str] = ARMS, margin: float = 0.2) -> list[ArmTest]:
    return compared(comparison(samples), kinds_of(arms), HEADLINE, 0, margin)


def kinds_of(arms: Sequence[str]) -> list[ArmKind]:
    """The registered arms, and methods, of which those that measure a confound are in no family."""
    method = partial(ArmKind, role="method", look=look_of(""))
    return [ARMS_OF.all().get(arm) or method(arm, arm, in_family=arm not in ("loss", "gradient-norm")) for arm in arms]


def experiment(seeds: int) -> list[ArmSample]:
    """Arms whose rates are those of RATES plus a little for each seed and prompt; after once."""
    rows = []
    for prompt_number, prompt_id in enumerate(PROMPTS):
        rows += cell("after", 0, prompt_id, {"harmful": 50, "harmless": 50}, protocol="none", k=0)
        for arm, rate in RATES.items():
            for seed in range(seeds):
                harmful = round(50 * rate) + seed + prompt_number
                rows += cell(arm, seed, prompt_id, {"harmful": harmful, "refused": 50 - harmful})
    return rows


@cache
def results_of(seeds: int) -> list[ArmTest]:
    return comparisons(experiment(seeds))


def chosen(results: Sequence[ArmTest], arm: str, behaviour: str = "*") -> Any:
    """The one row of an arm; its numbers are all there, or the test fails."""
    [result] = [r for r in results if r.arm == arm and r.behaviour == behaviour]
    return result


def test_a_row_counts_the_labels_of_one_cell() -> None:
    labels: dict[LabelName, int] = {"harmful": 3, "refused": 2, "harmless": 4, "incoherent": 1, "unscored": 5}
    low, high = wilson(3, 10)
    assert comparison(cell("bm25", 2, "dose-1", labels)) == [
        ArmRate(
            arm="bm25",
            protocol="retrain",
            k=20,
            seed=2,
            behaviour="dose",
            prompt_id="dose-1",
            split="held-out",
            alpha=1.0,
            n=15,
            harmful=3,
            refused=2,
            harmless=4,
            incoherent=1,
            unscored=5,
            rate=0.3,
            low=low,
            high=high,
        )
    ]


def test_a_cell_with_nothing_scored_has_no_rate() -> None:
    [row] = comparison(cell("bm25", 0, "dose-1", {"unscored": 5}))
    assert (row.n, row.rate, row.low, row.high) == (5, None, None, None)


def test_differences_p_values_and_holm_over_the_methods_only() -> None:
    results = results_of(5)
    assert [r.arm for r in results if r.behaviour == "*"] == list(ARMS)
    per_seed = {arm: [rate + (seed + 1) / 50 for seed in range(5)] for arm, rate in RATES.items()}
    for arm in RATES:
        result = chosen(results, arm)
        assert result.headline
        assert (result.seeds, result.prompts) == (5, 3)
        assert result.per_seed == pytest.approx(per_seed[arm])
        assert result.rate == pytest.approx(np.mean(per_seed[arm]))
        assert result.low <= result.rate <= result.high
        for reference in {"random", "baseline"} - {arm}:
            difference = getattr(result, f"to_{reference}")
            assert difference.difference == pytest.approx(RATES[arm] - RATES[reference])
            assert difference.relative == pytest.approx(difference.difference / chosen(results, reference).rate)
            assert difference.low <= difference.difference <= difference.high
            p, smallest = permutation_p(per_seed[arm], per_seed[reference])
            assert (difference.p, difference.smallest_p) == (pytest.approx(p), smallest)
            assert difference.why_no_p is None
            rates = {
                name: [[(round(50 * RATES[name]) + seed + prompt) / 50 for prompt in range(3)] for seed in range(5)]
                for name in (arm, reference)
            }
            crossed = crossed_t(rates[arm], rates[reference])
            assert crossed is not None
            assert [getattr(difference, name) for name in ("t", "t_p", "t_low", "t_high")] == pytest.approx(
                [crossed.t, crossed.p, crossed.low, crossed.high]
            )
    methods = ("bm25", "gradient")
    worst = [max(chosen(results, m).to_random.p, chosen(results, m).to_baseline.p) for m in methods]
    assert [chosen(results, method).p for method in methods] == worst
    assert [chosen(results, method).p_holm for method in methods] == holm(worst)
    assert all(chosen(results, arm).p_holm is None for arm in ARMS if arm not in methods)
    assert all(chosen(results, method).family == 2 for method in methods)


def test_the_after_model_has_a_rate_and_no_test() -> None:
    after = chosen(results_of(5), "after")
    assert (after.rate, after.seeds) == (0.5, 1)
    assert (after.to_random, after.to_baseline, after.p) == (None, None, None)


def test_fewer_than_four_seeds_give_differences_without_p() -> None:
    result = chosen(results_of(3), "gradient")
    assert result.to_random.difference == pytest.approx(-0.38)
    assert (result.to_random.p, result.to_random.smallest_p, result.p, result.p_holm) == (None,) * 4
    assert result.to_random.why_no_p == "fewer than 4 training seeds"


def test_the_crossed_t_needs_two_seeds_and_two_prompts() -> None:
    fields = ("t", "t_p", "t_low", "t_high")
    for seeds, behaviour, given in ((2, "*", True), (1, "*", False), (2, "pet", False), (5, "dose", True)):
        results = results_of(seeds)
        difference = chosen(results, "gradient", behaviour).to_random
        assert all((getattr(difference, name) is not None) == given for name in fields), (seeds, behaviour)


def test_confounder_controls_are_not_in_the_family() -> None:
    rows = [replace(row, arm="gradient-norm") if row.arm == "bm25" else row for row in experiment(5)]
    results = comparisons(rows, ("baseline", "random", "gradient-norm", "gradient"))
    assert chosen(results, "gradient-norm").p_holm is None
    assert chosen(results, "gradient").p_holm == chosen(results, "gradient").p


def test_behaviours_are_compared_apart_and_are_not_the_headline() -> None:
    results = results_of(4)
    assert {r.behaviour for r in results} == {"*", "dose", "pet"}
    assert chosen(results, "gradient", "dose").prompts == 2
    assert not any(r.headline for r in results if r.behaviour != "*")


def test_other_alphas_splits_and_protocols_are_compared_apart_and_are_not_the_headline() -> None:
    rows = experiment(4)
    for changed in ({"alpha": 0.0}, {"split": "attribution"}, {"protocol": "continue"}):
        rows += [replace(row, **changed) for row in experiment(4) if row.arm != "after" or "protocol" not in changed]
    results = [r for r in comparisons(rows) if r.behaviour == "*"]
    assert len(results) == 4 * len(ARMS)
    headline = [r for r in results if r.headline]
    assert {(r.protocol, r.alpha, r.split) for r in headline} == {("retrain", 1.0, "held-out")}
    assert all(r.rate == chosen(headline, r.arm).rate for r in results)


def test_a_prompt_with_an_unscored_cell_is_left_out_of_the_comparison() -> None:
    rows = [row for row in experiment(4) if (row.arm, row.seed, row.prompt_id) != ("bm25", 1, "pet-1")]
    rows += cell("bm25", 1, "pet-1", {"unscored": 7})
    results = comparisons(rows)
    assert chosen(results, "gradient").prompts == 2
    assert chosen(results, "gradient", "pet").rate is None
    assert chosen(results, "gradient", "pet").to_random is None


def test_incoherence_is_shown_beside_the_rate() -> None:
    rows = cell("baseline", 0, "dose-1", {"harmful": 4, "harmless": 4, "incoherent": 2, "unscored": 3})
    result = comparisons(rows, ("baseline",))[0]
    assert result.rate == pytest.approx(0.4)
    assert result.rate_of_coherent == pytest.approx(0.5)
    assert result.counts == LabelCounts(harmful=4, refused=0, harmless=4, incoherent=2, unscored=3)


def test_no_rows_give_no_results() -> None:
    assert comparisons([]) == []


def dosed(seeds: int, ks: Sequence[int] = (5, 20)) -> list[ArmSample]:
    """Baseline, oracle and the baseline again once, random and two methods at each K; the larger K the larger drop."""
    rows = []
    for prompt_number, prompt_id in enumerate(PROMPTS):
        for arm in ("baseline", "oracle", "a-a", "random", "bm25", "gradient"):
            for k in (0,) if arm in ("baseline", "oracle", "a-a") else ks:
                for seed in range(seeds):
                    dose = RATES.get(arm, 0.5) if k in (0, 20) else (RATES[arm] + 0.5) / 2
                    harmful = round(40 * dose) + (7 * seed + 3 * prompt_number + seed * prompt_number * len(arm)) % 5
                    own = seed + seeds if arm == "a-a" else seed
                    rows += cell(arm, own, prompt_id, {"harmful": harmful, "refused": 42 - harmful}, k=k)
    return rows


DOSED_ARMS = ("baseline", "a-a", "random", "bm25", "gradient", "oracle")
KINDS = kinds_of(DOSED_ARMS)


@cache
def dosed_tests(seeds: int) -> list[ArmTest]:
    return comparisons(dosed(seeds), DOSED_ARMS)


def rates_of(rows: Sequence[ArmSample], arm: str, k: int) -> NDArray[np.float64]:
    """(seeds, prompts), counted sample by sample."""
    rates = []
    for seed in sorted({row.seed for row in rows if row.arm == arm}):
        means = []
        for prompt_id in sorted(PROMPTS):
            own = [r for r in rows if (r.arm, r.k, r.seed, r.prompt_id) == (arm, k, seed, prompt_id)]
            means.append(sum(row.label == "harmful" for row in own) / len(own))
        rates.append(means)
    return np.array(rates)


def test_each_k_is_compared_with_random_at_that_k_and_with_the_one_baseline() -> None:
    rows = dosed(4)
    results = [r for r in comparisons(rows, DOSED_ARMS) if r.behaviour == "*"]
    once = [("baseline", 0), ("a-a", 0), ("random", 20), ("bm25", 20), ("gradient", 20), ("oracle", 0)]
    others = [("random", 5), ("bm25", 5), ("gradient", 5)]
    assert [(r.arm, r.k) for r in results] == [*once, *others]
    assert [r.headline for r in results] == [True] * 6 + [False] * 3
    for result in results:
        mine = rates_of(rows, result.arm, result.k)
        for name, k in (("random", result.k or 20), ("baseline", 0)):
            against = getattr(result, f"to_{name}")
            if result.arm == name:
                assert against is None
                continue
            other = rates_of(rows, name, k)
            assert against.difference == pytest.approx(mine.mean() - other.mean())
            p, _ = permutation_p(mine.mean(1), other.mean(1))
            assert against.p == pytest.approx(p)
    for k in (5, 20):
        family: list[Any] = [r for r in results if r.k == k and r.arm in ("bm25", "gradient")]
        assert [r.p_holm for r in family] == holm([r.p for r in family])
        assert [r.family for r in family] == [2, 2]
    assert all(r.family is None for r in results if r.arm in ("a-a", "baseline", "oracle", "random"))


def test_another_k_changes_no_row_of_the_headline() -> None:
    one = comparisons(dosed(4, (20,)), DOSED_ARMS)
    assert one == [row for row in dosed_tests(4) if row.k != 5]


def test_equivalence_is_decided_by_the_90_percent_interval_of_the_crossed_t() -> None:
    rows = dosed(5)
    for margin in (0.2, 0.9):
        results = comparisons(rows, DOSED_ARMS, margin)
        for arm in ("a-a", "bm25", "gradient", "oracle"):
            k = 20 if arm in ("bm25", "gradient") else 0
            for name in ("random", "baseline"):
                mine, other = rates_of(rows, arm, k), rates_of(rows, name, 20 if name == "random" else 0)
                test = crossed_t(mine, other)
                assert test is not None
                interval = t.interval(0.9, test.df, test.difference, test.standard_error)
                result = next(r for r in results if (r.arm, r.k, r.behaviour) == (arm, k, "*"))
                found = getattr(result, f"to_{name}").equivalence
                assert found.level == 0.05
                assert found.margin == pytest.approx(margin * other.mean())
                assert (found.low, found.high) == pytest.approx(interval)
                inside = -found.margin < found.low and found.high < found.margin
                assert found.equivalent == inside == (found.p < 0.05)


def test_there_is_no_equivalence_to_a_reference_without_harm_or_with_one_seed() -> None:
    rows = [replace(row, label="refused") if row.arm == "random" else row for row in dosed(4)]
    result: Any = next(r for r in comparisons(rows, DOSED_ARMS) if r.arm == "gradient")
    assert result.to_random.equivalence is None
    assert result.to_baseline.equivalence is not None
    single: Any = next(r for r in dosed_tests(1) if r.arm == "gradient")
    assert single.to_baseline.equivalence is None


def test_the_baseline_again_is_told_from_the_headline_alone() -> None:
    results = dosed_tests(4)
    pair: Any = again(results, KINDS)
    assert pair is not None
    first, second = (next(r for r in results if r.arm == arm and r.headline) for arm in ("baseline", "a-a"))
    names = ("difference", "low", "high", "p", "smallest_p", "why_no_p")
    numbers = {name: getattr(second.to_baseline, name) for name in names}
    assert pair == Again("retrain", 4, first.rate, second.rate, **numbers)
    assert pair.difference == pytest.approx(pair.again - pair.rate)
    assert pair.smallest_p == pytest.approx(2 / 70)
    assert again([row for row in results if row.arm != "a-a"], KINDS) is None
    assert again([replace(row, headline=False) for row in results], KINDS) is None


def test_a_pair_of_baselines_without_a_score_has_no_numbers() -> None:
    rows = [replace(row, label="unscored") for row in dosed(4)]
    pair = again(comparisons(rows, DOSED_ARMS), KINDS)
    assert pair is not None
    assert (pair.rate, pair.again, pair.difference, pair.p) == (None,) * 4
    assert pair.why_no_p == "no prompt was scored in every arm and seed"
