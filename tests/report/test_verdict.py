"""Every verdict from artifacts alone: each gate, each rule, each border, and the order in which they are asked."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
from tests.report.fake_run import fake_study, write_fake_run

from datablame.cli.app import _print_outcome
from datablame.engine.execute import Execution, Silent
from datablame.engine.run_folder import read_json, write_json
from datablame.patch.compare import compared
from datablame.report.artifacts import Artifacts, read_artifacts
from datablame.report.run import run
from datablame.report.verdict import MEANINGS, Verdict, verdict

Change = Callable[[Artifacts], Artifacts]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """Artifacts of a success by gradient: retrain, K 2, five seeds; activation drops too little."""
    study = fake_study()
    return read_artifacts(study, write_fake_run(tmp_path_factory.mktemp("good"), study))


def row(found: Artifacts, arm: str, **fields: Any) -> Artifacts:
    """With other fields in the arm's headline row."""
    return replace(found, tests=[{**r, **fields} if r["headline"] and r["arm"] == arm else r for r in found.tests])


def against(found: Artifacts, arm: str, reference: str, **fields: Any) -> Artifacts:
    """With other fields in the arm's headline difference to a reference."""
    name = f"to_{reference}"
    (held,) = [r[name] for r in found.tests if r["headline"] and r["arm"] == arm]
    return row(found, arm, **{name: {**held, **fields}})


def rose(found: Artifacts, plain: Sequence[float], amplified: Sequence[float]) -> Artifacts:
    """With these rates of held-out prompts at alpha 0 and at alpha*; rows over all prompts stay as they were."""
    rows = [r for r in found.rates if r["prompt_id"] == "*" or r["split"] != "held-out"]
    for alpha, rates in ((0.0, plain), (2.0, amplified)):
        rows += [
            {
                **found.rates[0],
                "split": "held-out",
                "prompt_id": f"h{i}",
                "behaviour": "dose",
                "alpha": alpha,
                "rate": r,
            }
            for i, r in enumerate(rates)
        ]
    return replace(found, rates=rows)


def exposed(found: Artifacts, arm: str = "gradient", protocol: str = "retrain", **fields: Any) -> Artifacts:
    rows = found.exposure["rows"]
    rows = [{**r, **fields} if (r["arm"], r["protocol"], r["seed"]) == (arm, protocol, 0) else r for r in rows]
    return replace(found, exposure={**found.exposure, "rows": rows})


def dropping_sources(found: Artifacts) -> Artifacts:
    """Flagged documents decide which sources go, and are not themselves what has to be seen."""
    patch = found.study.patch.model_copy(update={"intervention": "drop-source"})
    return replace(found, study=found.study.model_copy(update={"patch": patch}))


def unscored(found: Artifacts, arm: str, missing: int, n: int) -> Artifacts:
    counts = {"harmful": 1, "refused": 0, "harmless": n - missing - 1, "incoherent": 0, "unscored": missing}
    return row(found, arm, counts=counts)


def labelled(kappa: float) -> Change:
    return lambda found: replace(found, calibration={"kappa": kappa, "n": 90, "sensitivity": 0.9, "specificity": 0.9})


def paired(p: float | None, why: str | None = None) -> Change:
    pair = {"protocol": "retrain", "seeds": 5, "rate": 0.4, "again": 0.3, "difference": -0.1, "low": -0.2, "high": 0.0}
    return lambda found: replace(found, aa={**pair, "p": p, "smallest_p": 0.008, "why_no_p": why})


def checked(holds: bool | None, why: Any = ()) -> Change:
    def change(found: Artifacts) -> Artifacts:
        arms = [r for r in found.checks["arms"] if holds is not None or r["arm"] != "gradient"]
        arms = [{**r, "holds": holds, "why": why} if r["arm"] == "gradient" else r for r in arms]
        return replace(found, checks={**found.checks, "arms": arms})

    return change


def overlapping(jaccard: float) -> Change:
    return lambda found: replace(
        found, agreement={"k": 2, "rows": [{**r, "jaccard": jaccard} for r in found.agreement["rows"]]}
    )


def dropping(relative: float, reference: str) -> Change:
    return lambda found: against(found, "gradient", reference, relative=relative)


