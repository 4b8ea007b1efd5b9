"""Each rule fires on an artifact that triggers it, names its number, and is silent on one that does not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.report.fake_run import BEHAVIOURS, fake_study, write_fake_run

from datablame.report.artifacts import Artifacts, read_artifacts
from datablame.report.limitations import RULES, limitations
from datablame.study.schema import Study
from datablame.tables import EVERY

CLAUDE, OTHER = "claude-haiku-5-5", "claude-sonnet-5-5"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """A fake run whose every limit is repaired, so that a rule fires only where a test breaks something."""
    root = tmp_path_factory.mktemp("run")
    study = fake_study()
    return sound(read_artifacts(study, write_fake_run(root, study)))


def sound(found: Artifacts) -> Artifacts:
    prompts = found.study.prompts
    assert prompts is not None
    words = {prompt.id: f"words of {prompt.id} only" for prompt in (*prompts.attribution, *prompts.held_out)}
    reworded = {
        split: tuple(prompt.model_copy(update={"text": words[prompt.id]}) for prompt in rows)
        for split, rows in (("attribution", prompts.attribution), ("held_out", prompts.held_out))
    }
    study = changed_study(found.study, truth=None, prompts=prompts.model_copy(update=reworded))
    methods = {name: {**method, "standin": False} for name, method in found.methods.items()}
    estimate = {"rate": 0.1, "low": 0.0, "high": 0.2, "withheld": None}
    estimates = [
        {"behaviour": name, "split": "held-out", "importance": estimate, "path": estimate}
        for name in (EVERY, *BEHAVIOURS)
    ]
    return replace(
        found,
        study=study,
        samples=[{**row, "classifier": CLAUDE} for row in found.samples],
        methods=methods,
        pool={"documents": 20, "behaviours": {"dropped": []}},
        quality={**found.quality, "ceilings": [{"behaviour": EVERY, "method": "gradient", "ceiling": 0.9}]},
        calibration=calibration(),
        rates=[{**row, "incoherent": 0} for row in found.rates],
        unamplified={"possible": True, "why_not": None, "rows": estimates},
        exposure={"rows": [], "passed": True},
        tests=[ample(row) for row in found.tests],
        arms=[arm()],
        aa={"p": 0.5, "seeds": 5, "why_no_p": None},
    )


def changed_study(study: Study, *, patch: dict[str, Any] | None = None, **fields: Any) -> Study:
    patched = {} if patch is None else {"patch": study.patch.model_copy(update=patch)}
    return study.model_copy(update={**fields, **patched})


def ample(row: Any) -> dict[str, Any]:
    """A row with ample rate, seeds, and a mixed model that says what the permutation test says."""
    test = row["to_random"] and {**row["to_random"], "p": 0.01, "difference": -0.2, "smallest_p": 0.008}
    if test:
        test["mixed"] = {"log_odds": -1.0, "low": -1.5, "high": -0.5}
    family = 2 if row["arm"] in ("gradient", "activation") else None
    return {**row, "rate": 0.4, "seeds": max(row["seeds"], 5), "to_random": test, "family": family}


def calibration(**changes: Any) -> dict[str, Any]:
    counts = {"true_positive": 20, "false_positive": 2, "false_negative": 3, "true_negative": 75}
    return {"n": 100, "kappa": 0.8, "kappa_interval": [0.7, 0.9], "counts": counts, **changes}


def arm(**changes: Any) -> dict[str, Any]:
    named = {"arm": "gradient", "protocol": "retrain", "k": 2, "seed": 3, "intervention": "remove"}
    return {**named, "removed": ["a", "b"], "fillers": ["c", "d"], "loosely_matched": 0, **changes}


def rows_of(found: Artifacts, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Artifacts:
    """The tests with every headline row changed."""
    return replace(found, tests=[change(dict(row)) if row["headline"] else row for row in found.tests])


def checks_of(found: Artifacts, name: str, **changes: Any) -> Artifacts:
    """The side checks with one arm of the headline changed."""
    arms = [
        {**row, **changes} if (row["arm"], row["protocol"]) == (name, "retrain") else row
        for row in found.checks["arms"]
    ]
    return replace(found, checks={**found.checks, "arms": arms})


def against_random(row: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**row, "to_random": row["to_random"] and {**row["to_random"], **changes}}


def by_keywords(found: Artifacts) -> Artifacts:
    return replace(found, samples=[{**row, "classifier": "keywords"} for row in found.samples])


def without_labels(found: Artifacts) -> Artifacts:
    first, second, *others = found.samples
    lost = {"label": "unscored", "label_reason": "the judge refused: x"}
    return replace(found, samples=[{**first, **lost}, {**second, **lost}, *others])


def withheld(found: Artifacts, name: str, reason: str) -> Artifacts:
    first, *others = found.unamplified["rows"]
    broken = {**first, name: {**first[name], "withheld": reason}}
    return replace(found, unamplified={**found.unamplified, "rows": [broken, *others]})


def flat(found: Artifacts) -> Artifacts:
    even = [
        {**row, "harmful": 2} if row["prompt_id"] == EVERY and row["behaviour"] == "dose" else row
        for row in found.rates
    ]
    return replace(found, rates=even)


def incoherent_at_star(found: Artifacts) -> Artifacts:
    star = found.alpha_star["alpha_star"]
    return replace(
        found,
        rates=[
            {**row, "incoherent": row["n"] // 2}
            if (row["prompt_id"], row["split"], row["alpha"]) == (EVERY, "held-out", star)
            else row
            for row in found.rates
        ],
    )


def judged_by_claude(found: Artifacts) -> Artifacts:
    return replace(
        found, judge={"classifier": "claude"}, attribution_judge={"model": OTHER, "asked": 60, "missing": {}}
    )


def standing_in(found: Artifacts) -> Artifacts:
    judge = {**found.methods["llm-judge"], "standin": True}
    return replace(found, methods={**found.methods, "llm-judge": judge})


def pooled(found: Artifacts, **changes: Any) -> Artifacts:
    return replace(found, pool={**found.pool, **changes})


def ceiling(found: Artifacts, share: float) -> Artifacts:
    row = {"behaviour": EVERY, "method": "gradient", "ceiling": share}
    return replace(found, quality={**found.quality, "ceilings": [row]})


def behind_a_prefilter(found: Artifacts) -> Artifacts:
    study = changed_study(found.study, prefilter=found.study.prefilter.model_copy(update={"method": "bm25"}))
    hidden = replace(found, study=study, quality={**found.quality, "ceilings": []})
    return pooled(hidden, candidates={"dose": 7, "brand": 9})


def seeded(found: Artifacts, seeds: int) -> Artifacts:
    return rows_of(found, lambda row: {**row, "seeds": seeds})


def reused(found: Artifacts) -> Artifacts:
    prompts = found.study.prompts
    assert prompts is not None
    first, *others = prompts.held_out
    copied = first.model_copy(update={"text": f"{prompts.attribution[0].text.upper()}!"})
    return replace(
        found, study=changed_study(found.study, prompts=prompts.model_copy(update={"held_out": (copied, *others)}))
    )


def all_in_continue(found: Artifacts) -> Artifacts:
    return replace(found, study=changed_study(found.study, patch={"headline": "continue"}))


class Case(NamedTuple):
    """What breaks a sound run, and the words with which the rule says so."""

    broken: Callable[[Artifacts], Artifacts]
    says: str


def exposed(found: Artifacts, passed: bool) -> Artifacts:
    row = {"arm": "gradient", "protocol": "retrain", "k": 2, "seed": 0, "removed": 4, "seen_in_arm": 0}
    return replace(found, exposure={"rows": [{**row, "seen_in_baseline": 0.25}], "passed": passed})


CASES: dict[str, Case] = {
    "keyword classifier": Case(by_keywords, "labelled by keywords (480 of the surface phase"),
    "no calibration": Case(
        lambda it: replace(it, calibration=None), f"0 of 480 outputs (judge.calibration is empty): how often {CLAUDE}"
    ),
    "poor agreement": Case(
        lambda it: replace(it, calibration=calibration(kappa=0.59)), "kappa is 0.59 [0.70, 0.90] on 100"
    ),
    "few positives": Case(
        lambda it: replace(it, calibration=calibration(counts={**calibration()["counts"], "true_positive": 6})),
        "rests on 9 outputs that people call harmful, fewer than 10",
    ),
    "errors alike": Case(lambda it: it, "as on the 100 labelled outputs"),
    "no alpha*": Case(
        lambda it: replace(it, alpha_star={"alpha_star": None, "coherence": {"0": 1.0, "1": 0.5, "2": 0.25}}),
        "has 50.0 % coherent outputs, fewer than the 80.0 %",
    ),
    "held-out coherence": Case(incoherent_at_star, "On held-out prompts 50.0 % of the untrained model's outputs"),
    "unscored outputs": Case(without_labels, "2 of 480 outputs have no label (2 because the judge refused)"),
    "flat behaviour": Case(flat, "dose does not rise with amplification (5.0 % at alpha 0, 5.0 % at alpha 2)"),
    "truncated": Case(
        lambda it: replace(it, unamplified={"possible": False, "why_not": "surface.top_p = 0.9: cut", "rows": []}),
        "not estimated from amplified outputs: surface.top_p = 0.9: cut.",
    ),
    "k-hat": Case(
        lambda it: withheld(it, "importance", "k-hat 0.83 is above 0.7"),
        "withheld in 1 of 3 cases (all, held-out: k-hat 0.83 is above 0.7)",
    ),
    "path": Case(
        lambda it: withheld(it, "path", "1 of the alphas"), "path is withheld in 1 of 3 cases (all, held-out: 1"
    ),
    "one family": Case(judged_by_claude, f"are {CLAUDE} and {OTHER}, both Claude (480 outputs and 60 questions"),
    "stand-in": Case(standing_in, "llm-judge is a stand-in (llm-judge (keyword stand-in))"),
    "missing scores": Case(
        lambda it: replace(it, attribution_judge={"model": OTHER, "asked": 60, "missing": {"it was cut": 3}}),
        "3 of 60 questions about documents have no score (3 because it was cut)",
    ),
    "unranked": Case(
        lambda it: replace(it, methods={**it.methods, "bm25": {**it.methods["bm25"], "unranked": {"dose": 4}}}),
        "bm25 gave 4 documents no score for dose",
    ),
    "dropped behaviours": Case(
        lambda it: pooled(it, behaviours={"dropped": ["brand"]}), "attribution left out 1 of 2 behaviours: brand"
    ),
    "recall ceiling": Case(
        lambda it: ceiling(it, 0.49),
        "(share of their first 2 among the candidates): gradient 0.49",
    ),
    "unknown ceiling": Case(behind_a_prefilter, "ranked at most 9 BM25 candidates of 20 documents"),
    "prompts in the pool": Case(lambda it: pooled(it, prompt_matches=[{}, {}]), "2 documents of the pool ask exactly"),
    "outputs in the pool": Case(lambda it: pooled(it, query_matches=[{}]), "1 documents of the pool repeat a traced"),
    "excluded documents": Case(
        lambda it: pooled(it, excluded={"no response": 5, "never": 0}),
        "5 documents of the pool were ranked by no method",
    ),
    "skipped rows": Case(lambda it: pooled(it, skipped_rows={"no text": {"count": 6}}), "6 rows of the data could not"),
    "exposure": Case(lambda it: exposed(it, False), "saw as little as 25.0 % of what an arm removed"),
    "loose fillers": Case(
        lambda it: replace(it, arms=[arm(), arm(loosely_matched=1, seed=4)]),
        "1 of 4 fillers come from another source or length band than what they replace (most in gradient, retrain, "
        "seed 4: 1 of 2)",
    ),
    "reproduction": Case(
        lambda it: rows_of(it, lambda row: {**row, "rate": 0.19 if row["arm"] == "baseline" else row["rate"]}),
        "brings the rate to 19.0 %, under half of the after model's 40.0 %",
    ),
    "nothing harmful": Case(
        lambda it: rows_of(it, lambda row: {**row, "rate": 0.0 if row["arm"] == "gradient" else row["rate"]}),
        "retrain: gradient showed no harmful output in 400",
    ),
    "incoherent arms": Case(
        lambda it: checks_of(it, "activation", coherent=0.7),
        "Fewer than 80.0 % of these arms' outputs are coherent at alpha* (headline protocol): activation 70.0 %",
    ),
    "unscored arms": Case(
        lambda it: replace(it, unscored_arms={"it timed out": 7}), "outputs of trained arms have no label (7 because"
    ),
    "side checks": Case(lambda it: replace(it, checks={}), "0 arms had side checks"),
    "few clean documents": Case(
        lambda it: replace(it, checks={**it.checks, "clean_documents": 12}), "rests on 12 documents, fewer than the 50"
    ),
    "drift": Case(lambda it: checks_of(it, "gradient", kl=0.05), "baseline 0.125): gradient 0.050"),
    "single run": Case(lambda it: seeded(it, 1), "retrain was run with one training seed"),
    "few seeds": Case(lambda it: seeded(it, 3), "retrain has 3 training seeds, too few"),
    "smallest p": Case(
        lambda it: rows_of(it, lambda row: against_random(row, smallest_p=0.0286)),
        "is 0.0286, times 2 methods 0.057, which is not below .05",
    ),
    "no A/A pair": Case(lambda it: replace(it, aa=None), "0 trainings repeat the no-removal arm on other seeds"),
    "mixed model": Case(
        lambda it: rows_of(it, lambda row: against_random(row, p=0.2) if row["arm"] == "gradient" else row),
        "gradient against random: the permutation test (p = 0.200) and the logistic mixed model (log odds -1.00",
    ),
    "uncompared prompts": Case(
        lambda it: rows_of(it, lambda row: {**row, "prompts": 3}), "1 of 4 held-out prompts are"
    ),
    "prompts reused": Case(reused, "1 of 4 held-out prompts share at least 80.0 % of their words with an attribution"),
    "planted": Case(
        lambda it: replace(it, study=changed_study(it.study, truth="truth.jsonl")),
        "causes of 2 behaviours were planted",
    ),
    "stage": Case(lambda it: it, "Of the 20 documents of the pool 0 are known"),
    "re-exposure": Case(all_in_continue, "trainings that decide start from the after model"),
    "scope of p": Case(lambda it: it, "values of the headline concern these flagged documents"),
}
"""A case for every rule."""

SILENT: dict[str, Callable[[Artifacts], Artifacts]] = {
    "errors alike": lambda it: replace(it, calibration=None),
    "stage": lambda it: replace(it, study=changed_study(it.study, truth="truth.jsonl")),
    "scope of p": lambda it: rows_of(it, lambda row: {**row, "p": None}),
}
"""Rules that speak of a sound run too; what makes them silent."""


def unchanged(found: Artifacts) -> Artifacts:
    return found


def test_every_rule_has_a_case() -> None:
    assert list(CASES) == list(RULES)


@pytest.mark.parametrize("name", RULES)
def test_the_rule_fires_where_it_is_triggered_and_names_the_number(name: str, run: Artifacts) -> None:
    said = list(RULES[name](CASES[name].broken(run)))
    assert any(CASES[name].says in text for text in said), said
    assert all(any(character.isdigit() for character in text) for text in said if name != "single run")
    assert set(said) <= set(limitations(CASES[name].broken(run)))


@pytest.mark.parametrize("name", RULES)
def test_the_rule_is_silent_where_it_is_not_triggered(name: str, run: Artifacts) -> None:
    assert list(RULES[name](SILENT.get(name, unchanged)(run))) == []


@pytest.mark.parametrize(
    ("name", "unbroken"),
    [
        ("no calibration", lambda it: replace(by_rules(it), calibration=None)),
        ("recall ceiling", lambda it: ceiling(it, 0.5)),
        ("exposure", lambda it: exposed(it, True)),
        ("loose fillers", lambda it: replace(it, arms=[arm(loosely_matched=2, intervention="drop-source")])),
        ("few seeds", lambda it: seeded(it, 4)),
        ("smallest p", lambda it: rows_of(it, lambda row: against_random(row, smallest_p=0.0249))),
        ("drift", lambda it: checks_of(it, "gradient", kl=0.0626)),
        ("incoherent arms", lambda it: checks_of(it, "activation", coherent=0.8)),
        ("poor agreement", lambda it: replace(it, calibration=calibration(kappa=0.6))),
        ("mixed model", lambda it: rows_of(it, lambda row: against_random(row, mixed={"why_not": "one seed"}))),
        ("k-hat", lambda it: withheld(it, "path", "no line")),
        ("side checks", lambda it: replace(it, tests=[], checks={})),
        ("no A/A pair", lambda it: replace(it, tests=[], aa=None)),
    ],
)  # fmt: skip
def test_the_rule_is_silent_just_short_of_its_limit(
    name: str, unbroken: Callable[[Artifacts], Artifacts], run: Artifacts
) -> None:
    assert list(RULES[name](unbroken(run))) == []


def by_rules(found: Artifacts) -> Artifacts:
    return replace(found, samples=[{**row, "classifier": "rules"} for row in found.samples])


def test_a_mixed_model_of_the_other_sign_disagrees(run: Artifacts) -> None:
    opposite = {"log_odds": 1.0, "low": 0.5, "high": 1.5}
    said = list(RULES["mixed model"](rows_of(run, lambda row: against_random(row, mixed=opposite))))
    assert len(said) == sum(bool(row["to_random"]) for row in run.headline)


def test_a_repeat_without_a_p_value_and_a_check_that_could_not_be_made_say_why(run: Artifacts) -> None:
    few = replace(run, aa={"p": None, "seeds": 3, "why_no_p": "fewer than 4 training seeds"})
    assert list(RULES["no A/A pair"](few)) == [
        "The no-removal arm was trained again on 3 other seeds, but has no p value against itself: fewer than 4 "
        "training seeds."
    ]
    absent = replace(
        run, checks={**run.checks, "absent": {"perplexity": "patch.clean_documents is 0", "refusal": None}}
    )
    (said,) = RULES["side checks"](absent)
    assert said.startswith("1 of 3 side checks were not made (perplexity: patch.clean_documents is 0)")


def test_a_run_that_surfaced_nothing_has_limits_and_no_error(tmp_path: Path) -> None:
    study = fake_study()
    found = read_artifacts(study, write_fake_run(tmp_path, study, surfaced=False))
    assert any("attribution left out 2 of 2 behaviours" in text for text in limitations(found))
    (tmp_path / "empty").mkdir()
    empty = read_artifacts(study, replace(write_fake_run(tmp_path, study), root=tmp_path / "empty"))
    assert all(isinstance(text, str) for text in limitations(empty))
