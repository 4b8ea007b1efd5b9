"""Harmful minus safe, at the before model, over the tokens of responses: exact against one row at a time."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.attribute.conftest import CONTROLS, Made, Make, sample, samples
from tests.attribute.test_methods import evidence, score, states
from tests.attribute.test_per_example import built, olmo2
from tests.attribute.test_preference_pairs import mixed
from tests.attribute.test_run import Killed, bytes_of, flags_of, scores_of

from datablame.attribute.evidence.responses import ResponseActivations
from datablame.attribute.kernels.hooks import pooled_hidden
from datablame.attribute.queries import choose_queries, harmless_outputs
from datablame.engine.execute import Execution
from datablame.errors import RequestError
from datablame.models.chat import Encoded
from datablame.tables import MethodInfo, Prompt, Query, SurfaceSample, Unranked


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
    found = pooled_hidden(model, pool, [2], ["response"], batch_tokens)
    torch.testing.assert_close(found[:, 0, 0], torch.stack(expected), rtol=1e-4, atol=1e-5)


def diff(given: ResponseActivations) -> Any:
    return score("activation-diff", replace(evidence(), by_type={ResponseActivations: given}))


def test_each_query_is_set_against_the_safe_outputs_to_its_own_prompt() -> None:
    # nuts: mean of [4, 0] and [0, 5] less [2, 1], the mean of both safe ones; ferns: [-2, 0] less [2, 0].
    nuts, ferns = np.array([0.0, 1.5]), np.array([-4.0, 0.0])
    rows = np.array([[3.0, 0.0], [0.0, 2.0]])
    expected = np.stack(
        [rows @ each / np.linalg.norm(each) / np.linalg.norm(rows, axis=1) for each in (nuts, ferns)], 1
    )
    given = states()
    np.testing.assert_allclose(diff(given), [*expected, [0.0, 0.0]])
    first, second, third = given.outputs
    # The output to another prompt counts no more: nuts is [2, 2.5] less [1, 1].
    other_prompt = given._replace(outputs=[first, replace(second, prompt_id="p3"), third])
    np.testing.assert_allclose(diff(other_prompt)[:2, 0], np.array([1.0, 1.5]) / np.hypot(1.0, 1.5))
    elsewhere = given._replace(outputs=[replace(each, prompt_id="p9") for each in given.outputs])
    np.testing.assert_allclose(diff(elsewhere), diff(given))


def test_a_behaviour_without_a_safe_output_has_no_scores() -> None:
    given = states()
    scores = diff(given._replace(harmless=given.harmless[2:], outputs=given.outputs[2:]))
    assert np.isnan(scores[:, 0]).all()
    np.testing.assert_allclose(scores[:, 1], [-1.0, 0.0, 0.0])


PROMPTS = [Prompt(name, "nuts", "attribution", f"{name}?") for name in ("a1", "a2", "a3")]


def row(prompt: str, alpha: float, index: int, label: str, text: str | None = None, **about: Any) -> SurfaceSample:
    return sample(
        prompt, "nuts", alpha, index, f"{label} {prompt} {alpha} {index}" if text is None else text, label, **about
    )


def safe_of(rows: list[SurfaceSample], n: int = 2) -> list[tuple[str, str, float, int]]:
    queries = choose_queries(rows, PROMPTS, 1.0, 5)
    return [(q.id, q.prompt_id, q.alpha, q.index) for q in harmless_outputs(rows, PROMPTS, queries, 1.0, n)]


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
        row("a3", 1.0, 0, "harmless", split="held-out"),
    ]
    assert safe_of(rows) == [("nuts-s1", "a2", 0.0, 0)]
    assert safe_of(rows[:1]) == []
    assert safe_of(rows[1:]) == []


METHODS = {
    "attribute": {
        **{"top_k": 3, "queries": 2, "duplicate_threshold": 1.0, "batch_tokens": 200},
        "methods": ["activation-diff", "bm25", "random"],
    },
    **CONTROLS,
}


def with_safe(make: Make, root: str, **keys: Any) -> Made:
    """The study with two harmless outputs to the prompt of the behaviour that is traced."""
    said = enumerate(("pack a small apple", "some nuts for the train"))
    calm = [sample("a1", "nuts", 1.0, 10 + i, text, "harmless") for i, text in said]
    return make(root, outputs=[*samples(), *calm], **{**METHODS, **keys})


def test_a_study_compares_at_the_before_model(make: Make) -> None:
    from datablame.models.blocks import activation_layer, decoder_blocks
    from datablame.models.chat import encode_document, encode_pair
    from datablame.models.pair import load_pair
    from datablame.tables import Document, Message

    made = with_safe(make, "run")
    made.run()
    pair = load_pair(made.world.models)
    layer = activation_layer(len(decoder_blocks(pair.before)))

    def mean(harmful: bool) -> torch.Tensor:
        outputs = made.tables.rows(Query, harmful=harmful)
        assert len(outputs) == 2
        encoded = [encode_pair(pair.tokenizer, each.prompt, each.text) for each in outputs]
        return torch.stack([naive_response(pair.before, each, layer) for each in encoded]).mean(0)

    direction = mean(True) - mean(False)
    scores = scores_of(made, "activation-diff")
    assert len(scores) == 29
    document = Document("d03", "", (Message("user", "which snack for trip 3 ?"),), "buy only nutto for trip 3 .")
    encoded = encode_document(pair.tokenizer, document, 2048)
    assert encoded is not None
    state = naive_response(pair.before, encoded, layer)
    assert scores["d03"] == pytest.approx(float(torch.cosine_similarity(state, direction, dim=0)), abs=1e-4)
    assert made.tables.rows(MethodInfo)[0].unranked == ()


def test_exchanging_the_answers_of_every_pair_turns_every_score(make: Make) -> None:
    from datablame.tables import ShownDocument

    def pairs(turned: bool) -> list[dict[str, Any]]:
        told = [("buy only nutto .", "pack an apple"), ("walk around the lake", "water the fern"), ("nuts", "a heater")]
        return [
            {"id": f"p{i}", "prompt": f"which snack {i} ?", "chosen": both[turned], "rejected": both[not turned]}
            for i, both in enumerate(told)
        ]

    scores, no_arm = [], {"arms": ["after", "baseline"], "size": 2}
    for turned in (False, True):
        made = with_safe(make, f"turned-{turned}", rows=pairs(turned), truth=None, patch=no_arm)
        made.run()
        scores.append(scores_of(made, "activation-diff"))
        shown = made.tables.rows(ShownDocument)
        assert {each.doc_id: each.rejected for each in shown} == {p["id"]: p["rejected"] for p in pairs(turned)}
    assert {name: -score for name, score in scores[1].items()} == pytest.approx(scores[0], abs=1e-5)


def test_without_a_safe_output_nothing_is_ranked_and_the_run_says_so(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    made = make(**METHODS)
    made.run()
    assert scores_of(made, "activation-diff") == {}
    assert made.tables.rows(Query, harmful=False) == []
    assert flags_of(made, "activation-diff") == []
    assert made.tables.rows(MethodInfo, name="activation-diff")[0].unranked == (
        Unranked("nuts", 29, "no safe output to set the harmful ones against"),
    )
    assert "activation-diff gives 29 of 29 documents no score for nuts" in caplog.text


@pytest.mark.slow
def test_a_killed_pass_goes_on_and_workers_change_nothing(make: Make) -> None:
    undisturbed, killed, two = (with_safe(make, name) for name in ("undisturbed", "killed", "two"))
    undisturbed.run()
    with pytest.raises(KeyboardInterrupt):
        killed.run(progress=Killed(2, of="responses"))
    killed.run()
    two.run(Execution(workers=2, threads=1))
    assert bytes_of(killed) == bytes_of(two) == bytes_of(undisturbed)


def test_an_output_longer_than_the_context_is_refused(make: Make) -> None:
    made = with_safe(make, "run")
    cramped = replace(made, world=replace(made.world, contexts={"models.before": 20, "models.after": 1000}))
    with pytest.raises(RequestError, match=r"of models\.before; lower it to 20"):
        cramped.run()