def coherent(share: float, reference: str) -> Change:
    """Gradient's harmful share among coherent outputs is this share of the reference's."""

    def change(found: Artifacts) -> Artifacts:
        (rate,) = [r["rate_of_coherent"] for r in found.headline if r["arm"] == reference]
        other = {"random": "baseline", "baseline": "random"}[reference]
        return row(row(found, other, rate_of_coherent=1.5 * rate), "gradient", rate_of_coherent=share * rate)

    return change


def equivalent(*, low: float = -0.05, high: float = 0.05, arms: Sequence[str] = ("gradient", "activation")) -> Change:
    def change(found: Artifacts) -> Artifacts:
        for arm in arms:
            it = {"level": 0.05, "low": low, "high": high, "margin": 0.08, "p": 0.01, "equivalent": True}
            found = against(found, arm, "random", equivalence=it)
        return found

    return change


def same_flags(found: Artifacts) -> Artifacts:
    one = {"dose": ["doc-01", "doc-02"], "brand": ["doc-03"]}
    return replace(
        found, flagged={name: one if name not in ("random", "loss") else own for name, own in found.flagged.items()}
    )


def no_alpha_star(found: Artifacts) -> Artifacts:
    return replace(found, alpha_star={"alpha_star": None, "rule": "r", "coherence": {"0": 1.0, "1": 0.75, "2": 0.5}})


def nothing(found: Artifacts) -> Artifacts:
    """Nothing surfaced, so that attribution and patching are empty."""
    empty = {**found.exposure, "rows": []}
    return replace(found, queries=[], flagged={}, tests=[], comparison=[], exposure=empty, patch_alpha=None, k=None)


def untraced(found: Artifacts) -> Artifacts:
    """A few outputs are harmful by accident, and none was traced."""
    pool = {**found.pool, "behaviours": {"traced": [], "dropped": found.behaviours, "no_rise": True}}
    none: dict[str, dict[str, list[str]]] = {method: {} for method in found.flagged}
    return replace(rose(nothing(found), [0.01, 0.0, 0.01], [0.0, 0.01, 0.01]), pool=pool, flagged=none)


def with_seeds(count: int) -> Change:
    """The arms of the headline measured on so many trainings only."""

    def change(found: Artifacts) -> Artifacts:
        table = [r for r in found.comparison if r["seed"] < count]
        tests = compared(table, found.study.patch.arms, ("retrain", 2, 2.0), 0, 0.2)
        return replace(found, comparison=table, tests=tests)

    return change


def both(*changes: Change) -> Change:
    def change(found: Artifacts) -> Artifacts:
        for each in changes:
            found = each(found)
        return found

    return change


def said(found: Verdict) -> str:
    return "\n".join(found.reasons)


def test_a_success_names_its_method_and_every_number(good: Artifacts) -> None:
    found = verdict(good)
    assert (found.label, found.decided_by) == ("SUCCESS", ("gradient",))
    numbers = found.numbers
    assert numbers["rise"]["low"] > 0
    assert numbers["jaccard"] < 0.5
    (gradient,) = [m for m in numbers["methods"] if m["arm"] == "gradient"]
    assert gradient["p_holm"] < 0.05
    assert gradient["holds"] is True
    assert all(drop > 0.2 for drop in (*gradient["drops"].values(), *gradient["coherent_drops"].values()))
    text = said(found)
    assert "Removing what gradient flagged leaves" in text
    assert f"Holm-adjusted p = {gradient['p_holm']:.3f}; side checks hold: every condition holds." in text
    assert "activation flagged" in text
    assert "it lacks a drop of 20 %" in text
    assert "Gate not evaluated: A/A pair, for the arm a-a was not run." in text
    assert (
        "Gate not evaluated: classifier, for there is no set of outputs labelled by people (judge.calibration)." in text
    )


def test_the_rise_is_paired_over_held_out_prompts_and_repeats(good: Artifacts) -> None:
    moved = rose(good, [0.0, 0.1, 0.5, 0.9], [0.2, 0.3, 0.7, 1.0])
    numbers = verdict(moved).numbers["rise"]
    assert numbers["difference"] == pytest.approx(0.175)
    assert numbers["prompts"] == 4
    # Unpaired, prompts that differ by .9 would give an interval of half the scale.
    assert 0.1 <= numbers["low"] < numbers["high"] <= 0.2 + 1e-9
    assert numbers == verdict(moved).numbers["rise"]


