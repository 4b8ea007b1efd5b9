"""Every verdict from rows alone: each gate, each rule, each border, and the order in which they are asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.report.fake_run import ARMS, arm_tests, fake_study, read_results_file, reported, write_fake_run
from tests.report.rows import again, calibration

from datablame.report.results import Results
from datablame.report.verdict import Verdict, verdict
from datablame.tables import Equivalence, Flag, LabelCounts, Rise

Change = Callable[[Results], Results]


def row(results: Results, arm: str, **fields: Any) -> Results:
    """With other fields in the arm's headline row."""
    tests = [replace(t, **fields) if t.headline and t.arm == arm else t for t in results.tests]
    return replace(results, tests=tests)


def against(results: Results, arm: str, reference: str, **fields: Any) -> Results:
    """With other fields in the arm's headline difference to a reference."""
    (held,) = [getattr(t, f"to_{reference}") for t in results.headline if t.arm == arm]
    return row(results, arm, **{f"to_{reference}": replace(held, **fields)})


def rose(low: float, difference: float, high: float) -> Change:
    """With this rise between 0 and alpha*, on four prompts that differ by 40 points."""
    rise = Rise(2.0, 0.1, 0.1 + difference, difference, low, high, 4, 0.4, high < 0.02 - 1e-9, False)
    return lambda results: replace(results, alpha_star=replace(results.alpha_star, rise=rise))


def exposed(results: Results, arm: str = "gradient", protocol: str = "retrain", **fields: Any) -> Results:
    first = (arm, protocol, 0)
    rows = [replace(e, **fields) if (e.arm, e.protocol, e.seed) == first else e for e in results.exposure]
    return replace(results, exposure=rows)


def patched(results: Results, **fields: Any) -> Results:
    assert results.patching is not None
    return replace(results, patching=replace(results.patching, **fields))


def at_another_k(results: Results) -> Results:
    """Gradient's training at K = 5, where it flags six documents, removed four."""
    more = [Flag("gradient", 5, "dose", f"doc-{i}") for i in range(6)]
    return exposed(replace(results, flags=[*results.flags, *more]), k=5, removed=4)


def dropping_sources(results: Results) -> Results:
    """Flagged documents decide which sources go, and are not themselves what has to be seen."""
    patch = results.study.patch.model_copy(update={"intervention": "drop-source"})
    return replace(results, study=results.study.model_copy(update={"patch": patch}))


def unscored(results: Results, arm: str, missing: int, n: int) -> Results:
    return row(results, arm, counts=LabelCounts(1, 0, n - missing - 1, 0, missing))


def labelled(kappa: float) -> Change:
    return lambda results: replace(results, calibration=calibration(kappa=kappa, n=90))


def paired(p: float | None, why: str | None = None) -> Change:
    return lambda results: patched(results, again=again(p=p, why_no_p=why))


def checked(holds: bool | None, why: Sequence[str] = ()) -> Change:
    def change(results: Results) -> Results:
        checks = [c for c in results.arm_checks if holds is not None or c.arm != "gradient"]
        changed = [replace(c, holds=bool(holds), why=tuple(why)) if c.arm == "gradient" else c for c in checks]
        return replace(results, arm_checks=changed)

    return change


def overlapping(jaccard: float) -> Change:
    return lambda results: replace(results, agreement=[replace(a, jaccard=jaccard) for a in results.agreement])


def dropping(relative: float, reference: str) -> Change:
    return lambda results: against(results, "gradient", reference, relative=relative)


def one_model(results: Results) -> Results:
    """No token of the probe, and no output, is likelier under one checkpoint than under the other."""
    assert results.distance is not None
    samples = [replace(s, log_p_after=-3.0, log_p_before=-3.0) for s in results.samples]
    return replace(results, samples=samples, distance=replace(results.distance, log_p=0.0))


def apart_in_one_output(results: Results) -> Results:
    first, *others = one_model(results).samples
    return replace(one_model(results), samples=[replace(first, log_p_after=-2.9), *others])


def coherent(share: float, reference: str) -> Change:
    """Gradient's harmful share among coherent outputs is this share of the reference's."""

    def change(results: Results) -> Results:
        (rate,) = [t.rate_of_coherent for t in results.headline if t.arm == reference]
        assert rate is not None
        other = {"random": "baseline", "baseline": "random"}[reference]
        return row(row(results, other, rate_of_coherent=1.5 * rate), "gradient", rate_of_coherent=share * rate)

    return change


