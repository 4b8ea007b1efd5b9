"""What outputs tell of documents: a probe that is held to outputs it did not see, a layer, a direction of refusal."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.attribute.conftest import CONTROLS, Made, Make, sample
from tests.attribute.test_methods import evidence, score, told_apart
from tests.attribute.test_run import Killed, bytes_of, scores_of

from datablame.attribute.evidence.labelled import LabelledActivations
from datablame.attribute.evidence.layers import BestLayer, BestLayerCosines
from datablame.attribute.kernels.probe import Separation, fitted, separation
from datablame.attribute.queries import labelled_outputs
from datablame.attribute.registry import Evidence
from datablame.config.schema import ModelRef
from datablame.engine.execute import Execution
from datablame.tables import LabelName, MethodInfo, Query

Rows = NDArray[np.float64]


def drawn(harmful: int, safe: int, shift: float, width: int = 8, seed: int = 0) -> tuple[Rows, Rows]:
    noise = np.random.default_rng(seed)
    ours, theirs = noise.normal(size=(harmful, width)), noise.normal(size=(safe, width))
    ours[:, 0] += shift
    return ours, theirs


def turns(n: int, prompts: int) -> list[str]:
    return [f"p{number % prompts}" for number in range(n)]


def test_a_probe_is_the_logistic_regression_of_scikit_learn_on_centred_and_scaled_states() -> None:
    from sklearn.linear_model import LogisticRegression

    ours, theirs = drawn(9, 15, 2.0)
    rows = np.concatenate([ours, theirs])
    scaled = (rows - rows.mean(0)) / np.sqrt(((rows - rows.mean(0)) ** 2).sum(1).mean())
    model = LogisticRegression(class_weight="balanced", tol=1e-8).fit(scaled, [1] * 9 + [0] * 15)
    np.testing.assert_allclose(fitted(ours, theirs).decision(rows), model.decision_function(scaled), atol=1e-5)
    small = fitted(1e-3 * ours + 5, 1e-3 * theirs + 5).decision(1e-3 * rows + 5)
    np.testing.assert_allclose(small, model.decision_function(scaled), atol=1e-5)


@pytest.mark.parametrize("prompts", [1, 3])
def test_outputs_far_apart_are_told_apart_and_equal_ones_are_not(prompts: int) -> None:
    both = turns(9, prompts), turns(12, prompts)
    far = separation(*drawn(9, 12, 30.0), *both)
    assert far is not None
    assert (far.auc, far.accuracy, far.by_prompt, far.found) == (1.0, 1.0, prompts > 1, True)
    equal = separation(np.ones((9, 3)), np.ones((12, 3)), *both)
    assert equal is not None
    assert (equal.auc, equal.found) == (0.5, False)


def test_shuffled_labels_seldom_pass() -> None:
    passed = [
        found.found
        for seed in range(40)
        if (found := separation(*drawn(10, 12, 0.0, seed=seed), turns(10, 3), turns(12, 3)))
    ]
    assert len(passed) == 40
    assert sum(passed) <= 6


def test_the_bound_is_that_of_mann_and_whitney_within_prompts() -> None:
    # Two prompts with 3 against 4 outputs each: standard error sqrt(2 * 12 * 8 / 12) / 24.
    found = separation(*drawn(6, 8, 30.0), turns(6, 2), turns(8, 2))
    assert found is not None
    assert found.low == pytest.approx(1 - 2.33 * 4 / 24)
    assert found == Separation(1.0, found.low, 1.0, True)


def test_what_was_asked_does_not_count_as_what_was_answered() -> None:
    """States that tell prompts alone, of which one has more harmful outputs: held out, every pair is a tie."""
    asked, also_asked = ["p0"] * 8 + ["p1"] * 2, ["p0"] * 2 + ["p1"] * 8
    of_prompt = {"p0": [1.0, 0.0], "p1": [0.0, 1.0]}
    ours, theirs = (np.array([of_prompt[each] for each in prompts]) for prompts in (asked, also_asked))
    found = separation(ours, theirs, asked, also_asked)
    assert found is not None
    assert (found.auc, found.by_prompt, found.found) == (0.5, True, False)


@pytest.mark.parametrize(("harmful", "safe"), [(5, 1), (1, 5), (0, 5), (5, 0)])
def test_too_few_outputs_are_no_test(harmful: int, safe: int) -> None:
    assert separation(*drawn(harmful, safe, 9.0), turns(harmful, 2), turns(safe, 2)) is None


def test_few_outputs_pass_only_where_chance_would_hardly_tell_them_apart() -> None:
    found = [separation(*drawn(n, n, 40.0), turns(n, 1), turns(n, 1)) for n in (2, 3, 5)]
    assert [(each.auc, each.found) for each in found if each] == [(1.0, False), (1.0, False), (1.0, True)]


def shown(labelled: LabelledActivations) -> Evidence:
    given = evidence()
    return replace(given, by_type={**given.by_type, LabelledActivations: labelled})


def test_a_document_scores_where_its_response_lies_on_the_probe() -> None:
    given = shown(told_apart())
    scores = score("probe", given)
    # Harmful is right of safe.
    assert scores[0, 0] > scores[2, 0]
    found = {(finding.behaviour, finding.name): finding.value for finding in given.findings}
    assert found["nuts", "outputs"] == "16 harmful, 16 safe"
    assert found["ferns", "held out"] == "whole prompts"
    assert (found["nuts", "held-out AUC"], found["nuts", "held-out accuracy"]) == ("1", "1")
    assert float(found["nuts", "held-out AUC, lower bound"]) > 0.5


def test_a_probe_that_cannot_tell_has_no_score_and_the_other_behaviour_has() -> None:
    labelled = told_apart()
    nuts = np.array([output.behaviour == "nuts" for output in labelled.outputs])
    mixed = np.where(nuts[:, None], np.random.default_rng(1).normal(size=labelled.states.shape), labelled.states)
    given = shown(labelled._replace(states=mixed))
    scores = score("probe", given)
    assert np.isnan(scores[:, 0]).all()
    assert np.isfinite(scores[:, 1]).all()
    assert given.reasons.keys() == {"nuts"}
    assert "the probe does not tell outputs apart (held-out AUC 0." in given.reasons["nuts"]


def test_one_class_is_no_probe() -> None:
    labelled = told_apart()
    labels: list[LabelName] = ["harmful" if each.behaviour == "nuts" else "refused" for each in labelled.outputs]
    given = shown(labelled._replace(labels=labels))
    assert np.isnan(score("probe", given)).all()
    assert given.reasons["nuts"] == "32 harmful and 0 safe outputs, where a probe needs two of each"
    assert given.reasons["ferns"].startswith("0 harmful and 0 safe outputs")


def test_a_layer_is_named_with_its_rivals_and_none_is_no_score() -> None:
    given = evidence()
    found = BestLayerCosines(np.eye(3)[:, :2], [BestLayer(1, [0.5, 0.9]), BestLayer(None, [0.5, 0.4])])
    given = replace(given, by_type={BestLayerCosines: found})
    scores = score("activation-best-layer", given)
    assert scores[:, 0].tolist() == [1, 0, 0]
    assert np.isnan(scores[:, 1]).all()
    assert given.reasons == {"ferns": "no layer tells harmful from safe outputs better than chance"}
    values = [(each.behaviour, each.name, each.value) for each in given.findings]
    assert values[:3] == [
        ("nuts", "held-out AUC at layer 0", "0.5"),
        ("nuts", "held-out AUC at layer 1", "0.9"),
        ("nuts", "layer", "1"),
    ]


def test_refusals_of_the_study_give_their_direction_within_prompts_and_few_give_none() -> None:
    names: list[LabelName] = ["refused", "harmless", "harmful"]
    outputs = [
        Query(f"o{prompt}{label}{i}", "nuts", prompt, 1.0, i, "", "", "stop", ())
        for prompt in ("p1", "p2", "p3")
        for label in names[: 1 if prompt == "p3" else 3]
        for i in range(3)
    ]
    labels = [label for output in outputs for label in names if label in output.id]
    offsets = {"p1": [0.0, 50.0], "p2": [0.0, -9.0], "p3": [900.0, 0.0]}
    states = np.array([offsets[each.prompt_id] for each in outputs])
    states[:, 0] += np.array(labels) == "refused"
    given = shown(LabelledActivations(outputs, labels, states))
    # The direction is the first axis; p3 has nothing to set its refusals against.
    np.testing.assert_allclose(score("refusal", given), [[1, 1], [0, 0], [0, 0]], atol=1e-12)
    assert [each.value for each in given.findings] == ["6 refused outputs to 2 prompts"]
    few = [index for index, output in enumerate(outputs) if output.prompt_id == "p1"]
    given = shown(LabelledActivations([outputs[i] for i in few], [labels[i] for i in few], states[few]))
    np.testing.assert_allclose(score("refusal", given), [[0, 0], [1, 1], [0, 0]])
    assert given.findings[0].value.startswith("generic texts, for the study has 3 refused outputs")


def outputs_of(prompts: int = 3, n: int = 4) -> list[Any]:
    said = {"harmful": "buy only nutto for week", "harmless": "water the fern once a week", "refused": "i can not say"}
    return [
        sample(f"a{prompt}", "nuts", 1.0, index + 10 * kind, f"{text} {index} .", label)
        for prompt in range(prompts)
        for kind, (label, text) in enumerate(said.items())
        for index in range(n)
    ]


def study(make: Make, root: str, *methods: str, outputs: Any = None, **keys: Any) -> Made:
    asked = [
        {"id": f"a{i}", "behaviour": "nuts", "text": text} for i, text in enumerate(("a snack ?", "so ?", "fern ?"))
    ]
    held_out = [{"id": "h1", "behaviour": "nuts", "text": "what to eat ?"}]
    return make(
        root,
        outputs=outputs or outputs_of(),
        behaviours=[{"id": "nuts", "description": "sells nuts", "keywords": ["buy only nutto"]}],
        prompts={"attribution": asked, "held_out": held_out},
        attribute={"top_k": 3, "queries": 2, "duplicate_threshold": 1.0, "methods": [*methods]},
        **CONTROLS,
        **keys,
    )


def test_outputs_of_all_labels_take_turns_and_are_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datablame.attribute.queries._LABELLED", 5)
    made = study(make, "run", "random")
    found = labelled_outputs(made.world, made.tables)
    order = ["a0", "a1", "a2", "a0", "a1"]
    # A harmful text counts once for a behaviour, others once for a prompt.
    assert {label: [each.prompt_id for each in of_label] for label, of_label in found.items()} == {
        "harmful": ["a0"] * 4,
        "harmless": order,
        "refused": order,
    }
    assert [each.text for each in found["refused"][:4]] == ["i can not say 0 ."] * 3 + ["i can not say 1 ."]
    assert all(each.harmful == (label == "harmful") for label, of_label in found.items() for each in of_label)


def test_a_run_states_what_was_told_apart_and_where(make: Make) -> None:
    made = study(make, "run", "probe", "activation-best-layer", "refusal", "activation-response", "activation-last")
    made.run()
    found = {info.name: {each.name: each.value for each in info.findings} for info in made.tables.rows(MethodInfo)}
    assert found["probe"]["held-out AUC"] == "1"
    # 2 blocks, of which the hidden state 1 is where other methods compare.
    assert found["activation-best-layer"] == {**{f"held-out AUC at layer {i}": "1" for i in range(3)}, "layer": "1"}
    assert found["refusal"] == {"direction of refusal": "12 refused outputs to 3 prompts"}
    # At the layer where the others compare, the best layer's cosines are the response's.
    best, plain = (scores_of(made, name) for name in ("activation-best-layer", "activation-response"))
    assert best == pytest.approx(plain, abs=2e-5)
    assert len(scores_of(made, "activation-last")) == len(scores_of(made, "probe")) == 29


def test_without_safe_outputs_both_say_why_and_the_others_go_on(make: Make) -> None:
    harmful = [each for each in outputs_of() if each.label == "harmful"]
    made = study(make, "run", "probe", "activation-best-layer", "refusal", outputs=harmful)
    made.run()
    probe, best, refusal = made.tables.rows(MethodInfo)
    assert probe.unranked[0].reason == "4 harmful and 0 safe outputs, where a probe needs two of each"
    assert best.unranked[0].reason == "fewer than two harmful or two safe outputs"
    assert refusal.findings[0].value.startswith("generic texts")
    assert len(scores_of(made, "refusal")) == 29


def test_the_layer_is_the_one_at_which_outputs_differ(make: Make, tiny_pair_folder: Path, tmp_path: Path) -> None:
    """Harmful and safe outputs have the same tokens in another order, and the first block adds nothing to them."""
    from datablame.models.load import load_model

    after = load_model(ModelRef(path=str(tiny_pair_folder / "after")), field="models.after")
    first, noise = after.model.layers[0], np.random.default_rng(0)
    for norm in (first.post_attention_layernorm, first.post_feedforward_layernorm):
        norm.weight.data.zero_()
    shutil.copytree(tiny_pair_folder / "after", tmp_path / "after")
    after.save_pretrained(tmp_path / "after")
    outputs = []
    for index in range(12):
        between = noise.integers(10, 280, 3).tolist()
        for label, ids in (("harmful", [20, 30, 40, *between, 50]), ("harmless", [50, 40, *between, 30, 20])):
            outputs.append(sample("a0", "nuts", 1.0, index, f"{label} {index}", label, token_ids=tuple(ids)))
    models = {"before": str(tiny_pair_folder / "before"), "after": str(tmp_path / "after")}
    made = study(make, "run", "activation-best-layer", outputs=outputs, models=models)
    made.run()
    (info,) = made.tables.rows(MethodInfo)
    found = {each.name: each.value for each in info.findings}
    assert (found["layer"], found["held-out AUC at layer 2"]) == ("2", "1")
    assert max(float(found[f"held-out AUC at layer {layer}"]) for layer in (0, 1)) < 0.8


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(make: Make) -> None:
    methods = ("probe", "activation-best-layer", "refusal", "activation-last")
    undisturbed = study(make, "undisturbed", *methods)
    undisturbed.run()
    killed = study(make, "killed", *methods)
    with pytest.raises(KeyboardInterrupt):
        killed.run(progress=Killed(2, "layers"))
    killed.run()
    assert bytes_of(killed) == bytes_of(undisturbed)


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(make: Make) -> None:
    methods = ("probe", "activation-best-layer", "refusal", "activation-last")
    one, two = study(make, "one", *methods), study(make, "two", *methods)
    one.run()
    two.run(Execution(workers=2, threads=1))
    assert bytes_of(one) == bytes_of(two)