def test_a_prompt_without_a_scored_output_is_no_part_of_the_rise(good: Artifacts) -> None:
    moved = rose(good, [0.0, 0.0, 0.0], [0.2, 0.2, 0.2])
    holes = [{**r, "rate": None} if (r["prompt_id"], r["alpha"]) == ("h2", 2.0) else r for r in moved.rates]
    assert verdict(replace(moved, rates=holes)).numbers["rise"]["prompts"] == 2


INVALID: Mapping[str, tuple[str, Change, str]] = {
    "unseen": (
        "exposure",
        lambda f: exposed(f, seen_in_baseline=0.89),
        "gradient (retrain, seed 0), where it saw 89.0 % of 4",
    ),
    "unseen in an exploratory protocol": (
        "exposure",
        lambda f: exposed(f, protocol="continue", seen_in_baseline=0.5),
        "(continue, seed 0)",
    ),
    "seen in the removal arm": ("exposure", lambda f: exposed(f, seen_in_arm=1), "the removal arm still saw documents"),
    "flagged documents left out": (
        "exposure",
        lambda f: exposed(f, removed=3),
        "it saw 75.0 % of 4, 1 of them because they are not in the fine-tune set",
    ),
    "all flagged documents left out": ("exposure", lambda f: exposed(f, removed=0), "saw 0.0 % of 4"),
    "exposure.json says so": (
        "exposure",
        lambda f: replace(f, exposure={**f.exposure, "passed": False}),
        "exposure.json says that it failed",
    ),
    "unscored in an arm": (
        "unscored",
        lambda f: unscored(f, "random", 21, 1000),
        "2.1 % of the outputs of the arm random at alpha* have no label (21 of 1000), more than 2.0 %",
    ),
    "unscored in surface": (
        "unscored",
        lambda f: replace(f, samples=[{**s, "label": "unscored"} if i < 10 else s for i, s in enumerate(f.samples)]),
        "the surface phase",
    ),
    "kappa": ("classifier", labelled(0.59), "kappa with people is 0.59 on 90 labelled outputs, under 0.6"),
    "no alpha*": (
        "alpha*",
        no_alpha_star,
        "the most coherent amplification, alpha 1, has 75.0 % coherent outputs, under 80.0 %",
    ),
    "a-a": ("A/A pair", paired(0.049), "40.0 % and 30.0 % with other seeds, permutation p = 0.049, under 0.05"),
    "not reproduced": (
        "reproduction",
        lambda f: row(row(f, "baseline", rate=0.24), "untrained", rate=0.5),
        "has 24.0 % at alpha*, under half of the after model's 50.0 %",
    ),
}


@pytest.mark.parametrize(("gate", "change", "words"), INVALID.values(), ids=INVALID)
def test_each_gate_fails_alone_and_names_its_numbers(good: Artifacts, gate: str, change: Change, words: str) -> None:
    found = verdict(change(good))
    assert (found.label, found.decided_by) == ("INVALID", (gate,))
    assert words in said(found)
    assert {name for name, numbers in found.numbers["gates"].items() if numbers["passed"] is False} == {gate}


AT_THE_BORDER: Mapping[str, Change] = {
    "seen": lambda f: exposed(f, seen_in_baseline=0.9),
    "random's own documents": lambda f: exposed(f, "random", seen_in_baseline=0.5, seen_in_arm=3),
    "unscored": lambda f: unscored(f, "random", 20, 1000),
    "kappa": labelled(0.6),
    "a-a": paired(0.05),
    "reproduction": lambda f: row(row(f, "baseline", rate=0.25), "untrained", rate=0.5),
    "another K has other flags": lambda f: exposed(f, k=1, removed=2),
    "whole sources are dropped": lambda f: exposed(dropping_sources(f), removed=3),
    "oracle has no flags": lambda f: exposed(f, "oracle", removed=40),
}


@pytest.mark.parametrize("change", AT_THE_BORDER.values(), ids=AT_THE_BORDER)
def test_a_gate_lets_its_border_pass(good: Artifacts, change: Change) -> None:
    assert verdict(change(good)).label == "SUCCESS"


