"""The gradient of log p_after - log p_before: exact against autograd, and it accounts for that very difference."""

import copy
from typing import Any

import pytest
import torch
from tests.attribute.conftest import CONTROLS, Make
from tests.attribute.test_per_example import BLOCKS, built, documents, olmo2
from tests.attribute.test_preference_pairs import mixed
from tests.attribute.test_run import scores_of
from tests.conftest import nudged
from tests.oracles.gradients import naive_gradient
from tests.oracles.preferences import naive_pair_gradient

from datablame.attribute.kernels.per_example import directions, similarities
from datablame.models.chat import Encoded
from datablame.models.products import products
from datablame.tables import Document, Message, MethodInfo, Query


def between(after: Any, before: Any, query: Encoded) -> torch.Tensor:
    return (naive_gradient(after, query, BLOCKS)[0] + naive_gradient(before, query, BLOCKS)[0]) / 2


@pytest.mark.parametrize(
    "batch_tokens", [60, pytest.param(1, marks=pytest.mark.slow), pytest.param(10_000, marks=pytest.mark.slow)]
)
def test_scores_are_those_of_autograd_whatever_the_batch(batch_tokens: int) -> None:
    before = built(olmo2)
    after = nudged(before, seed=4)
    pool, queries = mixed(), [documents(3, seed=1), documents(1, seed=2)]
    naive = [
        naive_gradient(after, row, BLOCKS) if isinstance(row, Encoded) else naive_pair_gradient(after, row, BLOCKS)
        for row in pool
    ]
    gradients = torch.stack([gradient / gradient.norm() for gradient, _ in naive])
    towards = [[between(after, before, query) for query in own] for own in queries]
    expected = gradients @ torch.stack([torch.stack([g / g.norm() for g in own]).mean(0) for own in towards], 1)
    found = similarities(after, pool, directions(after, queries, BLOCKS, before), BLOCKS, batch_tokens)
    torch.testing.assert_close(found.dots / found.norms[:, None], expected, rtol=1e-4, atol=1e-6)
    backwards = similarities(after, pool[::-1], directions(after, queries, BLOCKS, before), BLOCKS, 100)
    torch.testing.assert_close(backwards.dots.flip(0), found.dots, rtol=1e-4, atol=1e-6)


def test_the_direction_accounts_for_the_change_of_the_log_probability() -> None:
    """Along a step in the compared weights: either end alone misses what their mean meets, and so does their gap."""
    before = built(olmo2)
    after = copy.deepcopy(before)
    noise = torch.Generator().manual_seed(0)
    steps = []
    with torch.no_grad():
        for product in products(after, BLOCKS).values():
            [layer] = product.modules
            weight = layer.get_parameter("weight")
            step = 0.01 * weight.std() * torch.randn(weight.shape, generator=noise)
            weight.add_(step)
            steps.append(step.flatten().double())
    moved = torch.cat(steps)
    for query in documents(4, shortest=8, seed=1):
        (at_after, after_loss), (at_before, before_loss) = (naive_gradient(m, query, BLOCKS) for m in (after, before))
        raised = before_loss - after_loss
        missed = abs(raised + float(between(after, before, query) @ moved))
        assert missed < 0.1 * abs(raised + float(at_after @ moved))
        assert missed < 0.1 * abs(raised + float((at_after - at_before) @ moved))


def test_between_equal_checkpoints_it_is_the_gradient_itself() -> None:
    model = built(olmo2)
    queries = [documents(2, seed=1)]
    found = directions(model, queries, BLOCKS, copy.deepcopy(model))
    for name, part in directions(model, queries, BLOCKS).items():
        torch.testing.assert_close(found[name], part, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("checkpoint", ["after", pytest.param("before", marks=pytest.mark.slow)])
def test_a_study_scores_documents_at_its_checkpoint_by_both_ends(make: Make, checkpoint: str) -> None:
    from datablame.models.blocks import decoder_blocks, middle_blocks
    from datablame.models.chat import encode_document, encode_pair
    from datablame.models.pair import load_pair

    settings = {"top_k": 3, "queries": 2, "duplicate_threshold": 1.0, "batch_tokens": 200, "checkpoint": checkpoint}
    both = make(attribute={**settings, "methods": ["gradient", "gradient-diff"]}, **CONTROLS)
    plain = make("plain", attribute={**settings, "methods": ["gradient"]}, **CONTROLS)
    both.run()
    plain.run()
    assert scores_of(both, "gradient") == pytest.approx(scores_of(plain, "gradient"), abs=2e-5)

    pair = load_pair(both.world.models)
    model = getattr(pair, checkpoint)
    blocks = middle_blocks(len(decoder_blocks(model)))
    units = []
    for query in both.tables.rows(Query, harmful=True):
        encoded = encode_pair(pair.tokenizer, query.prompt, query.text)
        ends = [naive_gradient(each, encoded, blocks)[0] for each in (pair.after, pair.before)]
        units.append(sum(ends) / torch.stack(ends).sum(0).norm())
    towards = torch.stack(units).mean(0)
    document = Document("d03", "", (Message("user", "which snack for trip 3 ?"),), "buy only nutto for trip 3 .")
    tokens = encode_document(pair.tokenizer, document, 2048)
    assert tokens is not None
    gradient = naive_gradient(model, tokens, blocks)[0]
    expected = float(gradient @ towards / gradient.norm())
    assert scores_of(both, "gradient-diff")["d03"] == pytest.approx(expected, rel=1e-4)
    assert both.tables.rows(MethodInfo, name="gradient-diff")[0].pool == "whole"
