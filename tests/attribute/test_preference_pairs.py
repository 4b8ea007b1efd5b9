from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.attribute.conftest import CONTROLS, Make
from tests.attribute.test_per_example import BLOCKS, built, documents, llama, olmo2, qwen2
from tests.attribute.test_run import scores_of
from tests.models.test_preference import preferences
from tests.oracles.gradients import naive_gradient
from tests.oracles.preferences import naive_mean_hidden, naive_pair_gradient

from datablame.attribute.kernels.hooks import mean_hidden
from datablame.attribute.kernels.per_example import Similarities, directions, similarities
from datablame.models.blocks import decoder_blocks, middle_blocks
from datablame.models.chat import Encoded, Preference
from datablame.models.load import load_model
from datablame.tables import DocumentTokens


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
    return Similarities((gradients @ towards)[:, None], gradients.norm(dim=1), losses)


@pytest.mark.parametrize(
    ("make", "batch_tokens"),
    [
        *((olmo2, 1), (olmo2, 60), (olmo2, 10_000), (llama, 60), (qwen2, 60)),
        *(pytest.param(make, tokens, marks=pytest.mark.slow) for make in (llama, qwen2) for tokens in (1, 10_000)),
    ],
)
def test_a_pairs_gradient_is_that_of_chosen_minus_rejected(make: Callable[[], Any], batch_tokens: int) -> None:
    model = built(make)
    pool, queries = mixed(), documents(3, seed=1)
    expected = naive(model, pool, queries)
    found = similarities(model, pool, directions(model, [queries], BLOCKS), BLOCKS, batch_tokens)
    torch.testing.assert_close(found.norms, expected.norms, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-4, atol=1e-5)
    cosines = (found.dots / found.norms[:, None], expected.dots / expected.norms[:, None])
    torch.testing.assert_close(*cosines, rtol=1e-4, atol=1e-6)


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


def test_a_pool_of_pairs_goes_through_the_passes(make: Make) -> None:
    rows = [
        {"id": f"p{i}", "prompt": f"name a calm walk {i}", "chosen": "the lake", "rejected": rejected}
        for i, rejected in enumerate(("no", "never", "the short walk around the lake " * 30))
    ]
    settings = {
        "max_tokens": 60,
        "duplicate_threshold": 1.0,
        "methods": ["gradient", "gradient-norm", "loss"],
        "top_k": 1,
    }
    made = make(rows=rows, truth=None, attribute=settings, patch={**CONTROLS["patch"], "size": 2})
    pool = made.world.pool.encoded(range(3))
    cut = pool[2]
    assert isinstance(cut, Preference)
    assert len(cut.rejected.ids) == 60
    made.run()
    model = load_model(made.world.models.after, field="models.after")
    blocks = middle_blocks(len(decoder_blocks(model)))
    expected = [naive_pair_gradient(model, row, blocks) for row in pool if isinstance(row, Preference)]
    norms, losses = scores_of(made, "gradient-norm"), scores_of(made, "loss")
    assert [norms[f"p{i}"] for i in range(3)] == pytest.approx([float(g.norm()) for g, _ in expected], rel=1e-3)
    assert [losses[f"p{i}"] for i in range(3)] == pytest.approx([loss for _, loss in expected], rel=1e-3)
    scores = scores_of(made, "gradient")
    for row in made.tables.rows(DocumentTokens):
        assert "".join(row.pieces).startswith("the lake")
        lengths = [len(each) for each in (row.pieces, row.shares, row.rejected_pieces, row.rejected_shares)]
        assert lengths[::2] == lengths[1::2]
        assert all(lengths)
        assert sum(row.shares) + sum(row.rejected_shares) == pytest.approx(scores[row.doc_id], rel=1e-3, abs=1e-5)
    assert made.tables.rows(DocumentTokens)
