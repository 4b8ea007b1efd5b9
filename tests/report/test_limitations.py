"""Each rule fires on rows that trigger it, names its number, and is silent on those that do not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.report.fake_run import BEHAVIOURS, DOCUMENTS, estimate, fake_study, results_of, write_fake_run
from tests.report.rows import again, calibration, people

from datablame.engine.phase import Tables
from datablame.judge.choice import Choice
from datablame.report.limitations import limitations
from datablame.report.results import Results, read_results
from datablame.report.wording import sentences as sentences_by_name
from datablame.tables import (
    EVERY,
    AlphaStar,
    Arm,
    ArmTest,
    Ceiling,
    DataSummary,
    Exposure,
    FileRows,
    JudgeAnswers,
    LargestCluster,
    Match,
    SeenWeights,
    SkippedRows,
    Unamplified,
    Unranked,
)

CLAUDE, OTHER = "claude-haiku-5-5", "claude-sonnet-5-5"


@pytest.fixture(scope="module")
def run(results: Results) -> Results:
    """A fake run whose every limit is repaired, so that a rule fires only where a test breaks something."""
    assert results.patching is not None
    return replace(
        results,
        truth=False,
        prompts=[replace(prompt, text=f"words of {prompt.id} only") for prompt in results.prompts],
        samples=[replace(row, classifier=CLAUDE) for row in results.samples],
        methods={name: replace(method, standin=False) for name, method in results.methods.items()},
        pool=replace(results.pool, data=DataSummary((), (), {}, 0, None)),
        ceilings=[Ceiling("gradient", EVERY, 0.9)],
        calibration=calibration(),
        unamplified=Unamplified(True, None, tuple(estimate(name) for name in (EVERY, *BEHAVIOURS))),
        exposure=[],
        tests=[ample(test) for test in results.tests],
        interventions=[arm()],
        patching=replace(results.patching, again=again()),
    )


def apart(results: Results, **changes: Any) -> Results:
    """With another distance of the checkpoints."""
    assert results.distance is not None
    return replace(results, distance=replace(results.distance, **changes))


def ample(test: ArmTest) -> ArmTest:
    """A row with ample rate and seeds."""
    against = test.to_random and replace(test.to_random, p=0.01, difference=-0.2, smallest_p=0.008)
    family = 2 if test.arm in ("gradient", "activation") else None
    return replace(test, rate=0.4, seeds=max(test.seeds, 5), to_random=against, family=family)


def arm(**changes: Any) -> Arm:
    return replace(Arm("gradient", "retrain", 2, 3, "remove", ("a", "b"), ("c", "d"), 0), **changes)


def changed_tests(results: Results, change: Callable[[ArmTest], ArmTest]) -> Results:
    """Every headline row changed."""
    return replace(results, tests=[change(test) if test.headline else test for test in results.tests])


def rate_of(results: Results, name: str, rate: float) -> Results:
    return changed_tests(results, lambda test: replace(test, rate=rate) if test.arm == name else test)


def smallest_p(results: Results, p: float) -> Results:
    return changed_tests(
        results, lambda test: replace(test, to_random=test.to_random and replace(test.to_random, smallest_p=p))
    )


def checks_of(results: Results, name: str, **changes: Any) -> Results:
    """The side checks with one arm of the headline changed."""
    checks = [replace(c, **changes) if (c.arm, c.protocol) == (name, "retrain") else c for c in results.arm_checks]
    return replace(results, arm_checks=checks)


def patched(results: Results, **changes: Any) -> Results:
    assert results.patching is not None
    return replace(results, patching=replace(results.patching, **changes))


def designed(results: Results, **changes: Any) -> Results:
    """Side checks made otherwise."""
    assert results.patching is not None
    return patched(results, checks=replace(results.patching.checks, **changes))


def calibrated_twice(results: Results) -> Results:
    judge = results.study.judge.model_copy(update={"calibration": "others.csv"})
    return replace(results, study=results.study.model_copy(update={"judge": judge}), people=people())


def labelled_by(results: Results, classifier: str) -> Results:
    return replace(results, samples=[replace(row, classifier=classifier) for row in results.samples])


def without_labels(results: Results) -> Results:
    first, second, *others = results.samples
    lost = [replace(row, label="unscored", label_reason="the judge refused: x") for row in (first, second)]
    return replace(results, samples=[*lost, *others])


def withheld(results: Results, reason: str) -> Results:
    first, *others = results.unamplified.rows
    broken = replace(first, importance=replace(first.importance, withheld=reason))
    return replace(results, unamplified=replace(results.unamplified, rows=(broken, *others)))


def flat(results: Results) -> Results:
    def even(rate: Any) -> Any:
        return replace(rate, harmful=2) if (rate.prompt_id, rate.behaviour) == (EVERY, "dose") else rate

    return replace(results, rates=[even(rate) for rate in results.rates])


def incoherent_at_star(results: Results) -> Results:
    cell = (EVERY, "held-out", results.alpha_star.alpha_star)
    return replace(
        results,
        rates=[
            replace(rate, incoherent=rate.n // 2) if (rate.prompt_id, rate.split, rate.alpha) == cell else rate
            for rate in results.rates
        ],
    )


def attributed(results: Results, **changes: Any) -> Results:
    return replace(results, attribution=replace(results.attribution, **changes))


def judged_by_claude(results: Results) -> Results:
    return replace(attributed(results, judge=JudgeAnswers(OTHER, 60, {})), judge=Choice("claude", "claude"))


def method(results: Results, name: str, **changes: Any) -> Results:
    return replace(results, methods={**results.methods, name: replace(results.methods[name], **changes)})


def data(*skipped: SkippedRows) -> DataSummary:
    return DataSummary((FileRows("pool.jsonl", 20, 20, skipped),), (), {}, 0, None)


def pooled(results: Results, **changes: Any) -> Results:
    return replace(results, pool=replace(results.pool, **changes))


def ceiling(results: Results, share: float) -> Results:
    return replace(results, ceilings=[Ceiling("gradient", EVERY, share)])


def behind_a_prefilter(results: Results) -> Results:
    return replace(attributed(results, prefilter="bm25", candidates={"dose": 7, "brand": 9}), ceilings=[])


def seeded(results: Results, seeds: int) -> Results:
    return changed_tests(results, lambda test: replace(test, seeds=seeds))


def reused(results: Results) -> Results:
    first = results.split("attribution")[0].text
    (index,) = [i for i, prompt in enumerate(results.prompts) if prompt.id == "dose-h0"]
    prompts = list(results.prompts)
    prompts[index] = replace(prompts[index], text=f"{first.upper()}!")
    return replace(results, prompts=prompts)


def all_in_continue(results: Results) -> Results:
    patch = results.study.patch.model_copy(update={"headline": "continue"})
    return replace(results, study=results.study.model_copy(update={"patch": patch}))


def exposed(results: Results, passed: bool) -> Results:
    rows = [Exposure("gradient", "retrain", 2, 0, 4, 0.25, 0, None)]
    return patched(replace(results, exposure=rows), exposed=passed)


def matches(count: int) -> tuple[Match, ...]:
    return tuple(Match(doc_id, "dose-a0") for doc_id in DOCUMENTS[:count])


class Case(NamedTuple):
    """What breaks a sound run, and the words with which the rule says so."""

    broken: Callable[[Results], Results]
    words: str


CASES: dict[str, Case] = {
    "rounding": Case(
        lambda it: apart(it, rounding=0.25),
        "Before went through float32, after through float32: rounding alone makes a difference of 0.25 (Frobenius "
        "norm), where the checkpoints lie 0.5 apart",
    ),
    "unread tensors": Case(
        lambda it: apart(it, after=SeenWeights("float32", 7, "v_head.weight")),
        "7 tensors of models.after have no place in its model and were not read, the first is v_head.weight",
    ),
    "other settings": Case(
        lambda it: apart(it, settings=("rope_theta", "sliding_window")),
        "both checkpoints differ in 2 settings, rope_theta, sliding_window",
    ),
    "keyword classifier": Case(
        lambda it: labelled_by(it, "keywords"), "labelled by keywords (480 of the surface phase"
    ),
    "no calibration": Case(
        lambda it: replace(it, calibration=None), f"0 of 480 outputs (judge.calibration is empty): how often {CLAUDE}"
    ),
    "poor agreement": Case(
        lambda it: replace(it, calibration=calibration(kappa=0.59)), "kappa is 0.59 [0.70, 0.90] on 100"
    ),
    "few positives": Case(
        lambda it: replace(it, calibration=calibration(counts=replace(calibration().counts, true_positive=6))),
        "rests on 9 outputs that people call harmful, fewer than 10",
    ),
    "few labels": Case(
        lambda it: replace(it, people=people(calibration=None)),
        "People labelled 12 outputs of this run, 4 of them harmful: 18 more are needed (datablame label)",
    ),
    "other calibration": Case(
        calibrated_twice,
        "judge.calibration = others.csv is read, and nothing rests on it",
    ),
    "stale labels": Case(lambda it: replace(it, people=people(stale=3)), "3 labels by people are left out"),
    "tied labels": Case(lambda it: replace(it, people=people(ties=2)), "2 outputs are left out of the calibration"),
    "by chance": Case(
        lambda it: replace(it, calibration=calibration(sensitivity=0.3, specificity=0.7)),
        "no better than chance (sensitivity 0.30, specificity 0.70)",
    ),
    "errors alike": Case(lambda it: it, "as on the 100 labelled outputs"),
    "no alpha*": Case(
        lambda it: replace(it, alpha_star=AlphaStar(None, "r", {"0": 1.0, "1": 0.5, "2": 0.25}, None)),
        "has 50.0 % coherent outputs, fewer than the 80.0 %",
    ),
    "held-out coherence": Case(incoherent_at_star, "On held-out prompts 50.0 % of the after model's outputs"),
    "unscored outputs": Case(without_labels, "2 of 480 outputs have no label (2 because the judge refused)"),
    "flat behaviour": Case(flat, "dose does not rise with amplification (5.0 % at alpha 0, 5.0 % at alpha 2)"),
    "truncated": Case(
        lambda it: replace(it, unamplified=Unamplified(False, "surface.top_p = 0.9: cut", ())),
        "not estimated from amplified outputs: surface.top_p = 0.9: cut.",
    ),
    "k-hat": Case(
        lambda it: withheld(it, "k-hat 0.83 is above 0.7"),
        "withheld in 1 of 3 cases (all, held-out: k-hat 0.83 is above 0.7)",
    ),
    "one family": Case(judged_by_claude, f"are {CLAUDE} and {OTHER}, both Claude (480 outputs and 60 questions"),
    "stand-in": Case(
        lambda it: method(it, "llm-judge", standin=True), "llm-judge is a stand-in (llm-judge (keyword stand-in))"
    ),
    "missing scores": Case(
        lambda it: attributed(it, judge=JudgeAnswers(OTHER, 60, {"it was cut": 3})),
        "3 of 60 questions about documents have no score (3 because it was cut)",
    ),
    "unranked": Case(
        lambda it: method(it, "bm25", unranked=(Unranked("dose", 4),)),
        "bm25 gave 4 documents no score for dose",
    ),
    "dropped behaviours": Case(
        lambda it: attributed(it, dropped=("brand",)), "attribution left out 1 of 2 behaviours: brand"
    ),
    "recall ceiling": Case(
        lambda it: ceiling(it, 0.49),
        "(share of their first 2 among the candidates): gradient 0.49",
    ),
    "unknown ceiling": Case(behind_a_prefilter, "ranked at most 9 BM25 candidates of 20 documents"),
    "unmatched queries": Case(
        lambda it: attributed(it, unmatched=("brand-q1", "brand-q3")),
        "2 traced outputs have no word in common with any document of the pool: brand-q1",
    ),
    "large cluster": Case(
        lambda it: pooled(it, largest=LargestCluster(7, "doc-03")),
        "7 of 20 documents are near copies of one another (the first: doc-03)",
    ),
    "prompts in the pool": Case(
        lambda it: attributed(it, prompt_matches=matches(2)), "2 documents of the pool ask exactly"
    ),
    "outputs in the pool": Case(
        lambda it: attributed(it, query_matches=matches(1)), "1 documents of the pool repeat a traced"
    ),
    "excluded documents": Case(
        lambda it: pooled(it, excluded={"no response": 5, "never": 0}),
        "5 documents of the pool were ranked by no method",
    ),
    "skipped rows": Case(
        lambda it: pooled(it, data=data(SkippedRows("no text", 6, None))), "6 rows of the data could not"
    ),
    "unread text": Case(
        lambda it: pooled(it, data=replace(data(), unread={"notes": 4, "messages.name": 1})),
        "in no document: notes (4 rows), messages.name (1 rows)",
    ),
    "exposure": Case(lambda it: exposed(it, False), "saw as little as 25.0 % of what an arm removed"),
    "loose fillers": Case(
        lambda it: replace(it, interventions=[arm(), arm(loosely_matched=1, seed=4)]),
        "1 of 4 fillers come from another source or length band than what they replace (most in gradient, retrain, "
        "seed 4: 1 of 2)",
    ),
    "reproduction": Case(
        lambda it: rate_of(it, "baseline", 0.19),
        "brings the rate to 19.0 %, under half of the after model's 40.0 %",
    ),
    "nothing harmful": Case(
        lambda it: rate_of(it, "gradient", 0.0),
        "retrain: gradient showed no harmful output in 400",
    ),
    "incoherent arms": Case(
        lambda it: checks_of(it, "activation", coherent=0.7),
        "Fewer than 80.0 % of these arms' outputs are coherent at alpha* (headline protocol): activation 70.0 %",
    ),
    "unscored arms": Case(
        lambda it: patched(it, unscored={"it timed out": 7}), "outputs of trained arms have no label (7 because"
    ),
    "side checks": Case(lambda it: replace(it, arm_checks=[]), "0 arms had side checks"),
    "few clean documents": Case(
        lambda it: designed(it, clean_ids=DOCUMENTS[:12]), "rests on 12 documents, fewer than the 50"
    ),
    "drift": Case(lambda it: checks_of(it, "gradient", kl=0.05), "baseline 0.125): gradient 0.050"),
    "single run": Case(lambda it: seeded(it, 1), "retrain was run with one training seed"),
    "few seeds": Case(lambda it: seeded(it, 3), "retrain has 3 training seeds, too few"),
    "smallest p": Case(
        lambda it: smallest_p(it, 0.0286),
        "is 0.0286, times 2 methods 0.057, which is not below .05",
    ),
    "no A/A pair": Case(lambda it: patched(it, again=None), "0 trainings repeat the no-removal arm on other seeds"),
    "uncompared prompts": Case(
        lambda it: changed_tests(it, lambda test: replace(test, prompts=3)), "1 of 4 held-out prompts are"
    ),
    "prompts reused": Case(reused, "1 of 4 held-out prompts share at least 80.0 % of their words with an attribution"),
    "unseen weights": Case(
        lambda it: replace(it, coverage={"attribute.layers": 0.6, "patch.continue.layers": 0.95}),
        "a part of the weights of their blocks (attribute.layers 60.0 %);",
    ),
    "planted": Case(
        lambda it: replace(it, truth=True),
        "causes of 2 behaviours were planted",
    ),
    "stage": Case(lambda it: it, "Of the 20 documents of the pool 0 are known"),
    "re-exposure": Case(all_in_continue, "trainings that decide start from the after model"),
    "scope of p": Case(lambda it: it, "values of the headline concern these flagged documents"),
}
"""A case for every rule."""

SILENT: dict[str, Callable[[Results], Results]] = {
    "errors alike": lambda it: replace(it, calibration=None),
    "stage": lambda it: replace(it, truth=True),
    "scope of p": lambda it: changed_tests(it, lambda test: replace(test, p=None)),
}
"""Rules that speak of a sound run too; what makes them silent."""


def unchanged(results: Results) -> Results:
    return results


def sentences(results: Results, name: str) -> list[str]:
    return [limit.sentence for limit in limitations(results) if limit.name == name]


def test_every_rule_has_a_case() -> None:
    assert set(CASES) == set(sentences_by_name()["limitations"])


@pytest.mark.parametrize("name", CASES)
def test_the_rule_fires_where_it_is_triggered_and_names_the_number(name: str, run: Results) -> None:
    texts = sentences(CASES[name].broken(run), name)
    assert any(CASES[name].words in text for text in texts), texts
    assert all(any(character.isdigit() for character in text) for text in texts if name != "single run")


@pytest.mark.parametrize("name", CASES)
def test_the_rule_is_silent_where_it_is_not_triggered(name: str, run: Results) -> None:
    assert sentences(SILENT.get(name, unchanged)(run), name) == []


@pytest.mark.parametrize(
    ("name", "unbroken"),
    [
        ("no calibration", lambda it: replace(labelled_by(it, "rules"), calibration=None)),
        ("recall ceiling", lambda it: ceiling(it, 0.5)),
        ("exposure", lambda it: exposed(it, True)),
        ("loose fillers", lambda it: replace(it, interventions=[arm(loosely_matched=2, intervention="drop-source")])),
        ("few seeds", lambda it: seeded(it, 4)),
        ("smallest p", lambda it: smallest_p(it, 0.0249)),
        ("drift", lambda it: checks_of(it, "gradient", kl=0.0626)),
        ("incoherent arms", lambda it: checks_of(it, "activation", coherent=0.8)),
        ("poor agreement", lambda it: replace(it, calibration=calibration(kappa=0.6))),
        ("side checks", lambda it: replace(it, tests=[], arm_checks=[])),
        ("no A/A pair", lambda it: replace(patched(it, again=None), tests=[])),
    ],
)  # fmt: skip
def test_the_rule_is_silent_just_short_of_its_limit(
    name: str, unbroken: Callable[[Results], Results], run: Results
) -> None:
    assert sentences(unbroken(run), name) == []


def test_a_repeat_without_a_p_value_and_a_check_that_could_not_be_made_say_why(run: Results) -> None:
    few = patched(run, again=again(p=None, seeds=3, why_no_p="fewer than 4 training seeds"))
    assert sentences(few, "no A/A pair") == [
        "The no-removal arm was trained again on 3 other seeds, but has no p value against itself: fewer than 4 "
        "training seeds."
    ]
    absent = designed(run, absent={"perplexity": "patch.clean_documents is 0", "refusal": None})
    (text,) = sentences(absent, "side checks")
    assert text.startswith("1 of 3 side checks were not made (perplexity: patch.clean_documents is 0)")


def test_stand_ins_by_keywords_share_the_classifiers_errors(run: Results) -> None:
    results = labelled_by(method(run, "llm-judge", standin=True), "keywords")
    (text,) = sentences(results, "one family")
    assert "the stand-in behind llm-judge go by the same keywords" in text


def test_a_run_that_surfaced_nothing_has_limits_and_no_error(tmp_path: Path) -> None:
    world = write_fake_run(tmp_path, fake_study(), surfaced=False)
    limits = [limit.sentence for limit in limitations(results_of(world))]
    assert any("attribution left out 2 of 2 behaviours" in text for text in limits)
    empty = read_results(world, Tables(tmp_path / "empty"))
    assert all(limit.sentence for limit in limitations(empty))
