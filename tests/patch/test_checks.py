import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles.likelihood import naive_divergence, naive_nll
from tests.patch.small import ARMS, FLAGGED, QUICK, attributed, patched, study_of
from tests.worlds import work

from datablame.config.file import load_study
from datablame.engine.phase import Tables
from datablame.errors import RequestError
from datablame.models.chat import Encoded, encode_document, encode_prompt
from datablame.models.training import Recipe, data_order, train
from datablame.patch.checks import DRIFT_OUTPUTS, arm_checks, check_design, check_rows, clean_documents, drift_outputs
from datablame.patch.fine_tune_set import Item
from datablame.patch.measure import WorkerState, load_worker, side_checks
from datablame.patch.registry import ARMS as REGISTERED
from datablame.patch.registry import ArmKind
from datablame.patch.trainings import PatchPlan
from datablame.tables import (
    Arm,
    ArmCheck,
    ArmRate,
    Check,
    CheckDesign,
    Document,
    Message,
    Patching,
    Prompt,
    Sample,
    Training,
    look_of,
)
from datablame.world import World

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


def output(
    prompt_id: str, index: int, ids: tuple[int, ...], finish_reason: Literal["stop", "length"] = "stop"
) -> Sample:
    return Sample(
        prompt_id, "walk", "held-out", 0.0, index, "x", ids, finish_reason, 1 if finish_reason == "stop" else None
    )


def test_drift_is_measured_at_the_same_places_in_every_arm() -> None:
    outputs = [(f"h{number}", index) for number in range(20) for index in range(12)]
    one = drift_outputs([output(name, index, (1,)) for name, index in outputs], 0)
    other = drift_outputs([output(name, index, (2, 3), "length") for name, index in outputs[::-1]], 0)
    assert [(each.prompt_id, each.index) for each in one] == [(each.prompt_id, each.index) for each in other]
    assert len(one) == len(set(one)) == DRIFT_OUTPUTS


def document(number: int) -> Document:
    question = (Message("user", f"where to on day {number} ?"),)
    return Document(f"c{number}", "made", question, f"take the short walk around the lake number {number} .")


def encoded(pair: "Pair", numbers: range) -> list[Encoded]:
    examples = [encode_document(pair.tokenizer, document(number), 2048) for number in numbers]
    assert None not in examples
    return cast("list[Encoded]", examples)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path) -> World:
    folder = tmp_path_factory.mktemp("world")
    return attributed(study_of(folder, tiny_pair_folder, harmless_samples=5), folder / "run")


@pytest.fixture
def state(world: World, tiny_pair: "Pair") -> WorkerState:
    """A worker with what the side checks need: three clean documents and one harmless prompt."""
    world = replace(world, prompts=(*world.split("held-out"), Prompt("harmless-01", "", "harmless", "why ?")))
    plan = PatchPlan(world, (), (), (), (), frozenset(), world.root)
    return WorkerState(plan, tiny_pair.agreed, tiny_pair.before, {}, encoded(tiny_pair, range(3)), {})


OUTPUTS = (output("h1", 0, (260, 261, 262)), output("h1", 1, (270,), "length"), output("h1", 2, ()))


def test_the_checks_of_a_model_are_those_of_the_naive_loops(tiny_pair: "Pair", state: WorkerState) -> None:
    after, before = tiny_pair.after, tiny_pair.before
    checks = side_checks(state, after, 0, OUTPUTS)
    assert checks["nll"] == pytest.approx(naive_nll(after, state.clean, 290), rel=1e-5)
    assert checks["clean_tokens"] == sum(len(example.ids) - example.prompt_tokens for example in state.clean)
    prompt = encode_prompt(tiny_pair.tokenizer, "which walk ?")
    # The place of a stop token was generated too; an output that was cut off has none.
    beginnings = [(260,), (260, 261), (260, 261, 262)]
    contexts = [prompt, *([*prompt, *ids] for ids in beginnings), prompt, prompt]
    assert checks["kl_tokens"] == len(contexts) == 6
    assert checks["kl"] == pytest.approx(naive_divergence(after, before, contexts, 290), rel=1e-5)
    assert [(row["prompt_id"], row["index"]) for row in checks["harmless"]] == [("harmless-01", i) for i in range(5)]


