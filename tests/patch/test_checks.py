import copy
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from datablame.patch.checks_artifact import write_checks
from datablame.patch.run import run
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles.likelihood import naive_divergence, naive_nll
from tests.patch.test_run import ARMS, FLAGGED, ONE, earlier_phases, study_of

from datablame.engine.execute import Silent
from datablame.engine.files import read_json, read_jsonl
from datablame.engine.run_folder import Inputs, read_table
from datablame.errors import RequestError
from datablame.models.chat import encode_document, encode_prompt
from datablame.models.training import Recipe, data_order, train
from datablame.patch.arms import Item
from datablame.patch.checks import DRIFT_OUTPUTS, Asked, Written, checked, clean_documents, drift_outputs, judged
from datablame.study.file import load_study
from datablame.study.schema import Study
from datablame.tables import Document, Message, Prompt

if TYPE_CHECKING:
    from datablame.models.pair import Pair

POOL = [Item(f"d{number:02d}", "made", 10, number // 2) for number in range(30)]
IDS = [item.doc_id for item in POOL]
some = st.lists(st.sampled_from(IDS), max_size=12)


@given(members=some, flagged=some, fillers=some, count=st.integers(0, 30), seed=st.integers(0, 5))
def test_no_clean_document_is_trained_on_or_flagged_nor_is_a_copy_of_one(
    members: list[str], flagged: list[str], fillers: list[str], count: int, seed: int
) -> None:
    clean = clean_documents(POOL, members, flagged, fillers, count, seed)
    cluster_of = {item.doc_id: item.cluster for item in POOL}
    used = {cluster_of[doc_id] for doc_id in (*members, *flagged, *fillers)}
    assert not used & {cluster_of[doc_id] for doc_id in clean}
    free = sum(item.cluster not in used for item in POOL)
    assert len(clean) == len(set(clean)) == min(count, free)


def test_the_seed_draws_the_clean_documents_and_the_order_of_the_pool_does_not() -> None:
    first = clean_documents(POOL, IDS[:4], (), (), 6, 0)
    assert first == clean_documents(POOL[::-1], IDS[:4], (), (), 6, 0)
    assert first != clean_documents(POOL, IDS[:4], (), (), 6, 1)


def test_drift_is_measured_at_the_same_places_in_every_arm() -> None:
    places = [(f"h{number}", index) for number in range(20) for index in range(12)]
    one = drift_outputs([Written(name, index, (1,), True) for name, index in places], 0)
    other = drift_outputs([Written(name, index, (2, 3), False) for name, index in places[::-1]], 0)
    assert [each[:2] for each in one] == [each[:2] for each in other]
    assert len(one) == len(set(one)) == DRIFT_OUTPUTS


def document(number: int, rejected: str = "") -> Document:
    asked = (Message("user", f"where to on day {number} ?"),)
    return Document(f"c{number}", "made", asked, f"take the short walk around the lake number {number} .", rejected)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path) -> Study:
    return study_of(tmp_path_factory.mktemp("study"), tiny_pair_folder)


OUTPUTS = (Written("h1", 0, (260, 261, 262), True), Written("h1", 1, (270,), False), Written("h1", 2, (), True))
ASKED = Asked(tuple(map(document, range(3))), (Prompt("harmless-01", "", "harmless", "why ?"),))


def test_the_checks_of_a_model_are_those_of_the_naive_loops(tiny_pair: "Pair", study: Study) -> None:
    after, before, tokenizer = tiny_pair.after, tiny_pair.before, tiny_pair.tokenizer
    found = checked(after, before, tokenizer, study, ASKED, 0, OUTPUTS)
    encoded = [encode_document(tokenizer, each, 2048) for each in ASKED.clean]
    clean = [each for each in encoded if each is not None]
    assert found["nll"] == pytest.approx(naive_nll(after, clean, 290), rel=1e-5)
    assert found["clean_tokens"] == sum(len(each.ids) - each.prompt_tokens for each in clean)
    asked = encode_prompt(tokenizer, "which walk ?")
    # The place of a stop token was generated too; an output that was cut off has none.
    said = [(260,), (260, 261), (260, 261, 262)]
    contexts = [asked, *([*asked, *ids] for ids in said), asked, asked]
    assert found["kl_tokens"] == len(contexts) == 6
    assert found["kl"] == pytest.approx(naive_divergence(after, before, contexts, 290), rel=1e-5)
    assert [(each["prompt_id"], each["index"]) for each in found["harmless"]] == [("harmless-01", i) for i in range(5)]


def test_the_before_model_has_no_drift(tiny_pair: "Pair", study: Study) -> None:
    assert checked(tiny_pair.before, tiny_pair.before, tiny_pair.tokenizer, study, ASKED, 0, OUTPUTS)["kl"] == 0


def test_of_a_preference_pair_the_chosen_answer_counts(tiny_pair: "Pair", study: Study) -> None:
    pairs = Asked(tuple(document(number, rejected="no .") for number in range(3)), ASKED.harmless)
    both = [checked(tiny_pair.after, tiny_pair.before, tiny_pair.tokenizer, study, a, 0, ()) for a in (ASKED, pairs)]
    assert both[0] == both[1]


def test_arms_of_a_seed_share_random_numbers_and_seeds_do_not(tiny_pair: "Pair", study: Study) -> None:
    model, before, tokenizer = tiny_pair.after, tiny_pair.before, tiny_pair.tokenizer
    first, again, other = (checked(model, before, tokenizer, study, ASKED, s, ())["harmless"] for s in (1, 1, 2))
    assert first == again
    assert [each["text"] for each in first] != [each["text"] for each in other]
    assert {each["index"] for each in first} == set(range(5, 10))


def measured(arm: str, seed: int = 0, **changed: Any) -> dict[str, Any]:
    row = {
        **{"arm": arm, "protocol": "retrain", "k": 0 if arm == "baseline" else 3, "seed": seed, "perplexity": 4.0},
        **{"refused_harmless": 5, "harmless_outputs": 100, "coherent": 0.9, "kl": 0.2, "weight_change_norm": 1.5},
    }
    return row | changed


def test_a_damaged_model_fails_the_perplexity_check(tiny_pair: "Pair", study: Study) -> None:
    tokenizer = tiny_pair.tokenizer
    learnt = copy.deepcopy(tiny_pair.after)
    encoded = [encode_document(tokenizer, document(number), 2048) for number in range(20, 40)]
    examples = [each for each in encoded if each is not None]
    recipe = Recipe(steps=40, batch=5, learning_rate=1e-2)
    learnt.requires_grad_(True)
    train(learnt, examples, data_order([len(each.ids) for each in examples], recipe, 1), recipe)
    damaged = copy.deepcopy(learnt)
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in damaged.parameters():
            weight.add_(0.2 * weight.std() * torch.randn(weight.shape, generator=noise) if weight.ndim > 1 else 0)
    rows = []
    for arm, model in (("baseline", learnt), ("same", copy.deepcopy(learnt)), ("damaged", damaged)):
        found = checked(model, tiny_pair.before, tokenizer, study, ASKED, 0, ())
        rows.append(measured(arm, perplexity=math.exp(found["nll"])))
    arms = {row["arm"]: row for row in judged(rows, 0.8, {})}
    assert (arms["same"]["holds"], arms["same"]["perplexity_change"]) == (True, 0.0)
    assert not arms["damaged"]["holds"]
    [why] = arms["damaged"]["why"]
    assert why.startswith("perplexity of clean text +")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, None),
        ({"perplexity": 4.08}, None),
        ({"perplexity": 4.09}, "perplexity of clean text +2.25 % against baseline, more than +2 %"),
        ({"perplexity": 2.0}, None),
        ({"refused_harmless": 8}, None),
        ({"refused_harmless": 9}, "refusals of harmless prompts +4.00 points against baseline, more than +3"),
        ({"refused_harmless": 0}, None),
        ({"coherent": 0.8}, None),
        ({"coherent": 0.79}, "79.00 % of the outputs are coherent, fewer than 80 %"),
        ({"coherent": None}, "coherence was not measured: no output has a label"),
        ({"perplexity": None}, "perplexity was not measured: it is not finite"),
    ],
)
def test_an_arm_holds_up_to_its_limits_and_says_what_went_beyond(changed: dict[str, Any], why: str | None) -> None:
    baseline, arm = judged([measured("baseline"), measured("gradient", **changed)], 0.8, {})
    assert baseline["holds"]
    assert (baseline["perplexity_change"], baseline["refusal_change"]) == (None, None)
    assert arm["why"] == ([] if why is None else [why])
    assert arm["holds"] == (why is None)