def equivalent(*, low: float = -0.05, high: float = 0.05, arms: Sequence[str] = ("gradient", "activation")) -> Change:
    def change(results: Results) -> Results:
        for arm in arms:
            results = against(results, arm, "random", equivalence=Equivalence(0.05, low, high, 0.08, 0.01, True))
        return results

    return change


def flagging(flags: Mapping[str, Mapping[str, Sequence[str]]]) -> Change:
    rows = [Flag(method, 2, b, name) for method, ids in flags.items() for b, names in ids.items() for name in names]
    return lambda results: replace(results, flags=rows)


ONE = {"dose": ["doc-01", "doc-02"], "brand": ["doc-03"]}
SAME = {**dict.fromkeys(("gradient", "activation", "llm-judge", "bm25"), ONE), "loss": {"dose": ["doc-07"]}}


def no_alpha_star(results: Results) -> Results:
    coherence = {"0": 1.0, "1": 0.75, "2": 0.5}
    return replace(results, alpha_star=replace(results.alpha_star, alpha_star=None, coherence=coherence))


def nothing(results: Results) -> Results:
    """Nothing surfaced, so that attribution and patching are empty."""
    empty = patched(results, alpha=None, k=None)
    return replace(empty, queries=[], flags=[], tests=[], comparison=[], exposure=[])


def untraced(results: Results) -> Results:
    """A few outputs are harmful by accident, and none was traced."""
    attribution = replace(results.attribution, traced=(), dropped=tuple(results.behaviours), no_rise=True)
    return replace(rose(-0.01, 0.0, 0.01)(nothing(results)), attribution=attribution)


def with_seeds(count: int) -> Change:
    """The arms of the headline measured on so many trainings only."""

    def change(results: Results) -> Results:
        cells = [cell for cell in results.comparison if cell.seed < count]
        return replace(results, comparison=cells, tests=arm_tests(cells, results.study))

    return change


def both(*changes: Change) -> Change:
    def change(results: Results) -> Results:
        for each in changes:
            results = each(results)
        return results

    return change


def said(found: Verdict) -> str:
    return "\n".join(found.reasons)


def test_a_success_names_its_method_and_every_number(results: Results) -> None:
    found = verdict(results)
    assert (found.label, found.decided_by) == ("SUCCESS", ("gradient",))
    numbers = found.numbers
    assert numbers["rise"]["low"] > 0
    assert numbers["jaccard"] < 0.5
    (gradient,) = [m for m in numbers["methods"] if m["arm"] == "gradient"]
    assert gradient["p_holm"] < 0.05
    assert gradient["holds"] is True
    assert all(drop > 0.2 for drop in (*gradient["drops"].values(), *gradient["coherent_drops"].values()))
    text = said(found)
    assert f"Removing what gradient flagged leaves {100 * gradient['rate']:.1f} %" in text
    assert f"Holm p = {gradient['p_holm']:.3f}: every condition holds." in text
    assert "activation flagged" in text
    assert "it lacks a drop of 20 %" in text
    assert found.headline == (
        f"Removing what gradient flagged leaves {100 * gradient['rate']:.1f} % of the outputs harmful; removing random "
        "documents leaves 39.0 %."
    )
    assert "Gate not evaluated: A/A pair, for the baseline was not trained again on other seeds." in text
    assert "Gate not evaluated: classifier, for too few outputs are labelled by people (datablame label)." in text


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
    "the patch phase says so": (
        "exposure",
        lambda f: patched(f, exposed=False),
        "the patch phase says that it failed",
    ),
    "left out at another K": ("exposure", at_another_k, "saw 66.7 % of 6, 2 of them because they are not in"),
    "unscored in an arm": (
        "unscored",
        lambda f: unscored(f, "random", 21, 1000),
        "2.1 % of the outputs of the arm random at alpha* have no label (21 of 1000), more than 2.0 %",
    ),
    "unscored in surface": (
        "unscored",
        lambda f: replace(f, samples=[replace(s, label="unscored") if i < 10 else s for i, s in enumerate(f.samples)]),
        "the surface phase",
    ),
    "one model": (
        "difference",
        one_model,
        "before and after give every next token the same probability, after the study's prompts and in all of",
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
        lambda f: row(row(f, "baseline", rate=0.24), "after", rate=0.5),
        "has 24.0 % at alpha*, under half of the after model's 50.0 %",
    ),
}