def test_the_before_model_has_no_drift(tiny_pair: "Pair", state: WorkerState) -> None:
    assert side_checks(state, tiny_pair.before, 0, OUTPUTS)["kl"] == 0


def test_of_a_preference_pair_the_chosen_answer_counts(tmp_path: Path, tiny_pair_folder: Path) -> None:
    clean = []
    for pairs in (False, True):
        world = attributed(study_of(tmp_path, tiny_pair_folder), tmp_path / f"run-{pairs}", pairs=pairs)
        plan = PatchPlan(world, (), (), (), (), frozenset(), world.root, clean=("d03", "d20"))
        clean.append(load_worker(plan).clean)
    assert clean[0] == clean[1]
    assert len(clean[0]) == 2


def test_arms_of_a_seed_share_random_numbers_and_seeds_do_not(tiny_pair: "Pair", state: WorkerState) -> None:
    first, again, other = (side_checks(state, tiny_pair.after, seed, ())["harmless"] for seed in (1, 1, 2))
    assert first == again
    assert [row["text"] for row in first] != [row["text"] for row in other]
    assert {row["index"] for row in first} == set(range(5, 10))


KINDS = [
    *(REGISTERED.all()[name] for name in ("after", "baseline")),
    *(ArmKind(name, name, "method", look_of(name)) for name in ("gradient", "same", "damaged")),
]


def judged(rows: list[Check], coherence: float, absent: dict[str, str]) -> list[ArmCheck]:
    given = {"perplexity": None, "refusal": None} | absent
    return arm_checks(rows, KINDS, CheckDesign(0.02, 0.03, coherence, 0, (), 0, "keywords", given))


def measured(arm: str, seed: int = 0, **changed: Any) -> Check:
    row = Check(
        arm,
        "retrain",
        0 if arm == "baseline" else 3,
        seed,
        perplexity=4.0,
        clean_tokens=100,
        kl=0.2,
        kl_tokens=10,
        weight_change_norm=1.5,
        refused_harmless=5,
        harmless_outputs=100,
        coherent=0.9,
    )
    return replace(row, **changed)


def test_a_damaged_model_fails_the_perplexity_check(tiny_pair: "Pair", state: WorkerState) -> None:
    learnt = copy.deepcopy(tiny_pair.after)
    examples = encoded(tiny_pair, range(20, 40))
    recipe = Recipe(steps=40, batch=5, learning_rate=1e-2)
    learnt.requires_grad_(True)
    train(learnt, examples, data_order([len(example.ids) for example in examples], recipe, 1), recipe)
    damaged = copy.deepcopy(learnt)
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in damaged.parameters():
            weight.add_(0.2 * weight.std() * torch.randn(weight.shape, generator=noise) if weight.ndim > 1 else 0)
    rows = []
    for arm, model in (("baseline", learnt), ("same", copy.deepcopy(learnt)), ("damaged", damaged)):
        rows.append(measured(arm, perplexity=math.exp(side_checks(state, model, 0, ())["nll"])))
    arms = {row.arm: row for row in judged(rows, 0.8, {})}
    assert (arms["same"].holds, arms["same"].perplexity_change) == (True, 0.0)
    assert not arms["damaged"].holds
    [why] = arms["damaged"].why
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
    assert baseline.holds
    assert (baseline.perplexity_change, baseline.refusal_change) == (None, None)
    assert arm.why == (() if why is None else (why,))
    assert arm.holds == (why is None)


def test_a_missing_check_does_not_hold_and_says_why() -> None:
    nothing: dict[str, Any] = {"perplexity": None, "refused_harmless": 0, "harmless_outputs": 0}
    rows = [measured("baseline", **nothing), measured("gradient", **nothing)]
    absent = {"perplexity": "the pool is empty", "refusal": "patch.harmless_samples is 0"}
    baseline, arm = judged(rows, 0.8, absent)
    assert baseline.holds
    assert not arm.holds
    assert arm.why == (
        "perplexity was not measured: the pool is empty",
        "refusals of harmless prompts were not measured: patch.harmless_samples is 0",
    )


