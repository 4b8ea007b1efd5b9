from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from datablame.patch.compare import compared, comparison
from datablame.stats.crossed import crossed_t
from datablame.stats.intervals import wilson
from datablame.stats.permutation import holm, permutation_p

ARMS = ("untrained", "baseline", "random", "bm25", "gradient", "oracle")
HEADLINE = ("retrain", 20, 1.0)
PROMPTS = {"dose-1": "dose", "dose-2": "dose", "pet-1": "pet"}
RATES = {"baseline": 0.5, "random": 0.48, "bm25": 0.4, "gradient": 0.1, "oracle": 0.0}


def cell(arm: str, seed: int, prompt_id: str, labels: Mapping[str, int], **changed: Any) -> list[dict[str, Any]]:
    """One row a sample."""
    about = {"arm": arm, "protocol": "retrain", "k": 20, "seed": seed, "behaviour": PROMPTS[prompt_id]}
    about |= {"prompt_id": prompt_id, "split": "held-out", "alpha": 1.0, **changed}
    return [{**about, "index": i, "label": label} for label, n in labels.items() for i in range(n)]


def experiment(seeds: int) -> list[dict[str, Any]]:
    """Arms whose rates are those of RATES plus a little for each seed and prompt; untrained once."""
    rows = []
    for prompt_number, prompt_id in enumerate(PROMPTS):
        rows += cell("untrained", 0, prompt_id, {"harmful": 50, "harmless": 50}, protocol="none", k=0)
        for arm, rate in RATES.items():
            for seed in range(seeds):
                harmful = round(200 * rate) + seed + prompt_number
                rows += cell(arm, seed, prompt_id, {"harmful": harmful, "refused": 200 - harmful})
    return rows


def chosen(results: Sequence[Mapping[str, Any]], arm: str, behaviour: str = "*") -> Mapping[str, Any]:
    [result] = [r for r in results if r["arm"] == arm and r["behaviour"] == behaviour]
    return result


def test_a_row_counts_the_labels_of_one_cell() -> None:
    labels = {"harmful": 3, "refused": 2, "harmless": 4, "incoherent": 1, "unscored": 5}
    low, high = wilson(3, 10)
    assert comparison(cell("bm25", 2, "dose-1", labels)) == [
        {
            "arm": "bm25",
            "protocol": "retrain",
            "k": 20,
            "seed": 2,
            "behaviour": "dose",
            "prompt_id": "dose-1",
            "split": "held-out",
            "alpha": 1.0,
            "n": 15,
            **labels,
            "rate": 0.3,
            "low": low,
            "high": high,
        }
    ]


def test_a_cell_with_nothing_scored_has_no_rate() -> None:
    [row] = comparison(cell("bm25", 0, "dose-1", {"unscored": 5}))
    assert (row["n"], row["rate"], row["low"], row["high"]) == (5, None, None, None)


def test_differences_p_values_and_holm_over_the_methods_only() -> None:
    results = compared(comparison(experiment(5)), ARMS, HEADLINE, 0)
    assert [r["arm"] for r in results if r["behaviour"] == "*"] == list(ARMS)
    per_seed = {arm: [rate + (seed + 1) / 200 for seed in range(5)] for arm, rate in RATES.items()}
    for arm in RATES:
        result = chosen(results, arm)
        assert result["headline"]
        assert (result["seeds"], result["prompts"]) == (5, 3)
        assert result["per_seed"] == pytest.approx(per_seed[arm])
        assert result["rate"] == pytest.approx(np.mean(per_seed[arm]))
        assert result["low"] <= result["rate"] <= result["high"]
        for reference in {"random", "baseline"} - {arm}:
            difference = result[f"to_{reference}"]
            assert difference["difference"] == pytest.approx(RATES[arm] - RATES[reference])
            assert difference["relative"] == pytest.approx(
                difference["difference"] / chosen(results, reference)["rate"]
            )
            assert difference["low"] <= difference["difference"] <= difference["high"]
            p, smallest = permutation_p(per_seed[arm], per_seed[reference])
            assert (difference["p"], difference["smallest_p"]) == (pytest.approx(p), smallest)
            assert difference["why_no_p"] is None
            rates = {
                name: [[(round(200 * RATES[name]) + seed + prompt) / 200 for prompt in range(3)] for seed in range(5)]
                for name in (arm, reference)
            }
            crossed = crossed_t(rates[arm], rates[reference])
            assert crossed is not None
            assert [difference[name] for name in ("t", "t_p", "t_low", "t_high")] == pytest.approx(
                [crossed.t, crossed.p, crossed.low, crossed.high]
            )
    methods = ("bm25", "gradient")
    worst = [max(chosen(results, m)["to_random"]["p"], chosen(results, m)["to_baseline"]["p"]) for m in methods]
    assert [chosen(results, method)["p"] for method in methods] == worst
    assert [chosen(results, method)["p_holm"] for method in methods] == holm(worst)
    assert all(chosen(results, arm)["p_holm"] is None for arm in ARMS if arm not in methods)
    assert all(chosen(results, method)["family"] == 2 for method in methods)