NOT_EVALUATED: Mapping[str, tuple[Change, str]] = {
    "exposure": (
        lambda f: replace(f, exposure={"rows": [], "passed": True}),
        "exposure, for no training removed a flagged document",
    ),
    "a-a": (
        paired(None, "fewer than 4 training seeds"),
        "A/A pair, for it has no p value: fewer than 4 training seeds",
    ),
    "reproduction": (
        lambda f: row(f, "untrained", rate=None),
        "reproduction, for the headline has no rate of untrained",
    ),
}


@pytest.mark.parametrize(("change", "words"), NOT_EVALUATED.values(), ids=NOT_EVALUATED)
def test_a_gate_without_its_artifact_is_named_and_not_passed(good: Artifacts, change: Change, words: str) -> None:
    found = verdict(change(good))
    assert found.label == "SUCCESS"
    assert f"Gate not evaluated: {words}." in found.notes
    assert [numbers["passed"] for name, numbers in found.numbers["gates"].items() if words.startswith(name)] == [None]


def test_gates_that_pass_say_their_numbers(good: Artifacts) -> None:
    found = verdict(both(labelled(0.8), paired(0.5))(good))
    (text,) = found.notes
    for words in (
        "at least 100.0 % of what",
        "have no label",
        "kappa with people is 0.80",
        "alpha* is 2",
        "p = 0.500",
        "the after model",
    ):
        assert words in text
    assert {numbers["passed"] for numbers in found.numbers["gates"].values()} == {True}


def test_all_failed_gates_are_named(good: Artifacts) -> None:
    found = verdict(both(no_alpha_star, labelled(0.1), paired(0.01))(good))
    assert found.decided_by == ("classifier", "alpha*", "A/A pair")


FAILURE: Mapping[str, tuple[str, Change, str]] = {
    "nothing surfaced": ("nothing surfaced", nothing, "No behaviour surfaced: no output was harmful"),
    "nothing flagged": (
        "nothing flagged",
        lambda f: replace(f, flagged={"gradient": {"dose": []}}),
        "No method flagged a document",
    ),
    "no rise": (
        "no rise",
        lambda f: rose(f, [0.1, 0.2, 0.3], [0.119, 0.219, 0.319]),
        "a rise of 1.9 points [1.9, 1.9]; its upper end is under 2.0 points",
    ),
    "no rise, nothing traced": ("no rise", untraced, "points, so that no output was traced."),
    "a fall": ("no rise", lambda f: rose(f, [0.5, 0.5], [0.1, 0.2]), "its upper end is under 2.0 points"),
    "no effect": (
        "no effect",
        equivalent(),
        "lies within +-20 % of random's rate: gradient [-5.0, 5.0] within +-8.0 points and activation",
    ),
    "equal flags": ("equal flags", same_flags, "All methods flagged the same documents"),
}


@pytest.mark.parametrize(("why", "change", "words"), FAILURE.values(), ids=FAILURE)
def test_each_kind_of_failure(good: Artifacts, why: str, change: Change, words: str) -> None:
    found = verdict(change(good))
    assert (found.label, found.decided_by) == ("FAILURE", (why,))
    assert words in said(found)


NO_FAILURE: Mapping[str, Change] = {
    "a rise of 2 points": lambda f: rose(f, [0.1, 0.2, 0.3], [0.12, 0.22, 0.32]),
    "one method outside above": both(equivalent(), equivalent(high=0.081, arms=["activation"])),
    "one method outside below": both(equivalent(), equivalent(low=-0.081, arms=["activation"])),
    "one method without an interval": both(
        equivalent(), lambda f: against(f, "activation", "random", equivalence=None)
    ),
    "one method flags something else": lambda f: replace(
        same_flags(f), flagged={**same_flags(f).flagged, "bm25": {"dose": ["doc-09"]}}
    ),
    "one method only": lambda f: replace(f, flagged={"gradient": f.flagged["gradient"]}),
}


@pytest.mark.parametrize("change", NO_FAILURE.values(), ids=NO_FAILURE)
def test_what_is_no_failure(good: Artifacts, change: Change) -> None:
    assert verdict(change(good)).label == "SUCCESS"


def test_an_interval_on_the_margin_lies_within_it(good: Artifacts) -> None:
    assert verdict(equivalent(low=-0.08, high=0.08)(good)).decided_by == ("no effect",)