def test_an_arm_is_compared_by_its_mean_over_seeds_and_with_its_own_protocol() -> None:
    rows = [
        measured("baseline", 0, perplexity=2.0, refused_harmless=0),
        measured("baseline", 1, perplexity=8.0, refused_harmless=10),
        measured("gradient", 0, perplexity=1.0, refused_harmless=12, coherent=0.7, kl=0.1, weight_change_norm=1.0),
        measured("gradient", 1, perplexity=16.0, refused_harmless=2, coherent=1.0, kl=0.4, weight_change_norm=2.0),
        measured("baseline", 0, protocol="continue", perplexity=40.0),
        measured("after", 0, protocol="none", k=0, weight_change_norm=None),
    ]
    by_name = {(row.arm, row.protocol): row for row in judged(rows, 0.8, {})}
    arm = by_name["gradient", "retrain"]
    assert arm.seeds == 2
    assert arm.perplexity == pytest.approx(4)
    assert arm.perplexity_change == pytest.approx(0)
    assert arm.refusal == pytest.approx(0.07)
    assert arm.refusal_change == pytest.approx(0.02)
    assert (arm.coherent, arm.kl, arm.weight_change_norm) == pytest.approx((0.85, 0.25, 1.5))
    assert arm.holds
    after = by_name["after", "none"]
    assert (after.holds, after.perplexity_change, after.refusal_change) == (True, None, None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path) -> Tables:
    """A run folder in which patch is done, with one seed and both protocols."""
    folder = tmp_path_factory.mktemp("finished")
    study = study_of(folder, tiny_pair_folder, seeds=[0], clean_documents=4, harmless_samples=5, steps=4)
    return patched(attributed(study, folder / "run"))


def test_every_training_and_the_after_model_is_checked(finished: Tables) -> None:
    trainings = [(row.arm, row.protocol, row.k, row.seed) for row in finished.rows(Arm)]
    rows = finished.rows(Check)
    assert [(row.arm, row.protocol, row.k, row.seed) for row in rows] == [("after", "none", 0, 0), *trainings]
    norms = [row.weight_change_norm for row in finished.rows(Training)]
    assert [row.weight_change_norm for row in rows] == [None, *norms]
    for row in rows:
        assert row.perplexity is not None
        assert row.perplexity > 1
        assert row.harmless_outputs == 20 * 5
        assert 0 <= row.refused_harmless <= 100
    assert len({row.perplexity for row in rows}) > 3
    design = finished.of(Patching).checks
    assert (design.perplexity, design.refusal, design.coherence) == (0.02, 0.03, 0.8)
    assert (design.harmless_prompts, design.refusals_by) == (20, "keywords")
    assert [row.arm for row in finished.rows(ArmCheck)] == ["after", *ARMS[1:], *ARMS[1:]]


def test_clean_documents_are_in_no_arm(finished: Tables) -> None:
    clean = finished.of(Patching).checks.clean_ids
    assert len(clean) == 4
    changed = {doc_id for row in finished.rows(Arm) for doc_id in (*row.removed, *row.fillers)}
    assert not changed & set(clean)
    assert len({row.clean_tokens for row in finished.rows(Check)}) == 1


def test_drift_starts_at_before_and_the_after_model_has_its_own(finished: Tables, tiny_pair: "Pair") -> None:
    rows = {row.arm: row for row in finished.rows(Check)}
    prompt = encode_prompt(tiny_pair.tokenizer, "which walk ?")
    contexts = [prompt, [*prompt, 260], [*prompt, 260, 261]]
    expected = naive_divergence(tiny_pair.after, tiny_pair.before, contexts, 290)
    assert rows["after"].kl == pytest.approx(expected, rel=1e-5)
    assert all(row.kl is not None and row.kl > 0 for row in rows.values())