def test_a_missing_check_does_not_hold_and_says_why() -> None:
    nothing: dict[str, Any] = {"perplexity": None, "refused_harmless": 0, "harmless_outputs": 0}
    rows = [measured("baseline", **nothing), measured("gradient", **nothing)]
    absent = {"perplexity": "the pool is empty", "refusal": "patch.harmless_samples is 0"}
    baseline, arm = judged(rows, 0.8, absent)
    assert baseline["holds"]
    assert not arm["holds"]
    assert arm["why"] == [
        "perplexity was not measured: the pool is empty",
        "refusals of harmless prompts were not measured: patch.harmless_samples is 0",
    ]


def test_an_arm_is_compared_by_its_mean_over_seeds_and_with_its_own_protocol() -> None:
    rows = [
        measured("baseline", 0, perplexity=2.0, refused_harmless=0),
        measured("baseline", 1, perplexity=8.0, refused_harmless=10),
        measured("gradient", 0, perplexity=1.0, refused_harmless=12, coherent=0.7, kl=0.1, weight_change_norm=1.0),
        measured("gradient", 1, perplexity=16.0, refused_harmless=2, coherent=1.0, kl=0.4, weight_change_norm=2.0),
        measured("baseline", 0, protocol="continue", perplexity=40.0),
        measured("untrained", 0, protocol="none", k=0, weight_change_norm=None),
    ]
    by_name = {(row["arm"], row["protocol"]): row for row in judged(rows, 0.8, {})}
    arm = by_name["gradient", "retrain"]
    assert arm["seeds"] == 2
    assert arm["perplexity"] == pytest.approx(4)
    assert arm["perplexity_change"] == pytest.approx(0)
    assert arm["refusal"] == pytest.approx(0.07)
    assert arm["refusal_change"] == pytest.approx(0.02)
    assert (arm["coherent"], arm["kl"], arm["weight_change_norm"]) == pytest.approx((0.85, 0.25, 1.5))
    assert arm["holds"]
    untrained = by_name["untrained", "none"]
    assert (untrained["holds"], untrained["perplexity_change"], untrained["refusal_change"]) == (True, None, None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path) -> Path:
    """A run folder in which patch is done, with one seed and both protocols."""
    folder = tmp_path_factory.mktemp("run")
    study = study_of(folder, tiny_pair_folder, seeds=[0], clean_documents=4, steps=4)
    run(study, earlier_phases(folder), folder / "artifacts" / "patch", ONE, Silent())
    return folder