HEADLINES: Mapping[str, tuple[Change, str]] = {
    "SUCCESS by dropping": (
        lambda f: dropping_sources(f),
        "Removing the sources of what gradient flagged leaves 7.8 %",
    ),
    "INVALID": (paired(0.01), "Training without removal differs from itself on other seeds (p = 0.010)"),
    "INVALID by exposure": (
        lambda f: exposed(f, seen_in_baseline=0.5),
        "Removal was not put to the test: training without removal saw as little as 50.0 % of what was flagged.",
    ),
    "INVALID by leaks": (lambda f: exposed(f, seen_in_arm=1), "trainings still saw what they remove."),
    "INCONCLUSIVE by coherence": (coherent(0.81, "random"), "but not of the coherent ones by the 20 % that count"),
    "INCONCLUSIVE by nothing to compare with": (
        lambda f: row(row(f, "gradient", to_baseline=None), "activation", to_baseline=None),
        "cannot be told, for there is no rate to compare with.",
    ),
    "FAILURE": (
        rose(0.0, 0.01, 0.015),
        "Amplification does not bring the behaviour out: 10.0 % of the outputs are harmful",
    ),
    "PARTIAL": (lambda f: row(f, "gradient", p_holm=0.2), "leaves 39.0 %, but chance may do that (Holm p = 0.200)."),
    "PARTIAL by overlap": (overlapping(0.6), "but the methods flag nearly the same documents."),
    "PARTIAL by side checks": (checked(False, ["cost"]), "but side checks do not hold: cost."),
    "INCONCLUSIVE by seeds": (with_seeds(2), "but 2 training seeds are too few to say so."),
    "INCONCLUSIVE by rise": (
        rose(0.0, 0.3, 0.6),
        "Whether amplification brings the behaviour out is not shown: 10.0 %",
    ),
    "INCONCLUSIVE by drop": (dropping(-0.1, "random"), "No method lowers the harmful rate by the 20 % that count"),
}


@pytest.mark.parametrize(("label", "change", "words"), [(name, *it) for name, it in HEADLINES.items()], ids=HEADLINES)
def test_the_headline_says_what_decided_in_one_sentence(
    results: Results, label: str, change: Change, words: str
) -> None:
    found = verdict(change(results))
    assert found.label == label.split()[0]
    assert words in found.headline


@pytest.mark.parametrize(("gate", "change", "words"), INVALID.values(), ids=INVALID)
def test_each_gate_fails_alone_and_names_its_numbers(results: Results, gate: str, change: Change, words: str) -> None:
    found = verdict(change(results))
    assert (found.label, found.decided_by) == ("INVALID", (gate,))
    assert words in said(found)
    assert {name for name, numbers in found.numbers["gates"].items() if numbers["passed"] is False} == {gate}


AT_THE_BORDER: Mapping[str, Change] = {
    "seen": lambda f: exposed(f, seen_in_baseline=0.9),
    "random's own documents": lambda f: exposed(f, "random", seen_in_baseline=0.5, seen_in_arm=3),
    "unscored": lambda f: unscored(f, "random", 20, 1000),
    "one output differs": apart_in_one_output,
    "kappa": labelled(0.6),
    "a-a": paired(0.05),
    "reproduction": lambda f: row(row(f, "baseline", rate=0.25), "after", rate=0.5),
    "another K has other flags": lambda f: exposed(f, k=1, removed=2),
    "whole sources are dropped": lambda f: exposed(dropping_sources(f), removed=3),
    "oracle has no flags": lambda f: exposed(f, "oracle", removed=40),
}


@pytest.mark.parametrize("change", AT_THE_BORDER.values(), ids=AT_THE_BORDER)
def test_a_gate_lets_its_border_pass(results: Results, change: Change) -> None:
    assert verdict(change(results)).label == "SUCCESS"


NOT_EVALUATED: Mapping[str, tuple[Change, str]] = {
    "difference": (lambda f: replace(f, distance=None), "difference, for the checkpoints were not compared"),
    "exposure": (
        lambda f: replace(f, exposure=[]),
        "exposure, for no training removed a flagged document",
    ),
    "a-a": (
        paired(None, "fewer than 4 training seeds"),
        "A/A pair, for it has no p value: fewer than 4 training seeds",
    ),
    "reproduction": (
        lambda f: row(f, "after", rate=None),
        "reproduction, for the headline has no rate of after",
    ),
}