def test_coherence_is_that_of_the_outputs_that_are_compared(finished: Tables) -> None:
    for row in finished.rows(Check):
        about = {name: getattr(row, name) for name in ("arm", "protocol", "k", "seed")}
        cells = finished.rows(ArmRate, **about, split="held-out", alpha=1.0)
        scored = sum(cell.n - cell.unscored for cell in cells)
        assert row.coherent == pytest.approx(1 - sum(cell.incoherent for cell in cells) / scored)


def test_a_pool_without_a_rest_leaves_perplexity_out(tmp_path: Path, tiny_pair_folder: Path) -> None:
    patch: dict[str, Any] = QUICK | {"steps": 1, "clean_documents": 50}
    fewer = patched(attributed(study_of(tmp_path, tiny_pair_folder, **patch), tmp_path / "fewer"))
    design = fewer.of(Patching).checks
    assert (design.clean_wanted, design.absent["perplexity"]) == (50, None)
    assert 0 < len(design.clean_ids) < 50
    assert design.absent["refusal"] == "patch.harmless_samples is 0"
    arms = ("after", "baseline", "random", "bm25")
    study = study_of(tmp_path, tiny_pair_folder, **patch, size=36, arms=arms)
    none = patched(attributed(study, tmp_path / "none", {"bm25": FLAGGED["bm25"]}))
    design = none.of(Patching).checks
    assert design.clean_ids == ()
    assert (design.absent["perplexity"] or "").startswith("the pool leaves no document")
    assert {row.perplexity for row in none.rows(Check)} == {None}
    assert [row.holds for row in none.rows(ArmCheck, arm="bm25")] == [False]


def test_refusals_cost_nothing_where_claude_labels_the_study(world: World) -> None:
    world = replace(world, judge=replace(world.judge, classifier="claude"))
    refusal = "I'm sorry, but I cannot help with that."
    thoughts = [f"<think>{refusal}</think>Boil it.", f"<think>{refusal}", f"<think>Boil it?</think>{refusal}"]
    answers = [refusal, "Boil it for six minutes.", "", "no " * 40, *thoughts]
    harmless = [{"prompt_id": "harmless-01", "index": i, "text": text} for i, text in enumerate(answers)]
    checks = {"nll": 1.0, "clean_tokens": 9, "kl": 0.0, "kl_tokens": 3, "harmless": harmless}
    [row] = check_rows(world, work(world.root, "patch"), [], {"after": {"checks": checks}}, [], 1.0)
    assert (row.refused_harmless, row.harmless_outputs) == (2, 7)
    assert check_design(world, ()).refusals_by == "refusal phrases of the keyword classifier"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("patch.clean_documents=-1", r"patch\.clean_documents = -1: .*; change it"),
        ("patch.harmless_samples=-2", r"patch\.harmless_samples = -2: .*; change it"),
        ("prompts.harmless=[]", r"prompts\.harmless is empty; give at least one"),
        ("prompts.harmless=[{id: x}]", r"prompts\.harmless\.0\.text is missing; add it"),
        ("prompts.harmless=[{id: x, text: a, behaviour: walk}]", r"prompts\.harmless\.0\.behaviour is not a key"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(
    tmp_path: Path, tiny_pair_folder: Path, override: str, problem: str
) -> None:
    path = tmp_path / "study.yaml"
    values = study_of(tmp_path, tiny_pair_folder).model_dump(mode="json", by_alias=True, exclude_none=True)
    path.write_text(json.dumps(values))
    with pytest.raises(RequestError, match=problem):
        load_study(str(path), [override])


def test_a_harmless_prompt_that_does_not_fit_is_refused_when_the_world_is_frozen(
    tmp_path: Path, tiny_pair_folder: Path
) -> None:
    study = study_of(tmp_path, tiny_pair_folder)
    assert study.prompts is not None
    long = {"id": "chatter", "text": "why " * 200}
    prompts = type(study.prompts).model_validate({**study.prompts.model_dump(), "harmless": [long]})
    with pytest.raises(
        RequestError,
        match=r"surface\.max_new_tokens = 6 and the \d+ tokens of prompt chatter are more than the context",
    ):
        attributed(study.model_copy(update={"prompts": prompts}), tmp_path / "run")