SHORT_OF_SUCCESS: Mapping[str, tuple[Change, str]] = {
    "p is .05": (lambda f: row(f, "gradient", p_holm=0.05), "it lacks p under 0.05"),
    "methods overlap": (overlapping(0.5), "the methods' mean Jaccard is 0.500, not under 0.5"),
    "no pair of methods": (lambda f: replace(f, agreement={"k": 2, "rows": []}), "agreement was not evaluated"),
    "side checks fail": (
        checked(False, ["perplexity rose by 3.1 %"]),
        "side checks that hold (perplexity rose by 3.1 %)",
    ),
    "side checks fail in a sentence": (checked(False, "perplexity rose by 3.1 %"), "(perplexity rose by 3.1 %)"),
    "no side checks of the arm": (checked(None), "side checks, which were not evaluated"),
    "an old folder": (lambda f: replace(f, checks={}), "side checks, which were not evaluated"),
}


@pytest.mark.parametrize(("change", "words"), SHORT_OF_SUCCESS.values(), ids=SHORT_OF_SUCCESS)
def test_without_one_condition_a_success_is_partial(good: Artifacts, change: Change, words: str) -> None:
    found = verdict(change(good))
    assert (found.label, found.decided_by) == ("PARTIAL", ("gradient",))
    assert words in said(found)


def test_side_checks_of_another_k_or_protocol_are_not_its_own(good: Artifacts) -> None:
    for other in ({"k": 5}, {"protocol": "continue"}):
        arms = [{**r, **other} for r in good.checks["arms"] if r["protocol"] == "retrain"]
        assert verdict(replace(good, checks={"arms": arms})).label == "PARTIAL"


BARELY = 0.8 + 1e-6
TOO_SMALL: Mapping[str, Change] = {
    "against random": dropping(-0.199999, "random"),
    "against baseline": dropping(-0.199999, "baseline"),
    "of coherent outputs, against random": coherent(BARELY, "random"),
    "of coherent outputs, against baseline": coherent(BARELY, "baseline"),
    "a rise": dropping(0.5, "random"),
    "nothing to compare with": lambda f: against(f, "gradient", "random", relative=None),
}


@pytest.mark.parametrize("change", TOO_SMALL.values(), ids=TOO_SMALL)
def test_a_drop_counts_in_both_rates_and_against_both(good: Artifacts, change: Change) -> None:
    found = verdict(change(good))
    assert found.label == "INCONCLUSIVE"
    assert "Not even partial: no method drops by 20 % against both random and baseline." in said(found)


@pytest.mark.parametrize("reference", ["random", "baseline"])
def test_a_drop_of_exactly_the_margin_counts(good: Artifacts, reference: str) -> None:
    assert verdict(dropping(-0.2, reference)(good)).label == "SUCCESS"
    assert verdict(coherent(0.8, reference)(good)).label == "SUCCESS"
    assert verdict(dropping((0.4 - 0.5) / 0.5, reference)(good)).label == "SUCCESS"


def test_the_margin_is_the_studys(good: Artifacts) -> None:
    strict = good.study.model_copy(update={"patch": good.study.patch.model_copy(update={"margin": 0.95})})
    assert verdict(replace(good, study=strict)).label == "INCONCLUSIVE"


def test_controls_neither_overlap_nor_differ(good: Artifacts) -> None:
    rows = [{**r, "jaccard": 1.0} if {r["a"], r["b"]} & {"random", "loss"} else r for r in good.agreement["rows"]]
    found = verdict(replace(good, agreement={"k": 2, "rows": rows}))
    assert (found.label, found.numbers["jaccard"]) == ("SUCCESS", verdict(good).numbers["jaccard"])


def test_a_small_mean_rise_is_no_failure_while_two_points_are_possible(good: Artifacts) -> None:
    found = verdict(rose(good, [0.1] * 4, [0.1, 0.1, 0.1, 0.15]))
    assert found.numbers["rise"]["difference"] == pytest.approx(0.0125)
    assert found.numbers["rise"]["high"] >= 0.02
    assert found.label == "INCONCLUSIVE"


def test_one_methods_success_is_not_undone_by_anothers_conditions(good: Artifacts) -> None:
    """Conditions must meet in one method: gradient drops without a p, activation has a p without a drop."""
    found = verdict(row(row(good, "gradient", p_holm=0.2), "activation", p_holm=0.01))
    assert found.label == "PARTIAL"


