"""Findings say what the numbers say, in both directions, and when a confounder says as much."""

from dataclasses import replace

from tests.report.fake_run import BEHAVIOURS

from datablame.report.findings import findings
from datablame.report.results import Results
from datablame.tables import EVERY, AlphaStar


def sentences(results: Results, name: str) -> list[str]:
    return [finding.sentence for finding in findings(results) if finding.name == name]


def harmful(results: Results, counts: dict[float, int]) -> Results:
    """With so many harmful outputs in each row over all prompts at these amplifications."""
    rates = [
        replace(rate, harmful=counts[rate.alpha]) if rate.prompt_id == EVERY and rate.alpha in counts else rate
        for rate in results.rates
    ]
    return replace(results, rates=rates)


def test_a_rate_that_rises_falls_or_does_neither_is_called_so(results: Results) -> None:
    for counts, words in (({0.0: 1, 2.0: 30}, "rises from"), ({0.0: 30, 2.0: 1}, "falls from")):
        [text] = sentences(harmful(results, counts), "rates")
        assert words in text
        assert text.endswith("the 95 % intervals are disjoint.")
    even = harmful(results, {0.0: 5, 2.0: 5})
    assert sentences(even, "rates")[0].endswith("the 95 % intervals overlap, so no change is shown.")
    assert sentences(even, "rising") == []
    assert all(behaviour in sentences(even, "flat")[0] for behaviour in BEHAVIOURS)


def test_without_a_scored_output_nothing_is_known(results: Results) -> None:
    lost = replace(results, rates=[replace(rate, harmful=0, unscored=rate.n) for rate in results.rates])
    assert sentences(lost, "rates") == ["No output was scored, so nothing is known about the behaviour."]
    some = [replace(r, harmful=0, unscored=r.n) if r.behaviour == "dose" else r for r in results.rates]
    assert "dose (nothing scored)" in sentences(replace(results, rates=some), "flat")[0]


def test_no_alpha_star_is_a_finding(results: Results) -> None:
    [text] = sentences(replace(results, alpha_star=AlphaStar(None, "r", {}, None)), "alpha*")
    assert text.startswith("At no alpha above 0")


def test_precision_stands_beside_chance_and_beside_the_controls(results: Results) -> None:
    whole, candidates = sentences(results, "precision")
    assert whole.startswith("Precision at 2 within the whole pool, where chance gives 0.100: gradient 0.50, activation")
    assert whole.endswith("the controls reach random 0.10 and loss 0.08.")
    assert "within the BM25 candidates" in candidates


def test_a_confounder_that_does_nearly_as_well_is_named(results: Results) -> None:
    assert sentences(results, "confounder") == []
    quality = [replace(row, auprc=0.33) if row.method == "loss" else row for row in results.quality]
    texts = sentences(replace(results, quality=quality), "confounder")
    assert len(texts) == 2
    assert texts[0] == (
        "Within the whole pool a confounder alone (loss, average precision 0.33) comes within a fifth of gradient "
        "(0.40): there, gradient adds little."
    )


def test_one_method_has_no_agreement_to_report(results: Results) -> None:
    assert "closest are gradient and activation (0.10)" in sentences(results, "agreement")[0]
    controls = [pair for pair in results.agreement if "random" in (pair.a, pair.b)]
    assert sentences(replace(results, agreement=controls), "agreement") == []


def test_arms_that_chance_may_make_are_told_from_those_that_it_does_not(results: Results) -> None:
    [text, alone] = sentences(results, "removal")
    assert text.startswith("retrain: removing everything planted leaves 2.5 %, what gradient flagged leaves 7.8 % and ")
    assert alone.startswith("continue: ")
    assert "gradient (-31.2 points [" in sentences(results, "told from random")[0]
    assert sentences(results, "no p value") == ["continue: no p value, fewer than 4 training seeds."]
    level = [t if t.to_random is None else replace(t, to_random=replace(t.to_random, p=0.05)) for t in results.tests]
    at_level = replace(results, tests=level)
    assert sentences(at_level, "told from random") == []
    assert "gradient" in sentences(at_level, "not told from random")[0]