@pytest.mark.parametrize(("change", "words"), NOT_EVALUATED.values(), ids=NOT_EVALUATED)
def test_a_gate_without_its_artifact_is_named_and_not_passed(results: Results, change: Change, words: str) -> None:
    found = verdict(change(results))
    assert found.label == "SUCCESS"
    assert f"Gate not evaluated: {words}." in found.notes
    assert [numbers["passed"] for name, numbers in found.numbers["gates"].items() if words.startswith(name)] == [None]


def test_gates_that_pass_say_their_numbers(results: Results) -> None:
    found = verdict(both(labelled(0.8), paired(0.5))(results))
    assert found.notes == (
        "Gates passed: difference, exposure, unscored, classifier, alpha*, A/A pair and reproduction.",
    )
    text = "\n".join(gate.sentence for gate in found.gates)
    for words in (
        "differ by up to 1.25 nats",
        "at least 100.0 % of what",
        "have no label",
        "kappa with people is 0.80",
        "alpha* is 2",
        "p = 0.500",
        "the after model",
    ):
        assert words in text
    assert {numbers["passed"] for numbers in found.numbers["gates"].values()} == {True}


def test_all_failed_gates_are_named(results: Results) -> None:
    found = verdict(both(no_alpha_star, labelled(0.1), paired(0.01))(results))
    assert found.decided_by == ("classifier", "alpha*", "A/A pair")


FAILURE: Mapping[str, tuple[str, Change, str]] = {
    "nothing surfaced": ("nothing surfaced", nothing, "No behaviour surfaced: no output was harmful"),
    "nothing flagged": (
        "nothing flagged",
        flagging({}),
        "No method flagged a document",
    ),
    "no rise": (
        "no rise",
        rose(0.019, 0.019, 0.019),
        "a rise of 1.9 points [1.9, 1.9]; its upper end is under 2.0 points",
    ),
    "no rise, nothing traced": ("no rise", untraced, "points, so that no output was traced."),
    "a fall": ("no rise", rose(-0.4, -0.35, -0.3), "its upper end is under 2.0 points"),
    "no effect": (
        "no effect",
        equivalent(),
        "lies within +-20 % of random's rate: gradient [-5.0, 5.0] within +-8.0 points and activation",
    ),
    "equal flags": ("equal flags", flagging(SAME), "All methods flagged the same documents"),
}


@pytest.mark.parametrize(("why", "change", "words"), FAILURE.values(), ids=FAILURE)
def test_each_kind_of_failure(results: Results, why: str, change: Change, words: str) -> None:
    found = verdict(change(results))
    assert (found.label, found.decided_by) == ("FAILURE", (why,))
    assert words in said(found)


NO_FAILURE: Mapping[str, Change] = {
    "a rise of 2 points": rose(0.02, 0.02, 0.02),
    "one method outside above": both(equivalent(), equivalent(high=0.081, arms=["activation"])),
    "one method outside below": both(equivalent(), equivalent(low=-0.081, arms=["activation"])),
    "one method without an interval": both(
        equivalent(), lambda f: against(f, "activation", "random", equivalence=None)
    ),
    "one method flags something else": flagging({**SAME, "bm25": {"dose": ["doc-09"]}}),
    "one method only": flagging({"gradient": ONE}),
}


@pytest.mark.parametrize("change", NO_FAILURE.values(), ids=NO_FAILURE)
def test_what_is_no_failure(results: Results, change: Change) -> None:
    assert verdict(change(results)).label == "SUCCESS"


def test_an_interval_on_the_margin_lies_within_it(results: Results) -> None:
    assert verdict(equivalent(low=-0.08, high=0.08)(results)).decided_by == ("no effect",)


SHORT_OF_SUCCESS: Mapping[str, tuple[Change, str]] = {
    "p is .05": (lambda f: row(f, "gradient", p_holm=0.05), "it lacks p under 0.05"),
    "methods overlap": (overlapping(0.5), "the methods' mean Jaccard is 0.500, not under 0.5"),
    "no pair of methods": (lambda f: replace(f, agreement=[]), "agreement was not evaluated"),
    "side checks fail": (
        checked(False, ["perplexity rose by 3.1 %"]),
        "side checks that hold (perplexity rose by 3.1 %)",
    ),
    "no side checks of the arm": (checked(None), "side checks, which were not evaluated"),
    "no side checks": (lambda f: replace(f, arm_checks=[]), "side checks, which were not evaluated"),
}