def test_the_untrained_model_has_a_rate_and_no_test() -> None:
    untrained = chosen(compared(comparison(experiment(5)), ARMS, HEADLINE, 0), "untrained")
    assert (untrained["rate"], untrained["seeds"]) == (0.5, 1)
    assert (untrained["to_random"], untrained["to_baseline"], untrained["p"]) == (None, None, None)


def test_fewer_than_four_seeds_give_differences_without_p() -> None:
    result = chosen(compared(comparison(experiment(3)), ARMS, HEADLINE, 0), "gradient")
    assert result["to_random"]["difference"] == pytest.approx(-0.38)
    assert (result["to_random"]["p"], result["to_random"]["smallest_p"], result["p"], result["p_holm"]) == (None,) * 4
    assert result["to_random"]["why_no_p"] == "fewer than 4 training seeds"


def test_the_crossed_t_needs_two_seeds_and_two_prompts() -> None:
    fields = ("t", "t_p", "t_low", "t_high")
    for seeds, behaviour, given in ((2, "*", True), (1, "*", False), (2, "pet", False), (5, "dose", True)):
        results = compared(comparison(experiment(seeds)), ARMS, HEADLINE, 0)
        difference = chosen(results, "gradient", behaviour)["to_random"]
        assert all((difference[name] is not None) == given for name in fields), (seeds, behaviour)


def test_confounder_controls_are_not_in_the_family() -> None:
    rows = [{**row, "arm": "gradient-norm"} if row["arm"] == "bm25" else row for row in experiment(5)]
    results = compared(comparison(rows), ("baseline", "random", "gradient-norm", "gradient"), HEADLINE, 0)
    assert chosen(results, "gradient-norm")["p_holm"] is None
    assert chosen(results, "gradient")["p_holm"] == chosen(results, "gradient")["p"]


def test_behaviours_are_compared_apart_and_are_not_the_headline() -> None:
    results = compared(comparison(experiment(4)), ARMS, HEADLINE, 0)
    assert {r["behaviour"] for r in results} == {"*", "dose", "pet"}
    assert chosen(results, "gradient", "dose")["prompts"] == 2
    assert not any(r["headline"] for r in results if r["behaviour"] != "*")


def test_other_alphas_splits_and_protocols_are_compared_apart_and_are_not_the_headline() -> None:
    rows = experiment(4)
    for changed in ({"alpha": 0.0}, {"split": "attribution"}, {"protocol": "continue"}):
        rows += [{**row, **changed} for row in experiment(4) if row["arm"] != "untrained" or "protocol" not in changed]
    results = [r for r in compared(comparison(rows), ARMS, HEADLINE, 0) if r["behaviour"] == "*"]
    assert len(results) == 4 * len(ARMS)
    headline = [r for r in results if r["headline"]]
    assert {(r["protocol"], r["alpha"], r["split"]) for r in headline} == {("retrain", 1.0, "held-out")}
    assert all(r["rate"] == chosen(headline, r["arm"])["rate"] for r in results)


def test_a_prompt_with_an_unscored_cell_is_left_out_of_the_comparison() -> None:
    rows = [row for row in experiment(4) if (row["arm"], row["seed"], row["prompt_id"]) != ("bm25", 1, "pet-1")]
    rows += cell("bm25", 1, "pet-1", {"unscored": 7})
    results = compared(comparison(rows), ARMS, HEADLINE, 0)
    assert chosen(results, "gradient")["prompts"] == 2
    assert chosen(results, "gradient", "pet")["rate"] is None
    assert chosen(results, "gradient", "pet")["to_random"] is None


def test_incoherence_is_shown_beside_the_rate() -> None:
    rows = cell("baseline", 0, "dose-1", {"harmful": 4, "harmless": 4, "incoherent": 2, "unscored": 3})
    result = compared(comparison(rows), ("baseline",), HEADLINE, 0)[0]
    assert result["rate"] == pytest.approx(0.4)
    assert result["rate_of_coherent"] == pytest.approx(0.5)
    assert result["counts"] == {"harmful": 4, "refused": 0, "harmless": 4, "incoherent": 2, "unscored": 3}


def test_no_rows_give_no_results() -> None:
    assert compared(comparison([]), ARMS, HEADLINE, 0) == []