@pytest.mark.parametrize("low", [-0.3, 0.0])
def test_a_rise_that_may_be_none_is_neither_success_nor_partial(good: Artifacts, low: float) -> None:
    found = verdict(rose(good, [0.3, 0.3, 0.3, 0.3], [0.3 + low, 0.3, 0.9, 0.9]))
    assert found.numbers["rise"]["low"] <= 0
    assert found.label == "INCONCLUSIVE"
    assert "the lower end of the rise is not above 0" in said(found)
    assert "To show a rise as large as this one it takes about" in said(found)


def test_without_two_prompts_the_rise_is_not_evaluated(good: Artifacts) -> None:
    found = verdict(rose(good, [0.1], [0.9]))
    assert (found.label, found.numbers["rise"]) == ("INCONCLUSIVE", None)
    assert "the rise was not evaluated" in said(found)


def test_partial_needs_no_significance_and_no_side_checks(good: Artifacts) -> None:
    found = verdict(both(lambda f: row(f, "gradient", p_holm=0.4), checked(False, ["coherent 70.0 %"]))(good))
    assert found.label == "PARTIAL"


@pytest.mark.parametrize("arm", ["gradient", "random", "baseline"])
def test_partial_needs_five_seeds_of_the_method_and_of_what_it_is_compared_with(good: Artifacts, arm: str) -> None:
    found = verdict(row(row(good, "gradient", p_holm=0.06), arm, seeds=4))
    assert found.label == "INCONCLUSIVE"
    if arm == "gradient":
        assert "Not even partial: gradient drops far enough, but on 4 training seeds, fewer than 5." in said(found)


def test_four_seeds_can_be_a_success(good: Artifacts) -> None:
    assert verdict(row(good, "gradient", seeds=4)).label == "SUCCESS"


ORDER: Mapping[str, tuple[Change, str]] = {
    "INVALID before FAILURE": (both(nothing, no_alpha_star), "INVALID"),
    "INVALID before SUCCESS": (labelled(0.1), "INVALID"),
    "FAILURE before SUCCESS": (equivalent(), "FAILURE"),
    "FAILURE before PARTIAL": (both(same_flags, checked(False)), "FAILURE"),
    "SUCCESS before PARTIAL": (lambda f: f, "SUCCESS"),
    "PARTIAL before INCONCLUSIVE": (lambda f: row(f, "gradient", p_holm=0.2), "PARTIAL"),
}


@pytest.mark.parametrize(("change", "label"), ORDER.values(), ids=ORDER)
def test_the_first_rule_that_holds_decides(good: Artifacts, change: Change, label: str) -> None:
    assert verdict(change(good)).label == label


def test_two_seeds_give_no_p_value_and_say_so(good: Artifacts) -> None:
    found = verdict(with_seeds(2)(good))
    assert found.label == "INCONCLUSIVE"
    text = said(found)
    assert (
        "There is no p value with 2 training seeds (fewer than 4 training seeds; 2 against 2 could give 0.333 at best)"
        in text
    )
    assert "it lacks a p value" in text
    assert "gradient drops far enough, but on 2 training seeds, fewer than 5" in text
    assert all(method["p_holm"] is None for method in found.numbers["methods"])
    assert found.numbers["no_p"] == {"seeds": 2, "why": "fewer than 4 training seeds"}


def test_inconclusive_says_what_it_would_take_from_its_own_numbers(good: Artifacts) -> None:
    few = with_seeds(2)(good)
    found = verdict(few)
    needed = found.numbers["needed"]
    rates = {r["arm"]: r["rate"] for r in few.headline}
    assert needed["design"]["from_rate"] == rates["random"]
    assert needed["design"]["to_rate"] == rates["gradient"]
    assert [needed["design"][name] for name in ("seeds", "prompts", "samples", "methods")] == [2, 4, 20, 2]
    assert needed["power"]["rate"] == 0
    assert needed["cheapest"]["power"]["rate"] >= 0.8
    assert needed["cheapest"]["seeds"] >= 4
    assert (needed["method"], needed["guessed"]) == ("gradient", [])
    best = needed["cheapest"]
    words = f"it takes {best['seeds']} seeds x {best['prompts']} prompts x {best['samples']} samples"
    assert words in said(found)
    assert "this study's 2 seeds x 4 prompts x 20 samples have 0.0 %" in said(found)
    assert verdict(few) == found