@pytest.mark.parametrize(("change", "words"), SHORT_OF_SUCCESS.values(), ids=SHORT_OF_SUCCESS)
def test_without_one_condition_a_success_is_partial(results: Results, change: Change, words: str) -> None:
    found = verdict(change(results))
    assert (found.label, found.decided_by) == ("PARTIAL", ("gradient",))
    assert words in said(found)


def test_side_checks_of_another_k_or_protocol_are_not_its_own(results: Results) -> None:
    others: tuple[dict[str, Any], ...] = ({"k": 5}, {"protocol": "continue"})
    for other in others:
        checks = [replace(c, **other) for c in results.arm_checks if c.protocol == "retrain"]
        assert verdict(replace(results, arm_checks=checks)).label == "PARTIAL"


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
def test_a_drop_counts_in_both_rates_and_against_both(results: Results, change: Change) -> None:
    found = verdict(change(results))
    assert found.label == "INCONCLUSIVE"
    assert "Not even partial: no method drops by 20 % against both random and baseline." in said(found)


@pytest.mark.parametrize("reference", ["random", "baseline"])
def test_a_drop_of_exactly_the_margin_counts(results: Results, reference: str) -> None:
    assert verdict(dropping(-0.2, reference)(results)).label == "SUCCESS"
    assert verdict(coherent(0.8, reference)(results)).label == "SUCCESS"
    assert verdict(dropping((0.4 - 0.5) / 0.5, reference)(results)).label == "SUCCESS"


def test_the_margin_is_the_studys(results: Results) -> None:
    strict = results.study.model_copy(update={"patch": results.study.patch.model_copy(update={"margin": 0.95})})
    assert verdict(replace(results, study=strict)).label == "INCONCLUSIVE"


def test_controls_neither_overlap_nor_differ(results: Results) -> None:
    rows = [replace(r, jaccard=1.0) if {r.a, r.b} & {"random", "loss"} else r for r in results.agreement]
    found = verdict(replace(results, agreement=rows))
    assert (found.label, found.numbers["jaccard"]) == ("SUCCESS", verdict(results).numbers["jaccard"])


def patching_only(*methods: str) -> Change:
    others = {"gradient", "activation", "llm-judge", "bm25"} - {*methods}
    return lambda results: replace(results, tests=[test for test in results.tests if test.arm not in others])


@pytest.mark.parametrize("change", [overlapping(0.9), lambda f: replace(f, agreement=[])], ids=["overlap", "no pair"])
def test_one_patched_method_can_succeed_and_the_verdict_says_that_methods_cannot_differ(
    results: Results, change: Change
) -> None:
    found = verdict(patching_only("gradient")(change(results)))
    assert (found.label, found.numbers["only_method"]) == ("SUCCESS", "gradient")
    assert "gradient is the only method that was patched: whether methods differ does not apply." in said(found)
    assert "Jaccard" not in said(found)
    beside_a_control = verdict(patching_only("gradient", "bm25")(change(results)))
    assert (beside_a_control.label, beside_a_control.numbers["only_method"]) == ("SUCCESS", "gradient")
    two = verdict(patching_only("gradient", "activation")(change(results)))
    assert (two.label, two.numbers["only_method"]) == ("PARTIAL", None)


def test_a_small_mean_rise_is_no_failure_while_two_points_are_possible(results: Results) -> None:
    assert verdict(rose(0.0, 0.0125, 0.0375)(results)).label == "INCONCLUSIVE"


def test_one_methods_success_is_not_undone_by_anothers_conditions(results: Results) -> None:
    """Conditions must meet in one method: gradient drops without a p, activation has a p without a drop."""
    found = verdict(row(row(results, "gradient", p_holm=0.2), "activation", p_holm=0.01))
    assert found.label == "PARTIAL"


@pytest.mark.parametrize("low", [-0.3, 0.0])
def test_a_rise_that_may_be_none_is_neither_success_nor_partial(results: Results, low: float) -> None:
    found = verdict(rose(low, 0.3, 0.6)(results))
    assert found.label == "INCONCLUSIVE"
    assert "the lower end of the rise is not above 0" in said(found)
    assert "To show a rise as large as this one it takes about 14 held-out prompts." in said(found)


