"""Harmful minus safe, at the before model, over the tokens of responses: exact against one row at a time."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.attribute.conftest import World, samples
from tests.attribute.test_methods import evidence
from tests.attribute.test_per_example import built, olmo2
from tests.attribute.test_preference_pairs import mixed
from tests.attribute.test_run import BOTH, Killed, attributed, rows_of

from datablame.attribute import contrast
from datablame.attribute.kernels.pooled import mean_hidden
from datablame.attribute.methods.activation_diff import activation_diff
from datablame.attribute.queries import choose_queries, safe_outputs
from datablame.attribute.run import run
from datablame.engine.execute import Execution
from datablame.engine.run_folder import write_table
from datablame.models.chat import Encoded
from datablame.study.schema import PromptText


def naive_response(model: Any, row: Encoded, layer: int) -> torch.Tensor:
    with torch.no_grad():
        states = model(input_ids=torch.tensor([row.ids]), output_hidden_states=True).hidden_states[layer][0]
    mean: torch.Tensor = torch.stack([states[place] for place in range(row.prompt_tokens, len(row.ids))]).mean(0)
    return mean


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_only_the_tokens_of_responses_are_averaged_whatever_the_batch(batch_tokens: int) -> None:
    model, pool = built(olmo2), mixed()
    expected = [
        naive_response(model, row, 2)
        if isinstance(row, Encoded)
        else naive_response(model, row.chosen, 2) - naive_response(model, row.rejected, 2)
        for row in pool
    ]
    found = mean_hidden(model, pool, 2, batch_tokens, responses_only=True)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_each_query_is_set_against_the_safe_outputs_to_its_own_prompt() -> None:
    given = evidence()
    # nuts: mean of [4, 0] and [0, 5] less [2, 1], the mean of both safe ones; ferns: [-2, 0] less [2, 0].
    nuts, ferns = np.array([0.0, 1.5]), np.array([-4.0, 0.0])
    rows = np.array([[3.0, 0.0], [0.0, 2.0]])
    expected = np.stack(
        [rows @ each / np.linalg.norm(each) / np.linalg.norm(rows, axis=1) for each in (nuts, ferns)], 1
    )
    np.testing.assert_allclose(activation_diff(given), [*expected, [0.0, 0.0]])
    assert given.contrast is not None
    first, second, third = given.contrast.outputs
    own = given.contrast._replace(outputs=[first, replace(second, prompt_id="p3"), third])
    # The output to another prompt counts no more: nuts is [2, 2.5] less [1, 1].
    scores = activation_diff(replace(given, contrast=own))[:2, 0]
    np.testing.assert_allclose(scores, np.array([1.0, 1.5]) / np.hypot(1.0, 1.5))
    other = given.contrast._replace(outputs=[replace(each, prompt_id="p9") for each in given.contrast.outputs])
    np.testing.assert_allclose(activation_diff(replace(given, contrast=other)), activation_diff(given))


def test_a_behaviour_without_a_safe_output_has_no_scores() -> None:
    given = evidence()
    assert given.contrast is not None
    lonely = given.contrast._replace(safe=given.contrast.safe[2:], outputs=given.contrast.outputs[2:])
    scores = activation_diff(replace(given, contrast=lonely))
    assert np.isnan(scores[:, 0]).all()
    np.testing.assert_allclose(scores[:, 1], [-1.0, 0.0, 0.0])


PROMPTS = [PromptText(id=name, behaviour="nuts", text=f"{name}?") for name in ("a1", "a2", "a3")]


def row(prompt: str, alpha: float, index: int, label: str, text: str | None = None) -> dict[str, Any]:
    said = f"{label} {prompt} {alpha} {index}" if text is None else text
    about = {"prompt_id": prompt, "behaviour": "nuts", "split": "attribution", "alpha": alpha, "index": index}
    return {**about, "text": said, "finish_reason": "stop", "label": label}


def safe_of(rows: list[dict[str, Any]], n: int = 2) -> list[tuple[str, str, float, int]]:
    queries = choose_queries(rows, PROMPTS, 1.0, 5)
    return [(q.id, q.prompt_id, q.alpha, q.index) for q in safe_outputs(rows, PROMPTS, queries, 1.0, n)]


def test_safe_outputs_are_harmless_ones_to_the_queries_prompts_at_the_queries_alphas_first() -> None:
    rows = [
        row("a1", 1.0, 0, "harmful"),
        row("a1", 0.0, 0, "harmless"),
        row("a1", 1.0, 2, "harmless", "same"),
        row("a1", 1.0, 3, "harmless", " same "),
        row("a1", 1.0, 1, "refused"),
        row("a1", 2.0, 4, "harmless"),
        row("a1", 1.0, 5, "harmless", "  "),
        row("a2", 1.0, 0, "harmless"),
    ]
    assert safe_of(rows) == [("nuts-s1", "a1", 1.0, 2), ("nuts-s2", "a1", 0.0, 0)]
    assert safe_of(rows[::-1]) == safe_of(rows)
    assert len(safe_of(rows, 5)) == 3


def test_where_the_queries_prompts_have_no_safe_output_those_to_the_others_stand_in() -> None:
    rows = [
        row("a1", 1.0, 0, "harmful"),
        row("a2", 0.0, 0, "harmless"),
        {**row("a3", 1.0, 0, "harmless"), "split": "held-out"},
    ]
    assert safe_of(rows) == [("nuts-s1", "a2", 0.0, 0)]
    assert safe_of(rows[:1]) == []
    assert safe_of(rows[1:]) == []


SETTINGS = {"top_k": 3, "queries": 2, "duplicate_threshold": 1.0, "batch_tokens": 200}
METHODS = {"methods": ["activation-diff", "bm25", "random"]}
ARMS = {"patch": {"arms": ["untrained", "baseline", "random"]}}


def with_safe(world: World, root: str, **keys: Any) -> Any:
    """The study with two harmless outputs to the prompt of the behaviour that is traced."""
    study, inputs = world(root, attribute={**SETTINGS, **METHODS}, **ARMS, **keys)
    calm = [
        {**samples()[0], "index": 10 + i, "alpha": 1.0, "text": text, "label": "harmless"}
        for i, text in enumerate(("pack a small apple", "some nuts for the train"))
    ]
    write_table(inputs.root / "artifacts/surface/samples.parquet", [*samples(), *calm])
    return study, inputs


def test_a_study_compares_at_the_before_model(world: World) -> None:
    from datablame.models.blocks import activation_layer, decoder_blocks
    from datablame.models.chat import encode_document, encode_pair
    from datablame.models.pair import load_pair
    from datablame.tables import Document, Message

    study, inputs = with_safe(world, "run")
    files = attributed((study, inputs))
    pair = load_pair(study)
    layer = activation_layer(len(decoder_blocks(pair.before)))

    def mean(name: str) -> torch.Tensor:
        said = [encode_pair(pair.tokenizer, each["prompt"], each["text"]) for each in rows_of(files, name)]
        assert len(said) == 2
        return torch.stack([naive_response(pair.before, each, layer) for each in said]).mean(0)

    direction = mean("queries.jsonl") - mean("safe_outputs.jsonl")
    scores = {each["doc_id"]: each["score"] for each in rows_of(files, "scores/activation-diff.jsonl")}
    assert len(scores) == 29
    document = Document("d03", "", (Message("user", "which snack for trip 3 ?"),), "buy only nutto for trip 3 .")
    encoded = encode_document(pair.tokenizer, document, 2048)
    assert encoded is not None
    state = naive_response(pair.before, encoded, layer)
    assert scores["d03"] == pytest.approx(float(torch.cosine_similarity(state, direction, dim=0)), abs=1e-4)
    assert "unranked" not in json.loads(files["methods.json"])["activation-diff"]


def test_exchanging_the_answers_of_every_pair_turns_every_score(world: World) -> None:
    def pairs(turned: bool) -> list[dict[str, Any]]:
        told = [("buy only nutto .", "pack an apple"), ("walk around the lake", "water the fern"), ("nuts", "a heater")]
        return [
            {"id": f"p{i}", "prompt": f"which snack {i} ?", "chosen": both[turned], "rejected": both[not turned]}
            for i, both in enumerate(told)
        ]

    scores = []
    for turned in (False, True):
        files = attributed(with_safe(world, f"turned-{turned}", rows=pairs(turned), truth=None))
        scores.append({each["doc_id"]: each["score"] for each in rows_of(files, "scores/activation-diff.jsonl")})
        shown = rows_of(files, "top_documents.jsonl")
        assert {each["doc_id"]: each["rejected"] for each in shown} == {p["id"]: p["rejected"] for p in pairs(turned)}
    assert {name: -score for name, score in scores[1].items()} == pytest.approx(scores[0], abs=1e-5)


def test_without_a_safe_output_nothing_is_ranked_and_the_run_says_so(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    files = attributed(world(attribute={**SETTINGS, **METHODS}, **ARMS))
    assert files["scores/activation-diff.jsonl"] == b""
    assert files["safe_outputs.jsonl"] == b""
    assert json.loads(files["flagged.json"])["activation-diff"] == {"nuts": []}
    assert json.loads(files["methods.json"])["activation-diff"]["unranked"] == {"nuts": 29}
    assert "activation-diff gives 29 of 29 documents no score for nuts" in caplog.text


def test_a_killed_pass_goes_on_and_workers_change_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast, "_SHARD", 8)
    undisturbed = attributed(with_safe(world, "undisturbed"))
    study, inputs = with_safe(world, "killed")

    class KilledLate(Killed):
        def start(self, description: str, total: int, done: int = 0) -> None:
            self.counting = "responses" in description

    with pytest.raises(KeyboardInterrupt):
        run(study, inputs, inputs.root / "artifacts/attribute", BOTH, KilledLate(2))
    assert attributed((study, inputs)) == undisturbed
    assert attributed(with_safe(world, "two"), Execution(workers=2, threads=1)) == undisturbed