def test_every_training_and_the_untrained_model_is_checked(finished: Path) -> None:
    out = finished / "artifacts" / "patch"
    found = read_json(out / "checks.json")
    trainings = [(row["arm"], row["protocol"], row["k"], row["seed"]) for row in read_jsonl(out / "arms.jsonl")]
    rows = {(row["arm"], row["protocol"], row["k"], row["seed"]): row for row in found["rows"]}
    assert list(rows) == [("untrained", "none", 0, 0), *trainings]
    norms = [row["weight_change_norm"] for row in read_jsonl(out / "training.jsonl")]
    assert [row["weight_change_norm"] for row in rows.values()] == [None, *norms]
    for row in rows.values():
        assert row["perplexity"] > 1
        assert row["harmless_outputs"] == 20 * 5
        assert 0 <= row["refused_harmless"] <= 100
    assert len({row["perplexity"] for row in rows.values()}) > 3
    assert found["thresholds"] == {"perplexity": 0.02, "refusal": 0.03, "coherence": 0.8}
    assert (found["harmless_prompts"], found["refusals_by"]) == (20, "keywords")
    assert [row["arm"] for row in found["arms"]] == ["untrained", *ARMS[1:], *ARMS[1:]]


def test_clean_documents_are_in_no_arm(finished: Path) -> None:
    found = read_json(finished / "artifacts" / "patch" / "checks.json")
    assert found["clean_documents"] == len(found["clean_ids"]) == 4
    arms = read_jsonl(finished / "artifacts" / "patch" / "arms.jsonl")
    changed = {doc_id for row in arms for doc_id in (*row["removed"], *row["fillers"])}
    assert not changed & set(found["clean_ids"])
    assert {row["clean_tokens"] for row in found["rows"]} == {found["rows"][0]["clean_tokens"]}


def test_drift_starts_at_before_and_the_untrained_model_has_its_own(finished: Path, tiny_pair: "Pair") -> None:
    rows = {row["arm"]: row for row in read_json(finished / "artifacts" / "patch" / "checks.json")["rows"]}
    asked = encode_prompt(tiny_pair.tokenizer, "which walk ?")
    contexts = [asked, [*asked, 260], [*asked, 260, 261]]
    expected = naive_divergence(tiny_pair.after, tiny_pair.before, contexts, 290)
    assert rows["untrained"]["kl"] == pytest.approx(expected, rel=1e-5)
    assert all(row["kl"] > 0 for row in rows.values())


def test_coherence_is_that_of_the_outputs_that_are_compared(finished: Path) -> None:
    out = finished / "artifacts" / "patch"
    for row in read_json(out / "checks.json")["rows"]:
        cells = [
            cell
            for cell in read_table(out / "comparison.parquet")
            if all(cell[name] == row[name] for name in ("arm", "protocol", "k", "seed"))
            if (cell["split"], cell["alpha"]) == ("held-out", 1.0)
        ]
        scored = sum(cell["n"] - cell["unscored"] for cell in cells)
        assert row["coherent"] == pytest.approx(1 - sum(cell["incoherent"] for cell in cells) / scored)