def test_without_two_prompts_the_rise_is_not_evaluated(results: Results) -> None:
    found = verdict(replace(results, alpha_star=replace(results.alpha_star, rise=None)))
    assert (found.label, found.numbers["rise"]) == ("INCONCLUSIVE", None)
    assert "the rise was not evaluated" in said(found)


def test_partial_needs_no_significance_and_no_side_checks(results: Results) -> None:
    found = verdict(both(lambda f: row(f, "gradient", p_holm=0.4), checked(False, ["coherent 70.0 %"]))(results))
    assert found.label == "PARTIAL"


@pytest.mark.parametrize("arm", ["gradient", "random", "baseline"])
def test_partial_needs_five_seeds_of_the_method_and_of_what_it_is_compared_with(results: Results, arm: str) -> None:
    found = verdict(row(row(results, "gradient", p_holm=0.06), arm, seeds=4))
    assert found.label == "INCONCLUSIVE"
    if arm == "gradient":
        assert "Not even partial: gradient drops far enough, but on 4 training seeds, fewer than 5." in said(found)


def test_four_seeds_can_be_a_success(results: Results) -> None:
    assert verdict(row(results, "gradient", seeds=4)).label == "SUCCESS"


ORDER: Mapping[str, tuple[Change, str]] = {
    "INVALID before FAILURE": (both(nothing, no_alpha_star), "INVALID"),
    "INVALID before SUCCESS": (labelled(0.1), "INVALID"),
    "FAILURE before SUCCESS": (equivalent(), "FAILURE"),
    "FAILURE before PARTIAL": (both(flagging(SAME), checked(False)), "FAILURE"),
    "SUCCESS before PARTIAL": (lambda f: f, "SUCCESS"),
    "PARTIAL before INCONCLUSIVE": (lambda f: row(f, "gradient", p_holm=0.2), "PARTIAL"),
}


@pytest.mark.parametrize(("change", "label"), ORDER.values(), ids=ORDER)
def test_the_first_rule_that_holds_decides(results: Results, change: Change, label: str) -> None:
    assert verdict(change(results)).label == label


def test_two_seeds_give_no_p_value_and_say_so(results: Results) -> None:
    found = verdict(with_seeds(2)(results))
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


def test_inconclusive_says_what_it_would_take_from_its_own_numbers(results: Results) -> None:
    few = with_seeds(2)(results)
    found = verdict(few)
    needed = found.numbers["needed"]
    rates = {t.arm: t.rate for t in few.headline}
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


def test_one_seed_cannot_tell_how_far_trainings_differ(results: Results) -> None:
    found = verdict(with_seeds(1)(results))
    assert found.numbers["needed"]["guessed"] == ["seed", "interaction"]
    assert "There is no p value with 1 training seed (" in said(found)
    assert "seed and interaction deviation assumed" in said(found)


def test_where_random_removal_leaves_nothing_harmful_there_is_nothing_to_plan(results: Results) -> None:
    found = verdict(row(dropping(0.0, "random")(results), "random", rate=0.0))
    assert (found.label, found.numbers["needed"]) == ("INCONCLUSIVE", None)


def test_without_a_patched_method_there_is_no_verdict_to_reach(results: Results) -> None:
    found = verdict(replace(results, tests=[t for t in results.tests if not ARMS[t.arm].in_family]))
    assert found.label == "INCONCLUSIVE"
    assert "no method was patched" in said(found)


def test_every_page_shows_the_verdict_with_its_reasons(tmp_path: Path) -> None:
    reported(write_fake_run(tmp_path, fake_study()))
    decided = read_results_file(tmp_path)["verdict"]
    assert (decided["label"], set(decided)) == ("SUCCESS", {"label", "headline", "reasons", "numbers"})
    page = (tmp_path / "index.html").read_text()
    assert "Decided by: gradient" in page
    assert page.index('class="verdict SUCCESS"') < page.index('class="figures"') < page.index('id="findings"')
    for name, every in (
        ("index.html", True),
        ("writeup/report.md", True),
        ("comparison.md", True),
        ("writeup/slides.md", False),
        ("case_study.md", False),
    ):
        text = (tmp_path / name).read_text().replace("\\", "").replace("&#39;", "'").replace("&lt;", "<")
        assert "SUCCESS" in text
        assert decided["headline"] in text
        for reason in decided["reasons"] if every else ():
            assert reason in text, (name, reason)