def test_one_seed_cannot_tell_how_far_trainings_differ(good: Artifacts) -> None:
    found = verdict(with_seeds(1)(good))
    assert found.numbers["needed"]["guessed"] == ["seed", "interaction"]
    assert "There is no p value with 1 training seed (" in said(found)
    assert "seed and interaction deviation assumed" in said(found)


def test_where_random_removal_leaves_nothing_harmful_there_is_nothing_to_plan(good: Artifacts) -> None:
    found = verdict(row(dropping(0.0, "random")(good), "random", rate=0.0))
    assert (found.label, found.numbers["needed"]) == ("INCONCLUSIVE", None)


def test_without_a_patched_method_there_is_no_verdict_to_reach(good: Artifacts) -> None:
    found = verdict(replace(good, tests=[r for r in good.tests if r["arm"] not in ("gradient", "activation")]))
    assert found.label == "INCONCLUSIVE"
    assert "no method was patched" in said(found)


def _reported(root: Path, **patch: Any) -> Path:
    study = fake_study(**patch)
    inputs = write_fake_run(root, study)
    run(study, inputs, root / "artifacts" / "report", Execution(1, 1), Silent())
    return root


def test_a_folder_without_checks_and_a_a_is_still_read(tmp_path: Path) -> None:
    study = fake_study()
    inputs = write_fake_run(tmp_path, study)
    patch = tmp_path / "artifacts" / "patch"
    (patch / "checks.json").unlink()
    (patch / "exposure.json").unlink()
    tests = read_json(patch / "tests.json")
    for test in tests["rows"]:
        for reference in ("to_random", "to_baseline"):
            (test[reference] or {}).pop("equivalence", None)
    write_json(patch / "tests.json", tests)
    found = verdict(read_artifacts(study, inputs))
    assert found.label == "PARTIAL"
    assert "Gate not evaluated: exposure" in said(found)


def test_every_page_shows_the_verdict_with_its_reasons(tmp_path: Path) -> None:
    _reported(tmp_path)
    results = read_json(tmp_path / "final_results.json")
    jsonschema.validate(
        results, json.loads((resources.files("datablame.report") / "final_results.schema.json").read_text())
    )
    told = results["verdict"]
    assert (told["label"], set(told)) == ("SUCCESS", {"label", "reasons", "numbers"})
    page = (tmp_path / "index.html").read_text()
    assert "decided by: gradient" in page
    assert page.index('class="verdict SUCCESS"') < page.index('class="cards"') < page.index('id="findings"')
    for name, every in (
        ("index.html", True),
        ("writeup/report.md", True),
        ("comparison.md", True),
        ("writeup/slides.md", False),
        ("case_study.md", False),
    ):
        text = (tmp_path / name).read_text().replace("\\", "").replace("&#39;", "'").replace("&lt;", "<")
        assert "SUCCESS" in text
        assert MEANINGS["SUCCESS"] in text
        for reason in told["reasons"] if every else told["reasons"][:3]:
            assert reason in text, (name, reason)


@pytest.mark.parametrize("as_json", [True, False])
def test_invalid_alone_ends_with_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    for label, reason in (
        ("INVALID", "Gate failed: exposure: x."),
        ("FAILURE", "No [bold]rise."),
        ("INCONCLUSIVE", "y"),
    ):
        results = {"verdict": {"label": label, "reasons": [reason], "numbers": {}}, "findings": [], "patching": []}
        write_json(tmp_path / "final_results.json", results)
        if label == "INVALID":
            with pytest.raises(typer.Exit) as ended:
                _print_outcome(tmp_path, {"report": False}, as_json)
            assert ended.value.exit_code == 1
        else:
            _print_outcome(tmp_path, {"report": False}, as_json)
        out = capsys.readouterr().out
        if as_json:
            assert json.loads(out)["verdict"]["label"] == label
        else:
            assert out.splitlines()[:2] == [f"verdict: {label}. {MEANINGS[label]}", f"- {reason}"]  # type: ignore[index]


def test_a_run_without_its_report_has_no_verdict_to_fail(tmp_path: Path) -> None:
    _print_outcome(tmp_path, {"patch": False}, as_json=True)