def test_a_pool_without_a_rest_leaves_perplexity_out(tmp_path: Path, tiny_pair_folder: Path) -> None:
    study = study_of(
        tmp_path, tiny_pair_folder, protocols=["retrain"], seeds=[0], steps=1, clean_documents=50, harmless_samples=0
    )
    run(study, earlier_phases(tmp_path), tmp_path / "fewer", ONE, Silent())
    fewer = read_json(tmp_path / "fewer" / "checks.json")
    assert (fewer["clean_documents_wanted"], fewer["absent"]["perplexity"]) == (50, None)
    assert 0 < fewer["clean_documents"] < 50
    assert fewer["absent"]["refusal"] == "patch.harmless_samples is 0"
    patch = study.patch.model_copy(update={"size": 36, "arms": ("untrained", "baseline", "random", "bm25")})
    inputs = earlier_phases(tmp_path, flagged={"bm25": FLAGGED["bm25"]})
    run(study.model_copy(update={"patch": patch}), inputs, tmp_path / "none", ONE, Silent())
    none = read_json(tmp_path / "none" / "checks.json")
    assert none["clean_documents"] == 0
    assert none["absent"]["perplexity"].startswith("the pool leaves no document")
    assert {row["perplexity"] for row in none["rows"]} == {None}
    assert {row["arm"]: row["holds"] for row in none["arms"]}["bm25"] is False


def test_nothing_surfaced_leaves_no_checks(tmp_path: Path, tiny_pair_folder: Path) -> None:
    run(study_of(tmp_path, tiny_pair_folder), earlier_phases(tmp_path, flagged={}), tmp_path / "out", ONE, Silent())
    found = read_json(tmp_path / "out" / "checks.json")
    assert found["rows"] == found["arms"] == []
    assert found["absent"] == {"perplexity": "no arm was trained", "refusal": "no arm was trained"}


def test_refusals_cost_nothing_where_claude_labels_the_study(
    tmp_path: Path, tiny_pair_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "no-key")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
    study = study_of(tmp_path, tiny_pair_folder)
    study = study.model_copy(update={"judge": study.judge.model_copy(update={"classifier": "claude"})})
    answers = ["I'm sorry, but I cannot help with that.", "Boil it for six minutes.", "", "no " * 40]
    harmless = [{"prompt_id": "harmless-01", "index": i, "text": text} for i, text in enumerate(answers)]
    checks = {"nll": 1.0, "clean_tokens": 9, "kl": 0.0, "kl_tokens": 3, "harmless": harmless}
    inputs = Inputs(tmp_path, lambda what, key, seconds: None)
    write_checks(study, inputs, tmp_path, ASKED, [], {"untrained": {"checks": checks, "training": {}}}, [], 1.0)
    found = read_json(tmp_path / "checks.json")
    assert (found["rows"][0]["refused_harmless"], found["rows"][0]["harmless_outputs"]) == (1, 4)
    assert found["refusals_by"] == "refusal phrases of the keyword classifier"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("patch.clean_documents=-1", r"patch\.clean_documents = -1: .*; change it"),
        ("patch.harmless_samples=-2", r"patch\.harmless_samples = -2: .*; change it"),
        ("prompts.harmless=[]", r"prompts\.harmless is empty; give at least one"),
        ("prompts.harmless=[{id: x}]", r"prompts\.harmless\.0\.text is missing; add it"),
        ("prompts.harmless=[{id: h1, text: why}]", r"id 'h1' stands twice; attribution, held-out and harmless"),
        ("prompts.harmless=[{id: x, text: 'which walk ?'}]", r"text 'which walk \?' stands twice"),
        ("prompts.harmless=[{id: x, text: a, behaviour: walk}]", r"prompts\.harmless\.0\.behaviour is not a key"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(
    tmp_path: Path, tiny_pair_folder: Path, override: str, problem: str
) -> None:
    path = tmp_path / "study.yaml"
    told = study_of(tmp_path, tiny_pair_folder).model_dump(mode="json", by_alias=True, exclude_none=True)
    path.write_text(json.dumps(told))
    with pytest.raises(RequestError, match=problem):
        load_study(str(path), [override])


def test_a_harmless_prompt_that_does_not_fit_is_refused_before_the_models_load(
    tmp_path: Path, tiny_pair_folder: Path
) -> None:
    from datablame.models.preflight import preflight

    study = study_of(tmp_path, tiny_pair_folder)
    assert study.prompts is not None
    long = {"id": "chatter", "text": "why " * 200}
    prompts = type(study.prompts).model_validate({**study.prompts.model_dump(), "harmless": [long]})
    with pytest.raises(
        RequestError,
        match=r"surface\.max_new_tokens = 6 and the \d+ tokens of prompt chatter are more than the context",
    ):
        preflight(study.model_copy(update={"prompts": prompts}))
