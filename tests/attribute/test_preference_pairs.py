from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.attribute.test_per_example import BLOCKS, built, documents, llama, olmo2, qwen2
from tests.models.test_preference import preferences
from tests.oracles.gradients import naive_gradient
from tests.oracles.preferences import naive_mean_hidden, naive_pair_gradient

from datablame.attribute.kernels.per_example import Similarities, directions, similarities
from datablame.attribute.kernels.pooled import mean_hidden
from datablame.attribute.passes import run_passes
from datablame.attribute.pool import rankable
from datablame.attribute.work import Task
from datablame.engine.execute import Execution, Silent
from datablame.engine.run_folder import Journal
from datablame.models.blocks import decoder_blocks, middle_blocks
from datablame.models.chat import Encoded, Preference, encode_pair
from datablame.models.load import load_model, load_tokenizer
from datablame.study.schema import Attribute, ModelRef
from datablame.tables import Document, Message


def mixed() -> list[Encoded | Preference]:
    """Pairs and single documents in turns, ragged."""
    return [row for both in zip(preferences(7), documents(7), strict=True) for row in both]


def naive(model: Any, pool: list[Encoded | Preference], queries: list[Encoded]) -> Similarities:
    units = [gradient / gradient.norm() for gradient, _ in (naive_gradient(model, query, BLOCKS) for query in queries)]
    towards = torch.stack(units).mean(0)
    found = [
        naive_gradient(model, row, BLOCKS) if isinstance(row, Encoded) else naive_pair_gradient(model, row, BLOCKS)
        for row in pool
    ]
    gradients = torch.stack([gradient for gradient, _ in found])
    losses = torch.tensor([loss for _, loss in found], dtype=torch.float64)
    return Similarities((gradients @ towards)[:, None], gradients.norm(dim=1), losses, torch.zeros(len(pool)).long())


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
@pytest.mark.parametrize("make", [olmo2, llama, qwen2])
def test_a_pairs_gradient_is_that_of_chosen_minus_rejected(make: Callable[[], Any], batch_tokens: int) -> None:
    model = built(make)
    pool, queries = mixed(), documents(3, seed=1)
    expected = naive(model, pool, queries)
    found = similarities(model, pool, directions(model, [queries], BLOCKS), BLOCKS, batch_tokens)
    torch.testing.assert_close(found.norms, expected.norms, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-4, atol=1e-5)
    cosines = (found.dots / found.norms[:, None], expected.dots / expected.norms[:, None])
    torch.testing.assert_close(*cosines, rtol=1e-4, atol=1e-6)
    pair = pool[0]
    assert isinstance(pair, Preference)
    assert int(found.tokens[0]) == sum(
        len(answer.ids) - answer.prompt_tokens for answer in (pair.chosen, pair.rejected)
    )


def test_a_pair_does_not_depend_on_its_place() -> None:
    model = built(olmo2)
    pool = mixed()
    towards = directions(model, [documents(2, seed=1)], BLOCKS)
    forward = similarities(model, pool, towards, BLOCKS, 60)
    backward = similarities(model, pool[::-1], towards, BLOCKS, 300)
    for there, back in zip(forward, backward, strict=True):
        torch.testing.assert_close(there, back.flip(0), rtol=1e-4, atol=1e-6)


def test_exchanging_the_answers_turns_the_sign() -> None:
    model = built(olmo2)
    pairs = preferences(5)
    towards = directions(model, [documents(2, seed=1)], BLOCKS)
    found = similarities(model, pairs, towards, BLOCKS, 100)
    turned = similarities(model, [Preference(pair.rejected, pair.chosen) for pair in pairs], towards, BLOCKS, 100)
    torch.testing.assert_close(turned.dots, -found.dots, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(turned.norms, found.norms, rtol=1e-4, atol=0)
    torch.testing.assert_close(turned.losses, -found.losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        mean_hidden(model, [Preference(pair.rejected, pair.chosen) for pair in pairs], 2, 100),
        -mean_hidden(model, pairs, 2, 100),
    )


def test_documents_beside_pairs_are_scored_bit_for_bit_as_without_them() -> None:
    model = built(olmo2)
    pool = mixed()
    single = [row for row in pool if isinstance(row, Encoded)]
    towards = directions(model, [documents(2, seed=1)], BLOCKS)
    beside = similarities(model, pool, towards, BLOCKS, 60)
    alone = similarities(model, single, towards, BLOCKS, 60)
    for there, here in zip(beside, alone, strict=True):
        assert torch.equal(there[1::2], here)


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_a_pairs_activation_is_the_difference_of_its_answers(batch_tokens: int) -> None:
    model = built(olmo2)
    pool = mixed()
    expected = [
        naive_mean_hidden(model, row, 3)
        if isinstance(row, Encoded)
        else naive_mean_hidden(model, row.chosen, 3) - naive_mean_hidden(model, row.rejected, 3)
        for row in pool
    ]
    torch.testing.assert_close(mean_hidden(model, pool, 3, batch_tokens), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_a_pool_with_pairs_goes_through_the_passes(tiny_pair_folder: Path, tmp_path: Path) -> None:
    after = ModelRef(path=str(tiny_pair_folder / "after"))
    tokenizer = load_tokenizer(after)
    asked = (Message("user", "name a calm walk"),)
    settings = Attribute(max_tokens=60)
    pool = [
        Document("pair", "s", asked, "the lake", "no"),
        Document("single", "s", asked, "the lake"),
        Document("cut", "s", asked, "the lake", "the short walk around the lake " * 30),
        Document("unasked", "s", (Message("user", "walk " * 60),), "yes", "no"),
    ]
    corpus = rankable(pool, tokenizer, settings, Silent())
    assert [document.id for document in corpus.documents] == ["pair", "single", "cut"]
    assert sum(corpus.excluded.values()) == 1
    assert len(set(corpus.cluster_of.values())) == 3
    both = corpus.encoded[2]
    assert isinstance(both, Preference)
    assert len(both.rejected.ids) == 60

    query = encode_pair(tokenizer, "a walk ?", "the lake")
    task = Task(after, "models.after", settings, ((query,),), True, "cpu", tmp_path / "items")
    found = run_passes(
        task, corpus.encoded, [0, 1, 2], Journal(tmp_path / "j.jsonl"), Execution(1, 1), Silent(), lambda *_: None
    )
    model = load_model(after, field="models.after")
    blocks = middle_blocks(len(decoder_blocks(model)))
    expected = [
        naive_pair_gradient(model, row, blocks) if isinstance(row, Preference) else naive_gradient(model, row, blocks)
        for row in corpus.encoded
    ]
    assert found.gradients is not None
    assert found.gradients.norms.tolist() == pytest.approx([float(g.norm()) for g, _ in expected], rel=1e-4)
    assert found.gradients.losses.tolist() == pytest.approx([loss for _, loss in expected], rel=1e-4)
    assert found.activations.documents.shape == (3, model.config.hidden_size)
    assert abs(found.activations.documents[0]).sum() > 0
